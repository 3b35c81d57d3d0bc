"""What a data set consists of, in numbers: counts, sizes, formats, and how even its classes are."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fitwithin.data.dataset import SPLITS, Dataset
from fitwithin.data.inspection.look import Seen

#: A class with fewer training images than this is said to have too few.
FEW_OF_CLASS = 20

#: An image is odd if a side is more than so many times the other, or if it has fewer pixels on a side.
LONGEST, LEAST_SIDE_PX = 4.0, 16


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The readable images of a class, by split."""

    name: str
    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The least, the median and the largest of some numbers."""

    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers. ``counts`` are of all files by split; sizes are in pixels, ``ratio`` is the longer side by the
    shorter one; ``imbalance`` is the largest class of train by the smallest."""

    counts: dict[str, int]
    unreadable: int
    classes: tuple[ClassCount, ...]
    formats: dict[str, int]
    modes: dict[str, int]
    total_bytes: int
    width: Spread
    height: Spread
    ratio: Spread
    imbalance: float

    @property
    def small(self) -> tuple[ClassCount, ...]:
        """The classes with few training images, the smallest first."""
        return tuple(sorted((each for each in self.classes if each.train < FEW_OF_CLASS), key=lambda each: each.train))


def facts(dataset: Dataset, seen: Sequence[Seen]) -> Facts:
    """The numbers of a data set whose images were looked at."""
    readable = [(sample, each) for sample, each in zip(dataset.samples, seen, strict=True) if not each.reason]
    count = Counter((sample.label, sample.split) for sample, _ in readable)
    classes = tuple(
        ClassCount(name=name, **{split: count[label, split] for split in SPLITS})
        for label, name in enumerate(dataset.classes)
    )
    trained = [each.train for each in classes]
    return Facts(
        counts=dataset.counts(),
        unreadable=len(seen) - len(readable),
        classes=classes,
        formats=dict(Counter(each.format for _, each in readable).most_common()),
        modes=dict(Counter(each.mode for _, each in readable).most_common()),
        total_bytes=sum(each.size for each in seen),
        width=_spread([each.width for _, each in readable]),
        height=_spread([each.height for _, each in readable]),
        ratio=_spread([ratio(each) for _, each in readable]),
        imbalance=max(trained) / max(1, min(trained)),
    )


def ratio(seen: Seen) -> float:
    """The longer side by the shorter one, of an image that could be read."""
    return max(seen.width, seen.height) / max(1, min(seen.width, seen.height))


def odd(seen: Seen) -> tuple[str, ...]:
    """What is odd about an image that can be read."""
    shape = []
    if ratio(seen) > LONGEST:
        shape.append(f"of {seen.width} x {seen.height} pixels, so that a crop in the middle shows little of it")
    if min(seen.width, seen.height) < LEAST_SIDE_PX:
        shape.append(f"of {seen.width} x {seen.height} pixels")
    return (*seen.remarks, *shape)


def _spread(numbers: Sequence[float]) -> Spread:
    if not numbers:
        return Spread(least=0, median=0, most=0)
    return Spread(least=min(numbers), median=statistics.median(numbers), most=max(numbers))
