"""Micro-batches: each gets its own answer, whatever came together, and nobody waits for more to come."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin.inference import batcher
from fitwithin.inference.batcher import Batcher, Full, Point, best_batch


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_each_gets_its_own_answer_in_batches_of_that_size(most: int, items: list[int]) -> None:
    sizes: list[int] = []
    made: Batcher[int, int] = Batcher(
        lambda given: [2 * each for each in given], most=most, waiting=100, on_batch=sizes.append
    )
    futures = [made.submit(each) for each in items]
    assert [future.result(5) for future in futures] == [2 * each for each in items]
    made.close()
    assert sum(sizes) == len(items)
    assert max(sizes) <= most


def held(most: int = 4, waiting: int = 3) -> tuple[Batcher[int, int], threading.Event, list[list[int]]]:
    """A batcher whose work waits for an event."""
    go, seen = threading.Event(), []

    def work(given: list[int]) -> list[int]:
        seen.append(given)
        go.wait(5)
        return given

    return Batcher(work, most=most, waiting=waiting), go, seen


def busy(made: Batcher[int, int], seen: list[list[int]]) -> Future[int]:
    """A first item at work."""
    first = made.submit(0)
    ended_by = time.monotonic() + 5
    while not seen and time.monotonic() < ended_by:
        time.sleep(0.001)
    return first


def test_what_waits_is_taken_together() -> None:
    made, go, seen = held()
    first = busy(made, seen)
    rest = [made.submit(each) for each in (1, 2, 3)]
    assert made.waiting == 3
    go.set()
    wait([first, *rest], 5)
    assert seen == [[0], [1, 2, 3]]
    made.close()


def test_too_many_are_refused_and_who_gave_up_is_passed_over() -> None:
    made, go, seen = held()
    busy(made, seen)
    one, two, three = (made.submit(each) for each in (1, 2, 3))
    with pytest.raises(Full):
        made.submit(4)
    assert two.cancel()
    go.set()
    assert (one.result(5), three.result(5)) == (1, 3)
    assert seen[1:] == [[1, 3]]
    made.close()


def test_an_error_reaches_all_who_waited_and_the_next_is_served() -> None:
    def work(given: list[int]) -> list[int]:
        if 13 in given:
            raise ValueError("unlucky")
        return given

    made: Batcher[int, int] = Batcher(work, most=4, waiting=9)
    with pytest.raises(ValueError, match="unlucky"):
        made.submit(13).result(5)
    assert made.submit(7).result(5) == 7
    made.close()


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        ([(1, 10.0)], 1),
        ([(1, 10.0), (2, 10.5), (4, 11.0), (8, 22.0)], 4),
        ([(1, 10.0), (2, 20.0)], 1),
        ([(1, 10.0), (2, 12.0), (4, 20.0), (8, 30.0)], 8),
    ],
)
def test_the_best_batch_is_the_last_that_makes_an_image_cheaper(curve: list[tuple[int, float]], best: int) -> None:
    assert best_batch([Point(*each) for each in curve]) == best


def test_measuring_stops_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(batcher.time, "perf_counter", lambda: now[0])

    def work(given: list[int]) -> None:
        now[0] += 0.01 * max(len(given), 4)

    assert [point.batch for point in batcher.measure(work, 0)] == [1, 2, 4, 8]
