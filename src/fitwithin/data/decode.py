"""Image files become RGB pixels: which files count as images, and how any mode, depth or orientation is read."""

# H W pixels

from __future__ import annotations

import functools
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 0.5 GiB of RGB
# Vector drawings, films, metadata and science containers that Pillow registers but cannot (or should not) rasterise.
_NO_RASTER = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
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


def read_rgb(file: Path | BinaryIO, *, at_least: int | None = None) -> Image.Image:
    """An image file as 8-bit RGB: upright, transparency laid on white, the first frame of a film; without warnings.

    16-bit grey is divided by 257; wider integers (mode I beyond 65535) and floats are stretched from their minimum
    and maximum. ``at_least`` lets a JPEG be decoded at a half, quarter or eighth if both sides keep that many pixels.

    Raises:
        OSError and the rest of ``UNREADABLE``: the file is damaged or no image.
    """
    with _quiet_pillow():
        try:
            opened = Image.open(file)
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
            return _to_rgb(image)


@functools.cache
def image_extensions() -> frozenset[str]:
    """The lower-case file extensions, dot included, that count as images: those Pillow can open as a raster."""
    known = Image.registered_extensions()
    return frozenset(ext for ext, name in known.items() if name in Image.OPEN and name not in _NO_RASTER)


def is_image(name: str) -> bool:
    """Whether the extension of a file's name, in either case, is an image's."""
    return os.path.splitext(name)[1].lower() in image_extensions()


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
    """Silence Pillow's warnings (bombs, odd EXIF, odd TIFF tags): a damaged file raises one of UNREADABLE.

    ``catch_warnings`` changes process-wide filters, so overlapping threads would undo one another: the first one in
    sets the filter, the last one out restores the old filters.
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
