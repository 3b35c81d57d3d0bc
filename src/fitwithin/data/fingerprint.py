"""A digest of a folder's images, which are read again only if the folder has changed.

Reading 13,394 files of imagenette takes 0.3 s, asking for their dates 0.05 (two cores, everything in the page cache).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from pathlib import Path

from fitwithin.files import write_text_atomic

HEAD_BYTES = 64 * 1024

#: Files are read in threads, because network file systems answer slowly but in parallel.
THREADS, AT_ONCE = 16, 256

#: A file that changed so shortly before it was read could change again with the same date: file systems keep dates in
#: ticks of up to 2 s (FAT).
TICK_S = 2.0

#: A file's device, inode, size, and the instants of its modification and change (ns).
Status = tuple[int, int, int, int, int]


def digest(content: bytes) -> bytes:
    """BLAKE2b, 16 bytes."""
    return blake2b(content, digest_size=16).digest()


def fingerprint(root: Path, paths: Sequence[str], cache_dir: Path | None = None) -> str:
    """A digest (32 hex digits) over every file's relative path, size in bytes and first 64 KiB, in the order given.

    With a ``cache_dir`` the digest is recorded there for this ``root``, and the files are read again only if the list
    of files or the status of one differs. The kernel keeps the date of change, which cannot be set back, so the record
    is right unless the clock was turned back or something wrote below the file system. Nothing is recorded if a file
    could not be read, changed meanwhile, or was changed less than TICK_S before.
    """
    read_at = time.time()
    if cache_dir is None:
        return _read(root, paths)[0]
    record_path = cache_dir / f"{digest(os.fsencode(os.path.realpath(root))).hex()}.json"
    before = _statuses(root, paths)
    lines = "\n".join(f"{path}\0{status}" for path, status in zip(paths, before, strict=True))
    stamp = digest(f"{os.path.realpath(root)}\n{lines}".encode("utf-8", "surrogateescape")).hex()
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record_path.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["fingerprint"])
    found, statuses = _read(root, paths)
    if statuses == before and mtimes_settled(statuses, read_at):
        with suppress(OSError):  # then the next run reads the files once more
            record_path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(record_path, json.dumps({"stamp": stamp, "fingerprint": found}), shared=True)
    return found


def mtimes_settled(statuses: Sequence[Status | None], read_at: float) -> bool:
    """Whether every file could be read, and would have another date if it had changed since."""
    return all(status is not None and max(status[3:]) < (read_at - TICK_S) * 1e9 for status in statuses)


def status_of(status: os.stat_result) -> Status:
    """The part of a file's status that tells whether its contents changed."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _batches(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]


def _statuses(root: Path, paths: Sequence[str]) -> list[Status | None]:
    """The status of every file; None where it has none."""

    def of(path: str) -> Status | None:
        with suppress(OSError):
            return status_of(os.stat(os.path.join(root, path)))
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda batch: [of(path) for path in batch], _batches(paths))))


def _read(root: Path, paths: Sequence[str]) -> tuple[str, list[Status | None]]:
    """The fingerprint, and the status of every file when it was read; None where it could not be read."""
    total, statuses, batches = blake2b(digest_size=16), list[Status | None](), _batches(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        for batch, heads in zip(batches, pool.map(lambda batch: _heads(root, batch), batches), strict=True):
            for path, (status, head) in zip(batch, heads, strict=True):
                total.update(path.encode("utf-8", "surrogateescape") + b"\0" + head)
                statuses.append(status)
    return total.hexdigest(), statuses


def _heads(root: Path, paths: Sequence[str]) -> list[tuple[Status | None, bytes]]:
    """Of each file the status, and its size and the digest of its first 64 KiB; size -1 where it cannot be read."""
    heads: list[tuple[Status | None, bytes]] = []
    for path in paths:
        status, size, head = None, -1, b""
        with suppress(OSError), open(os.path.join(root, path), "rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
            status = status_of(os.fstat(file.fileno()))
            size = status[2]
        heads.append((status, size.to_bytes(8, "big", signed=True) + digest(head)))
    return heads
