"""How candidates are trained: the values of a recipe, read from TOML. Limits live in budget.py, not here."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fitwithin.candidate import LAYOUTS, PRECISIONS
from fitwithin.errors import UsageError
from fitwithin.schedule import SCHEDULES

#: Ways to choose a batch; a number is another.
BATCHES = ("largest", "knee")

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of training. ``lr`` holds at a batch of ``lr_batch``; without ``max_batch`` as many as fit are taken.

    ``crop_scale`` and ``crop_ratio`` are RandomResizedCrop's area share and aspect range, ``flip`` the probability of
    mirroring, ``crop`` the centre share used in evaluation, ``last_epochs`` how many of the last epochs validate.
    Where one budget is split over candidates, only so many are kept that each gets ``worthwhile_epochs``.

    The learning rate rises over the share ``warmup`` of the steps and then falls to 0 along ``schedule`` (one of
    SCHEDULES); ``optimizer`` is one of OPTIMIZERS; without ``decay_norms`` norms and biases are not decayed;
    ``smoothing`` is label smoothing's share.

    ``precisions`` and ``layouts`` make the grid unless a run asks for others; with ``prune`` those that lose by more
    than the noise at a small batch are not profiled. ``batch`` is ``largest``, ``knee`` (the smallest batch that comes
    near the best throughput), or a number of images per update that is held for all candidates by accumulating
    gradients where it does not fit at once.
    """

    name: str
    lr: float
    lr_batch: int
    weight_decay: float
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    crop: float
    last_epochs: int
    whole_epochs: bool
    worthwhile_epochs: int
    max_batch: int | None = None
    precisions: tuple[str, ...] = ("amp", "fp32")
    layouts: tuple[str, ...] = ("nchw",)
    prune: bool = False
    batch: str | int = "largest"
    optimizer: str = "adamw"
    decay_norms: bool = True
    smoothing: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "lr": self.lr > 0,
            "lr_batch": self.lr_batch >= 1,
            "weight_decay": self.weight_decay >= 0,
            "crop_scale": 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_ratio": 0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "flip": 0 <= self.flip <= 1,
            "crop": 0 < self.crop <= 1,
            "last_epochs": self.last_epochs >= 1,
            "worthwhile_epochs": self.worthwhile_epochs >= 1,
            "max_batch": self.max_batch is None or self.max_batch >= 2,
            "precisions": bool(self.precisions) and set(self.precisions) <= set(PRECISIONS),
            "layouts": bool(self.layouts) and set(self.layouts) <= set(LAYOUTS),
            "optimizer": self.optimizer in OPTIMIZERS,
            "smoothing": 0 <= self.smoothing < 1,
            "schedule": self.schedule in SCHEDULES,
            "warmup": 0 <= self.warmup < 1,
            "batch": self.batch >= 2 if isinstance(self.batch, int) else self.batch in BATCHES,
        }
        for field, fine in checks.items():
            if not fine:
                raise UsageError(f"recipe {self.name!r}: {field} = {getattr(self, field)!r} is out of its range")

    def learning_rate(self, batch: int) -> float:
        """The peak learning rate at ``batch``: scaled by the square root of its ratio to ``lr_batch``.

        The square-root rule for Adam-like optimizers is timm's (train.py, ``--lr-base-scale sqrt``); the paper says
        only that the rate was adapted to the batch.
        """
        return self.lr * math.sqrt(batch / self.lr_batch)

    @property
    def flips(self) -> bool:
        """Whether mirrored images are of the same class under this recipe."""
        return self.flip > 0


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
            values[key] = tuple(value) if isinstance(value, list) else value
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe whose fields ``values`` holds; UsageError for a missing or unknown field."""
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - set(fields))
    missing = sorted(name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values)
    if unknown or missing:
        wrong = [f"unknown {', '.join(unknown)}"] if unknown else []
        wrong += [f"missing {', '.join(missing)}"] if missing else []
        raise UsageError(f"recipe {values.get('name')!r}: {'; '.join(wrong)}")
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Recipe(**plain)
