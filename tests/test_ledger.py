"""Laws of the books: what was opened and closed adds up, whatever the order, and no contradiction passes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.ledger import ABANDON, BEAT, GRACE_S, OPEN, SETTLE, Books, abandonment, fold

Told = list[tuple[str, dict[str, Any]]]


def opened(number: int, phase: str = "train", key: str = "a", gpu: bool = True, reserved_s: float = 10.0) -> Any:
    return OPEN, {"number": number, "phase": phase, "key": key, "gpu": gpu, "reserved_s": reserved_s}


def settled(number: int, charged_s: float, peak_bytes: int | None = None) -> Any:
    return SETTLE, {"number": number, "charged_s": charged_s, "peak_bytes": peak_bytes}


def beaten(number: int, elapsed_s: float, peak_bytes: int | None = None) -> Any:
    return BEAT, {"number": number, "elapsed_s": elapsed_s, "peak_bytes": peak_bytes}


@st.composite
def stories(draw: st.DrawFn) -> tuple[Told, list[tuple[bool, str, float, bool]]]:
    """Ledger events of interleaved entries, events of other kinds between them; and what each entry was charged."""
    queues, truth = [], []
    for number in range(1, draw(st.integers(0, 6)) + 1):
        gpu, key = draw(st.booleans()), draw(st.sampled_from(["a", "b"]))
        charged_s, closed = draw(st.floats(0, 1000)), draw(st.booleans())
        beats = [beaten(number, s) for s in sorted(draw(st.lists(st.floats(0, 100), max_size=3)))]
        end = [settled(number, charged_s)] if closed else []
        queues.append([opened(number, key=key, gpu=gpu, reserved_s=7.0), *beats, *end])
        truth.append((gpu, key, charged_s, closed))
    told: Told = []
    while any(queues):
        queue = draw(st.sampled_from([q for q in queues if q]))
        told.append(queue.pop(0))
        if draw(st.booleans()):
            told.append(("plan", {"number": 1}))
    return told, truth


@given(stories())
def test_the_books_add_up(story: tuple[Told, list[tuple[bool, str, float, bool]]]) -> None:
    told, truth = story
    books = fold(told)
    closed = [(gpu, key, charged_s) for gpu, key, charged_s, done in truth if done]
    assert books.spent_s() == pytest.approx(sum(s for _, _, s in closed))
    assert books.spent_s(gpu=True) == pytest.approx(sum(s for gpu, _, s in closed if gpu))
    assert books.spent_s(key="a") == pytest.approx(sum(s for _, key, s in closed if key == "a"))
    assert books.spent_s(key="a") + books.spent_s(key="b") == pytest.approx(books.spent_s())
    assert books.reserved_s() == pytest.approx(7.0 * (len(truth) - len(closed)))
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
    left = [entry for entry in books.entries if entry.open]
    after = fold([*told, *((ABANDON, abandonment(entry)) for entry in left)])
    assert after.balanced
    assert after.reserved_s() == 0
    assert after.spent_s() == pytest.approx(books.spent_s() + sum(entry.beaten_s + GRACE_S for entry in left))
    assert sum(entry.abandoned for entry in after.entries) == len(left)


def test_the_largest_peak_counts_wherever_it_was_told() -> None:
    (entry,) = fold([opened(1), beaten(1, 1.0, 500), beaten(1, 2.0, 300), settled(1, 3.0, 400)]).entries
    assert entry.peak_bytes == 500
    assert entry.beaten_s == 2.0
    (entry,) = fold([opened(1), settled(1, 3.0)]).entries
    assert entry.peak_bytes is None


def test_a_charge_below_nothing_is_no_balance() -> None:
    assert not fold([opened(1), settled(1, -0.1)]).balanced
    assert Books().balanced
    assert not fold([opened(1)]).balanced


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([opened(1), opened(1)], "entry 1 was opened twice"),
        ([settled(1, 1.0)], "ledger.settle of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), settled(1, 1.0)], "ledger.settle of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), beaten(1, 1.0)], "ledger.beat of entry 1, which is not open"),
        ([opened(1), settled(1, 1.0), opened(1)], "entry 1 was opened twice"),
        ([opened(2), (ABANDON, {"number": 1, "charged_s": 1.0})], "ledger.abandon of entry 1, which is not open"),
    ],
)
def test_a_contradiction_raises(told: Told, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fold(told)


def test_phases_stand_in_order_of_appearance() -> None:
    told = [opened(1, "profile"), opened(2, "train"), opened(3, "profile")]
    assert [(phase, len(entries)) for phase, entries in fold(told).by_phase().items()] == [("profile", 2), ("train", 1)]


def test_gpu_seconds_count_every_gpu_that_was_held() -> None:
    books = fold(
        [
            opened(1, gpu=2, reserved_s=30.0),
            settled(1, 10.0),
            opened(2, gpu=1, reserved_s=30.0),
            settled(2, 5.0),
            opened(3, gpu=0, reserved_s=30.0),
            settled(3, 3.0),
            opened(4, gpu=3, reserved_s=7.0),
        ]
    )
    assert (books.spent_s(), books.spent_s(gpu=True)) == (18.0, 25.0)
    assert (books.reserved_s(), books.reserved_s(gpu=True)) == (7.0, 21.0)
