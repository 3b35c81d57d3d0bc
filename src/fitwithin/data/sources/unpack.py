"""Pictures that are no files of their own are unpacked into the cache once, under the digest of what they come from."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from fitwithin.data.fingerprint import digest, mtimes_settled, status_of
from fitwithin.data.whole import remove, remove_stale, temporary
from fitwithin.errors import DataError
from fitwithin.files import cache_root, write_text_atomic
from fitwithin.units import format_size

#: How what was unpacked is laid out; another layout has other folders.
SCHEMA = 1

#: What must stay free on the disk of the cache: packs and runs need some.
SPARE_BYTES = 256 * 2**20

#: The room on the disk is looked at every so many bytes.
CHECK_BYTES = 64 * 2**20

CHUNK_BYTES = 4 * 2**20

#: Files are digested in so many threads.
THREADS = 4

WAY_OUT = "free some space or set FITWITHIN_CACHE to a folder on a larger disk"


def unpacked(
    files: Sequence[Path], about: str, write: Callable[[Path], object], *, source: str, until_at: float = math.inf
) -> Path:
    """The folder of what ``write(folder)`` makes of these files: made once for their contents and ``about``, whole or
    not at all. Where files of it are missing, it is made again.

    Raises:
        DataError: a file cannot be read, the cache cannot be written, or the files were not read at the monotonic
            instant ``until_at``.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(lambda file: content_digest(file, until_at), files))
    target = cache_root() / "sources" / digest("\n".join([str(SCHEMA), about, *digests]).encode()).hex()
    if _complete(target):
        return target / "files"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target.parent)
        with temporary(target) as made:
            (made / "files").mkdir()
            write(made / "files")
            (made / "complete.json").write_text(json.dumps(_measured(made / "files")))
            _rename(made, target)
    except OSError as error:
        raise DataError(f"{source} cannot be unpacked into {target.parent} ({error}); {WAY_OUT}") from error
    return target / "files"


def _rename(made: Path, target: Path) -> None:
    """Give what was made its name; what another process made meanwhile is as good, and what is damaged goes."""
    while not _complete(target):
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            remove(target)


def room(source: str, needed: int) -> None:
    """DataError unless the disk of the cache has room for so many bytes more."""
    free = shutil.disk_usage(cache_root()).free - SPARE_BYTES
    if needed > free:
        raise DataError(
            f"unpacking {source} needs {format_size(needed)} more where {cache_root()} has "
            f"{format_size(max(0, free))} to spare; {WAY_OUT}, or unpack it yourself and give the folder"
        )


def in_time(source: str, done: int, until_at: float) -> None:
    """DataError if the monotonic instant is over."""
    if time.monotonic() > until_at:
        raise DataError(
            f"half of the time was over when {done:,} files of {source} were unpacked; give more time, or unpack it "
            f"yourself and give the folder"
        )


def content_digest(file: Path, until_at: float = math.inf) -> str:
    """The digest of a whole file, 32 hex digits; it is recorded, so that a file that did not change is not read again.

    Raises:
        DataError: it cannot be read, or was not at the monotonic instant ``until_at``.
    """
    record = cache_root() / "folders" / f"{digest(os.fsencode(os.path.realpath(file))).hex()}.digest"
    read_at = time.time()
    try:
        with file.open("rb") as opened:
            status = status_of(os.fstat(opened.fileno()))
            with suppress(OSError, ValueError, LookupError, TypeError):
                known = json.loads(record.read_text(encoding="utf-8"))
                if tuple(known["status"]) == status:
                    return str(known["digest"])
            whole = blake2b(digest_size=16)
            while chunk := opened.read(CHUNK_BYTES):
                whole.update(chunk)
                in_time(str(file), 0, until_at)
            unchanged = status_of(os.fstat(opened.fileno())) == status
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    if unchanged and mtimes_settled([status], read_at):
        with suppress(OSError):  # then it is read once more
            record.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(record, json.dumps({"status": status, "digest": whole.hexdigest()}), shared=True)
    return whole.hexdigest()


def _measured(folder: Path) -> dict[str, int]:
    """How many files there are below a folder, and their bytes."""
    sizes = [os.stat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _complete(target: Path) -> bool:
    try:
        return bool(json.loads((target / "complete.json").read_text()) == _measured(target / "files"))
    except (OSError, ValueError):
        return False
