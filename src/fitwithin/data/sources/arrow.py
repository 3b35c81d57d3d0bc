"""Tables of Arrow: Parquet files, and data sets that Hugging Face's ``datasets`` saved. Pictures are bytes in a column,
which are unpacked into the cache, or paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fitwithin.data.decode import image_extensions
from fitwithin.data.sources import columns, table, unpack
from fitwithin.data.sources.columns import Record
from fitwithin.data.sources.listing import Listing
from fitwithin.data.sources.splits import split_alike, split_named
from fitwithin.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = ".parquet", ".arrow"

#: What ``datasets`` leaves in a folder that it saves to: of one data set, and of several splits.
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"

#: Rows of pictures that are held at once, and files in a folder of unpacked ones.
AT_ONCE, IN_FOLDER = 64, 1000

#: Rows of everything else that are held at once.
ROWS = 4096

#: The paths of the unpacked pictures, row by row; an empty line where a row has no bytes.
INDEX = "index.txt"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of a table, and the split that its name states; None if it states none."""

    path: Path
    split: str | None = None


def part(path: Path) -> Part:
    """A Parquet file whose split is in its name, as on the Hub (train-00000-of-00004.parquet), or in its folder's."""
    name = re.sub(r"-\d+-of-\d+.*$|\.[^.]*$", "", path.name)
    return Part(path=path, split=split_named(name) or split_alike(name) or split_named(path.parent.name))


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved a data set there (``save_to_disk``), or several, one for each split."""
    return (folder / SPLITS_FILE).is_file() or (folder / STATE_FILE).is_file()


def saved(folder: Path) -> list[Part]:
    """The files of such a data set. DataError if they make no sense."""
    try:
        if not (folder / SPLITS_FILE).is_file():
            return _saved_files(folder, None)
        splits = json.loads((folder / SPLITS_FILE).read_text(encoding="utf-8"))["splits"]
        parts = []
        for name in splits:
            split = split_named(name) or split_alike(name)
            if split is None:
                raise DataError(f"{folder} has the split {name!r}, which is none of train, val and test; rename it")
            parts += _saved_files(folder / name, split)
        return parts
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} is a saved data set that cannot be read ({error}); save it anew") from error


def _saved_files(folder: Path, split: str | None) -> list[Part]:
    files = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["_data_files"]
    return [Part(path=folder / Path(each["filename"]).name, split=split) for each in files]


def read(
    parts: Sequence[Part], *, source: str, root: Path, given: Mapping[str, str], timed: bool, until_at: float
) -> Listing:
    """The pictures in the rows of some files. Paths in them are relative to ``root``.

    Raises:
        DataError: pyarrow is missing, a file is damaged, columns are missing, cells make no sense, or there is no room
            or no time to unpack the pictures.
    """
    _check_parts(parts, source)
    schema = _schema(parts[0].path)
    names = list(schema.names)
    pictures = [name for name in names if _holds_bytes(schema.field(name).type)]
    role_of = columns.roles(names, source=source, given=given, timed=timed, images=pictures)
    if parts[0].split is not None:
        role_of.pop("split", None)
    column = role_of["path"]
    paths: Iterator[str] | None = None
    base, files = root.absolute(), [each.path for each in parts]
    if column in pictures:

        def write(into: Path) -> None:
            _write(parts, column, into, source, until_at)

        about = f"pictures in the column {column}"
        root = unpack.unpacked(files, about, write, source=source, until_at=until_at)
        paths = _indexed(root / INDEX, base)
    found = columns.listing(
        _records(parts, role_of, paths),
        source=source,
        root=root,
        columns=role_of,
        timed=timed,
        notes=columns.unused_weights(names),
        stated="the files have them" if parts[0].split else "the table has them",
    )
    table.check_files(found)
    return found


def _check_parts(parts: Sequence[Part], source: str) -> None:
    if not parts:
        raise DataError(f"{source} has no rows; each is to hold a picture and its class")
    splits = {each.split for each in parts}
    if len(splits) > 1 and None in splits:
        bare = next(each.path.name for each in parts if each.split is None)
        raise DataError(f"{source} has files of train, val or test beside {bare}, which states no split; rename it")


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column has pictures in it: bytes, or Hugging Face's {"bytes", "path"}."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow to be read: pip install 'fitwithin[data]'") from error
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}); get it anew") from error


def _schema(path: Path) -> pa.Schema:
    with _naming_damage(path), closing(_batches(path, [], 1)) as batches:
        return next(batches)


def _batches(path: Path, names: Sequence[str], most: int) -> Generator[Any, None, None]:
    """The schema of a file, then its rows with those columns, so many at once at the most."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() != ARROW:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            yield file.schema_arrow
            yield from file.iter_batches(batch_size=most, columns=list(names))
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        yield stream.schema
        for batch in stream:
            chosen = batch.select(list(names))
            yield from (chosen.slice(start, most) for start in range(0, chosen.num_rows, most))


def _rows(part: Part, names: Sequence[str], most: int, source: str) -> Iterator[pa.RecordBatch]:
    """The rows of a part; DataError if it is damaged or lacks one of the columns."""
    with _naming_damage(part.path), closing(_batches(part.path, names, most)) as batches:
        there = next(batches).names
        lacking = [name for name in names if name not in there]
        if lacking:
            raise DataError(f"{part.path} has no column {lacking[0]!r}, which other files of {source} have")
        yield from batches


def _write(parts: Sequence[Part], column: str, into: Path, source: str, until_at: float) -> None:
    """Write every picture as a file ``<thousands>/<row>``, and their paths to INDEX."""
    number, unchecked = 0, unpack.CHECK_BYTES
    endings = image_extensions()
    with (into / INDEX).open("w", encoding="utf-8", errors="surrogateescape") as index:
        for batch in (batch for each in parts for batch in _rows(each, [column], AT_ONCE, source)):
            unpack.in_time(source, number, until_at)
            unchecked += batch.nbytes
            if unchecked >= unpack.CHECK_BYTES:
                unpack.room(source, unchecked)
                unchecked = 0
            for value in batch.column(0).to_pylist():
                value = value if isinstance(value, dict) else {"bytes": value}
                content, name = value.get("bytes"), value.get("path") or ""
                if content is None:
                    index.write("\t" + " ".join(name.splitlines()) + "\n")
                else:
                    ending = PurePosixPath(name).suffix.lower()
                    path = f"{number // IN_FOLDER:05d}/{number:07d}{ending if ending in endings else ''}"
                    (into / path).parent.mkdir(exist_ok=True)
                    (into / path).write_bytes(content)
                    index.write(f"{path}\n")
                number += 1


def _indexed(index: Path, base: Path) -> Iterator[str]:
    """The paths of the pictures, row by row: unpacked ones, and files below ``base`` that rows without bytes name."""
    with index.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            path, _, elsewhere = line.rstrip("\n").partition("\t")
            yield path or (os.path.normpath(base / elsewhere) if elsewhere else "")


def _records(parts: Sequence[Part], role_of: Mapping[str, str], paths: Iterator[str] | None) -> Iterator[Record]:
    wanted = {role: name for role, name in role_of.items() if role != "path" or paths is None}
    place = 0
    for each in parts:
        names = _class_names(_schema(each.path), role_of["label"])
        for batch in _rows(each, list(dict.fromkeys(wanted.values())), ROWS, str(each.path)):
            cells = {role: batch.column(name).to_pylist() for role, name in wanted.items()}
            for row in range(batch.num_rows):
                place += 1
                values = {role: column[row] for role, column in cells.items()}
                path = next(paths, "") if paths is not None else os.path.normpath(values.pop("path") or "")
                if path in ("", "."):
                    raise DataError(f"row {place:,} of {each.path} has no picture; take it out")
                if names and isinstance(values["label"], int):
                    values["label"] = names[values["label"]] if 0 <= values["label"] < len(names) else None
                yield Record(place, path, values.pop("label"), **{"split": each.split, **values})


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of the classes that numbers in a column stand for, where ``datasets`` left them."""
    with suppress(ValueError, LookupError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    return []
