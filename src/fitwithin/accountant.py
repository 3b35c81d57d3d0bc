"""Keeps the books while a run lasts: one entry after the other without gaps, so that they add up to the wall clock.

An entry begins where the one before ended (the first where the process started) and ends when its block does. One
beside the chain begins when it is asked for: several may be open at once, opened and settled from any thread. A thread
for each writes a beat every second, so that a killed process leaves at most that much unknown.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType

from fitwithin import ledger
from fitwithin.budget import Budget, Clock, Remaining
from fitwithin.ledger import Ledger
from fitwithin.store import Store


class OpenEntry:
    """An entry while it lasts, which is a block: tell it the peak memory that was seen."""

    def __init__(self, accountant: Accountant, number: int, began_at: float, *, beside: bool) -> None:
        self._accountant = accountant
        self.number, self.began_at, self.beside = number, began_at, beside
        self.peak_bytes: int | None = None
        self.ahead_s = 0.0
        self.over = threading.Event()
        self.beats: threading.Thread | None = None

    def charge_ahead(self, seconds: float) -> None:
        """Charge what will follow the entry's end: the last entry of a run cannot wait for its own receipt."""
        self.ahead_s = seconds

    def peak(self, n_bytes: int | None) -> None:
        """Note a peak; the largest counts."""
        if n_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, n_bytes)

    def __enter__(self) -> OpenEntry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._accountant.settle(self)


def _left(budget: Budget, books: Ledger, unbooked_s: float, gpus: int = 1, slots: int = 1) -> Remaining:
    """The budget less what is settled, reserved beside the chain, and not booked yet."""
    held_s = books.spent_s(gpu=True) + books.reserved_s(gpu=True)
    return Remaining(
        time_s=math.inf if budget.time_s is None else budget.time_s - books.spent_s() - unbooked_s,
        gpu_time_s=math.inf if budget.gpu_time_s is None else budget.gpu_time_s - held_s,
        gpus=gpus,
        slots=slots,
    )


class Accountant:
    """Writes ledger events of one process into a store.

    Args:
        clock: the engine's clock.
        started_at: the instant this process started.
        same_clock: whether the clock of the process before is this one: then what it left open is charged no further
            than ``started_at``.
        beating: whether a thread writes beats; off under a simulated clock.
    """

    def __init__(
        self,
        store: Store,
        budget: Budget,
        clock: Clock,
        *,
        started_at: float,
        beating: bool = True,
        same_clock: bool = False,
    ) -> None:
        self._store, self._budget, self._clock, self._beating = store, budget, clock, beating
        self._lock = threading.Lock()
        self._since = started_at
        self._beside: set[OpenEntry] = set()
        self.started_at = started_at
        for entry in self.books().entries:
            if entry.open:
                store.append(ledger.ABANDON, ledger.abandonment(entry, started_at if same_clock else None))
        self._next = 1 + max((entry.number for entry in self.books().entries), default=0)

    def books(self) -> Ledger:
        """The books as the store tells them."""
        return ledger.fold((event.kind, event.body) for event in self._store.events(*ledger.KINDS))

    def remaining(self, gpus: int = 1, slots: int = 1) -> Remaining:
        """What is left of the whole run's budget now (scope ``total``) for ``slots`` at once with so many GPUs each.

        To be asked between entries of the chain, or while one lasts beside which slots work; what is reserved beside it
        is left to nobody.
        """
        with self._lock:
            return _left(self._budget, self.books(), self._clock() - self._since, gpus, slots)

    def now(self) -> float:
        """The present on the engine's clock."""
        return self._clock()

    def ends_at(self) -> float:
        """The instant at which one device's work has used the whole run's budget up; never under scope candidate."""
        if self._budget.scope == "candidate":
            return math.inf
        return self._clock() + self.remaining().usable_s

    def entry(
        self, phase: str, key: str = "", *, gpus: int = 0, reserved_s: float = 0.0, beside: bool = False
    ) -> OpenEntry:
        """Open an entry of ``phase`` and ``key`` that holds ``gpus`` and is settled when its block ends.

        All since the last entry of the chain is booked under it, or nothing before now if it stands ``beside``.
        """
        with self._lock:
            opened = OpenEntry(self, self._next, self._clock() if beside else self._since, beside=beside)
            self._next += 1
            body = {
                "number": opened.number,
                "phase": phase,
                "key": key,
                "gpu": gpus,
                "reserved_s": max(0.0, reserved_s),
                "at_s": opened.began_at,
            }
            if beside:  # before it is written: an interrupt may come in between
                self._beside.add(opened)
            self._store.append(ledger.OPEN, {**body, "beside": True} if beside else body)
        if self._beating:
            opened.beats = threading.Thread(target=self._beat, args=(opened,), name="ledger-beat", daemon=True)
            opened.beats.start()
        return opened

    def settle(self, opened: OpenEntry) -> None:
        """Close an entry with what it took, and with one of the chain whatever an interrupt left open beside it."""
        if not opened.beside and self._beside:
            written = {entry.number for entry in self.books().entries}
            for left in [each for each in self._beside if each.number in written]:
                self.settle(left)
        opened.over.set()
        if opened.beats is not None and opened.beats.is_alive():
            opened.beats.join()
        with self._lock:
            now = self._clock() + opened.ahead_s
            body = {"number": opened.number, "charged_s": now - opened.began_at, "peak_bytes": opened.peak_bytes}
            self._store.append(ledger.SETTLE, body)
            if opened.beside:
                self._beside.discard(opened)
            else:
                self._since = now

    def _beat(self, opened: OpenEntry) -> None:
        while not opened.over.is_set():
            with self._lock:
                if opened.over.is_set():  # it is about to be settled, or was: no beat comes after that
                    return
                now = self._clock()
                body = {
                    "number": opened.number,
                    "elapsed_s": now - opened.began_at,
                    "at_s": now,
                    "peak_bytes": opened.peak_bytes,
                }
                self._store.append(ledger.BEAT, body)
            opened.over.wait(ledger.BEAT_S)
