"""Work side by side in real time: a thread for each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """:class:`~fitwithin.engine.Crew` of so many threads.

    Args:
        close: ends what they are at, so that an interrupt need not wait for it.
    """

    def __init__(self, count: int, close: Callable[[], None]) -> None:
        self._close = close
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="slot")
        self._over: SimpleQueue[Future[Any]] = SimpleQueue()

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """It begins at once if a thread is free."""
        future = self._pool.submit(work)
        future.add_done_callback(self._over.put)
        return future

    def wait(self) -> Future[Any]:
        """Sleep until something has ended; an interrupt wakes it too."""
        return self._over.get()

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._close()
        self._pool.shutdown(wait=True, cancel_futures=True)
