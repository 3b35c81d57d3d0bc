"""The run store: an append-only list of events in a SQLite file, with one writer. A run's state is the fold of them.

Each kind of event is a frozen dataclass (fitwithin/events.py and fitwithin/ledger.py have them); the store knows none.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Self, TypeVar

from fitwithin.errors import RunFolderError
from fitwithin.files import from_json, to_json

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all that a store holds. A subclass has ``kind``, its name in the store, and fields that become JSON."""

    kind: ClassVar[str]


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event as a store holds it.

    Attributes:
        number: its place among all events, counting from 1; of a heartbeat, the number of its entry.
        at: when it was written, in Unix seconds.
        kind: the event's name.
        text: the event's fields as JSON text.
    """

    number: int
    at: float
    kind: str
    text: str

    def event(self, *kinds: type[E]) -> E:
        """The event itself, which is of one of these classes.

        Raises:
            RunFolderError: it is of another kind, or its fields are not those of its class.
        """
        for kind in kinds:
            if kind.kind == self.kind:
                try:
                    return from_json(kind, self.text)
                except ValueError as error:
                    raise RunFolderError(
                        f"event {self.number} of this run ({self.kind}) is damaged, or another version of fitwithin "
                        f"wrote it ({error}); go on with the version that began the run, or start a new one"
                    ) from error
        raise RunFolderError(
            f"event {self.number} of this run is of a kind that this version of fitwithin does not know "
            f"({self.kind!r}); go on with the version that began the run, or start a new one"
        )


class Store:
    """Events in ``RUN/run.db``, written by one process at a time (an advisory lock on ``RUN/lock``).

    Without a folder they are in memory: for plans and simulations.
    """

    def __init__(self, folder: Path | None = None, *, write: bool = True) -> None:
        self._lock = threading.Lock()
        self._held: IO[str] | None = None
        if write and folder is not None:
            self._held = (folder / "lock").open("w")
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._held.close()
                raise RunFolderError(f"another process is working on {folder}; wait for it or end it") from error
        path = ":memory:" if folder is None else folder / "run.db"
        # One connection shared under a lock: the heartbeat threads write through it too.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            self.close()
            raise RunFolderError(f"{path} has schema {version}, this version of fitwithin reads {SCHEMA}")
        if write and version == 0:  # opening a finished run changes nothing
            self._db.execute("PRAGMA journal_mode = WAL")
            columns = "at REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL"
            self._db.execute(f"CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, {columns})")
            self._db.execute(f"CREATE TABLE IF NOT EXISTS heartbeats (entry INTEGER PRIMARY KEY, {columns})")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def append(self, event: Event) -> int:
        """Add an event, which is on disk when this returns; returns its number, counting from 1."""
        row = (time.time(), event.kind, to_json(event))
        with self._lock:
            return int(self._db.execute("INSERT INTO events (at, kind, body) VALUES (?, ?, ?)", row).lastrowid or 0)

    def beat(self, entry: int, heartbeat: Event) -> None:
        """Write the heartbeat of an entry in place of the one before; it is on disk when this returns."""
        row = (entry, time.time(), heartbeat.kind, to_json(heartbeat))
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO heartbeats (entry, at, kind, body) VALUES (?, ?, ?, ?)", row)

    def all(self, *kinds: str) -> list[Record]:
        """The events of those kinds (all without any), in order. Heartbeats are not among them."""
        where = f" WHERE kind IN ({','.join('?' * len(kinds))})" if kinds else ""
        return self._records(f"SELECT number, at, kind, body FROM events{where} ORDER BY number", kinds)  # noqa: S608 - only ?s are joined in

    def beats(self) -> list[Record]:
        """The last heartbeat of each entry that had one, in the order of entries."""
        return self._records("SELECT entry, at, kind, body FROM heartbeats ORDER BY entry", ())

    def _records(self, query: str, values: tuple[str, ...]) -> list[Record]:
        with self._lock:
            rows = self._db.execute(query, values).fetchall()
        return [Record(number=n, at=at, kind=kind, text=text) for n, at, kind, text in rows]

    def read(self, *kinds: type[E]) -> list[E]:
        """The events of these classes, in order; RunFolderError if one of them is damaged."""
        return [record.event(*kinds) for record in self.all(*(kind.kind for kind in kinds))]

    def latest(self, kind: type[E]) -> E | None:
        """The last event of that class, None without one; RunFolderError if it is damaged."""
        found = self.all(kind.kind)
        return found[-1].event(kind) if found else None

    def close(self) -> None:
        """Close the file and let another process write."""
        with self._lock:
            self._db.close()
        if self._held is not None:
            self._held.close()
            self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
