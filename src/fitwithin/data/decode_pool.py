"""Image files are decoded by several processes, which append their pixels to one file."""

# H W pixels

from __future__ import annotations

import fcntl
import math
import os
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fitwithin.data import crew
from fitwithin.data.dataset import Broken
from fitwithin.data.decode import UNREADABLE, read
from fitwithin.data.fingerprint import Status, status_of

#: Images that a process decodes for one answer.
AT_ONCE = 8

#: Why an image is left out whose decoding ended a process, as bugs in image libraries do.
CRASHED = "decoding it ended the process"

#: The pixels of an image, uint8 [H, W, 3], with what is to be remarked on it; or why there are none.
Decoded = tuple[npt.NDArray[np.uint8], tuple[str, ...]] | Broken


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An image in the file of pixels: where, its height and width, its checksum, and what is to be remarked on it."""

    offset: int
    height: int
    width: int
    crc: int
    remarks: tuple[str, ...]


#: What became of an image.
Found = Stored | Broken


def decode_all(
    root: Path, paths: Sequence[str], shorter_px: int, file: Path, workers: int, until_at: float = math.inf
) -> Generator[tuple[int, Found], None, None]:
    """Decode the images at ``paths`` below ``root`` and append their pixels, uint8 [H, W, 3], to ``file``: yields the
    position in ``paths`` of each, and what became of it, as they are done.

    They are begun in order, and none is waited for after the monotonic instant ``until_at``; one at least is decoded.
    What was not waited for may have left bytes in the file that belong to no image.

    Raises:
        OSError: the file cannot be written.
        DataError: no process could be started.
    """
    words = [str(root), str(shorter_px), str(file)]
    task, total = f"{__name__}:decoder", len(paths)
    file.touch()
    with closing(
        crew.work(task, words, paths, workers=workers, at_once=AT_ONCE, total=total, until_at=until_at)
    ) as found:
        for done in found:
            lost = Broken(path=done.item, reason=CRASHED, status=status(root / done.item)) if done.lost else None
            yield done.position, lost or done.answer


def decoder(root: str, shorter_px: str, file: str) -> Callable[[list[str]], list[Found]]:
    """A function that decodes images at paths below ``root`` and appends their pixels to ``file``."""

    def decode_some(paths: list[str]) -> list[Found]:
        with open(file, "ab", buffering=0) as out:
            return _stored(out.fileno(), [decode(Path(root), path, int(shorter_px)) for path in paths])

    return decode_some


def decode(root: Path, path: str, shorter_px: int) -> Decoded:
    """An image's pixels, with min(H, W) <= shorter_px."""
    before = status(root / path)
    try:
        # A JPEG decoded at a fraction keeps twice the pixels asked for, so that the resampling below decides.
        image, remarks = read(root / path, at_least=2 * shorter_px)
    except UNREADABLE as error:
        could_be_read = not (isinstance(error, OSError) and error.errno is not None)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return Broken(path=path, reason=reason, status=before if could_be_read else None)
    shorter = min(image.size)
    if shorter > shorter_px:
        width, height = (max(shorter_px, round(length * shorter_px / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image), remarks


def status(file: Path) -> Status | None:
    """The file's status; None if it cannot be had."""
    try:
        return status_of(os.stat(file))
    except OSError:
        return None


def _stored(descriptor: int, decoded: Sequence[Decoded]) -> list[Found]:
    """Append the pixels to the file at once, while no other process appends."""
    images = [each[0] for each in decoded if not isinstance(each, Broken)]
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        offset = os.lseek(descriptor, 0, os.SEEK_END)
        for image in images:
            rest = image.data.cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    found: list[Found] = []
    for each in decoded:
        if isinstance(each, Broken):
            found.append(each)
            continue
        image, remarks = each
        height, width, _ = image.shape
        crc = zlib.crc32(image.data)
        found.append(Stored(offset=offset, height=height, width=width, crc=crc, remarks=remarks))
        offset += image.nbytes
    return found
