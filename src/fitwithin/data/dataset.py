"""A data set: its classes, its samples by split, and what a run needs to know of its packed images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fitwithin.errors import DataError
from fitwithin.units import listed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


SPLITS = ("train", "val", "test")

LAYOUT = "DATA/<class>/*.jpg, or DATA/train/<class>/*.jpg with val and test beside train"


#: Images that familiar pictures are learnt from (:func:`num_familiar`).
LEAST_FAMILIAR, MOST_FAMILIAR = 100, 1000


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The sizes of a data set's splits, in images."""

    train: int
    val: int
    test: int
    classes: int


def num_familiar(n_train: int, n_val: int, passes: int) -> tuple[int, int]:
    """How many training images stand for all that a classifier knows, and how many validation images show how far from
    them a familiar picture may be: MOST_FAMILIAR each, at the cost of a quarter of an evaluation's ``passes`` of an
    image through the model. None at all if they would be fewer than LEAST_FAMILIAR."""
    each = min(MOST_FAMILIAR, passes // 8)
    return (min(each, n_train), min(each, n_val)) if min(each, n_train, n_val) >= LEAST_FAMILIAR else (0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image: its posix path relative to the root (or an absolute one), the index of its class (-1: unlabelled, test
    only), its split, and the key of its content (data/fingerprint.py), empty where that was not read."""

    path: str
    label: int
    split: str
    content: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """An image file that could not be decoded, and why.

    ``status`` is the file's status (data/fingerprint.py) when its content was found broken. None: it could not be read.
    """

    path: str
    reason: str
    status: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something odd about ``count`` images that were read all the same, with one of them as an example."""

    what: str
    count: int
    example: str

    def __str__(self) -> str:
        return f"{self.count:,} {'image' if self.count == 1 else 'images'} {self.what} ({self.example})"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images in the order of their contents, each in exactly one split.

    ``fingerprint`` (32 hex digits) names the images by their contents, with their classes and the split and groups that
    were stated, wherever they lie; a split drawn from the seed is not in it. ``source`` is what was given, for
    messages; the images are files below ``root``. ``split_why`` says where the split came from; ``ignored`` counts the
    files left out: no images, or images outside every class folder. ``notes`` say what a user should know of the
    images, ``copies`` how many of val and test are copies of training images. ``excluded`` says what a list left out;
    the fingerprint is then of the rest (data/inspection/exclusions.py).
    """

    source: str
    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    fingerprint: str
    split_why: str
    ignored: int
    notes: tuple[str, ...] = ()
    copies: dict[str, int] = field(default_factory=dict)
    excluded: str = ""

    def counts(self) -> dict[str, int]:
        """Images per split, all three splits named."""
        found = Counter(sample.split for sample in self.samples)
        return {split: found[split] for split in SPLITS}

    def of(self, split: str) -> tuple[Sample, ...]:
        """The samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == split)


def drop_broken(dataset: Dataset, broken: Sequence[Broken]) -> Dataset:
    """The data set without its broken samples; the fingerprint stays, for it names what is in the folder.

    Raises:
        DataError: what is left is no longer a valid data set.
    """
    if not broken:
        return dataset
    gone = {item.path for item in broken}
    samples = tuple(sample for sample in dataset.samples if sample.path not in gone)
    reason = Counter(item.reason for item in broken).most_common(1)[0][0]
    left_out = f" once the {len(gone)} unreadable files are left out (most: {reason})"
    check(dataset.source, dataset.classes, samples, after=left_out)
    return replace(dataset, samples=samples)


def packed(dataset: Dataset, images: Images) -> Dataset:
    """The data set as far as it was packed: without broken samples, and those that there was no time to decode."""
    kept = set(images.paths)
    return replace(dataset, samples=tuple(sample for sample in dataset.samples if sample.path in kept))


def check(
    source: str, classes: Sequence[str], samples: Sequence[Sample], *, after: str = "", drawn: bool = True
) -> None:
    """Check that the classes and samples can be trained on and, once their split is ``drawn``, validated.

    Raises:
        DataError: they cannot; ``after`` says what was done to them.
    """
    if not samples:
        raise DataError(f"{source} has no image in {len(classes)} classes{after}; lay the images out as {LAYOUT}")
    if len(classes) < 2:
        raise DataError(f"{source} has one class, {classes[0]!r}; add at least one more class to tell it from")
    in_train = Counter(sample.label for sample in samples if sample.split == "train")
    in_val = Counter(sample.label for sample in samples if sample.split == "val")
    single = [name for label, name in enumerate(classes) if in_train[label] + in_val[label] == 1]
    if single:
        what = f"the class {single[0]!r}" if len(single) == 1 else f"each of {len(single)} classes ({listed(single)})"
        raise DataError(
            f"{source} has 1 image of {what} where 2 are needed{after}, one to train on and one to validate on; add "
            f"images of it or take it out"
        )
    untrained = [name for label, name in enumerate(classes) if not in_train[label]]
    if untrained:
        what = (
            f"the class {untrained[0]!r}" if len(untrained) == 1 else f"{len(untrained)} classes ({listed(untrained)})"
        )
        raise DataError(f"{source} has no image to train {what}{after}; add some or take it out")
    if drawn and not in_val:
        raise DataError(
            f"{source} has no image to validate on{after}; add some to val, or state no val to have it drawn"
        )


class Images(Protocol):
    """What a run needs to know of packed images (:class:`fitwithin.data.pack.Pack` is one)."""

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

    @property
    def heights(self) -> npt.NDArray[np.int32]:
        """Of the images, in pixels."""

    @property
    def widths(self) -> npt.NDArray[np.int32]:
        """Of the images, in pixels."""

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of the images of a split."""

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """Pixels of the image at a position, uint8 [H, W, 3]."""
