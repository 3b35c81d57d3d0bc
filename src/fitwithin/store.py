"""The run store: an append-only list of events in a SQLite file, with one writer. A run's state is the fold of them."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from fitwithin.errors import RunFolderError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened: its number, wall-clock instant (Unix seconds), kind and JSON body."""

    number: int
    at: float
    kind: str
    body: dict[str, Any]


class Store(Protocol):
    """Where events are kept. Appending is durable when the call returns; reading sees everything appended."""

    def append(self, kind: str, body: dict[str, Any]) -> int:
        """Add an event; returns its number, counting from 1."""

    def events(self, *kinds: str) -> list[Event]:
        """The events of those kinds (all without any), in order."""

    def close(self) -> None:
        """Let go of the file and of the right to write."""


class MemoryStore:
    """Events in a list: for simulations and tests."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def append(self, kind: str, body: dict[str, Any]) -> int:
        """Add an event."""
        copy = json.loads(json.dumps(body, allow_nan=False))
        with self._lock:
            self._events.append(Event(number=len(self._events) + 1, at=time.time(), kind=kind, body=copy))
            return len(self._events)

    def events(self, *kinds: str) -> list[Event]:
        """The events of those kinds, in order."""
        return [event for event in self._events if not kinds or event.kind in kinds]

    def close(self) -> None:
        """Nothing to let go of."""


class SqliteStore:
    """Events in ``RUN/run.db``, written by one process at a time (an advisory lock on ``RUN/lock``)."""

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self._lock = threading.Lock()
        self._held: IO[str] | None = None
        if write:
            self._held = (folder / "lock").open("w")
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._held.close()
                raise RunFolderError(f"another process is working on {folder}; wait for it or end it") from error
        path = folder / "run.db"
        # One connection shared under a lock: the heartbeat thread writes through it too.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA synchronous = FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            self.close()
            raise RunFolderError(f"{path} has schema {version}, this version of fitwithin reads {SCHEMA}")
        if write and version == 0:  # opening a finished run changes nothing
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,"
                " kind TEXT NOT NULL, body TEXT NOT NULL)"
            )
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def append(self, kind: str, body: dict[str, Any]) -> int:
        """Add an event; it is on disk when this returns."""
        text = json.dumps(body, allow_nan=False)
        with self._lock:
            cursor = self._db.execute("INSERT INTO events (at, kind, body) VALUES (?, ?, ?)", (time.time(), kind, text))
            return int(cursor.lastrowid or 0)

    def events(self, *kinds: str) -> list[Event]:
        """The events of those kinds, in order."""
        where = f" WHERE kind IN ({','.join('?' * len(kinds))})" if kinds else ""
        query = f"SELECT number, at, kind, body FROM events{where} ORDER BY number"  # noqa: S608 - only ?s are joined in
        with self._lock:
            rows = self._db.execute(query, kinds).fetchall()
        return [Event(number=n, at=at, kind=kind, body=json.loads(body)) for n, at, kind, body in rows]

    def close(self) -> None:
        """Close the file and let another process write."""
        with self._lock:
            self._db.close()
        if self._held is not None:
            self._held.close()
            self._held = None

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def latest(events: list[Event], kind: str) -> dict[str, Any] | None:
    """The body of the last event of that kind, None without one."""
    return next((event.body for event in reversed(events) if event.kind == kind), None)


def bodies(events: list[Event], kind: str) -> Iterator[dict[str, Any]]:
    """The bodies of all events of that kind, in order."""
    return (event.body for event in events if event.kind == kind)
