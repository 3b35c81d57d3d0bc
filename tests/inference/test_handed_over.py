"""The folder of a model: timm reads it, it needs nothing else of its run, and it is whole or not there."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from fitwithin.candidate import Candidate, View
from fitwithin.data.framing import Frame
from fitwithin.errors import RunFolderError
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.export.program import export
from fitwithin.inference.model import Model, hand_over
from fitwithin.recipe import FITS
from fitwithin.training import model as models

CLASSES = ("cat", "dog", "émeu", "a/b")
TRIAL, OTHER = "candidates/x", "candidates/y"


def picture(seed: int) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    small.resize((120, 90), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


REFERENCE = {f"{seed}.jpg": picture(seed) for seed in range(8)}

FAMILIES = (
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_efficientnet_gn",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "mobilenetv3_small_050",
    "resnet10t",
    "ghostnet_050",
    "levit_128s",
)


FRAME = Frame(0.95)


def handed_over(
    run: Path,
    name: str,
    sizes: tuple[int, ...] = (64,),
    frame: Frame = FRAME,
    mean: tuple[float, float, float] = (0.1, 0.2, 0.3),
) -> torch.nn.Module:
    """A run's folder with a model of that backbone; returns the net."""
    torch.manual_seed(0)
    net, arguments = models.build(Candidate(model=name, train_px=64, precision="fp32"), len(CLASSES), sizes)
    card = models.Card(
        model=name, classes=CLASSES, train_px=64, precision="fp32", frame=frame, arguments=arguments, mean=mean
    )
    (run / TRIAL).mkdir(parents=True)
    models.save(net, card, run / TRIAL)
    views = tuple(View(px=px, flip=False) for px in sizes[::-1])
    hand_over(Ensemble(candidate="x", trial=TRIAL, views=views, batch=4), run, REFERENCE)
    return net.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_creates_the_same_model_in_one_line(name: str, tmp_path: Path) -> None:
    px = 224 if name.startswith("levit") else 64
    net = handed_over(tmp_path, name, (px,))
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    x_bchw = torch.rand(2, 3, px, px)
    with torch.inference_mode():
        assert torch.equal(again(x_bchw), net(x_bchw))
    assert tuple(again.pretrained_cfg["label_names"]) == CLASSES
    data = timm.data.resolve_model_data_config(again, use_test_size=True)
    assert (tuple(data["input_size"]), data["crop_pct"], data["mean"][0]) == ((3, px, px), 0.95, 0.1)
    assert timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=7)(x_bchw).shape == (2, 7)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timms_transform_shows_it_what_training_did(name: str, fit: str, tmp_path: Path) -> None:
    """Of a picture that is scaled down, whose resampling differs by rounding alone."""
    handed_over(tmp_path, name, (64,), Frame(0.95, fit), models.MEAN)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    picture = small.resize((240, 180), Image.Resampling.BICUBIC)
    net = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(net, use_test_size=True)
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.inference_mode():
        theirs = net(transform(picture).unsqueeze(0)).softmax(-1)[0].numpy()
    ours = dict(Model(tmp_path).predict(picture)[0].top)
    assert [ours[label] for label in CLASSES] == pytest.approx(theirs.tolist(), abs=0.02)


def test_the_model_can_leave_its_run(tmp_path: Path) -> None:
    handed_over(tmp_path / "run", "test_resnet", (64, 96))
    picture = Image.new("RGB", (80, 70), "teal")
    before = Model(tmp_path / "run").predict(picture)
    shutil.move(tmp_path / "run" / "model", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    alone = Model(tmp_path / "elsewhere")
    assert alone.predict(picture) == before
    assert alone.classes == CLASSES
    assert alone.ensemble.views == (View(px=96, flip=False), View(px=64, flip=False))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A run whose ensemble has two other members, of which the second looks, twice."""
    run = tmp_path / "run"
    handed_over(run, "test_resnet", (64,))
    torch.manual_seed(1)
    net, arguments = models.build(
        Candidate(model="test_efficientnet", train_px=48, precision="fp32"), len(CLASSES), (48,)
    )
    card = models.Card(
        model="test_efficientnet", classes=CLASSES, train_px=48, precision="fp32", frame=FRAME, arguments=arguments
    )
    (run / OTHER).mkdir()
    models.save(net, card, run / OTHER)
    views = (View(px=64, flip=False), *[View(px=48, flip=True, member=2)] * 2)
    hand_over(Ensemble(candidate="x", trial=TRIAL, views=views, batch=4, members=("gone", OTHER)), run, REFERENCE)
    return run


def test_members_of_the_ensemble_look_by_their_own_means_and_sizes(three: Path, tmp_path: Path) -> None:
    assert [path.name for path in (three / "model" / "members").iterdir()] == ["2"], "who does not look stays behind"
    seen = Image.new("RGB", (80, 70), "teal")
    seen.paste("red", (0, 0, 30, 70))
    (found,) = Model(three).predict(seen)
    expected = np.zeros(len(CLASSES))
    for folder, px, flip, count in ((three / TRIAL, 64, False, 1), (three / OTHER, 48, True, 2)):
        view = View(px=px, flip=flip)
        run = tmp_path / f"alone-{px}"
        shutil.copytree(folder, run / TRIAL)
        hand_over(Ensemble(candidate="x", trial=TRIAL, views=(view,), batch=4), run, REFERENCE)
        (alone,) = Model(run).predict(seen)
        expected += count / 3 * np.array([dict(alone.top)[label] for label in CLASSES])
    assert [dict(found.top)[label] for label in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    shutil.move(three / "model", tmp_path / "elsewhere")
    shutil.rmtree(three)
    assert Model(tmp_path / "elsewhere").predict(seen) == [found]


@pytest.mark.parametrize("how", ["torch", "onnx"])
def test_an_exported_file_holds_all_members(three: Path, tmp_path: Path, how: str) -> None:
    if how == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    check = export(Model(three), how, tmp_path / "out")
    assert check.max_abs_diff < 1e-5
    assert check.same_class == check.pictures == len(REFERENCE)
    said = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in said["inputs"]] == ["images_48", "images_64"]
    assert said["inside"]["views"] == ["48 px flipped of member 2"] * 2 + ["64 px"]
    assert [member["mean"] for member in said["inside"]["members"]] == [[0.1, 0.2, 0.3], list(models.MEAN)]


def test_weights_are_kept_once_on_the_disk(tmp_path: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    name = "model.safetensors"
    assert (tmp_path / "model" / name).samefile(tmp_path / TRIAL / name)


def test_where_files_cannot_have_two_names_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("this file system has no hard links")

    monkeypatch.setattr("os.link", refuse)
    handed_over(tmp_path, "test_resnet")
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", TRIAL))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_handing_over_again_replaces_what_was_there(tmp_path: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    ensemble = Ensemble(candidate="x", trial=TRIAL, views=(View(px=32, flip=True),), batch=2)
    hand_over(ensemble, tmp_path, {})
    assert Model(tmp_path).ensemble == ensemble
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["pretrained_cfg"]["test_input_size"] == [3, 32, 32]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "ensemble.json",
        "model.safetensors",
        "references",
    ]


@pytest.mark.parametrize("text", ["", "{}", '{"architecture": "resnet18"}', "[1, 2]"])
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match="no model of fitwithin in"):
        models.read_card(tmp_path)
    with pytest.raises(RunFolderError, match="holds no finished model"):
        Model(tmp_path).predict(Image.new("RGB", (9, 9)))


def test_an_unfinished_run_has_the_model_that_was_saved_last_and_says_so(tmp_path: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(RunFolderError, match="holds no finished model"):
        Model(tmp_path)
    (tmp_path / "run.db").touch()
    shutil.copytree(tmp_path / TRIAL, tmp_path / "candidates" / "y")
    os.utime(tmp_path / TRIAL / "model.safetensors", (1, 1))
    found = Model(tmp_path)
    assert found.folder == tmp_path / "candidates" / "y"
    assert "has not finished: this is the model of y as it was saved last" in found.note
    assert found.ensemble.views == (View(px=64, flip=False),)
    assert found.predict(Image.new("RGB", (80, 70)))[0].label in CLASSES
