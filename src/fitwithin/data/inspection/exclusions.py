"""The list of images to leave out: a table that a person edits, read back by ``--exclude``. No file is ever deleted.

An image is left out only if a row of it says yes in the column ``exclude``. Spreadsheets write commas, semicolons or
tabs, and marks at the beginning of a file: all are read.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fitwithin.data.dataset import Dataset, Sample, check
from fitwithin.data.fingerprint import digest
from fitwithin.errors import UsageError

#: The words in the column ``exclude``, in lower case; nothing at all is a no.
YES, NO = ("yes", "y", "x", "1", "true"), ("no", "n", "0", "false", "")

#: What the two columns that count are called.
PATH, EXCLUDE = "path", "exclude"


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """The ``paths`` that a list says yes to, and the ``file`` it came from."""

    file: Path
    paths: frozenset[str]


def read(file: Path) -> Exclusions:
    """The list in a file.

    Raises:
        UsageError: there is none, it lacks a column, or a row says neither yes nor no.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UsageError(
            f"--exclude {file} cannot be read ({error.strerror}); `fitwithin inspect` writes such a list"
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    heads = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if missing := [name for name in (PATH, EXCLUDE) if name not in heads]:
        raise UsageError(f"--exclude {file} has no column {' and no column '.join(missing)} in its first line; add it")
    said = set()
    for row in rows:
        path, word = row[heads[PATH]] or "", (row[heads[EXCLUDE]] or "").strip().lower()
        if word not in YES + NO:
            raise UsageError(
                f"--exclude {file} says {word!r} of {path or 'a row without a path'} in line {rows.line_num}; write "
                f"yes or no"
            )
        if word in YES and path:
            said.add(path)
    return Exclusions(file=file, paths=frozenset(said))


def leave_out(dataset: Dataset, exclusions: Exclusions) -> Dataset:
    """The data set without the images that the list says yes to, with a fingerprint of its own, and notes on it.

    Raises:
        DataError: what is left is no longer a valid data set.
    """
    gone = [sample for sample in dataset.samples if sample.path in exclusions.paths]
    unknown = len(exclusions.paths) - len(gone)
    notes = list(dataset.notes)
    if unknown:
        notes.append(
            f"{unknown:,} of the {len(exclusions.paths):,} images that {exclusions.file.name} leaves out are not there"
        )
    if not gone:
        return replace(dataset, notes=(*notes, f"{exclusions.file.name} leaves no image out"))
    samples = tuple(sample for sample in dataset.samples if sample.path not in exclusions.paths)
    counts = Counter(sample.split for sample in gone)
    said = ", ".join(f"{count:,} {split}" for split, count in sorted(counts.items()))
    sentence = f"{len(gone):,} of {len(dataset.samples):,} images are left out by {exclusions.file.name} ({said})"
    check(dataset.source, dataset.classes, samples, after=f" once {sentence}")
    return replace(
        dataset,
        samples=samples,
        fingerprint=fingerprint_without(dataset.fingerprint, gone),
        notes=(*notes, sentence),
        excluded=sentence,
    )


def fingerprint_without(fingerprint: str, gone: Sequence[Sample]) -> str:
    """What identifies the data with that fingerprint without those images, by their contents."""
    keys = sorted(sample.content + b"%d" % sample.label for sample in gone)
    return digest(b"\n".join([fingerprint.encode(), b"without", *keys])).hex()
