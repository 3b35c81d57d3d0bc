"""Images decoded once into a memory-mapped store of uint8 pixels, so that training reads 20 000 of them a second.

A pack is a folder: ``images.u8`` (raw pixels, H W 3, one image after the other), ``index.npz`` (where each image is,
its size, label, split, CRC-32 and path) and ``meta.json`` (written last: without it the pack is incomplete). It is
named after the data's fingerprint, the side, and the classes and splits: another seed gets a pack of its own, which
costs a second decoding but leaves one folder that says it all.

Its pixels are checked by their checksums: all together once, then by a sample as long as their file stays as it is.
Checking them all takes a second per GiB (60,000 images of 84 px: 0.9 to 1.5 s of a start).
"""

# N images, H W pixels

from __future__ import annotations

import io
import json
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fitwithin.data.dataset import SPLITS, Broken, Remark
from fitwithin.data.fingerprint import Status, mtimes_settled, status_of
from fitwithin.errors import DataError
from fitwithin.files import decode, write_text_atomic
from fitwithin.machine import cores

SCHEMA = 2

CHECK_ALL_BYTES = 4 * 2**30  # up to here every image is checked where the file is not known to be as it was

CHECK_SAMPLE = 256  # else this many images drawn at random

#: Of a pack's folder: the status of its pixels' file when they were last checked, all of them.
CHECKED = "checked.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """An open store of N images, in the order of their data set; the arrays are read-only.

    offsets (bytes), labels: int64 [N]; heights, widths (pixels): int32 [N]; split_codes: uint8 [N], indices into
    SPLITS; crcs: uint32 [N]; pixels: the memory map, uint8 [bytes]. ``partial``: time was over before all images were
    decoded. Pickles as its folder, and reopens there.
    """

    folder: Path
    shorter_px: int
    classes: tuple[str, ...]
    fingerprint: str
    broken: tuple[Broken, ...]
    remarks: tuple[Remark, ...] = ()
    partial: bool = False
    paths: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]
    split_codes: npt.NDArray[np.uint8]
    crcs: npt.NDArray[np.uint32]
    pixels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets)

    def __reduce__(self) -> tuple[Callable[[Path], Pack], tuple[Path]]:
        return open_pack, (self.folder,)

    def image(self, i: int) -> npt.NDArray[np.uint8]:
        """Image ``i``: uint8 [H, W, 3], a read-only view into the memory map."""
        start, height, width = int(self.offsets[i]), int(self.heights[i]), int(self.widths[i])
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of the images of ``split``, in stored order."""
        return np.flatnonzero(self.split_codes == SPLITS.index(split)).astype(np.int64)


def open_pack(folder: Path) -> Pack:
    """The pack in a folder, memory-mapped; its pixels are trusted, for build has checked them.

    Raises:
        DataError: the pack is incomplete, cut short, or of another version.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        index = (folder / "index.npz").read_bytes()
        n_bytes = (folder / "images.u8").stat().st_size
        if (meta["schema"], meta["pixel_bytes"], meta["index_crc32"]) != (SCHEMA, n_bytes, zlib.crc32(index)):
            raise ValueError("its parts do not match its meta.json")
        with np.load(io.BytesIO(index), allow_pickle=False) as stored:
            arrays = dict(stored)
        return Pack(
            folder=folder,
            shorter_px=meta["side"],
            classes=tuple(meta["classes"]),
            fingerprint=meta["fingerprint"],
            broken=tuple(decode(Broken, item) for item in meta["broken"]),
            remarks=tuple(Remark(**item) for item in meta["remarks"]),
            partial=meta["partial"],
            paths=tuple(arrays.pop("paths").tobytes().decode("utf-8", "surrogateescape").split("\0")),
            pixels=np.memmap(folder / "images.u8", dtype=np.uint8, mode="r").view(np.ndarray),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no complete pack of images ({error}); start again to have it built") from error


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
