"""Pictures of many requests in one pass of the model: whatever waits is taken together, and nobody waits for more."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: A larger batch must make an image this much cheaper, or it only makes the others wait.
WORTHWHILE = 0.95

#: Batches that are timed, so many times each.
BATCHES, TIMES = (1, 2, 4, 8, 16, 32), 3


class Full(Exception):
    """So many pictures wait already that another one would wait too long."""


class Point(NamedTuple):
    """Milliseconds of a pass with so many pictures."""

    batch: int
    ms: float


class Batcher(Generic[Item, Answer]):
    """One thread that works on what is submitted.

    Args:
        work: answers a list of items, at most ``most``, with as many answers.
        most: the largest batch.
        waiting: so many items may wait.
        on_batch: gets the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer]],
        *,
        most: int,
        waiting: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._work, self._most, self._on_batch = work, most, on_batch
        self._queue: queue.Queue[tuple[Item, Future[Answer]] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many items wait now, about."""
        return self._queue.qsize()

    def submit(self, item: Item) -> Future[Answer]:
        """Have it worked on; Full if too many wait."""
        future: Future[Answer] = Future()
        try:
            self._queue.put_nowait((item, future))
        except queue.Full:
            raise Full from None
        return future

    def close(self) -> None:
        """End the thread, after what was submitted."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            group = [self._queue.get()]
            while len(group) < self._most and group[-1] is not None:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = group[-1] is None
            # Who has given up waiting is passed over.
            given = [each for each in group if each is not None and each[1].set_running_or_notify_cancel()]
            if given:
                self._on_batch(len(given))
                self._answer(given)

    def _answer(self, given: Sequence[tuple[Item, Future[Answer]]]) -> None:
        try:
            answers = self._work([item for item, _ in given])
        except Exception as error:  # each who waits gets it
            for _, future in given:
                future.set_exception(error)
            return
        for (_, future), answer in zip(given, answers, strict=True):
            future.set_result(answer)


def measure(work: Callable[[list[Item]], object], item: Item) -> list[Point]:
    """What passes take, the least of some; larger batches are left out once they are not worthwhile."""
    found: list[Point] = []
    for batch in BATCHES:
        work([item] * batch)  # the first of a shape loads kernels
        taken = []
        for _ in range(TIMES):
            begun_at = time.perf_counter()
            work([item] * batch)
            taken.append(time.perf_counter() - begun_at)
        found.append(Point(batch, 1e3 * min(taken)))
        if len(found) > 1 and best_batch(found) < batch:
            break
    return found


def best_batch(curve: Sequence[Point]) -> int:
    """The largest batch up to which each larger one makes an image cheaper."""
    best = curve[0]
    for point in curve[1:]:
        if point.ms / point.batch > WORTHWHILE * best.ms / best.batch:
            break
        best = point
    return best.batch
