"""The accountant leaves no gap: charges add up to the clock, also over a crash."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fitwithin import ledger as ledgers
from fitwithin.accountant import Accountant, OpenEntry
from fitwithin.budget import Budget
from fitwithin.ledger import EntryOpened, EntrySettled, Heartbeat
from fitwithin.store import Event, Record, Store
from simulated.clock import SimulatedClock
from simulated.run import ledger_after_each, tries

#: When an interrupt comes while an event is written, if one does.
BREAKS = st.sampled_from(["", "", "", "before", "after"])

BUDGET = Budget(memory_bytes=1, time_s=1000.0, gpu_time_s=500.0)


def book(store: Store, clock: SimulatedClock, *, beating: bool = False) -> Accountant:
    return Accountant(store, BUDGET, clock.now, started_at=clock.now(), beating=beating)


spans = st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60), st.booleans()), max_size=8)


@given(st.floats(0, 1e6), spans)
def test_charges_add_up_to_the_clock(started_at: float, spans: list[tuple[float, float, bool]]) -> None:
    """What passes between two entries belongs to the second: there are no gaps."""
    store, clock = Store(), SimulatedClock(started_at)
    accountant = book(store, clock)
    for between_s, inside_s, gpu in spans:
        clock.sleep(between_s)
        with accountant.entry("train", "a", gpus=int(gpu), reserved_s=inside_s):
            clock.sleep(inside_s)
    books = accountant.ledger()
    assert books.balanced
    assert books.spent_s() == pytest.approx(clock.now() - started_at, abs=1e-6)
    clock.sleep(5.0)
    left = accountant.remaining()
    assert left.time_s == pytest.approx(1000.0 - (clock.now() - started_at), abs=1e-6)
    assert left.gpu_time_s == pytest.approx(500.0 - books.spent_s(gpu=True))
    assert accountant.ends_at() == pytest.approx(clock.now() + min(left.time_s, left.gpu_time_s))


def test_an_entry_that_fails_is_settled_too() -> None:
    store, clock = Store(), SimulatedClock()
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
    (entry,) = accountant.ledger().entries
    assert (entry.charged_s, entry.peak_bytes) == (3.0, 70)


@given(st.floats(0, 90), st.floats(0, 10))
def test_what_a_killed_process_left_open_is_charged(elapsed_s: float, later_s: float) -> None:
    store, clock = Store(), SimulatedClock()
    first = book(store, clock)
    with first.entry("start-up"):
        clock.sleep(1.0)
    store.append(EntryOpened(number=2, phase="train", key="a", gpus=1, reserved_s=99.0))
    store.beat(2, Heartbeat(number=2, elapsed_s=elapsed_s, peak_bytes=5))
    clock.sleep(elapsed_s)
    second = book(store, clock)
    abandoned = second.ledger().entries[1]
    assert abandoned.abandoned
    assert abandoned.charged_s == elapsed_s + ledgers.GRACE_S
    assert abandoned.peak_bytes == 5
    with second.entry("train", "a", gpus=1):
        clock.sleep(later_s)
    assert [entry.number for entry in second.ledger().entries] == [1, 2, 3]
    assert second.ledger().spent_s() == pytest.approx(1.0 + elapsed_s + ledgers.GRACE_S + later_s)
    assert len(book(store, clock).ledger().entries) == 3  # nothing is abandoned twice


def test_the_last_entry_is_charged_ahead_and_leaves_no_gap() -> None:
    store, clock = Store(), SimulatedClock()
    accountant = book(store, clock)
    with accountant.entry("report") as opened:
        clock.sleep(2.0)
        opened.ahead_s = 1.5
    assert accountant.ledger().spent_s() == 3.5
    clock.sleep(1.5)
    assert accountant.remaining().time_s == 1000.0 - 3.5


def test_without_a_limit_there_is_no_end() -> None:
    store, clock = Store(), SimulatedClock()
    accountant = Accountant(store, Budget(memory_bytes=1, gpu_time_s=9.0), clock.now, started_at=0.0, beating=False)
    assert accountant.remaining().time_s == float("inf")
    assert accountant.remaining().usable_s == 9.0


def test_a_thread_beats_while_an_entry_lasts_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "HEARTBEAT_S", 0.01)
    told: list[float] = []

    class Listening(Store):
        def beat(self, entry: int, heartbeat: Event) -> None:
            assert isinstance(heartbeat, Heartbeat)
            told.append(heartbeat.elapsed_s)
            super().beat(entry, heartbeat)

    store = Listening()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=time.monotonic())
    with accountant.entry("train") as opened:
        opened.peak(9)
        time.sleep(0.2)
        during = len(told)
    assert during >= 3
    assert told == sorted(told)
    assert len(store.beats()) == 1, "one row an entry, however often it beats"
    assert [record.kind for record in store.all()] == [EntryOpened.kind, EntrySettled.kind]
    assert accountant.ledger().balanced
    assert accountant.ledger().entries[0].charged_s >= told[-1]
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"]


# --- concurrent entries ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(1, 4)), max_size=4), st.floats(0, 60))
def test_what_stands_beside_the_chain_is_no_time_of_the_clock(trials: list[tuple[float, int]], rest_s: float) -> None:
    """Nested like the stretch in which slots work: opened together, settled one after the other."""
    store, clock = Store(), SimulatedClock(50.0)
    accountant = book(store, clock)
    clock.sleep(3.0)
    with accountant.entry("train", reserved_s=300.0):
        at_work = [accountant.entry("train", "a", gpus=gpus, reserved_s=60.0, concurrent=True) for _, gpus in trials]
        began_at = clock.now()
        for (lasts_s, _), opened in sorted(zip(trials, at_work, strict=True), key=lambda pair: pair[0][0]):
            clock.wait_until(began_at + lasts_s)
            accountant.settle(opened)
        clock.sleep(rest_s)
    books = accountant.ledger()
    assert books.balanced
    assert books.spent_s() == pytest.approx(clock.now() - 50.0)
    assert books.spent_s(gpu=True) == pytest.approx(sum(lasts_s * gpus for lasts_s, gpus in trials))
    with accountant.entry("evaluate", "a", gpus=1):
        clock.sleep(1.0)
    assert accountant.ledger().spent_s() == pytest.approx(clock.now() - 50.0), "the chain has no gap"


def test_what_is_reserved_beside_the_chain_is_left_to_nobody() -> None:
    store, clock = Store(), SimulatedClock()
    accountant = book(store, clock)
    with accountant.entry("train", reserved_s=900.0):
        with accountant.entry("train", "a", gpus=2, reserved_s=100.0, concurrent=True):
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
    store, clock = Store(), SimulatedClock()
    accountant = Accountant(store, BUDGET, clock.now, started_at=clock.now())

    def interrupted() -> None:
        with accountant.entry("train", reserved_s=90.0):
            accountant.entry("train", "a", gpus=1, reserved_s=60.0, concurrent=True)
            clock.sleep(3.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    books = accountant.ledger()
    assert books.balanced
    assert (books.spent_s(), books.spent_s(gpu=True)) == (3.0, 3.0)
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"]


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupt_while_an_entry_is_opened_leaves_none_open(written: bool) -> None:
    """Ctrl-C just after it was written that a trial begins, or just before."""

    class Interrupting(Store):
        armed = False

        def append(self, event: Event) -> int:
            if not (self.armed and isinstance(event, EntryOpened)):
                return super().append(event)
            self.armed = False
            if written:
                super().append(event)
            raise KeyboardInterrupt

    store, clock = Interrupting(), SimulatedClock()
    accountant = book(store, clock)

    def interrupted() -> None:
        with accountant.entry("train", reserved_s=10.0):
            store.armed = True
            clock.sleep(1.0)
            accountant.entry("train", "a", gpus=1, reserved_s=10.0, concurrent=True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    books = accountant.ledger()
    assert [(entry.key, entry.charged_s) for entry in books.entries] == [("", 1.0), ("a", 0.0)][: 1 + written]
    with accountant.entry("report"):
        clock.sleep(1.0)
    assert accountant.ledger().balanced


def test_no_beat_follows_the_end_of_an_entry() -> None:
    """The thread that beats begins late: the entry has been settled meanwhile."""
    store = Store()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=time.monotonic(), beating=False)
    with accountant.entry("train") as opened:
        pass
    accountant._beat(opened)
    assert [record.kind for record in store.all()] == [EntryOpened.kind, EntrySettled.kind]
    assert store.beats() == []


def test_many_threads_keep_the_books_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promises no more than is left: what is settled and reserved stays within the budget at every event."""
    monkeypatch.setattr(ledgers, "HEARTBEAT_S", 0.001)
    store, started_at = Store(), time.monotonic()
    accountant = Accountant(store, BUDGET, time.monotonic, started_at=started_at)

    def trials(name: str) -> None:
        for _ in range(5):
            with accountant.entry("train", name, gpus=2, reserved_s=10.0, concurrent=True) as opened:
                opened.peak(7)
                time.sleep(0.003)

    with accountant.entry("train", reserved_s=100.0):
        threads = [threading.Thread(target=trials, args=(f"slot {n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    books = accountant.ledger()
    assert books.balanced
    assert [entry.number for entry in books.entries] == list(range(1, 32))
    assert books.spent_s() <= time.monotonic() - started_at
    assert books.spent_s(gpu=True) == pytest.approx(2 * sum(books.charged_s(f"slot {n}") for n in range(6)))
    for held in ledger_after_each(store):
        assert held.spent_s(gpu=True) + held.reserved_s(gpu=True) <= 500.0
    assert accountant.ledger() == ledgers.read(store)


def test_what_a_killed_process_left_open_goes_no_further_than_its_end() -> None:
    store, clock = Store(), SimulatedClock()
    first = book(store, clock)
    for reserved_s, elapsed_s in ((99.0, 5.0), (6.0, 5.0)):
        opened = first.entry("train", "a", gpus=1, reserved_s=reserved_s, concurrent=reserved_s < 99)
        store.beat(opened.number, Heartbeat(number=opened.number, elapsed_s=elapsed_s))
    charged = [entry.charged_s for entry in book(store, clock).ledger().entries]
    assert charged == [5.0 + ledgers.GRACE_S, 6.0]


# --- in memory -------------------------------------------------------------------------------------------------------


class Breaking(Store):
    """An interrupt comes while one event in some is written: just before, or just after."""

    due: str = ""

    def append(self, event: Event) -> int:
        due, self.due = self.due, ""
        number = 0 if due == "before" else super().append(event)
        if due:
            raise KeyboardInterrupt
        return number


class Accounts(RuleBasedStateMachine):
    """A run's processes, one after the other: what the accountant knows is what its store holds, at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.clock = Breaking(), SimulatedClock()
        self.start()

    @rule()
    def start(self) -> None:
        """The process before was killed, whatever it was at."""
        self.accountant = Accountant(
            self.store, BUDGET, self.clock.now, started_at=self.clock.now(), beating=False, same_clock=True
        )
        self.chain: list[OpenEntry] = []
        self.concurrent: list[OpenEntry] = []

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule(key=st.sampled_from("abc"), gpus=st.integers(0, 3), concurrent=st.booleans(), due=BREAKS)
    def open(self, key: str, gpus: int, concurrent: bool, due: str) -> None:
        if self.chain and not concurrent:
            return
        self.store.due = due
        try:
            opened = self.accountant.entry("train", key, gpus=gpus, reserved_s=50.0, concurrent=concurrent)
            (self.concurrent if concurrent else self.chain).append(opened)
        except KeyboardInterrupt:
            if not concurrent:
                self.start()  # the process ends; a concurrent entry is settled with the chain

    @precondition(lambda self: self.concurrent)
    @rule(data=st.data(), due=BREAKS, peak=st.none() | st.integers(1, 9))
    def settle_one(self, data: st.DataObject, due: str, peak: int | None) -> None:
        opened = self.concurrent.pop(data.draw(st.integers(0, len(self.concurrent) - 1)))
        opened.peak(peak)
        self.store.due = due
        try:
            self.accountant.settle(opened)
        except KeyboardInterrupt:
            self.start()  # the process ends

    @precondition(lambda self: self.chain)
    @rule()
    def settle_the_chain(self) -> None:
        self.accountant.settle(self.chain.pop())
        self.concurrent = []
        assert self.accountant.ledger().balanced

    @precondition(lambda self: self.chain or self.concurrent)
    @rule(peak=st.none() | st.integers(1, 9))
    def beat(self, peak: int | None) -> None:
        for opened in [*self.chain, *self.concurrent]:
            opened.peak(peak)
            opened.over.wait = lambda timeout, over=opened.over: over.set()  # type: ignore[method-assign]
            self.accountant._beat(opened)
            opened.over.clear()

    @invariant()
    def what_is_in_memory_is_what_the_store_holds(self) -> None:
        ledger, held = self.accountant.ledger(), ledgers.read(self.store)
        assert ledger == held
        closed = [entry for entry in ledger.entries if entry.charged_s is not None]
        assert ledger.spent_s() == pytest.approx(sum(e.charged_s for e in closed if not e.concurrent))
        assert ledger.spent_s(gpu=True) == pytest.approx(sum(e.charged_s * e.gpus for e in closed))
        for key in "abc":
            assert ledger.charged_s(key) == pytest.approx(sum(e.charged_s for e in closed if e.key == key))


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(tries(60), stateful_step_count=30)


def test_a_look_does_not_read_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = Store(), SimulatedClock()
    accountant = book(store, clock)
    with accountant.entry("start-up"):
        clock.sleep(1.0)

    def reads(*kinds: str) -> list[Record]:
        raise AssertionError("the store was read")

    monkeypatch.setattr(store, "all", reads)
    monkeypatch.setattr(store, "beats", reads)
    with accountant.entry("train", "a", gpus=1, reserved_s=30.0):
        clock.sleep(2.0)
        assert accountant.remaining().time_s == 997.0
    assert accountant.ends_at() == 501.0
    assert accountant.ledger().charged_s("a") == 2.0
    assert accountant.ledger().balanced
