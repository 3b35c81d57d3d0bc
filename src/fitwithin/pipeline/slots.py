"""Work on the slots of a run: one thing after the other if there is one slot, else side by side.

Only this thread chooses what is done next and takes the results, so planning needs no lock and the run's events have
one order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from fitwithin.engine.base import Engine
from fitwithin.pipeline.context import RunContext

T = TypeVar("T")

#: What a slot is given to do.
Work = Callable[[], T]


def run_on_slots(
    run: RunContext,
    phase: str,
    *,
    reserved_s: float,
    next_work: Callable[[int], Work[T] | None],
    on_done: Callable[[T], None],
) -> None:
    """Do work on the slots of the run, each on GPUs of its own, until there is none left.

    With several slots, one entry of the ledger's chain lasts until the end; theirs are concurrent to it.

    Args:
        reserved_s: the seconds by the clock that all of it may last.
        next_work: work for that slot; None if there is nothing to do until something else ends.
        on_done: takes what a piece of work returned.

    Raises:
        Exception: as :func:`side_by_side`.
    """
    if run.request.slots == 1:
        while (work := next_work(0)) is not None:
            on_done(work())
        return
    with run.accountant.entry(phase, reserved_s=reserved_s):
        side_by_side(run.engine, run.request.slots, next_work, on_done)


def side_by_side(
    engine: Engine, count: int, next_work: Callable[[int], Work[T] | None], on_done: Callable[[T], None]
) -> None:
    """Do ``count`` pieces of work at once, in threads whose jobs the engine carries out.

    Raises:
        Exception: the first that a piece of work raised, after all other work that had begun has ended. (An interrupt
            ends everything at once.)
    """
    free, running = list(range(count)), dict[Future[T], int]()
    failure: Exception | None = None
    with engine.crew(count) as executor:
        while True:
            while free and failure is None and (work := next_work(free[0])) is not None:
                running[executor.submit(work)] = free.pop(0)
            if not running:
                break
            ended = executor.wait()
            insort(free, running.pop(ended))
            try:
                outcome: T = ended.result()
            except Exception as error:
                failure = failure or error
            else:
                on_done(outcome)
    if failure is not None:
        raise failure
