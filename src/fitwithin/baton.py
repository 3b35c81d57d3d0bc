"""Who may start and who may measure, where several timed processes of this machine share a device.

One at a time measures. The next may start, CUDA and all, once the first steps of the one before are over: a start
beside them made them 0.1 s longer (H100). A start beside recorded steps disturbed their pace too: ten of 40 samples had
an interval of 1 to 3.4 % where 0.1 is usual. So nobody starts while another samples its pace. An end beside them changed
nothing. The locks are files', so they go with whoever held them, however that ended.
"""

from __future__ import annotations

import fcntl
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO


class Baton:
    """The locks of a device, in order: :meth:`start`, :meth:`measure`, :meth:`warm`, :meth:`quiet`, :meth:`close`.

    Nobody waits for ``quiet``: whoever measures asks for it between its steps.

    Args:
        folder: shared by all processes that measure on this machine with the same cache.
        device: ``cpu`` or ``cuda:N``.
    """

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        name = device.replace(":", "")
        self._starting, self._building, self._measuring = (
            self._open.enter_context((folder / f"{what}-{name}.lock").open("ab"))
            for what in ("starting", "building", "measuring")
        )

    def start(self) -> float:
        """Wait until this process may start; the seconds that took."""
        return _take(self._starting) + _take(self._building)

    def measure(self) -> float:
        """It has started: wait until nobody else measures; the seconds that took."""
        self.loud()
        return _take(self._measuring)

    def warm(self) -> None:
        """The first steps are over: the next one may start."""
        fcntl.flock(self._starting, fcntl.LOCK_UN)

    def quiet(self) -> bool:
        """Whether nobody is starting; from then on nobody does until :meth:`loud`."""
        try:
            fcntl.flock(self._building, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def loud(self) -> None:
        """Others may start again."""
        fcntl.flock(self._building, fcntl.LOCK_UN)

    def close(self) -> None:
        """It has measured: let go of all. (Loaders that were forked since hold the files open, so that is said.)"""
        for lock in (self._starting, self._building, self._measuring):
            fcntl.flock(lock, fcntl.LOCK_UN)
        self._open.close()


def _take(lock: IO[bytes]) -> float:
    begun_at = time.monotonic()
    fcntl.flock(lock, fcntl.LOCK_EX)
    return time.monotonic() - begun_at
