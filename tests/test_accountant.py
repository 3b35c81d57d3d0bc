"""The accountant leaves no gap: charges add up to the clock, also over a crash."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin import ledger
from fitwithin.accountant import Accountant
from fitwithin.budget import Budget
from fitwithin.engine.simulated.clock import SimulatedClock
from fitwithin.store import MemoryStore

BUDGET = Budget(memory_bytes=1, time_s=1000.0, gpu_time_s=500.0)


def book(store: MemoryStore, clock: SimulatedClock, *, beating: bool = False) -> Accountant:
    return Accountant(store, BUDGET, clock.now, started_at=clock.now(), beating=beating)


spans = st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60), st.booleans()), max_size=8)


@given(st.floats(0, 1e6), spans)
def test_charges_add_up_to_the_clock(started_at: float, spans: list[tuple[float, float, bool]]) -> None:
    """What passes between two entries belongs to the second: there are no gaps."""
    store, clock = MemoryStore(), SimulatedClock(started_at)
    accountant = book(store, clock)
    for between_s, inside_s, gpu in spans:
        clock.sleep(between_s)
        with accountant.entry("train", "a", gpus=int(gpu), reserved_s=inside_s):
            clock.sleep(inside_s)
    books = accountant.books()
    assert books.balanced
    assert books.spent_s() == pytest.approx(clock.now() - started_at, abs=1e-6)
    clock.sleep(5.0)
    left = accountant.remaining()
    assert left.time_s == pytest.approx(1000.0 - (clock.now() - started_at), abs=1e-6)
    assert left.gpu_time_s == pytest.approx(500.0 - books.spent_s(gpu=True))
    assert accountant.ends_at() == pytest.approx(clock.now() + min(left.time_s, left.gpu_time_s))


def test_an_entry_that_fails_is_settled_too() -> None:
    store, clock = MemoryStore(), SimulatedClock()
    accountant = book(store, clock)

    def interrupted() -> None:
        with accountant.entry("train", reserved_s=10.0) as opened:
            opened.peak(70)
            opened.peak(None)
            opened.peak(50)
            clock.sleep(3.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (entry,) = accountant.books().entries
    assert (entry.charged_s, entry.peak_bytes, entry.open) == (3.0, 70, False)


@given(st.floats(0, 90), st.floats(0, 10))
def test_what_a_killed_process_left_open_is_charged(elapsed_s: float, later_s: float) -> None:
    store, clock = MemoryStore(), SimulatedClock()
    first = book(store, clock)
    with first.entry("start-up"):
        clock.sleep(1.0)
    store.append(ledger.OPEN, {"number": 2, "phase": "train", "key": "a", "gpu": True, "reserved_s": 99.0})
    store.append(ledger.BEAT, {"number": 2, "elapsed_s": elapsed_s, "peak_bytes": 5})
    clock.sleep(elapsed_s)
    second = book(store, clock)
    abandoned = second.books().entries[1]
    assert abandoned.abandoned
    assert abandoned.charged_s == elapsed_s + ledger.GRACE_S
    assert abandoned.peak_bytes == 5
    with second.entry("train", "a", gpus=1):
        clock.sleep(later_s)
    assert [entry.number for entry in second.books().entries] == [1, 2, 3]
    assert second.books().spent_s() == pytest.approx(1.0 + elapsed_s + ledger.GRACE_S + later_s)
    assert len(book(store, clock).books().entries) == 3  # nothing is abandoned twice


def test_the_last_entry_is_charged_ahead_and_leaves_no_gap() -> None:
    store, clock = MemoryStore(), SimulatedClock()
    accountant = book(store, clock)
    with accountant.entry("report") as opened:
        clock.sleep(2.0)
        opened.charge_ahead(1.5)
    assert accountant.books().spent_s() == 3.5
    clock.sleep(1.5)
    assert accountant.remaining().time_s == 1000.0 - 3.5


def test_without_a_limit_there_is_no_end() -> None:
    store, clock = MemoryStore(), SimulatedClock()
    accountant = Accountant(store, Budget(memory_bytes=1, gpu_time_s=9.0), clock.now, started_at=0.0, beating=False)
    assert accountant.remaining().time_s == float("inf")
    assert accountant.remaining().usable_s == 9.0


def test_a_thread_beats_while_an_entry_lasts_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BEAT_S", 0.01)
    store = MemoryStore()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=time.monotonic())
    with accountant.entry("train") as opened:
        opened.peak(9)
        time.sleep(0.2)
        during = len(store.events(ledger.BEAT))
    assert during >= 3
    told = [event.body["elapsed_s"] for event in store.events(ledger.BEAT)]
    assert told == sorted(told)
    assert store.events()[-1].kind == ledger.SETTLE
    assert accountant.books().balanced
    assert accountant.books().entries[0].charged_s >= told[-1]
    assert not [t for t in threading.enumerate() if t.name == "ledger-beat"]


# --- beside the chain ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(1, 4)), max_size=4), st.floats(0, 60))
def test_what_stands_beside_the_chain_is_no_time_of_the_clock(turns: list[tuple[float, int]], rest_s: float) -> None:
    """Nested like the stretch in which slots work: opened together, settled one after the other."""
    store, clock = MemoryStore(), SimulatedClock(50.0)
    accountant = book(store, clock)
    clock.sleep(3.0)
    with accountant.entry("train", reserved_s=300.0):
        at_work = [accountant.entry("train", "a", gpus=gpus, reserved_s=60.0, beside=True) for _, gpus in turns]
        began_at = clock.now()
        for (lasts_s, _), opened in sorted(zip(turns, at_work, strict=True), key=lambda pair: pair[0][0]):
            clock.wait_until(began_at + lasts_s)
            accountant.settle(opened)
        clock.sleep(rest_s)
    books = accountant.books()
    assert books.balanced
    assert books.spent_s() == pytest.approx(clock.now() - 50.0)
    assert books.spent_s(gpu=True) == pytest.approx(sum(lasts_s * gpus for lasts_s, gpus in turns))
    with accountant.entry("evaluate", "a", gpus=1):
        clock.sleep(1.0)
    assert accountant.books().spent_s() == pytest.approx(clock.now() - 50.0), "the chain has no gap"


def test_what_is_reserved_beside_the_chain_is_left_to_nobody() -> None:
    store, clock = MemoryStore(), SimulatedClock()
    accountant = book(store, clock)
    with accountant.entry("train", reserved_s=900.0):
        with accountant.entry("train", "a", gpus=2, reserved_s=100.0, beside=True):
            clock.sleep(40.0)
            left = accountant.remaining(2, 2)
            assert (left.time_s, left.gpu_time_s, left.slots) == (960.0, 300.0, 2)
            assert (left.usable_s, left.slot_s, left.together_s) == (150.0, 150.0, 150.0)
        left = accountant.remaining(2, 2)
        assert (left.time_s, left.gpu_time_s) == (960.0, 420.0)
        less = left.less(10.0)
        assert (less.time_s, less.gpu_time_s, less.together_s) == (950.0, 400.0, 200.0)


def test_what_an_interrupt_left_open_is_settled_with_the_chain() -> None:
    """It came before the work that was to have the entry could begin."""
    store, clock = MemoryStore(), SimulatedClock()
    accountant = Accountant(store, BUDGET, clock.now, started_at=clock.now())

    def interrupted() -> None:
        with accountant.entry("train", reserved_s=90.0):
            accountant.entry("train", "a", gpus=1, reserved_s=60.0, beside=True)
            clock.sleep(3.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    books = accountant.books()
    assert books.balanced
    assert (books.spent_s(), books.spent_s(gpu=True)) == (3.0, 3.0)
    assert not [t for t in threading.enumerate() if t.name == "ledger-beat"]


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupt_while_an_entry_is_opened_leaves_none_open(written: bool) -> None:
    """Ctrl-C just after it was written that a turn begins, or just before."""

    class Interrupting(MemoryStore):
        armed = False

        def append(self, kind: str, body: dict[str, Any]) -> int:
            if not (self.armed and kind == ledger.OPEN):
                return super().append(kind, body)
            self.armed = False
            if written:
                super().append(kind, body)
            raise KeyboardInterrupt

    store, clock = Interrupting(), SimulatedClock()
    accountant = book(store, clock)

    def interrupted() -> None:
        with accountant.entry("train", reserved_s=10.0):
            store.armed = True
            clock.sleep(1.0)
            accountant.entry("train", "a", gpus=1, reserved_s=10.0, beside=True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    books = accountant.books()
    assert [(entry.key, entry.charged_s) for entry in books.entries] == [("", 1.0), ("a", 0.0)][: 1 + written]
    with accountant.entry("report"):
        clock.sleep(1.0)
    assert accountant.books().balanced


def test_no_beat_follows_the_end_of_an_entry() -> None:
    """The thread that beats begins late: the entry has been settled meanwhile."""
    store = MemoryStore()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=time.monotonic(), beating=False)
    with accountant.entry("train") as opened:
        pass
    accountant._beat(opened)
    assert [event.kind for event in store.events()] == [ledger.OPEN, ledger.SETTLE]


def test_many_threads_keep_the_books_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promises no more than is left: what is settled and reserved stays within the budget at every event."""
    monkeypatch.setattr(ledger, "BEAT_S", 0.001)
    store, started_at = MemoryStore(), time.monotonic()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=started_at)

    def turns(name: str) -> None:
        for _ in range(5):
            with accountant.entry("train", name, gpus=2, reserved_s=10.0, beside=True) as opened:
                opened.peak(7)
                time.sleep(0.003)

    with accountant.entry("train", reserved_s=100.0):
        threads = [threading.Thread(target=turns, args=(f"slot {n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    books = accountant.books()
    assert books.balanced
    assert [entry.number for entry in books.entries] == list(range(1, 32))
    assert books.spent_s() <= time.monotonic() - started_at
    assert books.spent_s(gpu=True) == pytest.approx(2 * sum(books.lasted_s(f"slot {n}") for n in range(6)))
    told = [(event.kind, event.body) for event in store.events()]
    for n in range(0, len(told), 7):
        held = ledger.fold(told[:n])
        assert held.spent_s(gpu=True) + held.reserved_s(gpu=True) <= 500.0


def test_what_a_killed_process_left_open_goes_no_further_than_its_end() -> None:
    store, clock = MemoryStore(), SimulatedClock()
    first = book(store, clock)
    for reserved_s, elapsed_s in ((99.0, 5.0), (6.0, 5.0)):
        opened = first.entry("train", "a", gpus=1, reserved_s=reserved_s, beside=reserved_s < 99)
        store.append(ledger.BEAT, {"number": opened.number, "elapsed_s": elapsed_s, "peak_bytes": None})
    charged = [entry.charged_s for entry in book(store, clock).books().entries]
    assert charged == [5.0 + ledger.GRACE_S, 6.0]
