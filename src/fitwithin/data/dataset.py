"""A data set: its classes, its samples by split, and what a run needs to know of its packed images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fitwithin.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


SPLITS = ("train", "val", "test")

LAYOUT = "DATA/<class>/*.jpg, or DATA/train/<class>/*.jpg with val and test beside train"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The sizes of a data set's splits, in images."""

    train: int
    val: int
    test: int
    classes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image: its posix path relative to the root, the index of its class (-1: unlabelled, test only), its split."""

    path: str
    label: int
    split: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """An image file that could not be decoded, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of labelled images, sorted by path, each in exactly one split.

    ``fingerprint`` is a digest of the images in the order of their paths (data/fingerprint.py). It covers a split that
    the folders state, which is part of the path, but not one drawn from the seed. ``split_why`` says where the split
    came from; ``ignored`` counts the files left out: no images, or images outside every class folder.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    fingerprint: str
    split_why: str
    ignored: int

    def counts(self) -> dict[str, int]:
        """Images per split, all three splits named."""
        found = Counter(sample.split for sample in self.samples)
        return {split: found[split] for split in SPLITS}


def drop_broken(dataset: Dataset, broken: Sequence[Broken]) -> Dataset:
    """The data set without its broken samples; the fingerprint stays, since the folder does.

    Raises:
        DataError: what is left is no longer a valid data set.
    """
    if not broken:
        return dataset
    gone = {item.path for item in broken}
    samples = tuple(sample for sample in dataset.samples if sample.path not in gone)
    check(dataset.root, dataset.classes, samples, after=f" once the {len(gone)} unreadable files are left out")
    return replace(dataset, samples=samples)


def check(root: Path, classes: Sequence[str], samples: Sequence[Sample], *, after: str = "") -> None:
    """Check that the classes and samples can be trained on and validated.

    Raises:
        DataError: they cannot; ``after`` says what was done to them.
    """
    if not samples:
        raise DataError(f"{root} has no image in {len(classes)} class folders{after}; lay the images out as {LAYOUT}")
    if len(classes) < 2:
        raise DataError(f"{root} has one class, {classes[0]!r}; add at least one more class folder to tell it from")
    in_train = Counter(sample.label for sample in samples if sample.split == "train")
    in_val = Counter(sample.label for sample in samples if sample.split == "val")
    for label, name in enumerate(classes):
        n_images = in_train[label] + in_val[label]
        if n_images == 1:
            raise DataError(
                f"{root} has 1 image of the class {name!r} where 2 are needed{after}, one to train on and one to "
                f"validate on; add images of it or remove its folder"
            )
        if in_train[label] == 0:
            raise DataError(f"{root} has no image to train the class {name!r}{after}; add some or remove its folder")
    if not in_val:
        raise DataError(f"{root} has no image to validate on{after}; add some to val, or remove val to have it drawn")


class Images(Protocol):
    """The part of :class:`fitwithin.data.pack.Pack` that a run uses."""

    @property
    def folder(self) -> Path:
        """Where workers find them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""

    @property
    def fingerprint(self) -> str:
        """What identifies the data."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Relative to the data's folder."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices; -1 where a test picture is unlabelled."""

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of the images of a split."""
