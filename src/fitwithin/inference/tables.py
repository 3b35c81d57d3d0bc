"""Files of predictions: CSV, JSON lines or Parquet, a row for each picture, written as they come."""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fitwithin.errors import RunFolderError, UsageError
from fitwithin.inference.predictions import Prediction

#: Rows of a Parquet file that are written together.
ROW_GROUP = 10_000

#: How a file of predictions begins, by the ending of its name. Parquet files all begin alike.
BEGINNINGS = {".csv": "path,class,probability", ".jsonl": '{"path": ', ".parquet": "PAR1"}


class Known(NamedTuple):
    """The whole rows that a file has: how many, the path of the last one, and the byte where it ends."""

    rows: int = 0
    last: str = ""
    end: int = 0


class Table(ABC):
    """A file of predictions that is being written, of ``width`` classes for each picture. Where the surest probability
    is below the ``threshold``, no class is named."""

    def __init__(self, width: int, threshold: float) -> None:
        self.width, self.threshold = width, threshold

    @abstractmethod
    def add(self, prediction: Prediction) -> None:
        """Write a row."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    @property
    def columns(self) -> list[str]:
        """The names of the values of a row."""
        return list(self.row(Prediction(path="", top=())))

    def row(self, prediction: Prediction) -> dict[str, Any]:
        """``path``, ``class``, ``probability``, ``class_2`` and so on, ``novelty`` and ``error``."""
        top = prediction.top[: self.width]
        unsure = bool(top) and top[0][1] < self.threshold
        found: dict[str, Any] = {"path": prediction.path}
        for place in range(self.width):
            name, probability = top[place] if place < len(top) else (None, None)
            end = "" if place == 0 else f"_{place + 1}"
            found[f"class{end}"] = None if unsure and place == 0 else name
            found[f"probability{end}"] = probability
        found["novelty"] = prediction.novelty
        found["error"] = f"not sure: below {self.threshold:g}" if unsure else prediction.error or None
        return found


def beginning(file: Path) -> str:
    """How a file of that name begins; UsageError for an ending that is none of a table."""
    if file.suffix.lower() not in BEGINNINGS:
        raise UsageError(f"{file} ends in {file.suffix!r}; predictions are written to {', '.join(BEGINNINGS)}")
    return BEGINNINGS[file.suffix.lower()]


def known_rows(file: Path, width: int) -> Known:
    """The rows of a table that is to be continued. What follows the last whole one was cut off.

    Raises:
        UsageError: the format cannot be continued.
        RunFolderError: what is there is no such table.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        raise UsageError("a Parquet file cannot be continued; use .csv or .jsonl with --resume")
    if not file.exists():
        return Known()
    known = Known()
    read = _csv_rows if suffix == ".csv" else _json_rows
    with file.open("rb") as there, closing(read(there, file, width)) as rows:
        for path, end in rows:
            known = Known(known.rows + 1, path, end)
    return known


def open_table(file: Path, width: int, *, threshold: float = 0.0, known: Known | None = None) -> Table:
    """A table that goes on after the rows that are ``known``; a new one without any.

    Raises:
        UsageError: the format's library is missing.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _Parquet(file, width, threshold)
    return (_Csv if suffix == ".csv" else _JsonLines)(file, width, threshold, known or Known())


def _csv_rows(there: BinaryIO, file: Path, width: int) -> Generator[tuple[str, int], None, None]:
    """The path of each whole row, and where the row ends."""
    line, position = b"", 0

    def lines() -> Iterator[str]:
        nonlocal line, position
        for line in there:
            position += len(line)
            yield line.decode("utf-8", "surrogateescape")

    rows, columns = csv.reader(lines()), _Csv.columns_of(width)
    first = next(rows, None)
    if not line.endswith(b"\r\n"):  # the header itself was cut off
        return
    if first != columns:
        raise _other(file, width)
    for row in rows:
        if len(row) == len(columns) and line.endswith(b"\r\n"):
            yield row[0], position


def _json_rows(there: BinaryIO, file: Path, width: int) -> Generator[tuple[str, int], None, None]:
    position = 0
    for line in there:
        position += len(line)
        if line.endswith(b"\n"):
            try:
                value = json.loads(line)
                if list(value) != _Csv.columns_of(width):
                    raise KeyError("path")
                yield value["path"], position
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{file} is no table of {width} classes by fitwithin; write to another file"
                ) from error


def _other(file: Path, width: int) -> RunFolderError:
    return RunFolderError(f"{file} is no table of {width} classes by fitwithin; write to another file")


class _Lines(Table):
    """Tables of lines."""

    def __init__(self, file: Path, width: int, threshold: float, known: Known) -> None:
        super().__init__(width, threshold)
        if known.rows:
            os.truncate(file, known.end)
        self._file = file.open("a" if known.rows else "w", newline="", encoding="utf-8", errors="surrogateescape")

    def close(self) -> None:
        self._file.close()


class _Csv(_Lines):
    """Bytes of a path that are no UTF-8 are written as they are."""

    def __init__(self, file: Path, width: int, threshold: float, known: Known) -> None:
        super().__init__(file, width, threshold, known)
        if not known.rows:
            csv.writer(self._file).writerow(self.columns)

    @staticmethod
    def columns_of(width: int) -> list[str]:
        """The header of such a table."""
        more = [f"{name}_{rank}" for rank in range(2, width + 1) for name in ("class", "probability")]
        return ["path", "class", "probability", *more, "novelty", "error"]

    def add(self, prediction: Prediction) -> None:
        values = self.row(prediction).values()
        csv.writer(self._file).writerow([f"{each:.6f}" if isinstance(each, float) else each for each in values])
        self._file.flush()


class _JsonLines(_Lines):
    """A JSON object in each line."""

    def add(self, prediction: Prediction) -> None:
        self._file.write(json.dumps(self.row(prediction)) + "\n")
        self._file.flush()


class _Parquet(Table):
    """Column by column, ROW_GROUP rows at a time; there is nothing to read before it is closed."""

    def __init__(self, file: Path, width: int, threshold: float) -> None:
        super().__init__(width, threshold)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UsageError(
                "Parquet needs pyarrow: pip install fitwithin[data]; or write to a .csv or .jsonl file"
            ) from error
        types = {"probability": pyarrow.float32()}
        self._schema = pyarrow.schema(
            [(each, types.get(each.partition("_")[0], pyarrow.string())) for each in self.columns]
        )
        self._arrow = pyarrow
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        path = prediction.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._rows.append({**self.row(prediction), "path": path})
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()
