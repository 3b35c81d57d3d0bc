"""How candidates are trained: the values of a recipe, read from TOML. Limits live in budget.py, not here."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fitwithin.candidate import LAYOUTS, PRECISIONS
from fitwithin.errors import UsageError
from fitwithin.files import decode

#: Ways down from the peak rate.
SCHEDULES = ("cosine", "linear")


#: Ways to choose a batch; a number is another.
BATCHES = ("largest", "knee")

OPTIMIZERS = ("adamw", "muon")

#: The recipe of whoever names none.
DEFAULT = "fast"


#: Progressive resizing has no smaller images: after a stride of 32 the last kernels of 3x3 would see one pixel and its
#: padding. (Gradients of these in bfloat16 hold what was in memory before: torch 2.14.1 on a CPU.)
SMALLEST_PX = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training. ``lr`` holds at a batch of ``lr_base_size``; without ``max_batch`` as many as fit are taken.

    ``crop_scale`` and ``crop_ratio`` are RandomResizedCrop's area share and aspect range, ``flip`` the probability of
    mirroring, ``crop_pct`` the centre share used in evaluation, ``validate_last_epochs`` how many of the last epochs
    validate. Where one budget is split over candidates, only so many are kept that each gets ``min_epochs``.

    The learning rate rises over the share ``warmup`` of the steps and then falls to 0 along ``schedule`` (one of
    SCHEDULES); ``optimizer`` is one of OPTIMIZERS; without ``decay_norms`` norms and biases are not decayed;
    ``label_smoothing`` is label smoothing's share; with ``clip_grad`` gradients whose norm, over all parameters, is
    larger are scaled down to it.

    On the device, an image's brightness, contrast and saturation are drawn from 1 - ``color_jitter`` to 1 +
    ``color_jitter``, and with probability ``cutmix`` a box of it is filled from another image, whose label counts by
    the box's share. Turns of fewer than ``augment_epochs`` have less of both, in proportion: few epochs are better
    spent on plain images.

    ``progressive_resizing`` is progressive resizing: pairs of a share of the steps and a share of the training size (a
    side, in pixels); from that step on images have that size. The last pair has the whole size; without any all have
    it.

    Where a candidate is trained several times, longer each time, ``warm_start`` lets it go on from the weights that it
    reached before; else it begins anew.

    Models are tested at their training sizes times ``test_scales`` unless a run asks for other sizes.

    ``precisions`` (on the CPU ``cpu_precisions``, if given) and ``layouts`` make the grid unless a run asks for others;
    with ``compare_variants`` those that lose by more than the noise at a small batch are not profiled. ``batch`` is
    ``largest``, ``knee`` (the smallest batch that comes near the best throughput), or a number of images per update
    that is held for all candidates by accumulating gradients where it does not fit at once.
    """

    name: str
    lr: float
    lr_base_size: int
    weight_decay: float
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    crop_pct: float
    validate_last_epochs: int
    min_epochs: int
    max_batch: int | None = None
    precisions: tuple[str, ...] = ("amp", "fp32")
    cpu_precisions: tuple[str, ...] | None = None
    layouts: tuple[str, ...] = ("nchw",)
    compare_variants: bool = False
    batch: str | int = "largest"
    optimizer: str = "adamw"
    decay_norms: bool = True
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    color_jitter: float = 0.0
    cutmix: float = 0.0
    augment_epochs: float = 0.0
    warm_start: bool = False
    test_scales: tuple[float, ...] = (1.0,)
    progressive_resizing: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "lr": self.lr > 0,
            "lr_base_size": self.lr_base_size >= 1,
            "weight_decay": self.weight_decay >= 0,
            "crop_scale": 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_ratio": 0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "flip": 0 <= self.flip <= 1,
            "crop_pct": 0 < self.crop_pct <= 1,
            "validate_last_epochs": self.validate_last_epochs >= 1,
            "min_epochs": self.min_epochs >= 1,
            "max_batch": self.max_batch is None or self.max_batch >= 2,
            "precisions": bool(self.precisions) and set(self.precisions) <= set(PRECISIONS),
            "cpu_precisions": self.cpu_precisions is None
            or (bool(self.cpu_precisions) and set(self.cpu_precisions) <= set(PRECISIONS)),
            "layouts": bool(self.layouts) and set(self.layouts) <= set(LAYOUTS),
            "optimizer": self.optimizer in OPTIMIZERS,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "clip_grad": self.clip_grad is None or self.clip_grad > 0,
            "schedule": self.schedule in SCHEDULES,
            "warmup": 0 <= self.warmup < 1,
            "color_jitter": 0 <= self.color_jitter <= 1,
            "cutmix": 0 <= self.cutmix <= 1,
            "test_scales": bool(self.test_scales) and all(0.5 <= scale <= 2 for scale in self.test_scales),
            "augment_epochs": 0 <= self.augment_epochs < math.inf,
            "progressive_resizing": _rises(self.progressive_resizing),
            "batch": self.batch >= 2 if isinstance(self.batch, int) else self.batch in BATCHES,
        }
        for field, fine in checks.items():
            if not fine:
                raise UsageError(f"recipe {self.name!r}: {field} = {getattr(self, field)!r} is out of its range")

    def learning_rate(self, batch: int) -> float:
        """The peak learning rate at ``batch``: scaled by the square root of its ratio to ``lr_base_size``.

        The square-root rule for Adam-like optimizers is timm's (train.py, ``--lr-base-scale sqrt``); the paper says
        only that the rate was adapted to the batch.
        """
        return self.lr * math.sqrt(batch / self.lr_base_size)

    def over(self, epochs: float) -> Recipe:
        """This recipe for a turn that is planned for so many epochs: the shorter, the less it augments."""
        share = min(1.0, epochs / self.augment_epochs) if self.augment_epochs else 1.0
        return replace(self, color_jitter=share * self.color_jitter, cutmix=share * self.cutmix)

    def stages(self, train_px: int) -> tuple[tuple[float, int], ...]:
        """``(share of the steps, px)`` of each stage, ascending in both: always one at least, the last at ``train_px``.

        Sizes are multiples of 32 pixels, the stride of most backbones, for a training size of 128 or more, else of 8.
        None is below SMALLEST_PX.
        """
        stages: list[tuple[float, int]] = []
        for since, share in self.progressive_resizing or ((0.0, 1.0),):
            px = min(max(_scaled(train_px, share), SMALLEST_PX), train_px)
            if not stages or px > stages[-1][1]:
                stages.append((since, px))
        return tuple(stages)

    def view_sizes(self, trained: Sequence[int]) -> list[int]:
        """The sizes in pixels to test at where models are ``trained`` at these."""
        return sorted({_scaled(px, scale) for px in trained for scale in self.test_scales})

    def precisions_on(self, device: str) -> tuple[str, ...]:
        """The grid's precisions on a device."""
        return self.cpu_precisions if device == "cpu" and self.cpu_precisions else self.precisions

    @property
    def flips(self) -> bool:
        """Whether mirrored images are of the same class under this recipe."""
        return self.flip > 0


def _scaled(px: int, scale: float) -> int:
    """A size in whole strides of 32 pixels, or of 8 where ``px`` is below 128; ``px`` itself for a scale of 1."""
    grain = 32 if px >= 128 else 8
    return px if scale == 1 else max(grain, round(scale * px / grain) * grain)


def _rises(progress: tuple[tuple[float, float], ...]) -> bool:
    """Whether stages begin at the first step, ascend, and end at the whole size."""
    if not progress:
        return True
    if any(len(pair) != 2 for pair in progress):
        return False
    since, shares = [pair[0] for pair in progress], [pair[1] for pair in progress]
    rising = all(a < b for column in (since, shares) for a, b in itertools.pairwise(column))
    return rising and since[0] == 0 and since[-1] < 1 and shares[0] > 0 and shares[-1] == 1


_SECTIONS = {"optimizer", "augment", "evaluate", "plan"}


def names() -> list[str]:
    """The recipes that ship with fitwithin."""
    folder = resources.files("fitwithin") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """The recipe of that name, or of that TOML file.

    Raises:
        UsageError: there is no such recipe, or a key is unknown, missing or out of range.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {name!r}")
        text = path.read_text(encoding="utf-8")
    elif name in names():
        text = (resources.files("fitwithin") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UsageError(f"there is no recipe {name!r}; choose from {', '.join(names())}, or give a .toml file")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name!r} is not valid TOML: {error}") from error
    values: dict[str, Any] = {"name": Path(name).stem}
    for section, entries in table.items():
        if section not in _SECTIONS or not isinstance(entries, dict):
            raise UsageError(f"recipe {name!r}: unknown section [{section}]; known are {', '.join(sorted(_SECTIONS))}")
        for key, value in entries.items():
            values[key] = value
    try:
        return decode(Recipe, values)
    except ValueError as error:
        raise UsageError(f"recipe {name!r}: {error}") from error
