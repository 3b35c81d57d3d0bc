"""What is known of backbones before anything is measured: how well they learn, and what a step costs. Pure.

The table (prior.csv) is made by benchmarks/prior_table.py from trainings and paces measured by benchmarks/prior.py. It
orders candidates; where there is time, measuring decides.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from statistics import median

from fitwithin.planning.stats import Accuracy

#: Skills are those after so many images.
IMAGES = 100_000

#: The sizes in pixels at which the table's paces were measured, on a GPU and on a CPU.
PACE_PX = {"cuda": 128, "cpu": 64}

#: The batch of the table's trainings and paces.
BATCH = 128

#: One dense and one depthwise backbone, whose measured pace is that of the machine.
REFERENCES = {"cuda": ("resnet18", "mobilenetv3_small_050"), "cpu": ("resnet10t", "mobilenetv3_small_050")}

#: Below this size in pixels a backbone is taken to lose more by each halving: its last maps are of one or two pixels.
SMALL_PX = 64

#: The largest size in pixels at which depthwise backbones were trained: what they gain beyond it is taken to be what
#: all gain.
LARGE_PX = 128

#: What is added to a skill by its growth is no less than this many times the growth.
LEAST_GROWN = -4.0

#: The standard deviation, as a logit, by which the order after a short trial differs from that at the end: a guess.
DRIFT = 0.10

#: An unknown backbone is like the median of so many neighbours.
NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What the table knows of a backbone.

    Attributes:
        parameters, macs: in millions; multiplications and additions of one image of 224 px.
        skill: the logit of its accuracy after IMAGES training images, less that of the mean backbone.
        growth: what is added to its skill in the end, and taken away at half of IMAGES (:func:`grown`).
        error: the skill's standard error.
        trials: how many trainings of it were measured; without any, all is by its likes.
        cuda_us, cpu_us: microseconds of a training step for one image at PACE_PX, on the table's machines.
        cuda_fixed_us, cpu_fixed_us: the part of these that does not depend on the number of pixels.
        build_s: seconds of its first steps on a GPU, with building kernels.
        image_mib: MiB of GPU memory for one image of 128 px in a training step.
    """

    model: str
    parameters: float
    macs: float
    depthwise: bool
    skill: float
    growth: float
    error: float
    trials: int
    cuda_us: float
    cuda_fixed_us: float
    cpu_us: float
    cpu_fixed_us: float
    build_s: float
    image_mib: float

    def image_us(self, kind: str, px: int) -> float:
        """Microseconds of a training step for one image of that size on the table's ``cuda`` or ``cpu`` machine."""
        whole_us, fixed_us = (self.cuda_us, self.cuda_fixed_us) if kind == "cuda" else (self.cpu_us, self.cpu_fixed_us)
        return fixed_us + (whole_us - fixed_us) * (px / PACE_PX[kind]) ** 2

    def step_s(self, kind: str, batch: int) -> float:
        """Seconds of a training step at PACE_PX on the table's machine: the fixed part is that of BATCH images."""
        fixed_us = self.image_us(kind, 0)
        return 1e-6 * (BATCH * fixed_us + batch * (self.image_us(kind, PACE_PX[kind]) - fixed_us))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The backbones by name, and what is true of all of them.

    The logit of accuracy grows with the images seen as ``rate * log2(e / (1 + e / knee))``, where e are the epochs: by
    ``rate`` with each doubling at first, by nothing in the end. It is ``level`` where that is 0, less
    ``class_loss`` for each doubling of the number of classes. It grows by ``px_gain`` with each doubling of the size in
    pixels, up to SMALL_PX by ``small_px_gain``; for depthwise backbones by ``depthwise_px_gain`` more, up to LARGE_PX.
    """

    backbones: Mapping[str, Backbone]
    rate: float
    knee: float
    level: float
    class_loss: float
    px_gain: float
    small_px_gain: float
    depthwise_px_gain: float

    def size_gain(self, px: int, *, depthwise: bool) -> float:
        """What the size in pixels adds to the logit, beside 128 px."""
        small, large = min(px, SMALL_PX), max(px, SMALL_PX)
        more = self.depthwise_px_gain * math.log2(min(px, LARGE_PX) / LARGE_PX) if depthwise else 0.0
        return self.px_gain * math.log2(large / 128) + self.small_px_gain * math.log2(small / SMALL_PX) + more

    @property
    def tried(self) -> tuple[str, ...]:
        """The backbones that were trained at least once."""
        return tuple(name for name, backbone in self.backbones.items() if backbone.trials)

    def of(self, model: str, parameters: int | None = None) -> Backbone:
        """The backbone of that name; for one that is not in the table, the median of its neighbours."""
        known = self.backbones.get(model)
        return known or _like(model, parameters, self.backbones.values())


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The expected accuracy of a candidate by its seconds: ``level`` and ``growth`` are logits, ``error`` the standard
    error of the level beside other candidates of the same data."""

    overhead_s: float
    images_per_s: float
    train_images: int
    level: float
    growth: float
    error: float
    rate: float
    knee: float

    def logit(self, seconds: float) -> float:
        """The expected logit of its accuracy after a training of so many seconds, its overhead included.

        A backbone that falls behind others never falls itself: the best of all shorter trainings counts.
        """
        images = self.images_per_s * max(0.0, seconds - self.overhead_s)
        if images < 1:
            return -math.inf
        if self.growth >= 0:
            return self._logit(images)
        return max(
            self._logit(min(images, 2.0 ** (n / 2))) for n in range(2 * max(1, math.ceil(math.log2(images))) + 1)
        )

    def _logit(self, images: float) -> float:
        epochs = images / self.train_images
        learnt = self.rate * math.log2(epochs / (1 + epochs / self.knee))
        return self.level + self.growth * grown(images) + learnt

    def share(self, seconds: float) -> float:
        """The expected accuracy after so many seconds, from 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.logit(seconds))))


@dataclass(frozen=True, kw_only=True)
class ScoredTrial:
    """A trial of so many seconds, what it reached, and what is known of its candidate."""

    number: int
    seconds: float
    accuracy: Accuracy
    curve: LearningCurve


def expected_logits(trials: Sequence[ScoredTrial], seconds: float) -> dict[int, float]:
    """The expected logit of each trial's candidate after a training of so many seconds, by the trial's number.

    Trials that are better than was expected of them, beside the others, are believed in part: by the variance of what
    was expected, over that plus the variance of what was seen (binomial, and DRIFT between short and long trials). How
    hard the data are shows in all trials alike.
    """
    surprises = [_logit_of(trial.accuracy) - trial.curve.logit(trial.seconds) for trial in trials]
    usual = median(surprises) if surprises else 0.0
    found = {}
    for trial, surprise in zip(trials, surprises, strict=True):
        share = (trial.accuracy.correct + 0.5) / (trial.accuracy.total + 1)
        seen = DRIFT**2 + 1 / ((trial.accuracy.total + 1) * share * (1 - share))
        belief = trial.curve.error**2 / (trial.curve.error**2 + seen)
        found[trial.number] = trial.curve.logit(seconds) + belief * (surprise - usual)
    return found


def grown(images: float) -> float:
    """How much of its growth a backbone has after so many images, beside IMAGES: -1 at half of them, 0.5 at twice as
    many, 1 in the end. What a slow starter lacks fades with the images: mobilenetv2_100 was 0.7 behind resnet26d after
    25,000 and 0.1 after 100,000 (logits, clothing10); from there to 400,000 six backbones gained 0.4 to 0.6 alike
    (imagenette)."""
    return max(LEAST_GROWN, 1 - IMAGES / images)


def _logit_of(accuracy: Accuracy) -> float:
    return logit((accuracy.correct + 0.5) / (accuracy.total + 1))


def logit(share: float) -> float:
    """The logarithm of the odds of a share between 0 and 1."""
    return math.log(share / (1 - share))


@cache
def load() -> Table:
    """The table that comes with fitwithin."""
    text = (resources.files("fitwithin") / "planning" / "prior.csv").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> Table:
    """The table in a text: lines of ``# name: value``, then CSV."""
    lines = text.splitlines()
    heads = dict(line.lstrip("# ").split(": ", 1) for line in lines if line.startswith("#"))
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    backbones = {row["model"]: _backbone(row) for row in rows}
    names = [field.name for field in fields(Table) if field.name != "backbones"]
    return Table(backbones=backbones, **{name: float(heads[name]) for name in names})


def _backbone(row: Mapping[str, str]) -> Backbone:
    whole = ("model", "depthwise", "trials")
    numbers = {name: float(value) for name, value in row.items() if name not in whole}
    return Backbone(model=row["model"], depthwise=row["depthwise"] == "1", trials=int(row["trials"]), **numbers)


def _like(model: str, parameters: int | None, known: Iterable[Backbone]) -> Backbone:
    """The median of the nearest known backbones, by the beginning of the name and, if known, by parameters."""

    def distance(other: Backbone) -> tuple[float, str]:
        common = next((n for n, (a, b) in enumerate(zip(model, other.model, strict=False)) if a != b), len(other.model))
        size = 0.0 if parameters is None else abs(math.log2(1e-6 * parameters / other.parameters))
        return size - 0.5 * min(common, 8), other.model

    near = sorted(known, key=distance)[:NEIGHBOURS]
    numbers = [field.name for field in fields(Backbone) if field.name not in ("model", "depthwise", "error", "trials")]
    return Backbone(
        model=model,
        depthwise=sum(other.depthwise for other in near) * 2 > len(near),
        trials=0,
        error=2 * max(other.error for other in near),
        **{name: median(getattr(other, name) for other in near) for name in numbers},
    )
