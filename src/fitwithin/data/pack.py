"""Images decoded once into a memory-mapped store of uint8 pixels, so that training reads 20 000 of them a second.

A pack is a folder: ``images.u8`` (raw pixels, H W 3, one image after the other), ``index.npz`` (where each image is,
its size, label, split, CRC-32 and path) and ``meta.json`` (written last: without it the pack is incomplete). It is
named after the data's fingerprint, the side, and the classes and splits: another seed gets a pack of its own, which
costs a second decoding but leaves one folder that says it all.
"""

# N images, H W pixels

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fitwithin.data.dataset import SPLITS, Broken, Remark
from fitwithin.errors import DataError
from fitwithin.files import decode

SCHEMA = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """An open store of N images, in the order of their paths; the arrays are read-only.

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
