"""Builds packs: images are decoded once, by all cores, and stored whole or not at all. pack.py reads them."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fitwithin.data.dataset import SPLITS, Broken, Dataset, Remark, check, drop_broken
from fitwithin.data.decode_pool import Stored, decode, decode_all, status
from fitwithin.data.fingerprint import digest
from fitwithin.data.pack import SCHEMA, Pack, is_intact, open_pack
from fitwithin.data.whole import remove, remove_stale, temporary
from fitwithin.errors import DataError
from fitwithin.files import cache_root
from fitwithin.machine import cores
from fitwithin.units import format_size

MEAN_ASPECT = 1.35  # mean of longer side / shorter side taken for the estimate: between 4:3 and 3:2

_WAY_OUT = "free some space or set FITWITHIN_CACHE to a folder on a larger disk"

_FULL = (errno.ENOSPC, errno.EDQUOT)

_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def location(dataset: Dataset, shorter_px: int, *, partial: bool = False) -> Path:
    """The folder of the pack of these pixels, classes and splits, whether it exists or not."""
    facts = blake2b(digest_size=8)
    for fact in (*dataset.classes, *(f"{s.path}\0{s.label}\0{s.split}" for s in dataset.samples)):
        facts.update(fact.encode("utf-8", "surrogateescape") + b"\n\0")
    name = f"{dataset.fingerprint[:16]}-{shorter_px}-{facts.hexdigest()}{'-partial' if partial else ''}"
    return cache_root() / "packs" / name


def build(
    dataset: Dataset,
    shorter_px: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    strict: bool = False,
    until_at: float = math.inf,
    partial: bool = False,
) -> Pack:
    """The pack of a data set: the stored one when it is complete, undamaged and matches, else one decoded now.

    Images whose shorter side is above ``shorter_px`` are scaled down to it, aspect ratio kept; none is enlarged. Files
    that cannot be decoded are left out and listed in ``broken``; ``strict`` refuses them. ``on_progress`` gets (done,
    total) after each image.

    Decoding ends at the monotonic instant ``until_at``. What is decoded by then is a fair part of every class, and is a
    pack of its own, marked ``partial``. A run that goes on takes such a ``partial`` pack as it is.

    Raises:
        DataError: no space, a cache that cannot be written, broken files under ``strict``, or too few whole ones.
    """
    target = location(dataset, shorter_px)
    pack = _reusable(location(dataset, shorter_px, partial=True), dataset, shorter_px) if partial else None
    pack = pack or _reusable(target, dataset, shorter_px)
    if pack is None:
        try:
            report = on_progress or (lambda done, total: None)
            pack = _build(dataset, shorter_px, target, report, workers or cores(), until_at)
        except OSError as error:
            if error.errno not in (*_FULL, *_NO_ENTRY):
                raise
            cause = f"the disk is full ({error.strerror})" if error.errno in _FULL else str(error)
            raise DataError(f"decoded images cannot be stored in {target.parent}: {cause}; {_WAY_OUT}") from error
    if strict and pack.broken:
        named = ", ".join(f"{item.path} ({item.reason})" for item in pack.broken[:3])
        raise DataError(
            f"{len(pack.broken)} of {len(dataset.samples)} images in {dataset.source} cannot be read, such as {named}; "
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
    named = {*pack.paths, *(item.path for item in pack.broken)}
    known = {sample.path for sample in dataset.samples}
    if named != known and not (pack.partial and named < known):
        return None
    # A file may have been broken by a share that was away for a moment, or mended beyond what the fingerprint reads.
    if any(item.status is None or status(dataset.root / item.path) != item.status for item in pack.broken):
        return None
    return pack if is_intact(pack) else None


def _build(
    dataset: Dataset,
    shorter_px: int,
    target: Path,
    on_progress: Callable[[int, int], None],
    workers: int,
    until_at: float,
) -> Pack:
    """Decodes into a sibling folder and renames it, so that ``target`` is absent or complete at any instant."""
    packs = target.parent
    packs.mkdir(parents=True, exist_ok=True)
    remove_stale(packs)
    remove(target)  # whatever is there was found incomplete or damaged; its space may be needed
    _check_space(dataset, shorter_px, packs)
    with temporary(target) as folder:
        if not _write(dataset, shorter_px, folder, on_progress, workers, until_at):
            target = location(dataset, shorter_px, partial=True)
            remove(target)
        while True:
            try:
                os.rename(folder, target)
                return open_pack(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Another process was faster; its pack is as good as this one, unless it was damaged since.
            if (theirs := _reusable(target, dataset, shorter_px)) is not None:
                return theirs
            remove(target)


def _write(
    dataset: Dataset,
    shorter_px: int,
    folder: Path,
    on_progress: Callable[[int, int], None],
    workers: int,
    until_at: float,
) -> bool:
    """The three files of a pack, and whether all of it is there; raises DataError if too few images are."""
    # Whatever is decoded when time is over is a fair part of every class.
    order = sorted(range(len(dataset.samples)), key=lambda place: digest(dataset.samples[place].content))
    kept: list[tuple[int, Stored]] = []
    broken: list[Broken] = []
    remarks: dict[str, list[str]] = {}
    file, paths = folder / "images.u8", [dataset.samples[place].path for place in order]
    with closing(decode_all(dataset.root, paths, shorter_px, file, workers, until_at)) as decoded:
        for done, (position, found) in enumerate(decoded, 1):
            if isinstance(found, Broken):
                broken.append(found)
            else:
                kept.append((order[position], found))
                for what in found.remarks:
                    remarks.setdefault(what, []).append(paths[position])
            on_progress(done, len(order))
    with open(file, "ab") as pixels:
        os.fsync(pixels.fileno())  # before meta.json calls it complete: a power cut must not leave holes in it
    whole = len(kept) + len(broken) == len(order)
    kept.sort(key=lambda item: item[0])  # as the data set has them
    broken.sort(key=lambda item: item.path)
    samples = [dataset.samples[place] for place, _ in kept]
    if whole:
        drop_broken(dataset, broken)
    else:
        read = f", of which {len(samples)} of {len(order)} could be read before half of the time was over"
        check(dataset.source, dataset.classes, samples, after=read)
    stored = [found for _, found in kept]
    index = io.BytesIO()
    np.savez(
        index,
        offsets=np.array([each.offset for each in stored], dtype=np.int64),
        heights=np.array([each.height for each in stored], dtype=np.int32),
        widths=np.array([each.width for each in stored], dtype=np.int32),
        crcs=np.array([each.crc for each in stored], dtype=np.uint32),
        labels=np.array([sample.label for sample in samples], dtype=np.int64),
        split_codes=np.array([SPLITS.index(sample.split) for sample in samples], dtype=np.uint8),
        # One run of bytes: a million strings as JSON or as a fixed-width array would be slow or large to open.
        paths=np.frombuffer("\0".join(s.path for s in samples).encode("utf-8", "surrogateescape"), dtype=np.uint8),
    )
    (folder / "index.npz").write_bytes(index.getvalue())
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "fingerprint": dataset.fingerprint,
        "side": shorter_px,
        "classes": dataset.classes,
        "images": len(kept),
        "partial": not whole,
        "pixel_bytes": file.stat().st_size,
        "index_crc32": zlib.crc32(index.getvalue()),
        "broken": [asdict(item) for item in broken],
        "remarks": [asdict(Remark(what=w, count=len(p), example=min(p))) for w, p in remarks.items()],
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return whole


def _check_space(dataset: Dataset, shorter_px: int, packs: Path) -> None:
    """Refuses before decoding what will not fit; small images are measured, for they are stored as they are."""
    free, n_images = shutil.disk_usage(packs).free, len(dataset.samples)
    needed = int(n_images * shorter_px * shorter_px * 3 * MEAN_ASPECT)
    if needed > free:
        sampled = dataset.samples[:: -(-n_images // 64)]
        decoded = [decode(dataset.root, sample.path, shorter_px) for sample in sampled]
        pixels = [found[0] for found in decoded if not isinstance(found, Broken)]
        needed = sum(image.nbytes for image in pixels) * n_images // max(1, len(pixels))
    if needed > free:
        raise DataError(
            f"{n_images} images at {shorter_px} px need about {format_size(needed)} where {packs} has "
            f"{format_size(free)} left; {_WAY_OUT}"
        )
