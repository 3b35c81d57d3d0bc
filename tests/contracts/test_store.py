"""One suite for a store in memory and one in a file, which keeps promises about its file beside."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import RunFolderError
from fitwithin.ledger import Heartbeat
from fitwithin.store import SCHEMA, Event, Store
from simulated.run import tries


@dataclass(frozen=True, kw_only=True)
class Counted(Event):
    """An event with a number."""

    kind: ClassVar[str] = "counted"
    n: int


@dataclass(frozen=True, kw_only=True)
class Named(Event):
    """An event with a text, and with whatever JSON can hold."""

    kind: ClassVar[str] = "named"
    name: str = ""
    whatever: Any = None


@dataclass(frozen=True, kw_only=True)
class Never(Event):
    """An event that nobody writes; its kind is no word."""

    kind: ClassVar[str] = "a' OR '1'='1"


STORES = {"memory": lambda folder: Store(), "file": Store}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


def test_events_come_back_in_order_with_numbers_from_one(store: Store) -> None:
    before = time.time()
    told = [Counted(n=0), Named(name="b"), Counted(n=2), Named(name="d")]
    assert [store.append(event) for event in told] == [1, 2, 3, 4]
    records = store.all()
    assert [(record.number, record.kind, json.loads(record.text)) for record in records] == [
        (1, "counted", {"n": 0}),
        (2, "named", {"name": "b", "whatever": None}),
        (3, "counted", {"n": 2}),
        (4, "named", {"name": "d", "whatever": None}),
    ]
    assert [record.event(Counted, Named) for record in records] == told
    assert all(before <= record.at <= time.time() for record in records)


def test_events_are_read_by_their_class_and_keep_the_order(store: Store) -> None:
    for n in range(3):
        store.append(Counted(n=n))
        store.append(Named(name=str(n)))
    assert store.read(Counted) == [Counted(n=0), Counted(n=1), Counted(n=2)]
    assert [type(event) for event in store.read(Named, Counted)] == [Counted, Named] * 3
    assert store.read(Never) == []
    assert [record.number for record in store.all("named")] == [2, 4, 6]
    assert store.latest(Named) == Named(name="2")
    assert store.latest(Never) is None


def test_an_empty_store_is_empty(store: Store) -> None:
    assert store.all() == []
    assert store.beats() == []


def test_of_heartbeats_the_last_one_of_each_entry_is_kept(store: Store) -> None:
    store.append(Counted(n=1))
    for entry, n in ((2, 1), (1, 1), (2, 2), (1, 5)):
        store.beat(entry, Counted(n=n))
    assert [(record.number, record.event(Counted).n) for record in store.beats()] == [(1, 5), (2, 2)]
    assert len(store.all()) == 1, "they are no events of the list"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"n": "one"}', "Counted.n: 'one' is no int"),
        ('{"n": true}', "Counted.n: 'True' is no int"),
        ("{}", "Counted: missing n"),
        ('{"n": 1, "m": 2}', "Counted: unknown m"),
        ("[]", "is no Counted"),
        ('{"n": 1', "Expecting"),
    ],
)
def test_a_damaged_event_is_named_with_what_is_wrong(tmp_path: Path, text: str, why: str) -> None:
    with Store(tmp_path) as store:
        store.append(Counted(n=1))
        store._db.execute("UPDATE events SET body = ?", (text,))
        for reading in (lambda: store.read(Counted), lambda: store.latest(Counted)):
            with pytest.raises(RunFolderError, match=rf"event 1 of this run \(counted\) is damaged, or .*{why}"):
                reading()


def test_an_event_of_an_unknown_kind_is_named(store: Store) -> None:
    store.append(Counted(n=1))
    (record,) = store.all()
    with pytest.raises(RunFolderError, match=r"event 1 of this run is of a kind .* does not know \('counted'\); go on"):
        record.event(Named)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@tries(40)
@given(st.lists(st.builds(Named, name=st.text(), whatever=json_values), max_size=4))
def test_whatever_is_json_comes_back_as_it_was(make: Callable[[Path], Store], told: list[Named]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder))
        for event in told:
            store.append(event)
        read = store.read(Named)
        store.close()
    assert read == told


def test_what_is_appended_is_a_copy(store: Store) -> None:
    whatever = [1]
    store.append(Named(whatever=whatever))
    whatever.append(2)
    assert store.read(Named) == [Named(whatever=[1])]


@pytest.mark.parametrize("whatever", [math.nan, math.inf, object(), Path()])
def test_what_is_no_json_is_refused_and_leaves_nothing(store: Store, whatever: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        store.append(Named(whatever=whatever))
    with pytest.raises((TypeError, ValueError)):
        store.beat(1, Named(whatever=whatever))
    assert store.all() == store.beats() == []


def test_threads_may_append_at_once(store: Store) -> None:
    """Heartbeats come from threads, and what slots do is settled from them."""

    def write(entry: int) -> None:
        for n in range(25):
            store.append(Counted(n=n))
            store.beat(entry, Counted(n=n))

    threads = [threading.Thread(target=write, args=(entry,)) for entry in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.number for record in store.all()] == list(range(1, 101))
    assert [record.event(Counted).n for record in store.beats()] == [24] * 4


# --- what only a file can promise ------------------------------------------------------------------------------------


def test_events_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(Named(name="ä"))
        store.beat(1, Named(name="ö"))
    with Store(tmp_path) as store:
        assert store.read(Named) == [Named(name="ä")]
        assert [record.event(Named).name for record in store.beats()] == ["ö"]
        assert store.append(Named()) == 2


def test_events_survive_a_writer_that_was_killed(tmp_path: Path) -> None:
    """``kill -9`` right after append returned; the lock falls with the process."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fitwithin.ledger import Heartbeat\n"
        "from fitwithin.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for n in range(20): store.append(Heartbeat(number=n, elapsed_s=0.0))\n"
        "for n in range(20): store.beat(7, Heartbeat(number=7, elapsed_s=n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    with Store(tmp_path) as store:
        assert [event.number for event in store.read(Heartbeat)] == list(range(20))
        assert [record.event(Heartbeat).elapsed_s for record in store.beats()] == [19]
        assert store.append(Counted(n=0)) == 21


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(Counted(n=1))
        with pytest.raises(RunFolderError, match=r"another process is working on .*; wait for it or end it"):
            Store(tmp_path)
        reader = Store(tmp_path, write=False)
        assert len(reader.all()) == 1
        store.append(Counted(n=1))
        assert len(reader.all()) == 2
        reader.close()
    Store(tmp_path).close()


def test_a_refused_writer_leaves_the_lock_with_its_holder(tmp_path: Path) -> None:
    first = Store(tmp_path)
    for _ in range(2):
        with pytest.raises(RunFolderError):
            Store(tmp_path)
    first.close()
    first.close()  # twice does no harm


def test_another_schema_is_refused_and_the_lock_let_go(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "run.db") as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    for _ in range(2):
        with pytest.raises(RunFolderError, match=f"has schema {SCHEMA + 1}, this version of fitwithin reads {SCHEMA}"):
            Store(tmp_path)


def test_opening_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(Counted(n=1))
    before = (tmp_path / "run.db").read_bytes()
    with Store(tmp_path) as store:
        assert len(store.all()) == 1
    assert (tmp_path / "run.db").read_bytes() == before
