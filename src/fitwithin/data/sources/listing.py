"""What a source lists, picture by picture, becomes a data set: classes, split, fingerprint, and what is odd."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fitwithin.data.dataset import SPLITS, Dataset, Sample, check
from fitwithin.data.decode import has_header
from fitwithin.data.fingerprint import Contents, contents, fingerprint
from fitwithin.data.sources.splits import Groups, ordered_split, random_split
from fitwithin.errors import DataError
from fitwithin.units import listed


class Row(NamedTuple):
    """One picture: its path below the root (or an absolute one), its class (None: unlabelled), its split (train where
    none is stated), its group (empty: none), and its time (None: not stated)."""

    path: str
    label: str | None
    split: str = "train"
    group: str = ""
    time: float | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures of a source, each path once.

    ``source`` is what was given, for messages. ``stated`` and ``unstated`` say who states the split, and who does not.
    ``classes`` are those that are there even without a picture. ``ignored`` counts files that were left out.
    ``remarks`` belong to where the split came from, ``notes`` to the images.
    """

    source: str
    root: Path
    rows: Sequence[Row]
    stated: str
    unstated: str
    classes: Collection[str] = ()
    ignored: int = 0
    remarks: Sequence[str] = ()
    notes: Sequence[str] = ()


def assemble(
    found: Listing,
    *,
    seed: int = 0,
    split: str = "auto",
    near: Groups | None = None,
    cache_dir: Path | None = None,
    until_at: float = math.inf,
) -> Dataset:
    """The data set of a listing. What is not stated of its split is drawn 80/10/10: from the seed and the contents, or
    with ``split="order"`` the last by time (else by name) of each class. With ``split="grouped"`` there are groups of
    ``near`` twins. Groups stay whole: those that are stated, else
    those of ``near`` (of pictures that are nearly the same, say).

    A file that cannot be read stays in: decoding reports it.

    Raises:
        DataError: fewer than two classes, a class too small or without training images, groups that leave nothing to
            validate on, or reading was not done at the monotonic instant ``until_at``.
    """
    classes = tuple(sorted({row.label for row in found.rows if row.label and row.split == "train"} | {*found.classes}))
    _check_labels(found, classes)
    labels: dict[str | None, int] = {None: -1, **{name: label for label, name in enumerate(classes)}}
    rows = sorted(found.rows)
    stated = {row.split for row in rows}
    unread = [Sample(path=row.path, label=labels[row.label], split=row.split) for row in rows]
    check(found.source, classes, unread, drawn="val" in stated)
    read = contents(found.root, [row.path for row in rows], cache_dir, until_at)
    samples = [
        Sample(path=row.path, label=labels[row.label], split=row.split, content=key)
        for row, key in zip(rows, read.keys, strict=True)
    ]
    groups = {row.path: row.group for row in rows if row.group} or near
    by_time = all(row.time is not None for row in rows)
    if "val" not in stated:
        with_test = "test" not in stated
        if split == "order":
            order = {row.path: row.time if by_time else natural(row.path) for row in rows}
            samples = ordered_split(samples, order=order, with_test=with_test, group_of=groups)
        else:
            samples = random_split(samples, seed=seed, with_test=with_test, group_of=groups)
    hint = " because of its groups" if groups else ""
    check(found.source, classes, samples, after=hint)
    # An order is no draw: its split is as good as stated.
    final = {sample.path: sample.split for sample in samples} if split == "order" else {}
    name = fingerprint(
        (key, row.label or "", final.get(row.path, row.split), row.group)
        for row, key in zip(rows, read.keys, strict=True)
    )
    ordered = split == "order"
    kept = "" if not groups else ", near twins kept together," if groups is near else ", groups kept whole,"
    how = _drawn(ordered, seed, by_time=by_time, kept=kept)
    samples.sort(key=lambda sample: (sample.content, sample.label, sample.split, sample.path))
    copies, said = _copies(found.root, samples, read, classes)
    return Dataset(
        source=found.source,
        root=found.root,
        classes=classes,
        samples=tuple(samples),
        fingerprint=name,
        split_why="; ".join([_split_why(found, samples, stated, how, ordered=ordered), *found.remarks]),
        ignored=found.ignored,
        notes=(*found.notes, *said, *_without_images(classes, samples)),
        copies=copies,
    )


def natural(path: str) -> tuple[tuple[str, int], ...]:
    """What orders names as people do: 2.jpg before 10.jpg."""
    parts = re.findall(r"(\D*)(\d*)", path)
    return tuple((text, int(number or -1)) for text, number in parts)


def _check_labels(found: Listing, classes: Collection[str]) -> None:
    """DataError for a class that train does not have, and for pictures without one elsewhere than in test."""
    if found.rows and not any(row.split == "train" for row in found.rows) and not found.classes:
        splits = listed(sorted({row.split for row in found.rows}))
        raise DataError(f"{found.source} has no picture to learn from: its splits are {splits}; call one train")
    for split in ("val", "test"):
        unknown = sorted({row.label for row in found.rows if row.split == split and row.label} - {*classes})
        if unknown:
            what = f"the class {unknown[0]!r}" if len(unknown) == 1 else f"the classes {listed(unknown)}"
            raise DataError(
                f"{split} of {found.source} has {what}, which train does not have; add images of it to train or take "
                f"it out of {split}"
            )
    bare = Counter(row.split for row in found.rows if row.label is None)
    labelled = any(row.split == "test" and row.label is not None for row in found.rows)
    wrong = next((split for split in SPLITS if bare[split] and (split != "test" or labelled)), None)
    if wrong is not None:
        example = next(row.path for row in found.rows if row.split == wrong and row.label is None)
        raise DataError(
            f"{bare[wrong]:,} images in {wrong} of {found.source} have no label, such as {example}; give them one or "
            f"take them out (a test may be without labels as a whole)"
        )


def _drawn(ordered: bool, seed: int, *, by_time: bool, kept: str) -> str:
    """How pictures were drawn, in words, and what was ``kept`` on one side."""
    if ordered:
        return f"per class{kept} from the last by {'time' if by_time else 'name'}"
    return f"per class{kept} with seed {seed}"


def _split_why(found: Listing, samples: Sequence[Sample], stated: Collection[str], how: str, *, ordered: bool) -> str:
    if "val" in stated:
        why = f"{', '.join(split for split in SPLITS if split in stated)} as {found.stated}"
        why += ", so nothing is put in order" if ordered else ""
    elif "test" in stated:
        why = f"train and test as {found.stated}, val drawn as 10 % of train, {how}"
    else:
        why = f"80/10/10 % for train/val/test drawn {how}, because {found.unstated}"
    tested = [sample for sample in samples if sample.split == "test"]
    if not tested:
        reason = "there are no test images" if "val" in stated else "the classes are too small to spare test images"
        return f"{why}; {reason}, so test figures will be missing"
    if tested[0].label < 0:
        return f"{why}; the test images are unlabelled, so test figures will be missing"
    return why


def _copies(
    root: Path, samples: Sequence[Sample], read: Contents, classes: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """How many images of val and test are copies of training images, and what there is to say about copies."""
    paths = {path for group in read.same for path in group}
    by_path = {sample.path: sample for sample in samples if sample.path in paths}
    groups = [[by_path[path] for path in group] for group in read.same if has_header(root / group[0])]
    copies, notes = {}, []
    for split in ("val", "test"):
        found = [
            sample
            for group in groups
            if any(sample.split == "train" for sample in group)
            for sample in group
            if sample.split == split
        ]
        if found:
            copies[split] = len(found)
            notes.append(
                f"{len(found):,} {split} {'image is a copy' if len(found) == 1 else 'images are copies'} of training "
                f"images, such as {min(sample.path for sample in found)}: the {split} accuracy is too good"
            )
    torn = [group for group in groups if len({sample.label for sample in group} - {-1}) > 1]
    if torn:
        one, other = (next(s for s in torn[0] if s.label == label) for label in sorted({s.label for s in torn[0]})[-2:])
        notes.append(
            f"{len(torn):,} {'image lies' if len(torn) == 1 else 'images lie'} in more than one class, such as "
            f"{one.path} ({classes[one.label]}) and {other.path} ({classes[other.label]}): one of the labels is wrong"
        )
    return copies, notes


def _without_images(classes: Sequence[str], samples: Sequence[Sample]) -> list[str]:
    """The classes that a labelled split has no image of."""
    count = Counter((sample.split, sample.label) for sample in samples)
    notes = []
    for split in ("val", "test"):
        missing = [name for label, name in enumerate(classes) if not count[split, label]]
        if missing and len(missing) < len(classes):
            what = "the class" if len(missing) == 1 else f"{len(missing):,} classes:"
            notes.append(
                f"there is no {split} image of {what} {listed(missing)}, so the {split} accuracy leaves it out"
            )
    return notes
