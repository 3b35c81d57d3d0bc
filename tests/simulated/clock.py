"""A clock that jumps, and threads that share it: work side by side in simulated time, one thread awake at a time.

A thread that waits for an instant lets those go first whose instant comes sooner, and the clock stands at the instant
of the thread that is awake. Ties go to the one that came first, so what happens depends on no scheduler.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class SimulatedClock:
    """Time that passes only by :meth:`sleep` and :meth:`wait_until`."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._order = itertools.count()
        #: Sleeping threads of executors as a heap: instant, order of arrival, and the semaphore that wakes it.
        self._asleep: list[tuple[float, int, threading.Semaphore]] = []
        self._mine = threading.local()

    def now(self) -> float:
        """The present, in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass at once."""
        self.wait_until(self._now + seconds)

    def wait_until(self, instant: float) -> None:
        """Let time pass until ``instant``; none if that is past. Threads of an executor that wake sooner go first."""
        if self.shared:
            if self._asleep and self._asleep[0][0] <= instant:
                semaphore = self.schedule_wakeup(instant)
                self.advance()
                semaphore.acquire()
            if self._mine.executor.closed:
                raise Cancelled
        self._now = max(self._now, instant)

    @property
    def shared(self) -> bool:
        """Whether the calling thread belongs to an executor."""
        return getattr(self._mine, "executor", None) is not None

    def join(self, executor: SimulatedExecutor) -> None:
        """The calling thread belongs to that executor from now on."""
        self._mine.executor = executor

    def schedule_wakeup(self, instant: float) -> threading.Semaphore:
        """A semaphore for a thread that sleeps until then: acquiring it takes until the thread is woken."""
        semaphore = threading.Semaphore(0)
        heapq.heappush(self._asleep, (max(self._now, instant), next(self._order), semaphore))
        return semaphore

    def advance(self, *, early: bool = False) -> bool:
        """Wake the first sleeping thread when it is due, or now if ``early``; whether there is one.

        The calling thread must sleep then.
        """
        if not self._asleep:
            return False
        instant, _, semaphore = heapq.heappop(self._asleep)
        if not early:
            self._now = max(self._now, instant)
        semaphore.release()
        return True


class Cancelled(BaseException):
    """The executor was closed while this thread was at work: as if its process were gone."""


class SimulatedExecutor:
    """:class:`~fitwithin.engine.base.Executor` on a clock that jumps."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._done: deque[Future[Any]] = deque()
        self._ended = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self.closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """It begins when the one that began it waits."""
        future: Future[T] = Future()
        semaphore = self._clock.schedule_wakeup(self._clock.now())
        thread = threading.Thread(target=self._carry_out, args=(work, future, semaphore), name="slot", daemon=True)
        self._threads.append(thread)
        thread.start()
        return future

    def _carry_out(self, work: Callable[[], T], future: Future[T], semaphore: threading.Semaphore) -> None:
        self._clock.join(self)
        semaphore.acquire()
        try:
            if self.closed:
                raise Cancelled
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        self._done.append(future)
        self._ended.release()

    def wait(self) -> Future[Any]:
        """Sleep until something has ended; the clock stands where it did."""
        if not self._done:
            assert self._clock.advance(), "nothing was begun"
        self._ended.acquire()
        return self._done.popleft()

    def __enter__(self) -> SimulatedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        while self._clock.advance(early=True):
            self._ended.acquire()  # one after the other
        for thread in self._threads:
            thread.join()
