"""Images decoded once into a memory-mapped store of uint8 pixels, so that training reads 20 000 of them a second.

A pack is a folder: ``images.u8`` (raw pixels, H W 3, one image after the other), ``index.npz`` (where each image is,
its size, label, split, CRC-32 and path) and ``meta.json`` (written last: without it the pack is incomplete). It is
named after the data's fingerprint, the side, and the classes and splits: another seed gets a pack of its own, which
costs a second decoding but leaves one folder that says it all.
"""

# N images, H W pixels

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import socket
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fitwithin.data.decode import UNREADABLE, read_rgb
from fitwithin.data.image_folder import SPLITS, Broken, Dataset, Sample, without
from fitwithin.data.soundness import sound
from fitwithin.errors import DataError
from fitwithin.files import cache_root
from fitwithin.machine import cores
from fitwithin.units import format_size

SCHEMA = 1
WIDER = 1.35  # mean of longer side / shorter side taken for the estimate: between 4:3 and 3:2
_WAY_OUT = "free some space or set FITWITHIN_CACHE to a folder on a larger disk"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """An open store of N images, in the order of their paths; the arrays are read-only.

    offsets (bytes), labels: int64 [N]; heights, widths (pixels): int32 [N]; split_codes: uint8 [N], indices into
    SPLITS; crcs: uint32 [N]; pixels: the memory map, uint8 [bytes]. Pickles as its folder, and reopens there.
    """

    folder: Path
    side: int
    classes: tuple[str, ...]
    fingerprint: str
    broken: tuple[Broken, ...]
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


def location(dataset: Dataset, side: int) -> Path:
    """The folder of the pack of these pixels, classes and splits, whether it exists or not."""
    digest = blake2b(digest_size=8)
    for fact in (*dataset.classes, *(f"{s.path}\0{s.label}\0{s.split}" for s in dataset.samples)):
        digest.update(fact.encode("utf-8", "surrogateescape") + b"\n\0")
    return cache_root() / "packs" / f"{dataset.fingerprint[:16]}-{side}-{digest.hexdigest()}"


def build(
    dataset: Dataset,
    side: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    strict: bool = False,
    before_decoding: Callable[[], None] | None = None,
) -> Pack:
    """The pack of a data set: the stored one when it is complete, undamaged and matches, else one decoded now.

    Images whose shorter side is above ``side`` are scaled down to it, aspect ratio kept; none is enlarged. Files that
    cannot be decoded are left out and listed in ``broken``; ``strict`` refuses them. ``on_progress`` gets (done, total)
    after each image; ``before_decoding`` is called if there is anything to decode.

    Raises:
        DataError: no space, a cache that cannot be written, broken files under ``strict``, or too few whole ones.
    """
    target = location(dataset, side)
    pack = _reusable(target, dataset, side)
    if pack is None:
        if before_decoding is not None:
            before_decoding()
        try:
            pack = _build(dataset, side, target, on_progress or (lambda done, total: None), workers or cores())
        except OSError as error:
            if error.errno not in (*_FULL, *_NO_ENTRY):
                raise
            cause = f"the disk is full ({error.strerror})" if error.errno in _FULL else str(error)
            raise DataError(f"decoded images cannot be stored in {target.parent}: {cause}; {_WAY_OUT}") from error
    if strict and pack.broken:
        named = ", ".join(f"{item.path} ({item.reason})" for item in pack.broken[:3])
        raise DataError(
            f"{len(pack.broken)} of {len(dataset.samples)} images in {dataset.root} cannot be read, such as {named}; "
            f"repair or remove them, or go on without them by not asking for strict reading"
        )
    return pack


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
            side=meta["side"],
            classes=tuple(meta["classes"]),
            fingerprint=meta["fingerprint"],
            broken=tuple(Broken(**item) for item in meta["broken"]),
            paths=tuple(arrays.pop("paths").tobytes().decode("utf-8", "surrogateescape").split("\0")),
            pixels=np.memmap(folder / "images.u8", dtype=np.uint8, mode="r").view(np.ndarray),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no complete pack of images ({error}); start again to have it built") from error


def _reusable(target: Path, dataset: Dataset, side: int) -> Pack | None:
    """The pack in ``target`` if it is what decoding ``dataset`` again would give."""
    try:
        pack = open_pack(target)
    except DataError:
        return None
    named = (*pack.paths, *(item.path for item in pack.broken))
    if (pack.fingerprint, pack.side, pack.classes) != (dataset.fingerprint, side, dataset.classes):
        return None
    if sorted(named) != [sample.path for sample in dataset.samples]:
        return None
    # A file may have been broken by a share that was away for a moment, or mended beyond what the fingerprint reads.
    if any(not isinstance(_decode(dataset.root, item.path, side), Broken) for item in pack.broken):
        return None
    return pack if sound(pack) else None


def _build(dataset: Dataset, side: int, target: Path, on_progress: Callable[[int, int], None], workers: int) -> Pack:
    """Decodes into a sibling folder and renames it, so that ``target`` is absent or complete at any instant."""
    packs = target.parent
    packs.mkdir(parents=True, exist_ok=True)
    _remove_stale(packs)
    _remove(target)  # whatever is there was found incomplete or damaged; its space may be needed
    _check_space(dataset, side, packs)
    with _temporary(target) as folder:
        _write(dataset, side, folder, on_progress, workers)
        while True:
            try:
                os.rename(folder, target)
                return open_pack(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Another process was faster; its pack is as good as this one, unless it was damaged since.
            if (theirs := _reusable(target, dataset, side)) is not None:
                return theirs
            _remove(target)


def _write(dataset: Dataset, side: int, folder: Path, on_progress: Callable[[int, int], None], workers: int) -> None:
    """The three files of a pack; raises DataError if too few images can be decoded."""
    kept: list[Sample] = []
    broken: list[Broken] = []
    rows: list[tuple[int, int, int, int]] = []
    offset = 0
    with open(folder / "images.u8", "wb") as file, closing(_decoded(dataset, side, workers)) as decoded:
        for done, (sample, found) in enumerate(zip(dataset.samples, decoded, strict=True), 1):
            if isinstance(found, Broken):
                broken.append(found)
            else:
                kept.append(sample)
                rows.append((offset, *found.shape[:2], zlib.crc32(found.data)))
                offset += file.write(found.data)
            on_progress(done, len(dataset.samples))
        file.flush()
        os.fsync(file.fileno())  # before meta.json calls it complete: a power cut must not leave holes in it
    without(dataset, broken)
    columns = np.array(rows, dtype=np.int64)
    index = io.BytesIO()
    np.savez(
        index,
        offsets=columns[:, 0],
        heights=columns[:, 1].astype(np.int32),
        widths=columns[:, 2].astype(np.int32),
        crcs=columns[:, 3].astype(np.uint32),
        labels=np.array([sample.label for sample in kept], dtype=np.int64),
        split_codes=np.array([SPLITS.index(sample.split) for sample in kept], dtype=np.uint8),
        # One run of bytes: a million strings as JSON or as a fixed-width array would be slow or large to open.
        paths=np.frombuffer("\0".join(s.path for s in kept).encode("utf-8", "surrogateescape"), dtype=np.uint8),
    )
    (folder / "index.npz").write_bytes(index.getvalue())
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "fingerprint": dataset.fingerprint,
        "side": side,
        "classes": dataset.classes,
        "images": len(kept),
        "pixel_bytes": offset,
        "index_crc32": zlib.crc32(index.getvalue()),
        "broken": [asdict(item) for item in broken],
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _decoded(dataset: Dataset, side: int, workers: int) -> Generator[npt.NDArray[np.uint8] | Broken, None, None]:
    """Every sample's pixels in order. Pillow frees the interpreter lock; the window bounds what waits in memory."""
    pool = ThreadPoolExecutor(workers)
    try:
        futures = (pool.submit(_decode, dataset.root, sample.path, side) for sample in dataset.samples)
        window: deque[Future[npt.NDArray[np.uint8] | Broken]] = deque(islice(futures, 4 * workers))
        while window:
            yield window.popleft().result()
            window.extend(islice(futures, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(root: Path, path: str, side: int) -> npt.NDArray[np.uint8] | Broken:
    """Pixels uint8 [H, W, 3] with min(H, W) <= side, or why there are none."""
    try:
        # A JPEG decoded at a fraction keeps twice the pixels asked for, so that the resampling below decides.
        image = read_rgb(root / path, at_least=2 * side)
    except UNREADABLE as error:
        return Broken(path=path, reason=_reason(root / path, error))
    shorter = min(image.size)
    if shorter > side:
        width, height = (max(side, round(length * side / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image)


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows" if file.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check_space(dataset: Dataset, side: int, packs: Path) -> None:
    """Refuses before decoding what will not fit; small images are measured, for they are stored as they are."""
    free, n_images = shutil.disk_usage(packs).free, len(dataset.samples)
    needed = int(n_images * side * side * 3 * WIDER)
    if needed > free:
        some = dataset.samples[:: -(-n_images // 64)]
        pixels = [found for s in some if not isinstance(found := _decode(dataset.root, s.path, side), Broken)]
        needed = sum(image.nbytes for image in pixels) * n_images // max(1, len(pixels))
    if needed > free:
        raise DataError(
            f"{n_images} images at {side} px need about {format_size(needed)} where {packs} has {format_size(free)} "
            f"left; {_WAY_OUT}"
        )


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A sibling of ``target`` that names its host and process, removed if it is still there at the end."""
    folder = target.with_name(f"{target.name}@{socket.gethostname()}@{os.getpid()}@{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(target: Path) -> None:
    """Takes ``target`` away whole: renamed first, so that nobody ever opens half of it."""
    with _temporary(target) as folder, suppress(FileNotFoundError):
        os.rename(target, folder / "old")


def _remove_stale(packs: Path) -> None:
    """Removes what killed builds of this host left behind."""
    for folder in packs.glob("*@*@*@*"):
        _, host, pid, _ = folder.name.rsplit("@", 3)
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and is somebody else's
        return True
    return True
