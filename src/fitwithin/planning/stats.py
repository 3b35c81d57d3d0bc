"""A share of images, counted: what an accuracy is, with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share with its 95 % Wilson interval: ``correct`` of ``total``."""

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
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (E. B. Wilson, JASA 22, 1927)."""
        z, n, p = 1.959964, self.total, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of a trial: ``correct`` of ``total`` validation images; without ``total`` it failed, as told."""

    correct: int = 0
    total: int = 0
    reason: str = ""

    @property
    def accuracy(self) -> float:
        """Share of validation images; 0 where it failed."""
        return self.correct / self.total if self.total else 0.0


def sure(one: Score, other: Score) -> float | None:
    """How sure it is that ``one`` is really better; None where they are equal: that "50 %" would tell nothing."""
    return None if one.accuracy == other.accuracy else better(one, other)


def percent_sure(confidence: float) -> str:
    """A confidence in words: it is never quite certain."""
    return "more than 99%" if confidence >= 0.995 else f"{confidence:.0%}"


def better(one: Score, other: Score) -> float:
    """How sure it is that ``one`` is really better: normal approximation to two binomial shares, taken as independent.

    (They are of the same images, so the truth is surer than this.)
    """
    variance = sum(
        (each.correct + 1) * (each.total - each.correct + 1) / (each.total + 2) ** 3 for each in (one, other)
    )
    return NormalDist().cdf((one.accuracy - other.accuracy) / math.sqrt(variance))
