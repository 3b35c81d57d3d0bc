"""Work on the slots of a run, each on GPUs of its own: one thing after the other where there is one, else side by side.

This thread alone asks what to do next and is told how it ended; threads beside it only do what they were given. So who
plans needs no lock, and what was asked and told has one order, that of the run's events.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fitwithin.engine.base import Executor
from fitwithin.pipeline.context import RunContext

T = TypeVar("T")

#: What a slot is given to do.
Work = Callable[[], T]


def fill(
    run: RunContext,
    phase: str,
    *,
    reserved_s: Callable[[], float],
    ask: Callable[[int], Work[T] | None],
    told: Callable[[T], None],
) -> None:
    """Ask for work for whichever slot is free, until there is none and nothing goes on.

    Where there are several slots one entry of the books' chain lasts all the while; what they hold stands beside it.

    Args:
        reserved_s: the seconds that all of it may last by the clock.
        ask: work for that slot; None where there is nothing to do now, which may change when something has ended.
        told: how work ended.

    Raises:
        Exception: work failed in a way that nobody expects. What went on beside it has ended and been told by then; an
            interrupt ends it at once, and nothing more is told.
    """
    if run.request.slots == 1:
        while (work := ask(0)) is not None:
            told(work())
        return
    with run.accountant.entry(phase, reserved_s=reserved_s()), run.engine.crew(run.request.slots) as crew:
        failure = _fill(crew, list(range(run.request.slots)), ask, told)
    if failure is not None:
        raise failure


def _fill(
    crew: Executor, free: list[int], ask: Callable[[int], Work[T] | None], told: Callable[[T], None]
) -> Exception | None:
    """The first failure, after which nothing new was begun."""
    at_work: dict[Future[Any], int] = {}
    failure: Exception | None = None
    while True:
        while free and failure is None and (work := ask(free[0])) is not None:
            at_work[crew.submit(work)] = free.pop(0)
        if not at_work:
            return failure
        ended = crew.wait()
        insort(free, at_work.pop(ended))
        try:
            outcome: T = ended.result()
        except Exception as error:
            failure = failure or error
        else:
            told(outcome)
