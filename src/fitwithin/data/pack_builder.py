"""Builds packs: images are decoded once, by all cores, and stored whole or not at all. pack.py reads them.

The pixels of a pack are checked all together once, then by a sample as long as their file stays as it is. Checking them
all takes a second per GiB (60,000 images of 84 px: 0.9 to 1.5 s of a start).
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import socket
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fitwithin.data.dataset import SPLITS, Broken, Dataset, Sample, drop_broken
from fitwithin.data.decode import UNREADABLE, read_rgb
from fitwithin.data.fingerprint import mtimes_settled, status_of
from fitwithin.data.pack import SCHEMA, Pack, open_pack
from fitwithin.errors import DataError
from fitwithin.files import cache_root, write_text_atomic
from fitwithin.machine import cores
from fitwithin.units import format_size

#: Up to this size all images are checked if the file may have changed; else so many, drawn at random.
CHECK_ALL_BYTES, CHECK_SAMPLE = 4 * 2**30, 256

#: In a pack's folder: the status of its pixels' file when all of them were last checked.
CHECKED = "checked.json"

#: Longer side / shorter side, taken for the estimate of space: between 4:3 and 3:2.
MEAN_ASPECT = 1.35

_WAY_OUT = "free some space or set FITWITHIN_CACHE to a folder on a larger disk"

_FULL = (errno.ENOSPC, errno.EDQUOT)

_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def location(dataset: Dataset, shorter_px: int) -> Path:
    """The folder of the pack of these pixels, classes and splits; it need not exist."""
    digest = blake2b(digest_size=8)
    for fact in (*dataset.classes, *(f"{s.path}\0{s.label}\0{s.split}" for s in dataset.samples)):
        digest.update(fact.encode("utf-8", "surrogateescape") + b"\n\0")
    return cache_root() / "packs" / f"{dataset.fingerprint[:16]}-{shorter_px}-{digest.hexdigest()}"


def build(
    dataset: Dataset,
    shorter_px: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    strict: bool = False,
    before_decoding: Callable[[], None] | None = None,
) -> Pack:
    """The pack of a data set: the stored one if it is complete, undamaged and matches, else one decoded now.

    Images whose shorter side is above ``shorter_px`` are scaled down to it, aspect ratio kept; none is enlarged. Files
    that cannot be decoded are left out and listed in ``broken``; ``strict`` refuses them. ``on_progress`` gets (done,
    total) after each image; ``before_decoding`` is called if something must be decoded.

    Raises:
        DataError: no space, a cache that cannot be written, broken files under ``strict``, or too few whole ones.
    """
    target = location(dataset, shorter_px)
    pack = _reusable(target, dataset, shorter_px)
    if pack is None:
        if before_decoding is not None:
            before_decoding()
        try:
            pack = _build(dataset, shorter_px, target, on_progress or (lambda done, total: None), workers or cores())
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


def _reusable(target: Path, dataset: Dataset, shorter_px: int) -> Pack | None:
    """The pack in ``target`` if it is what decoding ``dataset`` again would give."""
    try:
        pack = open_pack(target)
    except DataError:
        return None
    if (pack.fingerprint, pack.shorter_px, pack.classes) != (dataset.fingerprint, shorter_px, dataset.classes):
        return None
    if sorted([*pack.paths, *(item.path for item in pack.broken)]) != [sample.path for sample in dataset.samples]:
        return None
    # A file may have been broken by a share that was away for a moment, or mended beyond what the fingerprint reads.
    if any(not isinstance(_decode(dataset.root, item.path, shorter_px), Broken) for item in pack.broken):
        return None
    return pack if is_intact(pack) else None


def _build(
    dataset: Dataset, shorter_px: int, target: Path, on_progress: Callable[[int, int], None], workers: int
) -> Pack:
    """Decodes into a sibling folder and renames it, so that ``target`` is absent or complete at any instant."""
    packs = target.parent
    packs.mkdir(parents=True, exist_ok=True)
    _remove_stale(packs)
    _remove(target)  # whatever is there was found incomplete or damaged; its space may be needed
    _check_space(dataset, shorter_px, packs)
    with _temporary(target) as folder:
        _write(dataset, shorter_px, folder, on_progress, workers)
        try:
            os.rename(folder, target)
        except OSError as error:  # another process was faster: its pack is as good as this one
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return open_pack(target)


def _write(
    dataset: Dataset, shorter_px: int, folder: Path, on_progress: Callable[[int, int], None], workers: int
) -> None:
    """Write the three files of a pack; DataError if too few images can be decoded."""
    kept: list[Sample] = []
    broken: list[Broken] = []
    rows: list[tuple[int, int, int, int]] = []
    offset = 0
    with open(folder / "images.u8", "wb") as file, closing(_decoded(dataset, shorter_px, workers)) as decoded:
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
    drop_broken(dataset, broken)
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
        "side": shorter_px,
        "classes": dataset.classes,
        "images": len(kept),
        "pixel_bytes": offset,
        "index_crc32": zlib.crc32(index.getvalue()),
        "broken": [asdict(item) for item in broken],
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _decoded(dataset: Dataset, shorter_px: int, workers: int) -> Generator[npt.NDArray[np.uint8] | Broken, None, None]:
    """Every sample's pixels in order. Pillow frees the interpreter lock; the window bounds the memory."""
    pool = ThreadPoolExecutor(workers)
    try:
        futures = (pool.submit(_decode, dataset.root, sample.path, shorter_px) for sample in dataset.samples)
        window: deque[Future[npt.NDArray[np.uint8] | Broken]] = deque(islice(futures, 4 * workers))
        while window:
            yield window.popleft().result()
            window.extend(islice(futures, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(root: Path, path: str, shorter_px: int) -> npt.NDArray[np.uint8] | Broken:
    """Pixels uint8 [H, W, 3] with min(H, W) <= side, or why there are none."""
    try:
        # A JPEG decoded at a fraction keeps twice the pixels asked for, so that the resampling below decides.
        image = read_rgb(root / path, at_least=2 * shorter_px)
    except UNREADABLE as error:
        return Broken(path=path, reason=_reason(root / path, error))
    shorter = min(image.size)
    if shorter > shorter_px:
        width, height = (max(shorter_px, round(length * shorter_px / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image)


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows" if file.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check_space(dataset: Dataset, shorter_px: int, packs: Path) -> None:
    """DataError before decoding if the pack will not fit; small images are measured, as they are not scaled."""
    free, n_images = shutil.disk_usage(packs).free, len(dataset.samples)
    needed = int(n_images * shorter_px * shorter_px * 3 * MEAN_ASPECT)
    if needed > free:
        sampled = dataset.samples[:: -(-n_images // 64)]
        pixels = [found for s in sampled if not isinstance(found := _decode(dataset.root, s.path, shorter_px), Broken)]
        needed = sum(image.nbytes for image in pixels) * n_images // max(1, len(pixels))
    if needed > free:
        raise DataError(
            f"{n_images} images at {shorter_px} px need about {format_size(needed)} where {packs} has "
            f"{format_size(free)} left; {_WAY_OUT}"
        )


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A sibling of ``target`` that names its host and process, removed at the end if it is still there."""
    folder = target.with_name(f"{target.name}@{socket.gethostname()}@{os.getpid()}@{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(target: Path) -> None:
    """Remove ``target`` whole: renamed first, so that nobody ever opens half of it."""
    with _temporary(target) as folder, suppress(FileNotFoundError):
        os.rename(target, folder / "old")


def _remove_stale(packs: Path) -> None:
    """Remove what killed builds of this host left behind."""
    for folder in packs.glob("*@*@*@*"):
        _, host, pid, _ = folder.name.rsplit("@", 3)
        if host == socket.gethostname() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(folder, ignore_errors=True)


def is_intact(pack: Pack) -> bool:
    """Whether the checksums of the pack's pixels hold.

    All are checked, up to CHECK_ALL_BYTES, unless they were when the file had its present inode, size and dates; then
    only the sample finds what rots on the disk without a write.
    """
    began_at, found = time.time(), status_of(os.stat(pack.folder / "images.u8"))
    record, known = pack.folder / CHECKED, False
    with suppress(OSError, ValueError):
        known = json.loads(record.read_text(encoding="utf-8")) == list(found)
    places = np.arange(len(pack))
    if sampled := known or len(pack.pixels) > CHECK_ALL_BYTES:
        places = np.random.default_rng().choice(places, size=min(CHECK_SAMPLE, len(pack)), replace=False)
    chunks = [places[start : start + 256].tolist() for start in range(0, len(places), 256)]
    with ThreadPoolExecutor(cores()) as pool:  # the checksum frees the interpreter lock
        same = pool.map(lambda chunk: all(zlib.crc32(pack.image(i).data) == pack.crcs[i] for i in chunk), chunks)
        intact = all(same)
    if intact and not sampled and mtimes_settled([found], began_at):
        with suppress(OSError):  # somebody else's cache: all are checked again
            write_text_atomic(record, json.dumps(found), shared=True)
    return intact
