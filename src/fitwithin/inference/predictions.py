"""Predictions for images, and the accuracy on a labelled folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fitwithin.planning.stats import Accuracy

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: A prediction names so many classes unless more are asked for.
MOST_CLASSES = 5


class Answer(NamedTuple):
    """A model's answer for a picture: the probabilities [K] of its classes, and how unlike all training images it is
    (:attr:`Prediction.novelty`)."""

    probabilities: Floats
    novelty: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The ensemble's answer for one image: the most likely classes with their probabilities, most likely first.

    ``path`` is as given, or the image's place among those given. ``error`` says why an image could not be read; then
    ``top`` is empty. ``novelty`` is how far the image is from all training images, 1 being what 1 % of the validation
    images exceed: above it the answer should not be trusted. None where that is not known.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str = ""
    novelty: float | None = None

    @property
    def label(self) -> str:
        """The most likely class; empty if the image could not be read."""
        return self.top[0][0] if self.top else ""

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {share:.1%}" for name, share in self.top) or f"not readable: {self.error}"
        return f"<{self.path}: {found}>"

    @property
    def probability(self) -> float:
        """Its probability; 0 if the image could not be read."""
        return self.top[0][1] if self.top else 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy on a labelled folder: overall, within the first five, and by class."""

    top1: Accuracy
    top5: Accuracy
    by_class: dict[str, Accuracy]
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: shares, and the interval of the first."""
        return {
            "images": self.top1.total,
            "top1": self.top1.share,
            "top1_interval": self.top1.interval,
            "top5": self.top5.share,
            "by_class": {name: accuracy.share for name, accuracy in self.by_class.items()},
            "unreadable": self.unreadable,
        }


def prediction(
    path: str, answer: Answer | None, classes: Sequence[str], error: str, top: int = MOST_CLASSES
) -> Prediction:
    """The prediction that an answer means, with its ``top`` classes, or the ``error`` where there is none."""
    if answer is None:
        return Prediction(path=path, top=(), error=error)
    row = answer.probabilities
    order = np.argsort(-row, kind="stable")[:top]
    named = tuple((classes[int(k)], float(row[int(k)])) for k in order)
    return Prediction(path=path, top=named, novelty=answer.novelty)
