"""Who may start and who may measure, where several timed processes of this machine share a device.

One at a time measures. The next may start, CUDA and all, once the first steps of the one before are over and its pace
is known: a start beside first steps made them 0.1 s longer (H100), one beside a sample of the pace disturbed that; an
end beside them changed nothing. The locks are files', so they go with whoever held them, however that ended.
"""

from __future__ import annotations

import fcntl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO


class GpuLock:
    """The two locks of a device, taken in order: :meth:`start`, :meth:`measure`, :meth:`warm`, :meth:`close`.

    Args:
        folder: shared by all processes that measure on this machine with the same cache.
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        name = device.replace(":", "")
        self._starting, self._measuring = (
            self._open.enter_context((folder / f"{what}-{name}.lock").open("ab")) for what in ("starting", "measuring")
        )

    def start(self) -> float:
        """Wait until this process may start; the seconds that took."""
        return _take(self._starting)

    def measure(self) -> float:
        """Wait until nobody else measures; the seconds that took."""
        return _take(self._measuring)

    def warm(self) -> None:
        """The first steps are over, the pace is known: the next one may start."""
        fcntl.flock(self._starting, fcntl.LOCK_UN)

    def close(self) -> None:
        """It has measured: let go of both. (Loaders that were forked since hold the files open, so that is said.)"""
        for lock in (self._starting, self._measuring):
            fcntl.flock(lock, fcntl.LOCK_UN)
        self._open.close()


def _take(lock: IO[bytes]) -> float:
    begun_at = time.monotonic()
    fcntl.flock(lock, fcntl.LOCK_EX)
    return time.monotonic() - begun_at
