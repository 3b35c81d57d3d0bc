"""Whether a pack's pixels are still what was stored: by their checksums.

They are checked all together once, then by a sample as long as their file stays as it is. Checking them all takes a
second per GiB (60,000 images of 84 px: 0.9 to 1.5 s of a start).
"""

from __future__ import annotations

import json
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fitwithin.data.fingerprint import Status, mtimes_settled, status_of
from fitwithin.data.pack import Pack
from fitwithin.files import write_text_atomic
from fitwithin.machine import cores

CHECK_ALL_BYTES = 4 * 2**30  # up to here every image is checked where the file is not known to be as it was

CHECK_SAMPLE = 256  # else this many images drawn at random

#: Of a pack's folder: the status of its pixels' file when they were last checked, all of them.
CHECKED = "checked.json"


def is_intact(pack: Pack) -> bool:
    """Whether the checksums of the pack's pixels hold.

    All are checked, up to CHECK_ALL_BYTES, unless they were when the file had the inode, size and dates that it has
    now; what rots on the disk without a write is found by the sample alone then.
    """
    began_at, found = time.time(), status_of(os.stat(pack.folder / "images.u8"))
    known = found == _checked(pack.folder)
    places = np.arange(len(pack))
    if sampled := known or len(pack.pixels) > CHECK_ALL_BYTES:
        places = np.random.default_rng().choice(places, size=min(CHECK_SAMPLE, len(pack)), replace=False)
    if not _checksums_hold(pack, places):
        return False
    if not sampled and mtimes_settled([found], began_at):
        _write_checked(pack.folder, found)
    return True


def _checksums_hold(pack: Pack, places: npt.NDArray[np.int64]) -> bool:
    """Whether those images' pixels are what was stored. In threads: the checksum frees the interpreter lock."""
    chunks = [places[start : start + 256].tolist() for start in range(0, len(places), 256)]
    with ThreadPoolExecutor(cores()) as pool:
        return all(pool.map(lambda chunk: all(zlib.crc32(pack.image(i).data) == pack.crcs[i] for i in chunk), chunks))


def _checked(folder: Path) -> Status | None:
    try:
        device, inode, size, modified, changed = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return device, inode, size, modified, changed


def _write_checked(folder: Path, found: Status) -> None:
    with suppress(OSError):  # somebody else's cache: all are checked again
        write_text_atomic(folder / CHECKED, json.dumps(found), shared=True)
