"""Keeps the books while a run lasts: one entry after the other without gaps, so that they add up to the wall clock.

An entry begins where the one before ended (the first where the process started) and ends when its block does. A thread
writes a beat every second, so that a killed process leaves at most that much unknown.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fitwithin import ledger
from fitwithin.budget import Budget, Clock, Remaining
from fitwithin.ledger import Books
from fitwithin.store import Store


class Open:
    """An entry while it lasts: tell it the peak memory that was seen."""

    def __init__(self, number: int, began_at: float) -> None:
        self.number, self.began_at = number, began_at
        self.peak_bytes: int | None = None
        self.ahead_s = 0.0

    def charge_ahead(self, seconds: float) -> None:
        """Charge what will follow the entry's end: the last entry of a run cannot wait for its own receipt."""
        self.ahead_s = seconds

    def peak(self, n_bytes: int | None) -> None:
        """Note a peak; the largest counts."""
        if n_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, n_bytes)


class Accountant:
    """Writes ledger events of one process into a store.

    Args:
        clock: the engine's clock.
        started_at: the instant this process started.
        beating: whether a thread writes beats; off under a simulated clock.
    """

    def __init__(self, store: Store, budget: Budget, clock: Clock, *, started_at: float, beating: bool = True) -> None:
        self._store, self._budget, self._clock, self._beating = store, budget, clock, beating
        self._since = started_at
        self.started_at = started_at
        for entry in self.books().entries:
            if entry.open:
                store.append(ledger.ABANDON, ledger.abandonment(entry))
        self._next = 1 + max((entry.number for entry in self.books().entries), default=0)

    def books(self) -> Books:
        """The books as the store tells them."""
        return ledger.fold((event.kind, event.body) for event in self._store.events(*ledger.KINDS))

    def remaining(self, gpus: int = 1) -> Remaining:
        """What is left of the whole run's budget now (scope ``total``) for what holds so many; call between entries."""
        books = self.books()
        unbooked_s = self._clock() - self._since
        time_s, gpu_s = self._budget.time_s, self._budget.gpu_time_s
        return Remaining(
            time_s=float("inf") if time_s is None else time_s - books.spent_s() - unbooked_s,
            gpu_time_s=float("inf") if gpu_s is None else gpu_s - books.spent_s(gpu=True),
            gpus=gpus,
        )

    @contextmanager
    def entry(self, phase: str, key: str = "", *, gpus: int = 0, reserved_s: float = 0.0) -> Iterator[Open]:
        """Book all since the last entry and until the block ends under ``phase`` and ``key``; it holds ``gpus``."""
        opened = Open(self._next, self._since)
        self._next += 1
        body = {"number": opened.number, "phase": phase, "key": key, "gpu": gpus, "reserved_s": max(0.0, reserved_s)}
        self._store.append(ledger.OPEN, body)
        stop = threading.Event()
        beats = threading.Thread(target=self._beat, args=(opened, stop), name="ledger-beat", daemon=True)
        if self._beating:
            beats.start()
        try:
            yield opened
        finally:
            stop.set()
            if self._beating:
                beats.join()
            now = self._clock() + opened.ahead_s
            body = {"number": opened.number, "charged_s": now - opened.began_at, "peak_bytes": opened.peak_bytes}
            self._store.append(ledger.SETTLE, body)
            self._since = now

    def _beat(self, opened: Open, stop: threading.Event) -> None:
        while True:
            body = {
                "number": opened.number,
                "elapsed_s": self._clock() - opened.began_at,
                "peak_bytes": opened.peak_bytes,
            }
            self._store.append(ledger.BEAT, body)
            if stop.wait(ledger.BEAT_S):
                return
