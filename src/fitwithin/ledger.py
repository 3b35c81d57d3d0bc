"""The books of a run: every second belongs to an entry that was opened with an upper bound and closed with the truth.

Append-only events, folded into :class:`Ledger`. An entry is opened (reserved), beats while it lasts, and is settled
with what it took; one that was left open by a killed process is abandoned at its last beat plus a grace. At every
instant settled + reserved stays within the budget.

Entries follow each other in a chain that adds up to the wall clock. Where several work at once, the chain has one entry
for that stretch, and what each of them holds stands beside it: GPU seconds, but no wall-clock seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

#: Seconds between beats of an open entry, and what an abandoned entry is charged beyond its last beat.
BEAT_S = 1.0
GRACE_S = 2 * BEAT_S

#: Event kinds, as they stand in the store.
OPEN, BEAT, SETTLE, ABANDON = "ledger.open", "ledger.beat", "ledger.settle", "ledger.abandon"
KINDS = (OPEN, BEAT, SETTLE, ABANDON)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stretch of a run: ``phase`` (start-up, data, profile, train, evaluate, report) of ``key`` (a candidate).

    ``gpus`` is how many GPUs were held. ``charged_s`` is None while the entry is open. One ``beside`` the chain lasts
    while others do: it counts for the GPUs that it holds, not for the clock. ``beaten_s`` had passed at its last beat,
    at the instant ``beaten_at`` of its process's clock.
    """

    number: int
    phase: str
    key: str
    gpus: int
    reserved_s: float
    beaten_s: float = 0.0
    beaten_at: float | None = None
    charged_s: float | None = None
    peak_bytes: int | None = None
    abandoned: bool = False
    beside: bool = False

    @property
    def open(self) -> bool:
        """Whether it has neither been settled nor abandoned."""
        return self.charged_s is None

    def counted(self, seconds: float, *, gpu: bool) -> float:
        """What so many seconds of it are by the clock; with ``gpu`` what they are for the GPUs that it holds."""
        if gpu:
            return seconds * self.gpus
        return 0.0 if self.beside else seconds


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All entries in order of opening."""

    entries: tuple[Entry, ...] = ()

    def spent_s(self, *, gpu: bool = False) -> float:
        """Seconds charged so far by the clock; with ``gpu`` those that GPUs were held."""
        return sum(entry.counted(entry.charged_s or 0.0, gpu=gpu) for entry in self.entries)

    def reserved_s(self, *, gpu: bool = False) -> float:
        """Seconds promised to entries that are still open; with ``gpu`` those of the GPUs that they hold."""
        return sum(entry.counted(entry.reserved_s, gpu=gpu) for entry in self.entries if entry.open)

    def lasted_s(self, key: str, *, phase: str | None = None) -> float:
        """Seconds charged to one key, in one phase or all: how long it was worked on, in the chain or beside it."""
        mine = (entry for entry in self.entries if entry.key == key and phase in (None, entry.phase))
        return sum(entry.charged_s or 0.0 for entry in mine)

    @property
    def balanced(self) -> bool:
        """Nothing is open, and no entry was charged less than nothing."""
        return all(entry.charged_s is not None and entry.charged_s >= 0 for entry in self.entries)

    def by_phase(self) -> dict[str, tuple[Entry, ...]]:
        """The entries of each phase, phases in order of first appearance."""
        phases: dict[str, list[Entry]] = {}
        for entry in self.entries:
            phases.setdefault(entry.phase, []).append(entry)
        return {phase: tuple(entries) for phase, entries in phases.items()}


def fold(events: Iterable[tuple[str, Mapping[str, Any]]]) -> Ledger:
    """The books that the events tell; events of other kinds are passed over.

    Raises:
        ValueError: an event contradicts an earlier one (closing what is not open, opening a number twice).
    """
    entries: dict[int, Entry] = {}
    for kind, body in events:
        if kind not in KINDS:
            continue
        number = int(body["number"])
        if kind == OPEN:
            if number in entries:
                raise ValueError(f"entry {number} was opened twice")
            entries[number] = Entry(
                number=number,
                phase=str(body["phase"]),
                key=str(body["key"]),
                gpus=int(body["gpu"]),
                reserved_s=float(body["reserved_s"]),
                beside=bool(body.get("beside", False)),
                beaten_at=body.get("at_s"),
            )
            continue
        entry = entries.get(number)
        if entry is None or not entry.open:
            raise ValueError(f"{kind} of entry {number}, which is not open")
        if kind == BEAT:
            beaten_s, peak_bytes = float(body["elapsed_s"]), _larger(entry, body)
            entries[number] = replace(entry, beaten_s=beaten_s, beaten_at=body.get("at_s"), peak_bytes=peak_bytes)
        else:
            entries[number] = replace(
                entry,
                charged_s=float(body["charged_s"]),
                peak_bytes=_larger(entry, body),
                abandoned=kind == ABANDON,
            )
    return Ledger(entries=tuple(entries.values()))


def _larger(entry: Entry, body: Mapping[str, Any]) -> int | None:
    told = [int(peak) for peak in (entry.peak_bytes, body.get("peak_bytes")) if peak is not None]
    return max(told, default=None)


def abandonment(entry: Entry, died_before: float | None = None) -> dict[str, Any]:
    """The event body that closes an entry whose process died: its last beat plus the grace, no further than the instant
    ``died_before`` of the same clock, if that is known.

    What had something reserved would have been ended when that was over: the grace goes no further. (Of an evaluation
    at the end of a candidate's time, or of several turns at once, it might be more than the budget has left.)
    """
    grace_s = GRACE_S
    if died_before is not None and entry.beaten_at is not None and died_before >= entry.beaten_at:
        grace_s = min(GRACE_S, died_before - entry.beaten_at)
    charged_s = entry.beaten_s + grace_s
    if entry.reserved_s > 0:
        charged_s = max(entry.beaten_s, min(charged_s, entry.reserved_s))
    return {"number": entry.number, "charged_s": charged_s, "peak_bytes": None}
