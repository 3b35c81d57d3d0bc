"""The one door to data: whatever people have their pictures in becomes a :class:`fitwithin.data.dataset.Dataset`."""

from __future__ import annotations

import glob
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fitwithin.data.dataset import Dataset
from fitwithin.data.inspection import twins
from fitwithin.data.sources import archive, arrow, folder, hub, pairs, table, unpack
from fitwithin.data.sources.listing import Listing, assemble
from fitwithin.data.sources.tree import Tree
from fitwithin.errors import DataError
from fitwithin.units import listed

#: What may be given, for messages.
TAKEN = "a folder, a table (.csv, .tsv, .parquet), an archive (.zip, .tar), a pattern of those, or hf:owner/name"

#: A folder with one of these was fetched from the Hub: its tables may lie one folder down.
FROM_HUB = (".gitattributes", "README.md")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was given, and how it is to be read."""

    source: str
    given: Mapping[str, str] = field(default_factory=dict)
    timed: bool = False
    until_at: float = math.inf


def open_dataset(
    data: str | Path,
    *,
    seed: int = 0,
    split: str = "auto",
    columns: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    until_at: float = math.inf,
) -> Dataset:
    """The data set in ``data``: a path, a pattern, or ``hf:owner/name``.

    Where no split is stated, it is drawn: see :func:`fitwithin.data.sources.listing.assemble`. ``columns`` says what a
    table's columns are, by role (path, label, split, group, time). In the folder ``cache_dir`` it is recorded what was
    read, so that files that did not change are not read again. Reading ends at the monotonic instant ``until_at``.

    Raises:
        DataError: there is nothing of that name, it cannot be read, or it cannot serve as a data set.
    """
    found = read(data, columns=columns, timed=split == "order", until_at=until_at)
    whole = assemble(found, seed=seed, split=split, cache_dir=cache_dir, until_at=until_at)
    if split != "grouped" or any(row.split == "val" for row in found.rows):
        return whole
    near = twins.groups(whole, partial(_in_time, until_at))
    return assemble(found, seed=seed, split=split, near=near, cache_dir=cache_dir, until_at=until_at)


def _in_time(until_at: float, done: int, total: int) -> None:
    """DataError once the time for looking for near twins is over."""
    if time.monotonic() > until_at:
        raise DataError(
            f"half of the time was over when near twins were looked for in {done:,} of {total:,} images; give more "
            f"time, or leave out --split grouped"
        )


def read(
    data: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    timed: bool = False,
    until_at: float = math.inf,
) -> Listing:
    """What ``data`` lists, with times where they are wanted. DataError where it cannot be read."""
    asked = _Asked(source=str(data), given=columns or {}, timed=timed, until_at=until_at)
    if asked.source.startswith(hub.PREFIX):
        return _folder(hub.snapshot(asked.source), asked)
    path = Path(data)
    if path.is_dir():
        return _folder(path, asked)
    if path.is_file():
        return _files([path], asked)
    if files := matching(asked.source):
        return _files(files, asked)
    raise DataError(f"the data {path} does not exist; give {TAKEN}")


def is_plain(folder: Path) -> bool:
    """Whether a path is a folder of pictures as they are: no tables, shards or saved data set."""
    return folder.is_dir() and not any(
        (
            arrow.is_saved(folder),
            _held(folder, arrow.PARQUET),
            _held(folder, ".tar"),
            pairs.are_pairs(Tree(folder), shards=False),
        )
    )


def absolute(data: str | Path) -> str:
    """The same data by a name that holds in any folder."""
    return str(data) if str(data).startswith(hub.PREFIX) else os.path.abspath(data)


def is_there(data: str) -> bool:
    """Whether there is something of that name."""
    return data.startswith(hub.PREFIX) or Path(data).exists() or bool(matching(data))


def matching(pattern: str) -> list[Path]:
    """The files that a pattern matches, by name: ``*``, ``?``, ``[]``, and ``{000..123}`` as WebDataset writes it."""
    if (range_ := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)) is None:
        found = glob.glob(pattern) if any(letter in pattern for letter in "*?[") else []
        return sorted(path for path in map(Path, found) if path.is_file())
    first, last = range_.groups()
    before, after = pattern[: range_.start()], pattern[range_.end() :]
    paths = [Path(f"{before}{number:0{len(first)}d}{after}") for number in range(int(first), int(last) + 1)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{len(missing):,} of the {len(paths):,} files {pattern} are not there, such as {missing[0]}")
    return paths


def _files(files: Sequence[Path], asked: _Asked) -> Listing:
    """The pictures of a table or an archive, or of several of a kind."""
    suffixes = {path.suffix.lower() for path in files}
    if suffixes == {arrow.PARQUET}:
        parts = [arrow.part(path) if len(files) > 1 else arrow.Part(path=path) for path in files]
        return _arrow(parts, files[0].parent, asked)
    if all(map(archive.is_archive, files)):
        return _archives(files, asked)
    if len(files) == 1 and suffixes <= {*table.SUFFIXES}:
        return table.read(files[0], given=asked.given, timed=asked.timed)
    what = f"{len(files):,} files that cannot be read together" if len(files) > 1 else "a file of an unknown kind"
    raise DataError(f"the data {asked.source} is {what}; give {TAKEN}")


def _arrow(parts: Sequence[arrow.Part], root: Path, asked: _Asked) -> Listing:
    return arrow.read(
        parts, source=asked.source, root=root, given=asked.given, timed=asked.timed, until_at=asked.until_at
    )


def _archives(files: Sequence[Path], asked: _Asked) -> Listing:
    """The pictures of archives: class folders in one, or pairs of files, as in shards."""
    shards = len(files) > 1

    def write(into: Path) -> None:
        archive.unpack_all(files, into, until_at=asked.until_at)

    about = "\n".join(archive.stem(path) for path in files) if shards else "one archive"
    root = unpack.unpacked(files, about, write, source=asked.source, until_at=asked.until_at)
    if shards or pairs.are_pairs(Tree(root), shards=False):
        return pairs.read(root, source=asked.source, given=asked.given, timed=asked.timed, shards=shards)
    return _class_folders(root, asked)


def _class_folders(root: Path, asked: _Asked) -> Listing:
    """The pictures of class folders, which have no columns."""
    if asked.given:
        raise DataError(f"--columns says what the columns of a table are, and {asked.source} has none; leave it out")
    return folder.read(root, source=asked.source)


def _folder(root: Path, asked: _Asked) -> Listing:
    """The pictures in a folder: a saved data set, tables or shards as on the Hub, or class folders."""
    if arrow.is_saved(root):
        return _arrow(arrow.saved(root), root, asked)
    if parquet := _held(root, arrow.PARQUET):
        return _arrow([arrow.part(path) for path in parquet], parquet[0].parent, asked)
    if shards := _held(root, ".tar"):
        return _archives(shards, asked)
    if pairs.are_pairs(Tree(root), shards=False):
        return pairs.read(root, source=asked.source, given=asked.given, timed=asked.timed, shards=False)
    return _class_folders(root, asked)


def _held(root: Path, ending: str) -> list[Path]:
    """The files with an ending that a folder is made of, as tables and shards are: directly in it where it has no
    folders, in ``data``, or (from the Hub) one folder down.

    Raises:
        DataError: they lie in several folders that are not splits, or a folder cannot be listed.
    """
    tree = Tree(root)

    def within(place: str) -> list[Path]:
        names = tree.entries(place).files
        return [root / place / name for name in names if name.lower().endswith(ending)]

    folders = tree.entries("").folders
    if directly := within(""):
        return [] if folders else directly
    if "data" in folders and (in_data := within("data")):
        return in_data
    if not any((root / name).exists() for name in FROM_HUB):
        return []
    found = {place: files for place in folders if (files := within(place))}
    if len(found) > 1 and any(arrow.part(root / place / "x").split is None for place in found):
        raise DataError(f"{root} has several data sets ({listed(found, 10)}); give the folder of one")
    return [path for files in found.values() for path in files]
