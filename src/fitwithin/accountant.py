"""Keeps the ledger while a run lasts: one entry after the other without gaps, so that they add up to the wall clock.

An entry begins where the one before ended (the first where the process started) and ends when its block does. A
concurrent one begins when it is asked for: several may be open at once, opened and settled from any thread. Each entry
has a thread that writes a heartbeat every second.

The accountant alone writes these events. It also keeps the ledger in memory: what is left of a budget is known without
reading the store.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from fitwithin import ledger as ledgers
from fitwithin.budget import Budget, Clock, Remaining
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled, Heartbeat, Ledger
from fitwithin.store import Store


@dataclass(eq=False, kw_only=True)
class OpenEntry:
    """An entry while its block lasts."""

    accountant: Accountant
    number: int
    began_at: float
    concurrent: bool
    #: The most memory that was seen.
    peak_bytes: int | None = None
    #: Seconds after its end that are charged too: the last entry of a run ends before its own receipt is written.
    ahead_s: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    heartbeats: threading.Thread | None = None

    def peak(self, n_bytes: int | None) -> None:
        """Note a peak; the largest counts."""
        if n_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, n_bytes)

    def __enter__(self) -> OpenEntry:
        return self

    def __exit__(self, *raised: object) -> None:
        self.accountant.settle(self)


class Accountant:
    """Writes the ledger of one process into a store.

    Args:
        clock: the engine's clock.
        started_at: the instant this process started.
        same_clock: whether the clock of the process before is this one: then what it left open is charged no further
            than ``started_at``.
        beating: whether threads write heartbeats; off under a simulated clock.
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
        self._store = store
        self._budget = budget
        self._clock = clock
        self._beating = beating
        self._lock = threading.Lock()
        self._since = started_at
        self._concurrent: set[OpenEntry] = set()
        self.started_at = started_at
        self._ledger = ledgers.read(store)
        for entry in self._ledger.open_entries:
            self._write(ledgers.abandonment(entry, started_at if same_clock else None))
        self._next = 1 + max((entry.number for entry in self._ledger.entries), default=0)

    def ledger(self) -> Ledger:
        """The ledger as it stands now; what comes later does not change it."""
        with self._lock:
            return self._ledger.copy()

    def _write(self, event: EntryOpened | EntrySettled | EntryAbandoned) -> None:
        """Append an event to the store and add it to the ledger."""
        try:
            self._store.append(event)
            self._ledger.add(event)
        except BaseException:  # an interrupt may have come after it was written, or before
            self._ledger = ledgers.read(self._store)
            raise

    def remaining(self, gpus: int = 1, slots: int = 1) -> Remaining:
        """What is left of the whole run's budget now (scope ``total``) for ``slots`` at once with so many GPUs each.

        To be asked between entries of the chain, or while one lasts during which slots work. Concurrent entries keep
        the GPU seconds that they have reserved.
        """
        budget = self._budget
        with self._lock:
            passed_s = self._ledger.spent_s() + (self._clock() - self._since)
            held_s = self._ledger.spent_s(gpu=True) + self._ledger.reserved_s(gpu=True)
        return Remaining(
            time_s=math.inf if budget.time_s is None else budget.time_s - passed_s,
            gpu_time_s=math.inf if budget.gpu_time_s is None else budget.gpu_time_s - held_s,
            gpus=gpus,
            slots=slots,
        )

    def now(self) -> float:
        """The present on the engine's clock."""
        return self._clock()

    def ends_at(self) -> float:
        """The instant at which one device's work has used the whole run's budget up; never under scope candidate."""
        if self._budget.scope == "candidate":
            return math.inf
        return self._clock() + self.remaining().usable_s

    def entry(
        self, phase: str, key: str = "", *, gpus: int = 0, reserved_s: float = 0.0, concurrent: bool = False
    ) -> OpenEntry:
        """Open an entry of ``phase`` and ``key`` that holds ``gpus`` and is settled when its block ends.

        All since the last entry of the chain is booked under it, or nothing before now if it is ``concurrent``.
        """
        with self._lock:
            began_at = self._clock() if concurrent else self._since
            opened = OpenEntry(accountant=self, number=self._next, began_at=began_at, concurrent=concurrent)
            self._next += 1
            if concurrent:  # before it is written: an interrupt may come in between
                self._concurrent.add(opened)
            self._write(
                EntryOpened(
                    number=opened.number,
                    phase=phase,
                    key=key,
                    gpus=gpus,
                    reserved_s=max(0.0, reserved_s),
                    at_s=began_at,
                    concurrent=concurrent,
                )
            )
        if self._beating:
            opened.heartbeats = threading.Thread(target=self._beat, args=(opened,), name="heartbeat", daemon=True)
            opened.heartbeats.start()
        return opened

    def settle(self, opened: OpenEntry) -> None:
        """Close an entry with what it took, and with one of the chain whatever an interrupt left open beside it."""
        if not opened.concurrent and self._concurrent:
            for left in [each for each in self._concurrent if each.number in self._ledger]:
                self.settle(left)
        opened.over.set()
        if opened.heartbeats is not None and opened.heartbeats.is_alive():
            opened.heartbeats.join()
        with self._lock:
            now = self._clock() + opened.ahead_s
            self._write(
                EntrySettled(number=opened.number, charged_s=now - opened.began_at, peak_bytes=opened.peak_bytes)
            )
            if opened.concurrent:
                self._concurrent.discard(opened)
            else:
                self._since = now

    def _beat(self, opened: OpenEntry) -> None:
        """Write heartbeats until the entry is over; who settles it waits for the last one."""
        while not opened.over.is_set():
            now = self._clock()
            elapsed_s, peak_bytes = now - opened.began_at, opened.peak_bytes
            heartbeat = Heartbeat(number=opened.number, elapsed_s=elapsed_s, at_s=now, peak_bytes=peak_bytes)
            with suppress(sqlite3.Error):  # a full disk: whoever writes the next event says so
                self._store.beat(opened.number, heartbeat)  # without the lock: the disk may take its time
            with self._lock:
                self._ledger.add(heartbeat)
            opened.over.wait(ledgers.HEARTBEAT_S)
