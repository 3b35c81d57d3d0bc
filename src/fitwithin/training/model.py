"""timm backbones: built for a candidate, saved with everything needed to use them, and read back."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import PatchEmbed
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fitwithin.candidate import LAYOUTS, Candidate
from fitwithin.data.framing import CROP_MODES, Frame
from fitwithin.engine.results import CARD, WEIGHTS
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.files import write_atomic, write_text_atomic

#: Channel means and deviations of ImageNet, as timm uses them; trained from scratch, any fixed values would do.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


#: The largest number that is kept of a feature: float16 ends there.
LARGEST = 65504.0


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a saved model needs to be used: its backbone, classes in order, training size, and frame."""

    model: str
    classes: tuple[str, ...]
    train_px: int
    precision: str
    frame: Frame
    arguments: dict[str, Any]
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    #: One of LAYOUTS: the faster one on the GPU where it was trained.
    layout: str = LAYOUTS[0]

    def config(self, net: nn.Module) -> dict[str, Any]:
        """As timm's ``config.json`` (timm.models.save_for_hf), so that ``timm.create_model("local-dir:...")`` reads it;
        what timm has no word for stands under ``fitwithin``."""
        own: Any = net.pretrained_cfg
        return {
            "architecture": self.model.partition(".")[0],
            "num_classes": len(self.classes),
            "num_features": net.num_features,
            "label_names": self.classes,
            "model_args": self.arguments,
            "pretrained_cfg": {
                "num_classes": len(self.classes),
                "input_size": (3, self.train_px, self.train_px),
                "fixed_input_size": "img_size" in self.arguments,
                "interpolation": "bilinear",
                "crop_pct": self.frame.crop,
                "crop_mode": CROP_MODES[self.frame.fit],
                "mean": self.mean,
                "std": self.std,
                "first_conv": own.get("first_conv"),
                "classifier": own.get("classifier"),
            },
            "fitwithin": {
                "model": self.model,
                "train_px": self.train_px,
                "precision": self.precision,
                "layout": self.layout,
            },
        }


def read_card(folder: Path) -> Card:
    """The card of the model in a folder; RunFolderError if there is none."""
    try:
        config = json.loads((folder / CARD).read_text(encoding="utf-8"))
        own = config["pretrained_cfg"]
        return Card(
            classes=tuple(config["label_names"]),
            frame=Frame.of_config(own),
            arguments=config["model_args"],
            mean=tuple(own["mean"]),
            std=tuple(own["std"]),
            **config["fitwithin"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"there is no model of fitwithin in {folder} ({CARD}: {error!r})") from error


def build(candidate: Candidate, classes: int, sizes: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """An untrained backbone for all ``sizes`` (pixels), and the extra arguments timm needed for that.

    A model of a fixed input size is built for the one size, or else with ``dynamic_img_size``.

    Raises:
        UsageError: a size is too small for the model or no multiple of its patch, or it cannot change between them.
    """
    config = timm.get_pretrained_cfg(candidate.model)
    least = max(config.min_input_size[1:]) if config is not None and config.min_input_size else 0
    if min(sizes) < least:
        raise UsageError(f"{candidate.model} takes at least {least} px, {min(sizes)} px were asked for")
    arguments: dict[str, Any] = {}
    if config is not None and config.fixed_input_size:
        arguments = {"img_size": sizes[0]} if len(set(sizes)) == 1 else {"dynamic_img_size": True}
    try:
        net = timm.create_model(candidate.model, pretrained=False, num_classes=classes, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in arguments:
            raise
        wanted = ", ".join(str(px) for px in sorted(set(sizes)))
        own = config.input_size[-1] if config is not None else candidate.train_px
        raise UsageError(
            f"{candidate.model} has a fixed input size and cannot change between {wanted} px; "
            f"give --recipe paper --sizes {own} --test-sizes {own}"
        ) from error
    embedding = getattr(net, "patch_embed", None)
    if isinstance(embedding, PatchEmbed) and not embedding.dynamic_img_pad:
        patch = max(embedding.patch_size)
        if refused := [str(px) for px in sorted(set(sizes)) if px % patch]:
            raise UsageError(
                f"{candidate.model} takes multiples of {patch} px, not {', '.join(refused)} px; give --recipe paper "
                f"(no smaller sizes at first) with --sizes and --test-sizes that are multiples of {patch}"
            )
    return net, arguments


class Normalise:
    """Pixels as a model takes them: by its channels' means and deviations, on ``device``."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, memory_format: torch.memory_format
    ) -> None:
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
        self._device, self._format = device, memory_format

    def floats(self, x_bhwc: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3] of 0 to 255 as floats [B, 3, H, W] on the device, not normalised yet."""
        x_bchw = x_bhwc.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return x_bchw.to(torch.float32, memory_format=self._format)

    def __call__(self, x_bchw: torch.Tensor) -> torch.Tensor:
        """Floats [B, 3, H, W], normalised in place."""
        return x_bchw.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made under it, as long as they are alive."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {each.untyped_storage()._cdata for each in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def weight_bytes(net: nn.Module) -> int:
    """The bytes of a net's parameters and buffers."""
    return sum(each.numel() * each.element_size() for each in net.state_dict().values())


def bytes_made(net: nn.Module, work: Callable[[], object]) -> int:
    """The bytes of the tensors that ``work`` with the net makes and that are alive at a time, without what kernels need
    to work."""
    with _Alive(net.state_dict().values()) as alive:
        work()
    return int(alive.peak)


class LastFeatures:
    """While it is entered it has ``seen`` what went last into the net's last linear layer: [B, D]. None for a net that
    does not end in one."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: torch.Tensor | None = None
        self._head = net.get_classifier()  # type: ignore[operator]

    def _see(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen = inputs[0] if inputs[0].ndim == 2 else None

    def as_half(self) -> npt.NDArray[np.float16]:
        """What was seen, as it is kept: within the range of float16."""
        assert self.seen is not None
        found: npt.NDArray[np.float16] = self.seen.float().clamp(-LARGEST, LARGEST).to(torch.float16).cpu().numpy()
        return found

    def __enter__(self) -> Self:
        self._hook = None
        if isinstance(self._head, nn.Linear):
            self._hook = self._head.register_forward_pre_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()


def nearest_distance(features_BD: torch.Tensor, known_MD: torch.Tensor) -> torch.Tensor:
    """How far each row is from the nearest of the known ones, by cosine: [B], from 0 to 2. The ``known`` rows have a
    length of 1.

    Of features of a classifier it tells images of other kinds apart (Sun et al., "Out-of-distribution detection with
    deep nearest neighbors", ICML 2022). Numpy's threads would be in the way of torch's: predictions took 1.6 times as
    long with them (two cores).
    """
    with torch.inference_mode():
        return 1 - (F.normalize(features_BD.float(), dim=1) @ known_MD.T).amax(1)


def parameters(model: nn.Module) -> int:
    """Learnable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def depthwise(model: nn.Module) -> bool:
    """Whether it has depthwise convolutions: with AMP in channels_last their kernels are built at run time."""
    return any(isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels for part in model.modules())


def amp_dtype(precision: str, usual: torch.dtype) -> torch.dtype | None:
    """Autocast's type; None without autocast. ``usual`` is that of plain ``amp`` on the device."""
    return {"amp": usual, "amp-bf16": torch.bfloat16}.get(precision)


def save(model: nn.Module, card: Card, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``; an older model stays whole until replaced."""
    state = {name: value.detach().to("cpu").contiguous().clone() for name, value in model.state_dict().items()}
    write_text_atomic(folder / CARD, json.dumps(card.config(model), indent=1), fsync=True)
    write_atomic(folder / WEIGHTS, lambda path: save_file(state, path), fsync=True)


def adopt(net: nn.Module, folder: str) -> None:
    """Give ``net`` the weights of the model in ``folder``, which has the same backbone; nothing without a folder."""
    if folder:
        net.load_state_dict(load_file(Path(folder) / WEIGHTS))


def average(net: nn.Module, folder: str) -> None:
    """Give ``net`` the mean of its weights and those of the model in ``folder``, which has the same backbone."""
    state = net.state_dict()
    for name, value in load_file(Path(folder) / WEIGHTS).items():
        if state[name].is_floating_point():
            state[name].lerp_(value.to(state[name].device), 0.5)  # in place: a recorded pass reads the same memory


def load(folder: Path, device: torch.device) -> tuple[nn.Module, Card]:
    """The saved model in evaluation mode on ``device``, and its card; RunFolderError if there is none."""
    card = read_card(folder)
    model = timm.create_model(card.model, pretrained=False, num_classes=len(card.classes), **card.arguments)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS, device=str(device)))
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"the weights in {folder / WEIGHTS} cannot be read ({' '.join(str(error).split())[:200]}); "
            f"copy the run's folder again"
        ) from error
    return model.to(device).eval(), card
