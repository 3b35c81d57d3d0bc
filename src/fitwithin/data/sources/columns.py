"""Which column of a table is which, by the words that people use, and what stands in its cells."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fitwithin.data.sources.listing import Listing, Row
from fitwithin.data.sources.splits import split_alike, split_named
from fitwithin.data.sources.tree import same_form
from fitwithin.errors import DataError
from fitwithin.units import listed

#: What the columns are called, in lower case and with _ between words.
WORDS: dict[str, tuple[str, ...]] = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "img",
        "img_path",
    ),
    "label": ("label", "class", "category", "target", "class_name", "label_name"),
    "split": ("split", "subset", "set", "partition"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "subject_id"),
    "time": ("time", "timestamp", "date", "datetime"),
}

#: Without these there is no data set.
NEEDED = ("path", "label")

#: A column of weights is not used, which is said.
WEIGHTS = ("weight", "sample_weight")


class Record(NamedTuple):
    """What a row of a table says, in the types of the table. ``place`` is the number of the row, from 1."""

    place: int
    path: str
    label: Any
    split: Any = None
    group: Any = None
    time: Any = None


def form(name: str) -> str:
    """A column's name as WORDS has them."""
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


def roles(
    names: Sequence[str],
    *,
    source: str,
    given: Mapping[str, str],
    timed: bool = False,
    images: Collection[str] = (),
    needed: Sequence[str] = NEEDED,
) -> dict[str, str]:
    """The column for each role: as ``given`` says ("" for none), else by its name. A column of ``images`` themselves
    comes before paths. Times count only where the pictures are to be ``timed``.

    Raises:
        DataError: a column is missing, or several could be meant; the message has the columns and how to say which.
    """
    found = dict[str, str]()
    for role, words in WORDS.items():
        if role == "time" and not timed:
            continue
        if role in given:
            if given[role] and given[role] not in names:
                raise DataError(f"{source} has no column {given[role]!r}; its columns are {listed(names, 20)}")
            candidates = [given[role]] if given[role] else []
        else:
            free = [name for name in names if name not in given.values()]
            candidates = [name for name in free if form(name) in words]
            if role == "path" and images:
                pictures = [name for name in free if name in images]
                candidates = [name for name in candidates if name in pictures] or pictures
        if len(candidates) > 1:
            raise DataError(
                f"{source} has {len(candidates)} columns that could be the {role} ({listed(candidates)}); say which "
                f"with --columns {role}={candidates[0]}"
            )
        if not candidates and role in needed:
            raise DataError(
                f"{source} has no column called {' or '.join(map(repr, words[:3]))}; its columns are "
                f"{listed(names, 20) or 'none'}. Say which one is the {role} with --columns {role}=NAME"
            )
        found.update({role: candidates[0]} if candidates else {})
    return found


def listing(
    records: Iterable[Record],
    *,
    source: str,
    root: Path,
    columns: Mapping[str, str],
    timed: bool,
    notes: Sequence[str] = (),
    stated: str = "the table has them",
) -> Listing:
    """The pictures that the records name, with the ``columns`` of each role.

    Raises:
        DataError: no row, a cell that says nothing of its kind, or two rows that contradict each other.
    """
    rows = dict[str, Row]()
    places = dict[str, int]()
    repeated, splits = 0, dict[str, int]()
    for record in records:
        where = f"row {record.place:,} of {source}"
        if "\0" in f"{record.path}{record.label}":
            raise DataError(f"{where} has a zero byte in it, as no name has; save the table as text")
        split = _split(record.split, where)
        splits.setdefault(split, record.place)
        row = Row(
            record.path,
            _label(record.label, where),
            split or "train",
            _text(record.group),
            _time(record.time, where) if timed and "time" in columns else None,
        )
        before = rows.setdefault(row.path, row)
        if before is not row:
            repeated += 1
            if before != row:
                differs = next(name for name, one, other in zip(Row._fields, before, row, strict=True) if one != other)
                raise DataError(
                    f"rows {places[row.path]:,} and {record.place:,} of {source} name {row.path} with the {differs}s "
                    f"{getattr(before, differs)!r} and {getattr(row, differs)!r}; keep one of them"
                )
        else:
            places[row.path] = record.place
    if not rows:
        raise DataError(f"{source} has no rows; each is to name a picture and its class")
    if len(splits) > 1 and "" in splits:
        raise DataError(f"row {splits['']:,} of {source} states no split, where others do; fill in all or none")
    said = [f"{repeated:,} rows name a picture again and were left out"] if repeated else []
    return Listing(
        source=source,
        root=root,
        rows=tuple(rows.values()),
        stated=stated,
        unstated="no split is stated",
        notes=[*said, *notes],
    )


def unused_weights(names: Iterable[str]) -> list[str]:
    """What to say of columns of weights."""
    found = [name for name in names if form(name) in WEIGHTS]
    return [f"the column {name!r} is not used: every picture counts the same" for name in found]


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """A cell as text: whole numbers without a point, names in one form."""
    if _empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return same_form(str(value)).strip()


def _label(value: Any, where: str) -> str | None:
    if isinstance(value, (list, dict, tuple)):
        raise DataError(f"{where} has several labels ({str(value)[:60]}); a picture has one class here")
    if isinstance(value, float) and not _empty(value) and not value.is_integer():
        raise DataError(f"{where} has the label {value:g}, a number with a fraction; a label names a class")
    return _text(value) or None


def _split(value: Any, where: str) -> str:
    name = _text(value)
    found = split_named(name) or split_alike(name) if name else ""
    if found is None:
        raise DataError(
            f"{where} has the split {name!r}, which is none of train, val and test; rename it, or leave the column "
            f"aside with --columns split="
        )
    return found


def _time(value: Any, where: str) -> float:
    """Seconds, or whatever the numbers count. Times without a zone are UTC."""
    if _empty(value):
        raise DataError(f"{where} has no time; fill it in, or order by name with --columns time=")
    if isinstance(value, (int, float)):
        return float(value)
    try:
        if isinstance(value, date):
            value = value.isoformat()
        if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+(\.\d*)?\s*", value):
            return float(value)
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise DataError(
            f"{where} has the time {str(value)!r}, which is neither a number nor a date such as 2026-01-31 or "
            f"2026-01-31T12:00:00; write it so, or order by name with --columns time="
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
