"""What identifies images: digests of their contents, for which files that did not change are not read again.

Reading 60,000 files takes 0.7 s, asking for their dates 0.2 (two cores, everything in the page cache).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from fitwithin.errors import DataError
from fitwithin.files import write_atomic

HEAD_BYTES = 64 * 1024

#: The length of a digest, and of a key, which is two.
HALF_BYTES, KEY_BYTES = 16, 32

#: How the records are laid out; those of another layout are not read.
SCHEMA = 2

#: Files are read in THREADS where SLOW_BATCHES in a row took SLOW_S a file or more: network file systems answer slowly
#: but in parallel. Else in one, since threads wait longer for Python's lock than for the disk (60,000 files in the page
#: cache, two cores: 0.7 s in one thread, 1.0 in two, 1.7 in four, 2.2 to 4.5 in sixteen).
THREADS, SLOW_BATCHES, SLOW_S, AT_ONCE = 16, 3, 1e-4, 128

#: A file changed so shortly before it was read could change again without showing it: file systems keep their dates in
#: ticks of up to 2 s (FAT).
TICK_S = 2.0

T = TypeVar("T")

#: What a file's status says of its contents: device, inode, size, and when it was modified and changed (ns).
Status = tuple[int, int, int, int, int]


def digest(content: bytes) -> bytes:
    """The digest that everything here is made of: BLAKE2b, 16 bytes."""
    return blake2b(content, digest_size=HALF_BYTES).digest()


class Contents(NamedTuple):
    """What files hold: a key for each in the order asked for, and the groups of two and more files that are the
    ``same`` byte for byte.

    A key is KEY_BYTES long: the digest of a file's size and first 64 KiB; then that of the whole file where several are
    the same up to there and go on, else zeros. Of a file that cannot be read it is a digest of the path.
    """

    keys: tuple[bytes, ...]
    same: tuple[tuple[str, ...], ...]


def fingerprint(pictures: Iterable[tuple[bytes, str, str, str]]) -> str:
    """What names a data set, 32 hex digits: a digest over the key, class, stated split and stated group of every
    picture, in the order of these. Where the files lie, and what they are called, plays no part."""
    total = blake2b(digest_size=HALF_BYTES)
    for line in sorted(key + "\0".join(words).encode("utf-8", "surrogateescape") for key, *words in pictures):
        total.update(line + b"\n\0")
    return total.hexdigest()


def contents(root: Path, paths: Sequence[str], cache_dir: Path | None = None, until_at: float = math.inf) -> Contents:
    """What the files hold.

    With a ``cache_dir`` it is recorded there, and the files are read again only if one of them, or which there
    are, differs from then: in its device, inode, size, or its dates of modification and change to the nanosecond. The
    latter is the kernel's and cannot be set back, so the record is of what the files hold, unless the clock was turned
    back or they were written to below the file system. A record holds for this ``root`` alone. There is none where a
    file could not be read, changed meanwhile, or was changed less than TICK_S before.

    Raises:
        DataError: the files were not read at the monotonic instant ``until_at``.
    """
    read_at = time.time()
    if cache_dir is None:
        return _read(root, paths, until_at)[0]
    record_path = cache_dir / f"{digest(os.fsencode(os.path.realpath(root))).hex()}.keys"
    if record_path.exists():
        stamp = _stamp(root, paths, _statuses(root, paths))
        if (known := _known(record_path, stamp, paths)) is not None:
            return known
    found, statuses = _read(root, paths, until_at)
    if mtimes_settled(statuses, read_at):
        stamp = _stamp(root, paths, statuses)
        place = {path: number for number, path in enumerate(paths)}
        head = {"stamp": stamp, "same": [[place[path] for path in group] for group in found.same]}
        content = json.dumps(head).encode() + b"\n" + b"".join(found.keys)
        with suppress(OSError):  # then the next run reads the files once more
            record_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(record_path, lambda new: new.write_bytes(content), shared=True)
    return found


def _known(record_path: Path, stamp: str, paths: Sequence[str]) -> Contents | None:
    try:
        head, _, keys = record_path.read_bytes().partition(b"\n")
        value = json.loads(head)
        if value["stamp"] != stamp or len(keys) != KEY_BYTES * len(paths):
            return None
        return Contents(
            tuple(keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)),
            tuple(tuple(paths[place] for place in group) for group in value["same"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def mtimes_settled(statuses: Sequence[Status | None], read_at: float) -> bool:
    """Whether every file could be read, and would have another date if it had changed since."""
    return all(status is not None and max(status[3:]) < (read_at - TICK_S) * 1e9 for status in statuses)


def _stamp(root: Path, paths: Sequence[str], statuses: Sequence[Status | None]) -> str:
    lines = "\n".join(f"{path}\0{status}" for path, status in zip(paths, statuses, strict=True))
    return digest(f"{SCHEMA}\n{os.path.realpath(root)}\n{lines}".encode("utf-8", "surrogateescape")).hex()


def status_of(status: os.stat_result) -> Status:
    """What of a file's status says of its contents."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _in_batches(look: Callable[[Sequence[str]], list[T]], paths: Sequence[str]) -> Generator[list[T], None, None]:
    """What ``look`` says of the files, in their order: batch by batch, in threads once they are slow."""
    batches = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    slow = 0
    for number, batch in enumerate(batches, 1):
        begun_at = time.monotonic()
        found = look(batch)
        slow = slow + 1 if time.monotonic() - begun_at >= SLOW_S * len(batch) else 0
        yield found
        if slow == SLOW_BATCHES:
            pool = ThreadPoolExecutor(THREADS)
            try:
                yield from pool.map(look, batches[number:])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            return


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

    return list(chain.from_iterable(_in_batches(of, paths)))


def _read(root: Path, paths: Sequence[str], until_at: float) -> tuple[Contents, list[Status | None]]:
    """What the files hold, and the status of every file as it was read; None where it could not be."""
    statuses, keys = list[Status | None](), list[bytes]()
    with closing(_in_batches(lambda batch: _heads(root, batch), paths)) as found:
        for heads in found:
            statuses += [status for status, _ in heads]
            keys += [key for _, key in heads]
            if time.monotonic() > until_at and len(statuses) < len(paths):
                raise DataError(
                    f"half of the time was over when {len(statuses):,} of {len(paths):,} files in {root} were read; "
                    f"give more time, or copy the images to a faster disk"
                )
    same = list[tuple[str, ...]]()
    for places in _repeated(keys):
        sizes = {place: status[2] for place in places if (status := statuses[place]) is not None and status[2] > 0}
        same += _same(root, paths, sizes, keys)
    return Contents(tuple(keys), tuple(same)), statuses


def _repeated(keys: Sequence[bytes]) -> list[list[int]]:
    """The places of each key that is there twice or more."""
    often = {key for key, count in Counter(keys).items() if count > 1}
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        if key in often:
            places.setdefault(key, []).append(place)
    return list(places.values())


def _same(root: Path, paths: Sequence[str], sizes: Mapping[int, int], keys: list[bytes]) -> list[tuple[str, ...]]:
    """The files that are the same to their ends, of those at some places, which begin alike and have one size. The keys
    of long ones get their second half."""
    by_content: dict[bytes, list[str]] = {}
    for place, size in sizes.items():
        with suppress(OSError):
            if size > HEAD_BYTES:
                keys[place] = keys[place][:HALF_BYTES] + _whole(root / paths[place])
            by_content.setdefault(keys[place], []).append(paths[place])
    return [tuple(group) for group in by_content.values() if len(group) > 1]


def _whole(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: blake2b(digest_size=HALF_BYTES)).digest()


def _heads(root: Path, paths: Sequence[str]) -> list[tuple[Status | None, bytes]]:
    """Status of each file, and its key by its size and first 64 KiB."""
    heads: list[tuple[Status | None, bytes]] = []
    for path in paths:
        status: Status | None
        try:
            file = os.open(os.path.join(root, path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = status_of(os.fstat(file))
                about = status[2].to_bytes(8, "big") + os.read(file, HEAD_BYTES)
            finally:
                os.close(file)
        except OSError:
            status, about = None, b"cannot be read\0" + path.encode("utf-8", "surrogateescape")
        heads.append((status, digest(about) + bytes(HALF_BYTES)))
    return heads
