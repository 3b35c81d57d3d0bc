"""Work side by side in real time: a thread for each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

#: A signal that comes just before a thread falls asleep does not wake it, so a wait ends so often, in seconds.
LOOK_S = 0.5


class Threads:
    """:class:`~fitwithin.engine.base.Executor` of so many threads.

    Not a ThreadPoolExecutor: an interrupt inside its ``submit`` can leave a lock taken for ever (docs/log.md). The
    locks of a SimpleQueue are written in C.

    Args:
        close: ends their work, so that an interrupt need not wait for it.
    """

    def __init__(self, count: int, close: Callable[[], None]) -> None:
        self._close = close
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"slot-{n}", daemon=True) for n in range(count)]

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """The future of ``work``, which begins at once if a thread is free."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def wait(self) -> Future[Any]:
        """The future of the work that ended next; sleeps until then, and an interrupt wakes it too."""
        while True:
            with suppress(Empty):
                return self._done.get(timeout=LOOK_S)

    def _work(self) -> None:
        while (submitted := self._queue.get()) is not None:
            future, work = submitted
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            self._done.put(future)

    def __enter__(self) -> Threads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(Empty):
            while True:  # what no thread was free for does not begin any more
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        if error[0] is not None:
            self._close()
        for thread in self._threads:
            thread.join()
