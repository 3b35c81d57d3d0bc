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
from fitwithin.machine import DeviceName

#: How the learning rate falls from its peak to 0.
SCHEDULES = ("cosine", "linear")

#: How a batch is chosen; a number is another way.
BATCHES = ("largest", "knee")

OPTIMIZERS = ("adamw", "muon")

#: What a square input shows of a picture: its centre square, all of it with borders, or all of it with its sides scaled
#: to be alike; in training random parts of that.
FITS = ("crop", "pad", "squash")

#: Where weights come from at first: drawn, or pretrained.
INITS = ("random", "pretrained")

#: The recipe where none is named.
DEFAULT = "fast"

#: The smallest size of progressive resizing, in pixels. Below it the last 3x3 kernels at a stride of 32 see one pixel
#: and padding; their gradients in bfloat16 are then uninitialized memory (torch 2.14.1 on a CPU).
SMALLEST_PX = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training. UsageError if a value is out of its range."""

    name: str
    #: The peak learning rate at a batch of ``lr_base_size`` images; see :meth:`learning_rate`.
    lr: float
    lr_base_size: int
    weight_decay: float
    #: RandomResizedCrop's least and largest share of the area, and its range of aspect ratios.
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    #: The probability that an image is mirrored.
    flip: float
    #: The share of the side that evaluation crops from the centre.
    crop_pct: float
    #: How many of the last epochs validate.
    validate_last_epochs: int
    #: Where candidates share a budget, only as many are kept as get this many epochs each.
    min_epochs: int
    #: One of FITS.
    fit: str = "crop"
    #: One of INITS.
    init: str = "random"
    #: The recipe that is taken instead where pretrained weights promise more; without one they never are.
    transfer: str = ""
    #: The learning rate of each block of layers is this many times that of the block above it; the head has the whole
    #: rate (ELECTRA, Clark et al., ICLR 2020).
    layer_decay: float = 1.0
    #: Batch norms keep the statistics of their pretrained weights, in training as in evaluation.
    freeze_norms: bool = False
    #: The backbones and training sizes that are tried unless a run asks for others. Without any they are chosen for the
    #: data, the machine and the time.
    models: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    #: The most images of a batch; None: as many as fit.
    max_batch: int | None = None
    #: The precisions of the grid unless a run asks for others; ``cpu_precisions`` are those on the CPU, if given.
    precisions: tuple[str, ...] = ("amp", "fp32")
    cpu_precisions: tuple[str, ...] | None = None
    #: The memory layouts of the grid on a GPU.
    layouts: tuple[str, ...] = ("nchw",)
    #: Whether a backbone's precisions and layouts are compared at a small batch first: those that are slower by more
    #: than the noise are not profiled.
    compare_variants: bool = False
    #: ``largest``; ``knee``, the smallest batch that comes near the best throughput; or a number of images per update,
    #: the same for all candidates: gradients are accumulated where it does not fit at once.
    batch: str | int = "largest"
    #: One of OPTIMIZERS.
    optimizer: str = "adamw"
    #: Whether weight decay applies to norms and biases.
    decay_norms: bool = True
    label_smoothing: float = 0.0
    #: The largest norm of the gradients over all parameters; larger ones are scaled down to it. None: no limit.
    clip_grad: float | None = None
    #: One of SCHEDULES.
    schedule: str = "cosine"
    #: The share of the steps over which the learning rate rises to its peak.
    warmup: float = 0.0
    #: Brightness, contrast and saturation are drawn from 1 - ``color_jitter`` to 1 + ``color_jitter``, on the device.
    color_jitter: float = 0.0
    #: The probability that a box of an image is filled from another one, whose label counts by the box's share.
    cutmix: float = 0.0
    #: Trials of fewer epochs have less colour jitter and CutMix, in proportion: few epochs are better spent on plain
    #: images.
    augment_epochs: float = 0.0
    #: Whether a later trial of a candidate starts from the weights of the one before.
    warm_start: bool = False
    #: Models are evaluated at the training sizes times these, unless a run asks for other sizes.
    test_scales: tuple[float, ...] = (1.0,)
    #: So many other models of the run are evaluated, where time is left, as members of the ensemble.
    members: int = 0
    #: Pairs of a share of the steps and a share of the training size (a side, in pixels): from that step on images have
    #: that size. The last pair has the whole size. Without any pair all images have it.
    progressive_resizing: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "init": self.init in INITS,
            "layer_decay": 0 < self.layer_decay <= 1,
            "lr": self.lr > 0,
            "lr_base_size": self.lr_base_size >= 1,
            "weight_decay": self.weight_decay >= 0,
            "crop_scale": 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_ratio": 0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "flip": 0 <= self.flip <= 1,
            "crop_pct": 0 < self.crop_pct <= 1,
            "fit": self.fit in FITS,
            "validate_last_epochs": self.validate_last_epochs >= 1,
            "min_epochs": self.min_epochs >= 1,
            "sizes": all(8 <= px <= 1024 for px in self.sizes),
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
            "members": self.members >= 0,
            "augment_epochs": 0 <= self.augment_epochs < math.inf,
            "progressive_resizing": _rises(self.progressive_resizing),
            "batch": self.batch >= 2 if isinstance(self.batch, int) else self.batch in BATCHES,
        }
        for field, valid in checks.items():
            if not valid:
                raise UsageError(f"recipe {self.name!r}: {field} = {getattr(self, field)!r} is out of its range")

    def learning_rate(self, batch: int) -> float:
        """The peak learning rate at ``batch``: scaled by the square root of its ratio to ``lr_base_size``.

        The square-root rule for Adam-like optimizers is timm's (train.py, ``--lr-base-scale sqrt``); the paper says
        only that the rate was adapted to the batch.
        """
        return self.lr * math.sqrt(batch / self.lr_base_size)

    def for_epochs(self, epochs: float) -> Recipe:
        """This recipe for a trial of so many epochs: the shorter the trial, the less it augments."""
        share = min(1.0, epochs / self.augment_epochs) if self.augment_epochs else 1.0
        return replace(self, color_jitter=share * self.color_jitter, cutmix=share * self.cutmix)

    def stages(self, train_px: int) -> tuple[tuple[float, int], ...]:
        """``(share of the steps, px)`` of each stage, ascending in both; the last has ``train_px``.

        Sizes are multiples of 32 pixels, the stride of most backbones, for a training size of 128 or more, else of 8.
        """
        stages: list[tuple[float, int]] = []
        for since, share in self.progressive_resizing or ((0.0, 1.0),):
            px = min(max(_scaled(train_px, share), SMALLEST_PX), train_px)
            if not stages or px > stages[-1][1]:
                stages.append((since, px))
        return tuple(stages)

    def test_sizes(self, trained: Sequence[int]) -> list[int]:
        """The sizes in pixels to evaluate at where models are ``trained`` at these."""
        return sorted({_scaled(px, scale) for px in trained for scale in self.test_scales})

    def precisions_on(self, device: DeviceName) -> tuple[str, ...]:
        """The grid's precisions on a device."""
        return self.cpu_precisions if self.cpu_precisions and not device.is_cuda else self.precisions

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
    since, shares = zip(*progress, strict=True)
    rising = all(a < b for column in (since, shares) for a, b in itertools.pairwise(column))
    return rising and since[0] == 0 and since[-1] < 1 and shares[0] > 0 and shares[-1] == 1


_SECTIONS = {"optimizer", "augment", "evaluate", "plan"}


def names() -> list[str]:
    """The recipes that ship with fitwithin."""
    folder = resources.files("fitwithin") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Recipe:
    """The recipe of that name, or in that TOML file.

    Raises:
        UsageError: there is no such recipe, or a key is unknown, missing or out of range.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {name!r}; give another path")
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
        values |= entries
    try:
        return decode(Recipe, values)
    except ValueError as error:
        raise UsageError(f"recipe {name!r}: {error}") from error
