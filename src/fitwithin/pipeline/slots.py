"""Work on the slots of a run: one thing after the other where there is one, else side by side.

This thread alone chooses what is done next and takes the results; threads beside it only do what they were given. So
who plans needs no lock, and what was chosen and what came of it have one order, that of the run's events.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fitwithin.engine.base import Engine, Executor
from fitwithin.pipeline.context import RunContext

T = TypeVar("T")

#: What a slot is given to do.
Work = Callable[[], T]


def run_on_slots(
    run: RunContext,
    phase: str,
    *,
    reserved_s: Callable[[], float],
    next_work: Callable[[int], Work[T] | None],
    on_done: Callable[[T], None],
) -> None:
    """Do work on the slots of the run, each on GPUs of its own, until there is none left.

    Where there are several slots one entry of the ledger's chain lasts all the while; what they hold stands beside it.

    Args:
        reserved_s: the seconds that all of it may last by the clock.
        next_work: work for that slot; None where there is nothing to do now, which may change when something ends.
        on_done: takes what a piece of work returned.

    Raises:
        Exception: as :func:`side_by_side`.
    """
    if run.request.slots == 1:
        while (work := next_work(0)) is not None:
            on_done(work())
        return
    with run.accountant.entry(phase, reserved_s=reserved_s()):
        side_by_side(run.engine, run.request.slots, next_work, on_done)


def side_by_side(
    engine: Engine, count: int, next_work: Callable[[int], Work[T] | None], on_done: Callable[[T], None]
) -> None:
    """Do so many pieces of work at once, in threads whose jobs the engine carries out.

    Raises:
        Exception: the first that a piece of work raised. Nothing new is begun after it, and what goes on beside it
            comes to its end first. An interrupt ends everything at once, and no more results are taken.
    """
    with engine.crew(count) as executor:
        failure = _work_through(executor, list(range(count)), next_work, on_done)
    if failure is not None:
        raise failure


def _work_through(
    executor: Executor, free: list[int], next_work: Callable[[int], Work[T] | None], on_done: Callable[[T], None]
) -> Exception | None:
    running: dict[Future[Any], int] = {}
    failure: Exception | None = None
    while True:
        while free and failure is None and (work := next_work(free[0])) is not None:
            running[executor.submit(work)] = free.pop(0)
        if not running:
            return failure
        ended = executor.wait()
        insort(free, running.pop(ended))
        try:
            outcome: T = ended.result()
        except Exception as error:
            failure = failure or error
        else:
            on_done(outcome)
