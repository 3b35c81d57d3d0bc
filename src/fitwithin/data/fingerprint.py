"""What identifies a folder of images: a digest of their contents, which a folder that did not change is not read for.

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

#: A file changed so shortly before it was read could change again without showing it: file systems keep their dates in
#: ticks of up to 2 s (FAT).
TICK_S = 2.0

#: What a file's status says of its contents: device, inode, size, and when it was modified and changed (ns).
Status = tuple[int, int, int, int, int]


def digest(content: bytes) -> bytes:
    """The digest that everything here is made of: BLAKE2b, 16 bytes."""
    return blake2b(content, digest_size=16).digest()


def fingerprint(root: Path, paths: Sequence[str], cache_dir: Path | None = None) -> str:
    """A digest (32 hex digits) over every file's relative path, size in bytes and first 64 KiB, in the order given.

    With a ``cache_dir`` the digest is recorded there, and the files are read again only if one of them, or which there
    are, differs from then: in its device, inode, size, or its dates of modification and change to the nanosecond. The
    latter is the kernel's and cannot be set back, so the digest is of what the files hold, unless the clock was turned
    back or they were written to below the file system. A record holds for this ``root`` alone. There is none where a
    file could not be read, changed meanwhile, or was changed less than TICK_S before.
    """
    read_at = time.time()
    if cache_dir is None:
        return _read(root, paths)[0]
    record_path = cache_dir / f"{digest(os.fsencode(os.path.realpath(root))).hex()}.json"
    before = _statuses(root, paths)
    stamp = _stamp(root, paths, before)
    if (known := _known(record_path, stamp)) is not None:
        return known
    found, statuses = _read(root, paths)
    if statuses == before and mtimes_settled(statuses, read_at):
        with suppress(OSError):  # then the next run reads the files once more
            record_path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(record_path, json.dumps({"stamp": stamp, "fingerprint": found}), shared=True)
    return found


def _known(record_path: Path, stamp: str) -> str | None:
    try:
        value = json.loads(record_path.read_text(encoding="utf-8"))
        return str(value["fingerprint"]) if value["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mtimes_settled(statuses: Sequence[Status | None], read_at: float) -> bool:
    """Whether every file could be read, and would have another date if it had changed since."""
    return all(status is not None and max(status[3:]) < (read_at - TICK_S) * 1e9 for status in statuses)


def _stamp(root: Path, paths: Sequence[str], statuses: Sequence[Status | None]) -> str:
    lines = "\n".join(f"{path}\0{status}" for path, status in zip(paths, statuses, strict=True))
    return digest(f"{os.path.realpath(root)}\n{lines}".encode("utf-8", "surrogateescape")).hex()


def status_of(status: os.stat_result) -> Status:
    """What of a file's status says of its contents."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _batches(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]


def _statuses(root: Path, paths: Sequence[str]) -> list[Status | None]:
    """The status of every file; None where it has none to show."""

    def of(batch: Sequence[str]) -> list[Status | None]:
        found: list[Status | None] = []
        for path in batch:
            try:
                found.append(status_of(os.stat(os.path.join(root, path))))
            except OSError:
                found.append(None)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        return list(chain.from_iterable(pool.map(of, _batches(paths))))


def _read(root: Path, paths: Sequence[str]) -> tuple[str, list[Status | None]]:
    """The fingerprint, and the status of every file as it was read; None where it could not be."""
    total, statuses, batches = blake2b(digest_size=16), list[Status | None](), _batches(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        for batch, heads in zip(batches, pool.map(lambda batch: _heads(root, batch), batches), strict=True):
            for path, (status, head) in zip(batch, heads, strict=True):
                total.update(path.encode("utf-8", "surrogateescape") + b"\0" + head)
                statuses.append(status)
    return total.hexdigest(), statuses


def _heads(root: Path, paths: Sequence[str]) -> list[tuple[Status | None, bytes]]:
    """Status of each file; its size and the digest of its first 64 KiB; size -1 where it cannot be read."""
    heads: list[tuple[Status | None, bytes]] = []
    for path in paths:
        status: Status | None
        try:
            with open(os.path.join(root, path), "rb", buffering=0) as file:
                status, head = status_of(os.fstat(file.fileno())), file.read(HEAD_BYTES)
        except OSError:
            status, head = None, b""
        size = -1 if status is None else status[2]
        heads.append((status, size.to_bytes(8, "big", signed=True) + digest(head)))
    return heads
