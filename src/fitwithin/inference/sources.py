"""The images that predictions are asked for: files, folders, and pictures in memory."""

from __future__ import annotations

import csv
import glob
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from fitwithin.data import decode
from fitwithin.data.sources import door
from fitwithin.data.sources.columns import WORDS, form
from fitwithin.data.sources.listing import Row
from fitwithin.data.sources.splits import split_named
from fitwithin.data.sources.tree import Tree, join, same_form
from fitwithin.errors import DataError, UsageError
from fitwithin.units import listed

#: One picture: the path of a file, a PIL image, pixels (uint8 [H, W] or [H, W, 1, 3 or 4]), or a file's bytes. A path
#: may also be a folder of images, a list of paths (.txt, .csv), a pattern such as ``photos/*.jpg``, or ``-``: a list on
#: standard input.
Picture: TypeAlias = "str | Path | Image.Image | np.ndarray[Any, Any] | bytes"

TAKEN = "paths, PIL images, arrays of uint8 [height, width, 3] and bytes of image files, or lists of these"


#: Endings of files that list pictures: a table with a column of paths, or a path in each line.
TABLE, LIST = ".csv", ".txt"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture by its name, and what it is read from: a file, the bytes of one, or an image in memory."""

    name: str
    content: Path | bytes | Image.Image

    def read(self, at_least: int) -> Image.Image:
        """The picture as RGB; its sides may be scaled down to so many pixels. OSError and others, as decode.read."""
        if isinstance(self.content, Image.Image):
            return decode.to_rgb(self.content)
        file = io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content
        return decode.read_rgb(file, at_least=at_least)


def sources(given: Picture | Iterable[Picture]) -> Iterator[Source]:
    """The pictures that were given, one or several, in order; those below folders by name, folder by folder. Folders
    are looked into, and lists are read, as they are needed.

    Raises:
        UsageError: a path does not exist, a folder holds no image, or something is no picture.
    """
    if isinstance(given, (str, Path, bytes, bytearray, Image.Image)) or (
        isinstance(given, np.ndarray) and given.ndim in (2, 3)
    ):
        given = [given]
    try:
        pictures = list(given)
    except TypeError:
        raise UsageError(f"predict takes {TAKEN}, not {type(given).__name__}") from None
    each = [_sources(picture, f"image {place + 1}") for place, picture in enumerate(pictures)]
    return chain.from_iterable(each)


def _sources(picture: Picture, name: str) -> Iterable[Source]:
    """Those of one picture, path or folder; what is wrong with it is said at once."""
    if isinstance(picture, (str, Path)):
        return _below(picture)
    if isinstance(picture, (bytes, bytearray)):
        return [Source(name=name, content=bytes(picture))]
    if isinstance(picture, Image.Image):
        return [Source(name=getattr(picture, "filename", "") or name, content=picture)]
    if isinstance(picture, np.ndarray):
        return [Source(name=name, content=_from_array(picture, name))]
    raise UsageError(f"predict takes {TAKEN}; {name} is of type {type(picture).__name__}")


def _below(given: str | Path) -> Iterable[Source]:
    """What a path stands for: a file, the images in a folder, those that a list names, or that a pattern matches."""
    path = Path(given)
    if str(given) == "-":
        return map(from_file, _lines(sys.stdin, Path()))
    if path.is_dir():
        return map(from_file, image_files(path))
    if path.is_file():
        suffix = path.suffix.lower()
        return map(from_file, _listed_in(path)) if suffix in (TABLE, LIST) else [from_file(path)]
    if any(letter in str(given) for letter in "*?[") and (found := sorted(glob.iglob(str(given), recursive=True))):
        return map(from_file, (Path(each) for each in found if Path(each).is_file()))
    raise UsageError(f"there is no file or folder {str(path)!r}")


def from_file(path: Path) -> Source:
    """The picture in a file."""
    return Source(name=str(path), content=path)


def _lines(lines: Iterable[str], folder: Path) -> Iterator[Path]:
    return (folder / line.rstrip("\r\n") for line in lines if line.strip())


def _listed_in(path: Path) -> Iterator[Path]:
    """The files that a list names; paths in it are relative to its folder. UsageError for a table without paths."""
    if path.suffix.lower() == LIST:
        return _in_list(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        names = next(csv.reader(file), [])
    column = next((name for name in names if form(name) in WORDS["path"]), None)
    if column is None:
        there = listed(names) or "it is empty"
        raise UsageError(f"{path} has no column of paths ({there}); call it {WORDS['path'][0]!r}")
    return _in_table(path, column)


def _in_list(path: Path) -> Iterator[Path]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        yield from _lines(file, path.parent)


def _in_table(path: Path, column: str) -> Iterator[Path]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from (path.parent / row[column] for row in csv.DictReader(file) if row[column])


def _from_array(pixels: np.ndarray[Any, Any], name: str) -> Image.Image:
    squeezed = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype != np.uint8 or not (squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] in (3, 4))):
        shape = " x ".join(map(str, pixels.shape))
        raise UsageError(
            f"{name} is an array of {shape} {pixels.dtype} values; give uint8 values from 0 to 255, height x width x 3"
        )
    return Image.fromarray(squeezed)


def image_files(folder: Path) -> Iterator[Path]:
    """The images below a folder, folder by folder; UsageError if there is none."""
    tree = Tree(folder)
    paths = tree.walk("")
    first = next(paths, None)
    if first is None:
        raise UsageError("; ".join([f"{folder} holds no images", *tree.passed_over()]))
    return (folder / path for path in chain([first], paths))


def labelled(
    data: str | Path, classes: Sequence[str], columns: Mapping[str, str] | None = None
) -> list[tuple[Path, str]]:
    """The images of any data that a run takes, each with its class; where they state splits, those of the test split,
    else of val.

    Raises:
        DataError: there is no such data, no image in it, or a class that is not among ``classes``.
    """
    if not columns and door.is_plain(Path(data)):
        return labelled_files(Path(data), classes)
    found = door.read(data, columns=columns)
    known = {same_form(name): name for name in classes}
    by_split: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.label is not None:
            by_split.setdefault(row.split, []).append(row)
    rows = next((by_split[split] for split in ("test", "val", "train") if split in by_split), [])
    if unknown := sorted({row.label for row in rows if row.label} - {*known}):
        raise DataError(
            f"{data} has classes the model does not know ({listed(unknown)}); the model's classes are "
            f"{listed(classes, 8)}"
        )
    if not rows:
        raise DataError(f"{data} holds no labelled images")
    return [(found.root / row.path, known[row.label]) for row in rows if row.label]


def labelled_files(root: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """The images in the class folders of ``root``, each with its class; of a folder with splits those of its test
    split, else of val.

    Raises:
        DataError: there is no image in it, or a class that is not among ``classes``.
    """
    tree = Tree(root)
    known = {same_form(name): name for name in classes}

    def is_class(path: str) -> bool:
        name = path.rpartition("/")[2]
        return same_form(name) in known or split_named(name) is not None or bool(tree.images_in(path))

    top = tree.descend("", is_class)
    splits = {split_named(name): name for name in tree.entries(top).folders if same_form(name) not in known}
    if "train" in splits and (name := splits.get("test") or splits.get("val")):
        top = join(top, name)
    found: list[tuple[Path, str]] = []
    unknown = []
    names = tree.entries(top).folders
    for name in names:
        images = sorted(tree.images_below(join(top, name)))
        if same_form(name) in known:
            found += [(root / path, known[same_form(name)]) for path in images]
        elif images or not tree.holds_runs(join(top, name)):
            unknown.append(name)
    if unknown or not names:
        what = f"classes the model does not know ({listed(unknown)})" if unknown else "no class folders"
        raise DataError(f"{root / top} has {what}; the model's classes are {listed(classes, 8)}")
    if not found:
        raise DataError("; ".join([f"{root} holds no images", *tree.passed_over()]))
    return found
