"""What more time would buy: a forecast from the winner's own trainings. Pure.

Accuracy is taken to grow with the logarithm of the time, on the line through the last two trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fitwithin.planning.stats import Accuracy, Z, standard_error
from fitwithin.units import format_duration

#: The forecasts are for this many times the time of the last training.
FACTORS = (2, 4)


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """A training of ``gpu_s`` GPU-seconds, more than 0, and the validation accuracy after it."""

    gpu_s: float
    accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    """What is expected of ``factor`` times the time: a share of validation images, and its 95 % interval."""

    factor: float
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What more time would buy.

    ``points`` are the winner's trainings by their time. ``doubling`` is the share gained per doubling of the time
    between the last two, with its 95 % interval; None with fewer than two points. ``why`` says where the ``forecasts``
    come from, or why there are none.
    """

    points: tuple[MeasuredPoint, ...]
    why: str
    doubling: float | None = None
    doubling_low: float | None = None
    doubling_high: float | None = None
    forecasts: tuple[ForecastPoint, ...] = ()


def slope(before: MeasuredPoint, last: MeasuredPoint) -> float:
    """The share that accuracy gains when the time grows by a factor of e."""
    return (last.accuracy.share - before.accuracy.share) / math.log(last.gpu_s / before.gpu_s)


def forecast_point(before: MeasuredPoint, last: MeasuredPoint, factor: float) -> ForecastPoint:
    """What ``factor`` times the last training's time would reach: the line through both points, level where it falls.

    With b = ln(factor) / ln(last / before) the estimate is (1 + b) * last - b * before, at most 100 %. Its interval is
    the delta method's, with the two shares taken as independent.
    """
    further = math.log(factor) / math.log(last.gpu_s / before.gpu_s)
    share = min(1.0, last.accuracy.share + max(0.0, slope(before, last)) * math.log(factor))
    half = Z * math.sqrt((1 + further) ** 2 * last.accuracy.variance + further**2 * before.accuracy.variance)
    return ForecastPoint(factor=factor, share=share, low=max(0.0, share - half), high=min(1.0, share + half))


def make_forecast(trainings: Sequence[MeasuredPoint]) -> Forecast:
    """The forecast from the winner's trainings."""
    points = tuple(sorted(trainings, key=lambda point: point.gpu_s))
    if len(points) < 2:
        seen = "was validated after one training only" if points else "was never validated"
        return Forecast(points=points, why=f"No forecast: the winner {seen}, and a forecast needs two trainings.")
    before, last = points[-2:]
    if last.gpu_s == before.gpu_s:
        return Forecast(points=points, why="No forecast: the winner's last two trainings were equally long.")
    gained = slope(before, last) * math.log(2)
    half = Z * standard_error(before.accuracy, last.accuracy) / math.log2(last.gpu_s / before.gpu_s)
    low, high = gained - half, gained + half
    measured = (
        f"The winner reached {before.accuracy.percent} after {format_duration(before.gpu_s)} of GPU time and "
        f"{last.accuracy.percent} after {format_duration(last.gpu_s)}: {format_points(gained)} points for each "
        f"doubling of the time (95 % interval {format_points(low)} to {format_points(high)})."
    )
    found = Forecast(points=points, why=measured, doubling=gained, doubling_low=low, doubling_high=high)
    images = f"{last.accuracy.total:,} validation images"
    if last.accuracy.correct == last.accuracy.total:
        return replace(found, why=f"{measured} No forecast: all {images} are right, so they can show no further gain.")
    if low <= 0:
        return replace(found, why=f"{measured} No forecast: with {images} this gain may be chance.")
    forecasts = tuple(forecast_point(before, last, factor) for factor in FACTORS)
    why = (
        "If accuracy keeps growing by as much for each doubling, a longer run would reach the figures below. Growth "
        "often slows down, and the intervals do not allow for that: they come from the number of images alone."
    )
    if forecasts[-1].share == 1.0:
        why += " Here the line even passes 100 %, so growth must slow down."
    return replace(found, why=f"{measured} {why}", forecasts=forecasts)


def format_points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\u2212")
