"""A lock, so that one process at a time is timed on each device of this machine, also across runs."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def timing_lock(folder: Path, device: str) -> Iterator[float]:
    """Nobody else times on the device (``cpu`` or ``cuda:N``) while the block lasts; gives the seconds waited for it.

    The lock is that of a file in the ``folder``, so it ends with the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"timing-{device.replace(':', '')}.lock").open("ab") as lock:
        asked_at = time.monotonic()
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield time.monotonic() - asked_at
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # loaders that were forked since have the file open too
