"""Accuracy on images: a share with its 95 % interval, and the confidence that one share is better than another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

#: Standard errors to either side of a 95 % interval.
Z = 1.959964


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """``correct`` of ``total`` images; ValueError for counts that make no share."""

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise ValueError(f"{self.correct} of {self.total} is no share")

    @property
    def share(self) -> float:
        """The plain share, in [0, 1]."""
        return self.correct / self.total

    @property
    def percent(self) -> str:
        """The share in percent, with one decimal: ``91.2 %``."""
        return f"{100 * self.share:.1f} %"

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (E. B. Wilson, JASA 22, 1927)."""
        n, p = self.total, self.share
        centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))

    @property
    def variance(self) -> float:
        """The share's binomial variance with one image more on either side, so it is never 0."""
        return (self.correct + 1) * (self.total - self.correct + 1) / (self.total + 2) ** 3


@dataclass(frozen=True, kw_only=True)
class FailedTrial:
    """A trial that left no validated model, and why."""

    reason: str


def tells_apart(total: int, share: float) -> float:
    """The least difference of two shares near ``share``, each of ``total`` images, that 95 % confidence tells apart.

    It is Z * sqrt(2 p (1 - p) / n), the normal approximation to the difference of two binomial shares, taken as
    independent as in :func:`standard_error`: models that make the same mistakes are told apart by less.
    """
    return Z * math.sqrt(2 * share * (1 - share) / total)


def format_tells_apart(total: int, share: float, kind: str = "validation") -> str:
    """That difference in a sentence."""
    images = f"{total:,} {kind} {'image tells' if total == 1 else 'images tell'}"
    points = 100 * tells_apart(total, share)
    return f"{images} apart models that differ by {points:.1f} points or more, near {100 * share:.0f} %"


def standard_error(one: Accuracy, other: Accuracy) -> float:
    """Standard error of the difference of two shares, taken as independent: an upper bound for the same images."""
    return math.sqrt(one.variance + other.variance)


def paired_interval(*, lost: int, won: int, total: int) -> tuple[float, float]:
    """The 95 % interval of how a share changes on the same ``total`` images: ``lost`` were right before alone, ``won``
    are right now alone (A. Agresti, Y. Min, Statistics in Medicine 24, 2005: half an image more in each cell)."""
    b, c, n = lost + 0.5, won + 0.5, total + 2.0
    centre, half = (c - b) / n, Z * math.sqrt(b + c - (c - b) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def confidence(one: Accuracy, other: Accuracy) -> float | None:
    """The probability that ``one`` is really better, by the normal approximation; None where the shares are equal."""
    if one.share == other.share:
        return None
    return NormalDist().cdf((one.share - other.share) / standard_error(one, other))


def format_confidence(sure: float) -> str:
    """A confidence in percent: ``81 %``, ``more than 99 %``."""
    return "more than 99 %" if sure >= 0.995 else f"{100 * sure:.0f} %"
