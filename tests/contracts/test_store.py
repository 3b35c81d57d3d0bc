"""One suite for every store; SqliteStore keeps promises about its file beside."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import RunFolderError
from fitwithin.store import SCHEMA, MemoryStore, SqliteStore, Store, bodies, latest
from simulation import tries

STORES = {"memory": lambda folder: MemoryStore(), "sqlite": SqliteStore}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


def test_events_come_back_in_order_with_numbers_from_one(store: Store) -> None:
    before = time.time()
    assert [store.append(kind, {"n": n}) for n, kind in enumerate("abab")] == [1, 2, 3, 4]
    events = store.events()
    assert [(event.number, event.kind, event.body) for event in events] == [
        (n + 1, kind, {"n": n}) for n, kind in enumerate("abab")
    ]
    assert all(before <= event.at <= time.time() for event in events)


def test_kinds_filter_and_keep_the_order(store: Store) -> None:
    for n, kind in enumerate(["a", "b", "c", "a", "c"]):
        store.append(kind, {"n": n})
    assert [event.number for event in store.events("a")] == [1, 4]
    assert [event.number for event in store.events("c", "a")] == [1, 3, 4, 5]
    assert store.events("never") == []
    assert store.events("a' OR '1'='1") == []
    assert latest(store.events("c"), "c") == {"n": 4}
    assert latest(store.events(), "never") is None
    assert [body["n"] for body in bodies(store.events(), "a")] == [0, 3]


def test_an_empty_store_is_empty(store: Store) -> None:
    assert store.events() == []


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
@given(st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3)), max_size=4))
def test_whatever_is_json_comes_back_as_it_was(
    make: Callable[[Path], Store], told: list[tuple[str, dict[str, Any]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = make(Path(folder))
        for kind, body in told:
            store.append(kind, body)
        read = [(event.kind, event.body) for event in store.events()]
        store.close()
    assert read == told


def test_what_is_appended_is_a_copy(store: Store) -> None:
    body = {"list": [1]}
    store.append("a", body)
    body["list"].append(2)
    (event,) = store.events()
    assert event.body == {"list": [1]}


@pytest.mark.parametrize("body", [{"x": math.nan}, {"x": math.inf}, {"x": object()}, {"x": Path()}])
def test_what_is_no_json_is_refused_and_leaves_nothing(store: Store, body: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        store.append("a", body)
    assert store.events() == []


def test_threads_may_append_at_once(store: Store) -> None:
    """The ledger's beats come from a thread."""
    threads = [threading.Thread(target=lambda: [store.append("beat", {}) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.number for event in store.events()] == list(range(1, 101))


# --- what only a file can promise ------------------------------------------------------------------------------------


def test_events_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    with SqliteStore(tmp_path) as store:
        store.append("a", {"x": "ä"})
    with SqliteStore(tmp_path) as store:
        assert [event.body for event in store.events()] == [{"x": "ä"}]
        assert store.append("b", {}) == 2


def test_events_survive_a_writer_that_was_killed(tmp_path: Path) -> None:
    """``kill -9`` right after append returned; the lock falls with the process."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fitwithin.store import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1]))\n"
        "for n in range(20): store.append('a', {'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    with SqliteStore(tmp_path) as store:
        assert [event.body["n"] for event in store.events()] == list(range(20))
        assert store.append("b", {}) == 21


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with SqliteStore(tmp_path) as store:
        store.append("a", {})
        with pytest.raises(RunFolderError, match=r"another process is working on .*; wait for it or end it"):
            SqliteStore(tmp_path)
        reader = SqliteStore(tmp_path, write=False)
        assert len(reader.events()) == 1
        store.append("a", {})
        assert len(reader.events()) == 2
        reader.close()
    SqliteStore(tmp_path).close()


def test_a_refused_writer_leaves_the_lock_with_its_holder(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path)
    for _ in range(2):
        with pytest.raises(RunFolderError):
            SqliteStore(tmp_path)
    first.close()
    first.close()  # twice does no harm


def test_another_schema_is_refused_and_the_lock_let_go(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "run.db") as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    for _ in range(2):
        with pytest.raises(RunFolderError, match=f"has schema {SCHEMA + 1}, this version of fitwithin reads {SCHEMA}"):
            SqliteStore(tmp_path)


def test_opening_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    with SqliteStore(tmp_path) as store:
        store.append("finished", {})
    before = (tmp_path / "run.db").read_bytes()
    with SqliteStore(tmp_path) as store:
        assert len(store.events()) == 1
    assert (tmp_path / "run.db").read_bytes() == before
