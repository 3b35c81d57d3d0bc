"""The books of a run: every second belongs to an entry that was opened with an upper bound and closed with the truth.

Append-only events, folded into :class:`Books`. An entry is opened (reserved), beats while it lasts, and is settled with
what it took; one that was left open by a killed process is abandoned at its last beat plus a grace. At every instant
settled + reserved stays within the budget.
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

    ``gpus`` is how many GPUs were held. ``charged_s`` is None while the entry is open.
    """

    number: int
    phase: str
    key: str
    gpus: int
    reserved_s: float
    beaten_s: float = 0.0
    charged_s: float | None = None
    peak_bytes: int | None = None
    abandoned: bool = False

    @property
    def open(self) -> bool:
        """Whether it has neither been settled nor abandoned."""
        return self.charged_s is None


@dataclass(frozen=True, kw_only=True)
class Books:
    """All entries in order of opening."""

    entries: tuple[Entry, ...] = ()

    def spent_s(self, *, gpu: bool = False, key: str | None = None, phase: str | None = None) -> float:
        """Seconds charged so far: of all entries, or one key's or phase's; with ``gpu`` those that GPUs were held."""
        return sum(
            (entry.charged_s or 0.0) * (entry.gpus if gpu else 1)
            for entry in self.entries
            if (key is None or entry.key == key) and (phase is None or entry.phase == phase)
        )

    def reserved_s(self, *, gpu: bool = False) -> float:
        """Seconds promised to entries that are still open; with ``gpu`` those of the GPUs that they hold."""
        return sum(entry.reserved_s * (entry.gpus if gpu else 1) for entry in self.entries if entry.open)

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


def fold(events: Iterable[tuple[str, Mapping[str, Any]]]) -> Books:
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
            )
            continue
        entry = entries.get(number)
        if entry is None or not entry.open:
            raise ValueError(f"{kind} of entry {number}, which is not open")
        if kind == BEAT:
            entries[number] = replace(entry, beaten_s=float(body["elapsed_s"]), peak_bytes=_larger(entry, body))
        else:
            entries[number] = replace(
                entry,
                charged_s=float(body["charged_s"]),
                peak_bytes=_larger(entry, body),
                abandoned=kind == ABANDON,
            )
    return Books(entries=tuple(entries.values()))


def _larger(entry: Entry, body: Mapping[str, Any]) -> int | None:
    told = [int(peak) for peak in (entry.peak_bytes, body.get("peak_bytes")) if peak is not None]
    return max(told, default=None)


def abandonment(entry: Entry) -> dict[str, Any]:
    """The event body that closes an entry whose process died: its last beat plus the grace."""
    return {"number": entry.number, "charged_s": entry.beaten_s + GRACE_S, "peak_bytes": None}
