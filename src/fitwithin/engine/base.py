"""Where jobs run: in fresh processes on this machine (:class:`~fitwithin.engine.local.Local`) or on a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from fitwithin.engine.jobs import Job
from fitwithin.engine.results import Outcome, Progress

T = TypeVar("T")


class Executor(Protocol):
    """Runs work side by side in the engine's time, a thread for each piece.

    It is a block that ends when all work has ended; after an error or an interrupt the work is ended at once.
    """

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """The future of ``work``, which begins in a thread of its own."""

    def wait(self) -> Future[Any]:
        """The future of the work that ended next, well or not; each is returned once."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *error: object) -> None: ...


class Engine(Protocol):
    """Carries out jobs, each in a fresh process that ends at its deadline; several threads may ask at once.

    Where ``evaluates_in_process`` is true, a process that has trained can wait for the evaluation of its model
    (:attr:`TrainJob.evaluation`), which then needs no start. Several may wait; an evaluation ends the others, any other
    job those on its device.
    """

    evaluates_in_process: bool

    def describe(self) -> dict[str, Any]:
        """Facts of the device and of the libraries that decide its speed and memory: the key of cached profiles."""

    def prepare(self, until_at: float = math.inf) -> bool:
        """Wait until jobs can start at once, or ``until_at``; whether they can. DeviceError if they never will."""

    def max_parallel(self, wanted: int, memory_bytes: int) -> int:
        """How many jobs that take ``memory_bytes`` each fit at once, from one to ``wanted``."""

    def now(self) -> float:
        """The present on the engine's clock, in monotonic seconds."""

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass on the engine's clock."""

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        """The job's outcome; a job still running at ``until_at`` is ended there: a Failure of kind ``deadline``.

        One that is silent for :func:`fitwithin.engine.jobs.heartbeat_timeout_s` is ended too: kind ``hung``.
        """

    def crew(self, count: int) -> Executor:
        """An executor of ``count`` threads, whose jobs this engine carries out."""

    def close(self) -> None:
        """End everything that was started."""
