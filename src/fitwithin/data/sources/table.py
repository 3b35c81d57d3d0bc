"""Tables as text: a row names a picture's file and its class (CSV, TSV)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fitwithin.data.sources import columns
from fitwithin.data.sources.columns import Record
from fitwithin.data.sources.listing import Listing
from fitwithin.errors import DataError

SUFFIXES = (".csv", ".tsv")

#: What may stand between cells.
DELIMITERS = ",;\t|"


def read(path: Path, *, given: Mapping[str, str], timed: bool) -> Listing:
    """The pictures that a table names; paths in it are relative to its folder.

    Raises:
        DataError: it is no table, columns are missing, cells make no sense, or none of its files is there.
    """
    rows = _rows(path)
    header = next(rows, (0, []))[1]
    names = [name.strip() for name in header]
    source = str(path)
    role_of = columns.roles(names, source=source, given=given, timed=timed)
    found = columns.listing(
        _records(rows, names, role_of, source),
        source=source,
        root=path.parent,
        columns=role_of,
        timed=timed,
        notes=columns.unused_weights(names),
    )
    check_files(found)
    return found


def check_files(found: Listing) -> None:
    """DataError if none of the files is there."""
    if not any(os.path.isfile(found.root / row.path) for row in found.rows):
        raise DataError(
            f"none of the {len(found.rows):,} files that {found.source} names is there, such as {found.rows[0].path}; "
            f"paths are relative to {found.root.absolute()}"
        )


def _records(
    rows: Iterator[tuple[int, Sequence[str]]], names: Sequence[str], role_of: Mapping[str, str], source: str
) -> Iterator[Record]:
    places = {role: names.index(name) for role, name in role_of.items()}
    for number, cells in rows:
        if len(cells) != len(names):
            raise DataError(
                f"row {number:,} of {source} has {len(cells)} cells where the first row names {len(names)} columns; "
                f"put cells with a delimiter in them in quotes"
            )
        values = {role: cells[place].strip() for role, place in places.items()}
        if not values["path"]:
            raise DataError(f"row {number:,} of {source} names no file; fill it in or take the row out")
        yield Record(number, **{**values, "path": os.path.normpath(values["path"])})


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with the number of the line in which each ends."""
    with path.open("rb") as file:
        start = file.read(4096)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    line = 0
    try:
        with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
            first = file.readline()
            file.seek(0)
            for row in (reader := csv.reader(file, delimiter=_delimiter(first))):
                line = reader.line_num
                if any(cell.strip() for cell in row):
                    yield line, row
    except (csv.Error, UnicodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table after line {line:,} ({error})") from error


def _delimiter(first: str) -> str:
    """The delimiter that makes the most columns of the first line."""
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
