"""The ledger of a run, also while it lasts: every entry with its charge, and what is left."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitwithin import ledger as ledgers
from fitwithin.errors import RunFolderError
from fitwithin.events import RunRequested
from fitwithin.ledger import Entry, Ledger
from fitwithin.request import Request
from fitwithin.store import Store
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
        """What is neither settled nor reserved."""
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

    def sentences(self) -> list[str]:
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
        concurrent = "concurrent, " if entry.concurrent else ""
        return f"open, {concurrent}{format_duration(entry.heartbeat_s)} at its last heartbeat"
    notes = [word for word, so in (("concurrent", entry.concurrent), ("abandoned", entry.abandoned)) if so]
    return format_duration(entry.charged_s) + (f" ({', '.join(notes)})" if notes else "")


def make_statement(ledger: Ledger, request: Request) -> Statement:
    """The statement of a ledger under that request's budget."""
    budget = request.budget
    accounts = tuple(
        Account(name=name, limit_s=limit_s, settled_s=ledger.spent_s(gpu=gpu), reserved_s=ledger.reserved_s(gpu=gpu))
        for name, limit_s, gpu in (("time", budget.time_s, False), ("device time", budget.gpu_time_s, True))
        if budget.scope == "total" and limit_s is not None
    )
    return Statement(entries=ledger.entries, accounts=accounts)


def read(folder: Path) -> Statement:
    """The statement of the run in ``folder``, also while another process works on it; RunFolderError without one."""
    if not (folder / "run.db").is_file():
        raise RunFolderError(f"{folder} is no run's folder (no run.db); `fitwithin run` makes one")
    with Store(folder, write=False) as store:
        asked, ledger = store.latest(RunRequested), ledgers.read(store)
    if asked is None:
        raise RunFolderError(f"the run in {folder} has not begun: it holds no request")
    return make_statement(ledger, asked.request)
