"""Work side by side on the slots of a run: in simulated time, one thread awake at a time, and in real threads."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.engine.threads import Threads
from fitwithin.machine import DeviceName
from fitwithin.pipeline import slots
from fitwithin.pipeline.context import RunContext
from simulated.clock import Cancelled, SimulatedClock, SimulatedExecutor
from simulated.law import SimulatedMachine
from simulated.run import Stage, request


def run_of(**asked: Any) -> RunContext:
    return Stage(SimulatedMachine(), request(time_s=900.0, **asked), Path("/nowhere")).run()


def fill(run: RunContext, works: list[Callable[[], Any]]) -> list[Any]:
    """What the works gave, in the order in which they ended."""
    told: list[Any] = []
    waiting = list(works)
    slots.run_on_slots(
        run,
        "train",
        reserved_s=800.0,
        next_work=lambda slot: waiting.pop(0) if waiting else None,
        on_done=told.append,
    )
    return told


def naps(run: RunContext, lengths_s: list[float], log: list[tuple[str, int, float]]) -> list[Callable[[], int]]:
    """Work that lasts so long, in three parts."""

    def nap(number: int, length_s: float) -> int:
        log.append(("begun", number, run.engine.now()))
        with run.accountant.entry("train", f"{number}", gpus=1, reserved_s=length_s, concurrent=True):
            for _ in range(3):
                run.engine.sleep(length_s / 3)
        log.append(("ended", number, run.engine.now()))
        return number

    return [lambda n=n, s=s: nap(n, s) for n, s in enumerate(lengths_s)]


@given(st.lists(st.floats(1, 60), min_size=1, max_size=7), st.integers(2, 4))
def test_whoever_is_free_takes_the_next(lengths_s: list[float], count: int) -> None:
    """As on real devices: work begins where the slot that is free first became free, and all end when they should."""
    run, log = run_of(slots=count), list[tuple[str, int, float]]()
    told = fill(run, naps(run, lengths_s, log))
    free_at, ends = [1000.0] * count, {}
    for number, length_s in enumerate(lengths_s):
        first = free_at.index(min(free_at))
        assert ("begun", number, pytest.approx(free_at[first])) in log
        free_at[first] += length_s
        ends[number] = free_at[first]
    assert [at for _, _, at in log] == sorted(at for _, _, at in log), "time never goes back"
    assert {number: at for what, number, at in log if what == "ended"} == pytest.approx(ends)
    assert [ends[number] for number in told] == pytest.approx(sorted(ends.values()))
    books = run.accountant.ledger()
    assert books.balanced
    assert books.spent_s() == pytest.approx(max(free_at) - 1000.0)
    assert books.spent_s(gpu=True) == pytest.approx(sum(lengths_s))


def test_the_same_happens_every_time() -> None:
    logs = []
    for _ in range(3):
        run, log = run_of(slots=3), list[tuple[str, int, float]]()
        fill(run, naps(run, [6.0, 3.0, 3.0, 6.0, 3.0], log))
        logs.append(log)
    assert logs[0] == logs[1] == logs[2]
    assert [number for what, number, _ in logs[0] if what == "ended"] == [1, 2, 0, 4, 3], "ties by who came first"


def test_one_slot_works_in_this_thread_without_an_entry_of_its_own() -> None:
    run, threads = run_of(), list[threading.Thread]()
    before = len(run.accountant.ledger().entries)
    assert fill(run, [lambda n=n: threads.append(threading.current_thread()) or n for n in range(3)]) == [0, 1, 2]
    assert set(threads) == {threading.current_thread()}
    assert len(run.accountant.ledger().entries) == before


def test_an_exception_loses_nothing_that_went_on_beside_it() -> None:
    run, log = run_of(slots=2), list[tuple[str, int, float]]()
    works = naps(run, [30.0, 1.0, 1.0], log)

    def broken() -> None:
        run.engine.sleep(5.0)
        raise OSError("the disk is full")

    told: list[int] = []
    waiting = [works[0], broken, *works[1:]]
    with pytest.raises(OSError, match="the disk is full"):
        slots.run_on_slots(run, "train", reserved_s=800.0, next_work=lambda slot: waiting.pop(0), on_done=told.append)
    assert told == [0], "what was at work went on to its end"
    assert len(waiting) == 2, "and nothing new was begun"
    assert run.accountant.ledger().balanced


def test_an_interrupt_ends_all_at_once_and_tells_nothing() -> None:
    run, log = run_of(slots=2), list[tuple[str, int, float]]()

    def interrupted() -> None:
        run.engine.sleep(5.0)
        raise KeyboardInterrupt

    told: list[int] = []
    waiting = [*naps(run, [30.0], log), interrupted]
    with pytest.raises(KeyboardInterrupt):
        slots.run_on_slots(run, "train", reserved_s=800.0, next_work=lambda slot: waiting.pop(0), on_done=told.append)
    assert told == []
    assert [what for what, _, _ in log] == ["begun"]
    assert run.engine.now() == 1005.0
    books = run.accountant.ledger()
    assert books.balanced, "what it held until then is in the books"
    assert books.charged_s("0") == 5.0
    assert not [thread for thread in threading.enumerate() if thread.name == "slot"]


def test_a_crew_that_is_over_lets_nobody_go_on() -> None:
    clock = SimulatedClock()
    seen: list[BaseException] = []

    def stubborn() -> None:
        try:
            clock.sleep(10.0)
        except Cancelled as error:
            seen.append(error)
            clock.sleep(1.0)  # not even for tidying up

    def give_up() -> None:
        with SimulatedExecutor(clock) as crew:
            crew.submit(stubborn)
            crew.submit(lambda: clock.sleep(2.0))
            crew.wait()
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        give_up()
    assert len(seen) == 1
    assert clock.now() == 2.0


# --- in real time ----------------------------------------------------------------------------------------------------


def test_threads_work_side_by_side_and_tell_who_ended_first() -> None:
    meet = threading.Barrier(2)

    def work(seconds: float) -> float:
        meet.wait(10)  # each needs the other
        time.sleep(seconds)
        return seconds

    with Threads(2, lambda: None) as crew:
        slow, fast = crew.submit(lambda: work(0.3)), crew.submit(lambda: work(0.0))
        assert crew.wait() is fast
        assert crew.wait() is slow
        assert (slow.result(), fast.result()) == (0.3, 0.0)


def test_where_the_block_ends_with_an_error_what_they_are_at_is_ended() -> None:
    begun, over, seen = threading.Event(), threading.Event(), list[bool]()

    def work() -> None:
        begun.set()
        seen.append(over.wait(30))

    def interrupted() -> None:
        with Threads(1, over.set) as crew:
            crew.submit(work)
            begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [True]


def test_who_begins_work_and_waits_takes_no_lock_that_an_interrupt_could_leave_taken() -> None:
    """Locks written in Python: an interrupt may come after they were taken and before anybody can let them go."""
    taken = list[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_name
        if event == "call" and frame.f_code.co_filename == threading.__file__ and name not in ("__init__", "RLock"):
            taken.append(name)

    with Threads(2, lambda: None) as crew:
        sys.setprofile(note)
        try:
            for _ in range(5):
                crew.submit(lambda: time.sleep(0.01))
            for _ in range(5):
                crew.wait()
        finally:
            sys.setprofile(None)
    assert taken == []


def test_an_interrupt_that_woke_nobody_is_heard_of_all_the_same() -> None:
    """The signal goes to another thread, as if it had come just before this one fell asleep."""
    over = threading.Event()

    def interrupts() -> None:
        time.sleep(0.2)  # until it sleeps
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(20)

    def waits() -> None:
        with Threads(1, over.set) as crew:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            crew.submit(interrupts)
            crew.wait()

    begun_at = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            waits()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun_at < 10


def test_what_no_thread_was_free_for_does_not_begin_after_an_error() -> None:
    begun, over, seen = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        begun.set()
        over.wait(20)

    def fails() -> None:
        with Threads(1, over.set) as crew:
            crew.submit(work)
            crew.submit(lambda: seen.append("begun"))
            begun.wait(10)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fails()
    assert over.is_set()
    assert seen == []


# --- who has which devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "data_parallel", "slot", "seated"),
    [("cuda:0", 1, 0, "cuda:0"), ("cuda:0", 1, 3, "cuda:3"), ("cuda:1", 2, 2, "cuda:5"), ("cpu", 2, 3, "cpu")],
)
def test_a_slots_devices_follow_those_of_the_slot_before(
    device: str, data_parallel: int, slot: int, seated: str
) -> None:
    run = run_of(slots=4, data_parallel=data_parallel)
    object.__setattr__(run.request, "device", DeviceName.parse(device))
    assert str(run.seated(slot).device) == seated
    assert run.seated(slot).data_parallel == data_parallel
    if device != "cpu" and slot:
        assert run.seated(slot).device == run.seated(slot - 1).device.next(data_parallel)


def test_on_a_cluster_ray_says_which_gpu() -> None:
    run = run_of(slots=4)
    object.__setattr__(run.request, "device", DeviceName(kind="cuda"))
    object.__setattr__(run.request, "engine", "ray")
    assert {run.seated(slot).device for slot in range(4)} == {DeviceName(kind="cuda")}
