"""The images that predictions are asked for: files, folders, and pictures in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from fitwithin.data import decode
from fitwithin.data.splits import split_named
from fitwithin.data.tree import Tree, join, same_form
from fitwithin.errors import DataError, UsageError
from fitwithin.units import listed

#: One picture: the path of a file, a PIL image, pixels (uint8 [H, W] or [H, W, 1, 3 or 4]), or a file's bytes. A path
#: may also be a folder of images.
Picture: TypeAlias = "str | Path | Image.Image | np.ndarray[Any, Any] | bytes"

TAKEN = "paths, PIL images, arrays of uint8 [height, width, 3] and bytes of image files, or lists of these"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture by its name, and how it is read: as RGB, with sides that may be scaled down to so many pixels."""

    name: str
    read: Callable[[int], Image.Image]


def sources(given: Picture | Iterable[Picture]) -> list[Source]:
    """The pictures that were given, one or several, in order; those below folders by name.

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
    return [source for place, picture in enumerate(pictures) for source in _sources(picture, f"image {place + 1}")]


def _sources(picture: Picture, name: str) -> Iterator[Source]:
    if isinstance(picture, (str, Path)):
        path = Path(picture)
        if path.is_dir():
            yield from map(_file, image_files(path))
        elif path.is_file():
            yield _file(path)
        else:
            raise UsageError(f"there is no file or folder {str(path)!r}")
    elif isinstance(picture, (bytes, bytearray)):
        content = bytes(picture)
        yield Source(name=name, read=lambda side: decode.read_rgb(io.BytesIO(content), at_least=side))
    elif isinstance(picture, Image.Image):
        yield Source(name=getattr(picture, "filename", "") or name, read=lambda side: decode.to_rgb(picture))
    elif isinstance(picture, np.ndarray):
        image = _from_array(picture, name)
        yield Source(name=name, read=lambda side: image)
    else:
        raise UsageError(f"predict takes {TAKEN}; {name} is of type {type(picture).__name__}")


def _file(path: Path) -> Source:
    return Source(name=str(path), read=lambda side: decode.read_rgb(path, at_least=side))


def _from_array(pixels: np.ndarray[Any, Any], name: str) -> Image.Image:
    squeezed = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype != np.uint8 or not (squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] in (3, 4))):
        shape = " x ".join(map(str, pixels.shape))
        raise UsageError(
            f"{name} is an array of {shape} {pixels.dtype} values; give uint8 values from 0 to 255, height x width x 3"
        )
    return decode.to_rgb(Image.fromarray(squeezed))


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, by name; UsageError if there is none."""
    tree = Tree(folder)
    found = [folder / path for path in sorted(tree.images_below(""))]
    if not found:
        raise UsageError("; ".join([f"{folder} holds no images", *tree.passed_over()]))
    return found


def labelled_files(root: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """The images in the class folders of ``root``, each with its class; of a folder with splits those of its test
    split, else of val.

    Raises:
        DataError: there is no such folder, no image in it, or a class that is not among ``classes``.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {str(root)!r}; give one with a folder of images for each class")
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
