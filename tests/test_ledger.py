"""Laws of the books: what was opened and closed adds up, whatever the order, and no contradiction passes."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import RunFolderError
from fitwithin.events import ProcessStarted
from fitwithin.ledger import (
    GRACE_S,
    EntryAbandoned,
    EntryOpened,
    EntrySettled,
    Heartbeat,
    Ledger,
    LedgerEvent,
    abandonment,
    read,
)
from fitwithin.store import Store
from simulated.run import fold


def opened(
    number: int, phase: str = "train", key: str = "a", gpus: int = 1, reserved_s: float = 10.0, concurrent: bool = False
) -> LedgerEvent:
    return EntryOpened(number=number, phase=phase, key=key, gpus=gpus, reserved_s=reserved_s, concurrent=concurrent)


def settled(number: int, charged_s: float, peak_bytes: int | None = None) -> LedgerEvent:
    return EntrySettled(number=number, charged_s=charged_s, peak_bytes=peak_bytes)


def beat(number: int, elapsed_s: float, peak_bytes: int | None = None) -> LedgerEvent:
    return Heartbeat(number=number, elapsed_s=elapsed_s, peak_bytes=peak_bytes)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What an entry of a story is."""

    gpus: int
    key: str
    charged_s: float
    closed: bool
    concurrent: bool


Story = tuple[list[LedgerEvent], list[Truth]]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Ledger events of interleaved entries; and what each entry was charged."""
    queues, truth = [], []
    for number in range(1, draw(st.integers(0, 6)) + 1):
        gpus, key, concurrent = draw(st.integers(0, 3)), draw(st.sampled_from(["a", "b"])), draw(st.booleans())
        charged_s, closed = draw(st.floats(0, 1000)), draw(st.booleans())
        beats = [beat(number, s) for s in sorted(draw(st.lists(st.floats(0, 100), max_size=3)))]
        end = [settled(number, charged_s)] if closed else []
        queues.append([opened(number, key=key, gpus=gpus, reserved_s=7.0, concurrent=concurrent), *beats, *end])
        truth.append(Truth(gpus=gpus, key=key, charged_s=charged_s, closed=closed, concurrent=concurrent))
    told: list[LedgerEvent] = []
    while any(queues):
        queue = draw(st.sampled_from([q for q in queues if q]))
        told.append(queue.pop(0))
    return told, truth


@given(stories())
def test_the_books_add_up(story: Story) -> None:
    """The chain adds up to the clock, all entries to the seconds that GPUs were held, in what is spent and reserved."""
    told, truth = story
    books = fold(told)
    closed = [one for one in truth if one.closed]
    still = [one for one in truth if not one.closed]
    assert books.spent_s() == pytest.approx(sum(one.charged_s for one in closed if not one.concurrent))
    assert books.spent_s(gpu=True) == pytest.approx(sum(one.charged_s * one.gpus for one in closed))
    assert books.reserved_s() == pytest.approx(7.0 * sum(not one.concurrent for one in still))
    assert books.reserved_s(gpu=True) == pytest.approx(7.0 * sum(one.gpus for one in still))
    for key in ("a", "b"):
        assert books.charged_s(key) == pytest.approx(sum(one.charged_s for one in closed if one.key == key))
    assert books.charged_s("a", phase="train") == books.charged_s("a")
    assert books.charged_s("a", phase="profile") == 0
    assert books.balanced == (len(closed) == len(truth))
    assert sum(len(entries) for entries in books.by_phase().values()) == len(books.entries) == len(truth)


@given(stories())
def test_spending_never_falls_and_no_prefix_contradicts(story: Any) -> None:
    told, _ = story
    spent = [fold(told[:n]).spent_s() for n in range(len(told) + 1)]
    assert spent == sorted(spent)


@given(stories())
def test_abandoning_what_is_open_closes_the_books(story: Any) -> None:
    told, _ = story
    books = fold(told)
    left = [entry for entry in books.entries if entry.charged_s is None]
    after = fold([*told, *(abandonment(entry) for entry in left)])
    assert after.balanced
    assert after.reserved_s() == 0
    assert after.reserved_s(gpu=True) == 0
    charged = {entry.number: entry.charged_s for entry in after.entries}
    for entry in left:
        # Its own end may be nearer than the grace, or it may have gone beyond that.
        assert charged[entry.number] == max(entry.heartbeat_s, min(entry.heartbeat_s + GRACE_S, 7.0))
    assert sum(entry.abandoned for entry in after.entries) == len(left)


def test_what_had_nothing_reserved_is_charged_the_whole_grace() -> None:
    (entry,) = fold([opened(1, "start-up", reserved_s=0.0), beat(1, 4.0)]).entries
    assert abandonment(entry).charged_s == 4.0 + GRACE_S


@pytest.mark.parametrize(
    ("died_before", "charged_s"),
    [(None, 6.0), (103.9, 6.0), (104.0, 4.0), (104.5, 4.5), (110.0, 6.0)],
    ids=["unknown", "another clock", "at once", "soon", "later"],
)
def test_nobody_is_charged_beyond_the_start_of_the_next_process(died_before: float | None, charged_s: float) -> None:
    last = Heartbeat(number=1, elapsed_s=4.0, at_s=104.0)
    (entry,) = fold([opened(1, "start-up", reserved_s=0.0), last]).entries
    assert abandonment(entry, died_before).charged_s == charged_s


def test_the_largest_peak_counts_wherever_it_was_told() -> None:
    (entry,) = fold([opened(1), beat(1, 1.0, 500), beat(1, 2.0, 300), settled(1, 3.0, 400)]).entries
    assert entry.peak_bytes == 500
    assert entry.heartbeat_s == 2.0
    (entry,) = fold([opened(1), settled(1, 3.0)]).entries
    assert entry.peak_bytes is None


def test_a_charge_below_nothing_is_no_balance() -> None:
    assert not fold([opened(1), settled(1, -0.1)]).balanced
    assert Ledger().balanced
    assert not fold([opened(1)]).balanced


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([opened(1), opened(1)], "entry 1 was opened twice"),
        ([settled(1, 1.0)], "ledger.settle of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), settled(1, 1.0)], "ledger.settle of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), beat(1, 1.0)], "ledger.heartbeat of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), opened(1)], "entry 1 was opened twice"),
        ([opened(2), EntryAbandoned(number=1, charged_s=1.0)], "ledger.abandon of entry 1, which is not open"),
    ],
)
def test_a_contradiction_raises(told: list[LedgerEvent], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fold(told)


def test_phases_stand_in_order_of_appearance() -> None:
    told = [opened(1, "profile"), opened(2, "train"), opened(3, "profile")]
    assert [(phase, len(entries)) for phase, entries in fold(told).by_phase().items()] == [("profile", 2), ("train", 1)]


def test_gpu_seconds_count_every_gpu_that_was_held() -> None:
    books = fold(
        [
            opened(1, gpus=2, reserved_s=30.0),
            settled(1, 10.0),
            opened(2, gpus=1, reserved_s=30.0),
            settled(2, 5.0),
            opened(3, gpus=0, reserved_s=30.0),
            settled(3, 3.0),
            opened(4, gpus=3, reserved_s=7.0),
        ]
    )
    assert (books.spent_s(), books.spent_s(gpu=True)) == (18.0, 25.0)
    assert (books.reserved_s(), books.reserved_s(gpu=True)) == (7.0, 21.0)


def test_several_at_once_share_a_stretch_of_the_clock() -> None:
    """Two trials beside one entry of the chain: 40 s by the clock, 40 + 30 of them on two GPUs each."""
    books = fold(
        [
            opened(1, key="", gpus=0, reserved_s=60.0),
            opened(2, key="a", gpus=2, reserved_s=50.0, concurrent=True),
            opened(3, key="b", gpus=2, reserved_s=60.0, concurrent=True),
            settled(3, 30.0),
        ]
    )
    assert (books.spent_s(), books.spent_s(gpu=True)) == (0.0, 60.0)
    assert (books.reserved_s(), books.reserved_s(gpu=True)) == (60.0, 100.0)
    books = fold([*_told(books), settled(2, 40.0), settled(1, 40.0)])
    assert (books.spent_s(), books.spent_s(gpu=True)) == (40.0, 140.0)
    assert (books.charged_s("a"), books.charged_s("b")) == (40.0, 30.0)
    assert books.balanced


def _told(books: Ledger) -> list[LedgerEvent]:
    """Events that tell the same books."""
    told: list[LedgerEvent] = []
    for e in books.entries:
        told.append(opened(e.number, e.phase, e.key, e.gpus, e.reserved_s, e.concurrent))
        told += [settled(e.number, e.charged_s)] if e.charged_s is not None else []
    return told


# --- as a store holds it ---------------------------------------------------------------------------------------------


@given(stories())
def test_what_a_store_holds_is_the_ledger_of_its_events(story: Story) -> None:
    """Heartbeats are kept in place, the last of each entry, and say what all of them said; other events pass by."""
    told, _ = story
    store = Store()
    for event in told:
        store.append(ProcessStarted(pid=1))
        if isinstance(event, Heartbeat):
            store.beat(event.number, event)
        else:
            store.append(event)
    assert read(store) == fold(told)
    assert len(store.beats()) <= len(read(store).entries)


def test_a_copy_stays_as_it_was() -> None:
    ledger = fold([opened(1), settled(1, 3.0), opened(2)])
    before = ledger.copy()
    for event in (beat(2, 1.0), settled(2, 2.0), opened(3)):
        ledger.add(event)
    assert before == fold([opened(1), settled(1, 3.0), opened(2)])
    assert (before.spent_s(), len(before.open_entries), 3 in before, 3 in ledger) == (3.0, 1, False, True)


def test_a_store_that_contradicts_itself_is_named() -> None:
    store = Store()
    store.append(settled(7, 1.0))
    with pytest.raises(RunFolderError, match=r"contradicts itself \(ledger.settle of entry 7, which is not open\)"):
        read(store)
