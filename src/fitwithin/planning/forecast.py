"""What more time would buy: a forecast from the winner's own trainings, as far as they carry one. Pure.

Accuracy is taken to grow with the logarithm of the time, as it did from the last training but one to the last; a search
that asks what a final training is worth goes by the same line (:meth:`fitwithin.planning.halving.Halving.worth_s`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.units import format_duration

#: Of a 95 % interval.
Z = 1.959964

#: So many times the run's time is looked ahead.
FACTORS = (2, 4)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A training of ``gpu_s`` GPU-seconds, after which ``correct`` of ``total`` validation images were right."""

    gpu_s: float
    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1 or not self.gpu_s > 0:
            raise ValueError(f"{self.correct} of {self.total} after {self.gpu_s:g} s is no training")

    @property
    def share(self) -> float:
        """The plain share, in [0, 1]."""
        return self.correct / self.total

    @property
    def variance(self) -> float:
        """That of a binomial share, with one image more on either side: never nothing, not even at 0 or all of them."""
        return (self.correct + 1) * (self.total - self.correct + 1) / (self.total + 2) ** 3


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    """What is expected of ``factor`` times the time: a share of validation images, and its 95 % interval."""

    factor: float
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What more time would buy, and ``why`` that, or why it cannot be told (then there are no ``forecasts``).

    ``points`` are the winner's trainings by their time; ``doubling`` is the share gained by the last doubling of the
    time, between ``doubling_low`` and ``doubling_high`` (95 %); None with fewer than two points.
    """

    points: tuple[Point, ...]
    why: str
    doubling: float | None = None
    doubling_low: float | None = None
    doubling_high: float | None = None
    forecasts: tuple[ForecastPoint, ...] = ()


def slope(before_s: float, before: float, last_s: float, last: float) -> float:
    """What accuracy gains for every e-fold of the time; less than nothing where it fell."""
    return (last - before) / math.log(last_s / before_s)


def forecast(before: Point, last: Point, factor: float) -> ForecastPoint:
    """What ``factor`` times the last training's time would reach: the line through both points, level where it falls.

    With b = ln(factor) / ln(last / before) the estimate is (1 + b) * last - b * before. Its interval carries both
    shares' binomial variance through that sum (delta method). They are taken as independent; the images are the same,
    so the truth is surer than this. Nothing goes beyond 100 %.
    """
    further = math.log(factor) / math.log(last.gpu_s / before.gpu_s)
    rise = max(0.0, slope(before.gpu_s, before.share, last.gpu_s, last.share)) * math.log(factor)
    share = min(1.0, last.share + rise)
    half = Z * math.sqrt((1 + further) ** 2 * last.variance + further**2 * before.variance)
    return ForecastPoint(factor=factor, share=share, low=max(0.0, share - half), high=min(1.0, share + half))


def outlook(trainings: Sequence[Point]) -> Forecast:
    """What the winner's trainings tell of more time; the sentence says so where that is nothing."""
    points = tuple(sorted(trainings, key=lambda point: point.gpu_s))
    if len(points) < 2:
        seen = "was validated after one training only" if points else "was never validated"
        return Forecast(points=points, why=f"Nothing can be told of more time: the winner {seen}, and it takes two.")
    before, last = points[-2:]
    if last.gpu_s == before.gpu_s:
        return Forecast(
            points=points, why="Nothing can be told of more time: the winner's last two trainings were equally long."
        )
    doublings = math.log2(last.gpu_s / before.gpu_s)
    gained = (last.share - before.share) / doublings
    half = Z * math.sqrt(last.variance + before.variance) / doublings
    low, high = gained - half, gained + half
    told = (
        f"With {format_duration(before.gpu_s)} of GPU time the winner reached {100 * before.share:.1f} %, with "
        f"{format_duration(last.gpu_s)} {100 * last.share:.1f} %: {points_of(gained)} points for every doubling, "
        f"95 % interval {points_of(low)} to {points_of(high)}"
    )
    if last.correct == last.total:
        why = f"{told}. All {last.total:,} validation images are right: they can show no gain any more."
        return Forecast(points=points, why=why, doubling=gained, doubling_low=low, doubling_high=high)
    if low <= 0:
        images = f"{last.total:,}"
        why = f"{told}. {images} validation images do not tell that from nothing, so no gain is foretold."
        return Forecast(points=points, why=why, doubling=gained, doubling_low=low, doubling_high=high)
    forecasts = tuple(forecast(before, last, factor) for factor in FACTORS)
    full = " The line passes 100 % by then, so growth must slow down." if forecasts[-1].share == 1.0 else ""
    why = (
        f"{told}. Should accuracy go on growing with the logarithm of the time, longer runs would reach this. The "
        f"intervals carry the binomial variance of both accuracies along that line (delta method); that growth may "
        f"slow down is not in them.{full}"
    )
    return Forecast(points=points, why=why, doubling=gained, doubling_low=low, doubling_high=high, forecasts=forecasts)


def points_of(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\u2212")
