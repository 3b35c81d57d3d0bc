"""One timed process at a time on each device of this machine, whichever runs they belong to."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def timing_lock(folder: Path, device: str) -> Iterator[float]:
    """Nobody else times on the device while the block lasts; gives the seconds that were waited for that.

    The lock is a file's, so it goes with whoever held it, however that ended.

    Args:
        folder: shared by all processes that time on this machine with the same cache.
        device: ``cpu`` or ``cuda:N``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"timing-{device.replace(':', '')}.lock").open("ab") as lock:
        asked_at = time.monotonic()
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield time.monotonic() - asked_at
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # loaders that were forked since have the file open too
