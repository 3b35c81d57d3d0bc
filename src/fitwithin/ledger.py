"""The ledger of a run: every second belongs to an entry.

An entry is opened (its seconds are reserved), has heartbeats while it lasts, and is settled with what it took. One that
a killed process left open is abandoned: it is charged up to its last heartbeat, and a grace. At every instant settled +
reserved stays within the budget.

Entries follow each other in a chain that adds up to the wall clock. Where several trials run at once, the chain has one
entry for that time, and each trial has a concurrent entry, which counts GPU seconds but no wall-clock seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fitwithin.errors import RunFolderError
from fitwithin.store import Event, Store

#: Seconds between heartbeats of an open entry, and what an abandoned entry is charged beyond its last one.
HEARTBEAT_S = 1.0
GRACE_S = 2 * HEARTBEAT_S


@dataclass(frozen=True, kw_only=True)
class EntryOpened(Event):
    """An entry was opened; :class:`Entry` says what its fields mean. ``at_s`` is the instant of its process's clock."""

    kind: ClassVar[str] = "ledger.open"
    number: int
    phase: str
    key: str
    gpus: int
    reserved_s: float
    at_s: float | None = None
    concurrent: bool = False


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Event):
    """An entry lasts: ``elapsed_s`` seconds had passed at the instant ``at_s`` of its process's clock."""

    kind: ClassVar[str] = "ledger.heartbeat"
    number: int
    elapsed_s: float
    at_s: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class EntrySettled(Event):
    """An entry ended, which took ``charged_s`` seconds."""

    kind: ClassVar[str] = "ledger.settle"
    number: int
    charged_s: float
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class EntryAbandoned(Event):
    """The process of an entry died; the entry is charged ``charged_s`` seconds."""

    kind: ClassVar[str] = "ledger.abandon"
    number: int
    charged_s: float


LedgerEvent = EntryOpened | Heartbeat | EntrySettled | EntryAbandoned


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One part of a run's time."""

    #: Its place among all entries, counting from 1.
    number: int
    #: start-up, data, profile, train, evaluate or report.
    phase: str
    #: The name of a trial or candidate; empty where it is for none.
    key: str
    #: How many GPUs it holds.
    gpus: int
    #: Seconds that it may take at most.
    reserved_s: float
    #: Seconds that had passed at its last heartbeat, and the instant of that (at first, when it was opened).
    heartbeat_s: float = 0.0
    heartbeat_at: float | None = None
    #: Seconds that it took; None while it is open.
    charged_s: float | None = None
    #: The most memory that was seen.
    peak_bytes: int | None = None
    #: Its process died.
    abandoned: bool = False
    #: It lasts while an entry of the chain does: it counts for the GPUs that it holds, not for the clock.
    concurrent: bool = False

    def weighted(self, seconds: float, *, gpu: bool) -> float:
        """What so many seconds of it are by the clock; with ``gpu`` what they are for the GPUs that it holds."""
        if gpu:
            return seconds * self.gpus
        return 0.0 if self.concurrent else seconds


@dataclass(kw_only=True)
class Ledger:
    """All entries, and their sums, which each event updates: a sum costs the same however long a run lasts."""

    _entries: dict[int, Entry] = field(default_factory=dict)
    _open: dict[int, Entry] = field(default_factory=dict)
    _spent_s: float = 0.0
    _gpu_s: float = 0.0
    #: Seconds charged by key and phase; under None as the phase those of all phases.
    _charged_s: dict[tuple[str, str | None], float] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries in order of opening."""
        return tuple(self._entries.values())

    @property
    def open_entries(self) -> tuple[Entry, ...]:
        """Those that have been neither settled nor abandoned, in order of opening."""
        return tuple(self._open.values())

    def __contains__(self, number: int) -> bool:
        """Whether an entry of that number was opened."""
        return number in self._entries

    def spent_s(self, *, gpu: bool = False) -> float:
        """Seconds charged so far by the clock; with ``gpu`` those that GPUs were held."""
        return self._gpu_s if gpu else self._spent_s

    def reserved_s(self, *, gpu: bool = False) -> float:
        """Seconds promised to entries that are still open; with ``gpu`` those of the GPUs that they hold."""
        return sum(entry.weighted(entry.reserved_s, gpu=gpu) for entry in self._open.values())

    def charged_s(self, key: str, *, phase: str | None = None) -> float:
        """Seconds charged to one key, in one phase or all: how long it was worked on, in the chain or concurrently."""
        return self._charged_s.get((key, phase), 0.0)

    @property
    def balanced(self) -> bool:
        """Nothing is open, and no entry was charged less than nothing."""
        return all(entry.charged_s is not None and entry.charged_s >= 0 for entry in self._entries.values())

    def by_phase(self) -> dict[str, tuple[Entry, ...]]:
        """The entries of each phase, phases in order of first appearance."""
        phases: dict[str, list[Entry]] = {}
        for entry in self._entries.values():
            phases.setdefault(entry.phase, []).append(entry)
        return {phase: tuple(entries) for phase, entries in phases.items()}

    def copy(self) -> Ledger:
        """The ledger as it stands, which later events leave as it is."""
        return replace(self, _entries=dict(self._entries), _open=dict(self._open), _charged_s=dict(self._charged_s))

    def add(self, event: LedgerEvent) -> None:
        """Fold one event.

        Raises:
            ValueError: it contradicts an earlier one: it closes what is not open, or opens a number twice.
        """
        if isinstance(event, EntryOpened):
            self._add_opened(event)
            return
        entry = self._open.get(event.number)
        if entry is None:
            raise ValueError(f"{event.kind} of entry {event.number}, which is not open")
        if not isinstance(event, EntryAbandoned):
            entry = replace(entry, peak_bytes=max(entry.peak_bytes or 0, event.peak_bytes or 0) or None)
        if isinstance(event, Heartbeat):
            entry = replace(entry, heartbeat_s=event.elapsed_s, heartbeat_at=event.at_s)
            self._entries[entry.number] = self._open[entry.number] = entry
            return
        entry = replace(entry, charged_s=event.charged_s, abandoned=isinstance(event, EntryAbandoned))
        self._entries[entry.number] = entry
        del self._open[entry.number]
        self._spent_s += entry.weighted(event.charged_s, gpu=False)
        self._gpu_s += entry.weighted(event.charged_s, gpu=True)
        for phase in (entry.phase, None):
            self._charged_s[entry.key, phase] = self._charged_s.get((entry.key, phase), 0.0) + event.charged_s

    def _add_opened(self, event: EntryOpened) -> None:
        if event.number in self._entries:
            raise ValueError(f"entry {event.number} was opened twice")
        entry = Entry(
            number=event.number,
            phase=event.phase,
            key=event.key,
            gpus=event.gpus,
            reserved_s=event.reserved_s,
            heartbeat_at=event.at_s,
            concurrent=event.concurrent,
        )
        self._entries[entry.number] = self._open[entry.number] = entry


def read(store: Store) -> Ledger:
    """The ledger that a store holds, also while another process writes it.

    Raises:
        RunFolderError: an event is damaged, or contradicts an earlier one.
    """
    # Heartbeats first: an entry that is opened after they were read has none yet. One that was closed keeps its last.
    beats = {record.number: record.event(Heartbeat) for record in store.beats()}
    ledger = Ledger()
    try:
        events: list[EntryOpened | EntrySettled | EntryAbandoned]
        events = store.read(EntryOpened, EntrySettled, EntryAbandoned)
        for event in events:
            ledger.add(event)
            if isinstance(event, EntryOpened) and event.number in beats:
                ledger.add(beats[event.number])
    except ValueError as error:
        raise RunFolderError(f"the ledger of this run contradicts itself ({error}); start a new run") from error
    return ledger


def abandonment(entry: Entry, died_before: float | None = None) -> EntryAbandoned:
    """The event that closes an entry whose process died: it is charged up to its last heartbeat, plus the grace.

    The grace ends at the instant ``died_before`` of the same clock, if that is known, and where the reserved seconds
    end: the process would have been ended then.
    """
    grace_s = GRACE_S
    if died_before is not None and entry.heartbeat_at is not None and died_before >= entry.heartbeat_at:
        grace_s = min(GRACE_S, died_before - entry.heartbeat_at)
    charged_s = entry.heartbeat_s + grace_s
    if entry.reserved_s > 0:
        charged_s = max(entry.heartbeat_s, min(charged_s, entry.reserved_s))
    return EntryAbandoned(number=entry.number, charged_s=charged_s)
