"""The books of a run as they stand, whether it has ended or not: every entry, what each came to, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitwithin import request as requests
from fitwithin.errors import RunFolderError
from fitwithin.ledger import KINDS, Entry, Ledger, fold
from fitwithin.store import SqliteStore, latest
from fitwithin.units import format_duration, format_size


@dataclass(frozen=True, kw_only=True)
class Account:
    """One limit of a run: seconds settled, reserved by entries that are open, and left."""

    name: str
    limit_s: float
    settled_s: float
    reserved_s: float

    @property
    def left_s(self) -> float:
        """What nobody has spent or been promised."""
        return self.limit_s - self.settled_s - self.reserved_s


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The entries in order, and the accounts that bound them; none under scope ``candidate``."""

    entries: tuple[Entry, ...]
    accounts: tuple[Account, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "accounts": [{**asdict(account), "left_s": account.left_s} for account in self.accounts],
        }

    def rows(self) -> list[list[str]]:
        """The entries as words: number, phase, candidate, GPUs, reserved, charged, peak memory."""
        return [
            [
                str(entry.number),
                entry.phase,
                entry.key or "–",
                str(entry.gpus or "–"),
                format_duration(entry.reserved_s) if entry.reserved_s else "–",
                _charged(entry),
                "–" if entry.peak_bytes is None else format_size(entry.peak_bytes),
            ]
            for entry in self.entries
        ]

    def told(self) -> list[str]:
        """The accounts in a sentence each."""
        return [
            f"{account.name}: {format_duration(account.settled_s)} settled and {format_duration(account.reserved_s)} "
            f"reserved of {format_duration(account.limit_s)}; {format_duration(max(0.0, account.left_s))} left"
            for account in self.accounts
        ]


#: What the columns of :meth:`Statement.rows` hold.
COLUMNS = ("#", "phase", "of", "GPUs", "reserved", "charged", "peak memory")


def _charged(entry: Entry) -> str:
    if entry.charged_s is None:
        beside = "beside, " if entry.beside else ""
        return f"open, {beside}{format_duration(entry.beaten_s)} at its last beat"
    notes = [word for word, so in (("beside", entry.beside), ("abandoned", entry.abandoned)) if so]
    return format_duration(entry.charged_s) + (f" ({', '.join(notes)})" if notes else "")


def drawn(events: Sequence[tuple[str, Mapping[str, Any]]], asked: requests.Request) -> Statement:
    """The statement of these ledger events under that request."""
    books, budget = fold(events), asked.budget
    accounts = []
    if budget.scope == "total":
        if budget.time_s is not None:
            accounts.append(_account("time", budget.time_s, books, gpu=False))
        if budget.gpu_time_s is not None:
            accounts.append(_account("device time", budget.gpu_time_s, books, gpu=True))
    return Statement(entries=books.entries, accounts=tuple(accounts))


def _account(name: str, limit_s: float, books: Ledger, *, gpu: bool) -> Account:
    return Account(name=name, limit_s=limit_s, settled_s=books.spent_s(gpu=gpu), reserved_s=books.reserved_s(gpu=gpu))


def read(folder: Path) -> Statement:
    """The statement of the run in ``folder``, also while another process works on it.

    Raises:
        RunFolderError: there is no run.
    """
    if not (folder / "run.db").is_file():
        raise RunFolderError(f"{folder} is no run's folder (no run.db); `fitwithin run` makes one")
    with SqliteStore(folder, write=False) as store:
        asked = latest(store.events("request"), "request")
        events = [(event.kind, event.body) for event in store.events(*KINDS)]
    if asked is None:
        raise RunFolderError(f"the run in {folder} has not begun: it holds no request")
    return drawn(events, requests.from_dict(asked))
