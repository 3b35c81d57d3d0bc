"""Image files become RGB pixels: which files are images, and how any mode, depth or orientation is read."""

# H W pixels

from __future__ import annotations

import functools
import importlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 0.5 GiB of RGB
# Vector drawings, films, metadata and science containers that Pillow registers but cannot (or should not) rasterise:
# EPS would start Ghostscript.
_NO_RASTER = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})

#: Packages that teach Pillow further formats when they are installed, with the function that does it.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}

#: Formats that may need such a package: by what stands in bytes 4 to 12 of the file, their name and the package.
_NEEDS_PLUGIN = {
    **dict.fromkeys((b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"), ("HEIC", "pillow-heif")),
    **dict.fromkeys((b"ftypavif", b"ftypavis"), ("AVIF", "pillow-avif-plugin")),
    b"JXL \r\n\x87\n": ("JPEG XL", "pillow-jxl-plugin"),
}

#: How image files begin, whatever their name ends with.
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  ",
)

#: Endings of images that Pillow reads without saying so (.mpo: several JPEGs in one), or with a package.
_MORE_ENDINGS = frozenset({".mpo", ".heic", ".heif", ".hif", ".avif", ".jxl"})

#: What :func:`read` may remark on, each in the words of the report.
CUT_SHORT = "without the end marker of a JPEG, but with all pixels"
LOST_RANGE = "with 16-bit values so close together that few of 256 grey levels are left; stretch them beforehand"
SEVERAL_PAGES = "with several pages, of which the first is read"
ONE_COLOUR = "of one colour"

#: 16-bit pictures whose values are distinct keep at least so many grey levels, or that is remarked on.
FEW_LEVELS = 32

# What Pillow's parsers were seen to raise on damaged files, besides the documented OSError (20 000 fuzzed files).
UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # AVIF: "Failed to decode image"; DDS: a subclass
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)


class Picture(NamedTuple):
    """An image as 8-bit RGB, and what is to be remarked on it (CUT_SHORT, LOST_RANGE, SEVERAL_PAGES, ONE_COLOUR)."""

    image: Image.Image
    remarks: tuple[str, ...]


def read_rgb(file: Path | BinaryIO, *, at_least: int | None = None) -> Image.Image:
    """The image of :func:`read`, without remarks."""
    return read(file, at_least=at_least).image


def read(file: Path | BinaryIO, *, at_least: int | None = None) -> Picture:
    """An image file as 8-bit RGB: upright, transparency laid on white, 16 bits scaled, the first frame of a film.

    16-bit grey is divided by 257; wider integers (mode I beyond 65535) and floats are stretched from their minimum
    and maximum. ``at_least`` lets a JPEG be decoded at a half, quarter or eighth when both sides keep that many pixels.
    Emits no Python warning, in any thread, and starts no other program.

    Raises:
        OSError, ValueError, SyntaxError and the rest of ``UNREADABLE``: the file is damaged or no image.
    """
    with _quiet_pillow():
        try:
            return _read(file, at_least)
        except UnidentifiedImageError as error:
            raise _unidentified(file) from error
        except OSError as error:
            if error.errno is not None or (mended := _with_end_marker(file)) is None:
                raise
            picture = _read(mended, at_least)
            return Picture(picture.image, (*picture.remarks, CUT_SHORT))


class Header(NamedTuple):
    """What an image file says of itself: pixels as they are stored, ``JPEG`` or the like, and Pillow's mode."""

    width: int
    height: int
    format: str
    mode: str


def header(file: Path | BinaryIO) -> Header:
    """The header of an image file; raises what :func:`read` raises."""
    with _quiet_pillow(), Image.open(file, formats=_formats()) as image:
        return Header(image.width, image.height, image.format or "", image.mode)


def shorter_side(files: Iterable[Path]) -> int | None:
    """The median of the shorter sides of image files, in pixels, by their headers alone; None if none can be read."""
    found = []
    with _quiet_pillow():
        for file in files:
            with suppress(*UNREADABLE), Image.open(file, formats=_formats()) as image:
                found.append(min(image.size))
    return sorted(found)[len(found) // 2] if found else None


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as :func:`read` gives it: upright 8-bit RGB."""
    with _quiet_pillow():
        return _to_rgb(ImageOps.exif_transpose(image))


def _read(file: Path | BinaryIO, at_least: int | None) -> Picture:
    try:
        opened = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error}; scale the image down") from error
    with opened as image:
        n_pixels = image.width * image.height
        if not 0 < n_pixels <= MAX_PIXELS:
            raise ValueError(f"{n_pixels} pixels where 1 to {MAX_PIXELS} can be read; scale the image down")
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        with suppress(*UNREADABLE):  # the pixels are whole (loaded above): garbled EXIF only costs the orientation
            ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image)
        remarks = []
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            remarks.append(SEVERAL_PAGES)
        if rgb.width * rgb.height > 1 and rgb.getcolors(1) is not None:
            remarks.append(ONE_COLOUR)
        if image.mode.startswith("I") and _lost_range(image, rgb):
            remarks.append(LOST_RANGE)
        return Picture(rgb, tuple(remarks))


def _lost_range(image: Image.Image, rgb: Image.Image) -> bool:
    """Whether the picture has more values than grey levels are left, and few are left."""
    levels = sum(count > 0 for count in rgb.getchannel(0).histogram())
    return levels < FEW_LEVELS and len(np.unique(np.asarray(image))) > 2 * levels


def _with_end_marker(file: Path | BinaryIO) -> BinaryIO | None:
    """A JPEG that only lacks its end marker, with one; None for any other file.

    Whether pixels are missing shows when other bytes stand before the marker: then they are decoded as pixels.
    """
    if isinstance(file, Path):
        content = file.read_bytes()
    else:
        file.seek(0)
        content = file.read()
    if not content.startswith(b"\xff\xd8\xff") or content.rstrip(b"\x00").endswith(b"\xff\xd9"):
        return None
    content = content.removesuffix(b"\xff")
    with suppress(*UNREADABLE):
        pixels = [
            Image.open(io.BytesIO(content + filler + b"\xff\xd9"), formats=["JPEG"]).tobytes()
            for filler in (b"", b"\xa5\x5a" * 64)
        ]
        if pixels[0] == pixels[1]:
            return io.BytesIO(content + b"\xff\xd9")
    return None


def _unidentified(file: Path | BinaryIO) -> UnidentifiedImageError:
    """The error for a file that Pillow does not know: what it is and the way out, if that can be seen."""
    head = _head(file)
    for start in (4, 0):
        if (found := _NEEDS_PLUGIN.get(head[start : start + 8])) is not None:
            name, package = found
            return UnidentifiedImageError(f"a {name} image; `pip install {package}` lets fitwithin read it")
    return UnidentifiedImageError("no image that Pillow knows" if head else "the file is empty")


def _head(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(16)
    file.seek(0)
    return file.read(16)


@functools.cache
def _formats() -> list[str]:
    """What Pillow may open: every raster format, and what installed packages add."""
    for name, register in _PLUGINS.items():
        with suppress(ImportError):
            module = importlib.import_module(name)
            if register:
                getattr(module, register)()
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in _NO_RASTER]


@functools.cache
def image_extensions() -> frozenset[str]:
    """The lower-case file extensions, dot included, that count as images: those of the raster formats."""
    formats = set(_formats())
    known = {ext for ext, name in Image.registered_extensions().items() if name in formats}
    return frozenset(known) | _MORE_ENDINGS


def is_image(path: str | Path) -> bool:
    """Whether a file is an image: by its ending, else by how it begins."""
    if os.path.splitext(path)[1].lower() in image_extensions():
        return True
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(16)
    except OSError:
        return False
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    bmp = head.startswith(b"BM") and head[6:10] == bytes(4) and len(head) == 16
    return webp or bmp or head.startswith(_BEGINNINGS) or head[4:12] in _NEEDS_PLUGIN or head[:8] in _NEEDS_PLUGIN


def has_header(path: Path) -> bool:
    """Whether a file begins as an image that can be read does."""
    try:
        with _quiet_pillow(), Image.open(path, formats=_formats()):
            return True
    except UNREADABLE:
        return False
    except Image.DecompressionBombError:
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":  # Image.convert knows no way out of LAB
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only for in-place conversion
        return converted
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey_HW: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    values = grey_HW.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if grey_HW.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low) if high > low else 0)
    return np.rint(scaled).astype(np.uint8)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_scope: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (bombs, odd EXIF, odd TIFF tags): a damaged file shows by an error of UNREADABLE.

    ``catch_warnings`` saves and restores process-wide filters, so overlapping threads would undo one another: the
    first one in sets the filter, the last one out restores what was there.
    """
    global _quiet_depth, _quiet_scope
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_scope = warnings.catch_warnings()
            _quiet_scope.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_scope is not None:
                _quiet_scope.__exit__(None, None, None)
