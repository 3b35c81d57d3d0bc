"""A clock that jumps, and threads that share it: work side by side in simulated time, one thread awake at a time.

Whoever waits for an instant lets those go first whose instant comes sooner, and the clock stands at the instant of the
one that is awake: it never passes somebody by. Ties go to who came first, so what happens depends on no scheduler.
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
    """Time that passes only when it is told to."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._order = itertools.count()
        #: Threads of a crew that are asleep, the one whose instant comes first in front; releasing its lock wakes it.
        self._asleep: list[tuple[float, int, threading.Semaphore]] = []
        self._mine = threading.local()

    def now(self) -> float:
        """The present, in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass at once."""
        self.wait_until(self._now + seconds)

    def wait_until(self, instant: float) -> None:
        """Let time pass until ``instant``; none if that is past. In a crew those go first who wake sooner."""
        if self.shared:
            if self._asleep and self._asleep[0][0] <= instant:
                semaphore = self.schedule_wakeup(instant)
                self.advance()
                semaphore.acquire()
            if self._mine.crew.closed:
                raise Cancelled
        self._now = max(self._now, instant)

    @property
    def shared(self) -> bool:
        """Whether the thread that asks is one of a crew."""
        return getattr(self._mine, "crew", None) is not None

    def join(self, crew: SimulatedExecutor) -> None:
        """The thread that says so is one of that crew from now on."""
        self._mine.crew = crew

    def schedule_wakeup(self, instant: float) -> threading.Semaphore:
        """A bed for a thread that sleeps until then: acquiring it takes until the thread is woken."""
        semaphore = threading.Semaphore(0)
        heapq.heappush(self._asleep, (max(self._now, instant), next(self._order), semaphore))
        return semaphore

    def advance(self, *, early: bool = False) -> bool:
        """Let time pass until the first of those asleep wakes; whether there is one. Whoever calls goes to sleep.

        ``early``: it wakes now.
        """
        if not self._asleep:
            return False
        instant, _, semaphore = heapq.heappop(self._asleep)
        if not early:
            self._now = max(self._now, instant)
        semaphore.release()
        return True


class Cancelled(BaseException):
    """The crew has ended while this was at work: as if the process were gone."""


class SimulatedExecutor:
    """:class:`~fitwithin.engine.base.Executor` on a clock that jumps."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._over: deque[Future[Any]] = deque()
        self._heard = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self.closed = False

    def begin(self, work: Callable[[], T]) -> Future[T]:
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
        self._over.append(future)
        self._heard.release()

    def wait(self) -> Future[Any]:
        """Sleep until something has ended; the clock stands where it did."""
        if not self._over:
            assert self._clock.advance(), "nothing was begun"
        self._heard.acquire()
        return self._over.popleft()

    def __enter__(self) -> SimulatedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        while self._clock.advance(early=True):
            self._heard.acquire()  # one after the other
        for thread in self._threads:
            thread.join()
