"""How good answers on labelled images are: what assessment.py and calibration.py find, without numpy."""

from __future__ import annotations

from dataclasses import dataclass

from fitwithin.planning.stats import Accuracy

#: Bins of the expected calibration error.
BINS = 15


@dataclass(frozen=True, kw_only=True)
class Value:
    """A figure with its 95 % interval, by the bootstrap over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How good probabilities are on ``images`` images: the mean negative log-likelihood of the right class, the Brier
    score (Brier 1950: squared errors, summed over the classes) and the expected calibration error (Guo et al., "On
    calibration of modern neural networks", ICML 2017: BINS bins of equal width)."""

    images: int
    nll: Value
    brier: Value
    ece: Value


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A class: of its images, how many were recognised (recall); of the answers that name it, how many are right
    (precision). None where there are no such images or answers."""

    name: str
    recall: Accuracy | None
    precision: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """``count`` images of the class ``truth`` were taken for ``answer``."""

    truth: str
    answer: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Surest:
    """The share of images that the model is surest of: all of at least that ``probability``, and how many are right."""

    share: float
    probability: float
    right: Accuracy


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the model is sure of, and wrong."""

    path: str
    truth: str
    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """How good the answers on a split are, at the ``temperature`` that is delivered.

    ``raw`` is how good the probabilities were without it. ``macro_recall``, ``macro_precision`` and ``macro_f1`` are
    means over the classes that have images; a class that no answer names has a precision of 0. ``matrix`` has a row for
    each true class and a column for each answer, and is empty for many classes.
    """

    split: str
    temperature: float
    top1: Accuracy
    macro_recall: float
    macro_precision: float
    macro_f1: float
    raw: Calibration
    calibrated: Calibration
    classes: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]
    surest: tuple[Surest, ...]
    mistakes: tuple[Mistake, ...]
    matrix: tuple[tuple[int, ...], ...]
