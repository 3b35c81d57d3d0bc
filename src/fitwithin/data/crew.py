"""Work on many things, such as files to decode, by as many processes as there are cores.

Threads share Python's lock, and so read no more than 1,000 to 1,650 small images a second on 2 as on 16 cores. What is
done within a moment never meets a process: one takes 0.2 s to start.
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from importlib import import_module
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, NamedTuple

from fitwithin.errors import DataError
from fitwithin.files import bytecode_environment

#: What is done within so many seconds is done by this process; each other one is to have so much to do.
ALONE_S = 0.25

#: Seconds that a thread which reads ahead gets for its end.
STOP_S = 10.0

#: A thing is given up when so many processes ended by themselves that had it: once among others, then alone.
MOST_LOSSES = 3

#: What a process runs. Were this module its main one, what it answers could not be read here.
_MAIN = "from fitwithin.data.crew import main; main()"


class Done(NamedTuple):
    """A thing at its position, and the answer; ``lost``: processes that worked on it ended by themselves."""

    position: int
    item: Any
    answer: Any
    lost: bool = False


def work(
    task: str,
    words: Sequence[str],
    items: Iterable[Any],
    *,
    workers: int,
    at_once: int,
    total: int | None = None,
    window: int | None = None,
    until_at: float = math.inf,
) -> Generator[Done, None, None]:
    """Do a task on each of the ``items``, which are taken as they are needed.

    Args:
        task: ``module:function``. The function gets the ``words`` in each process, and returns one that answers a list
            of items, at most ``at_once``, with as many answers.
        total: how many items there are, if that is known: no more processes are started than pay.
        window: answers come in the order of the items, and no more than so many are waited for; None: as they come.
        until_at: the monotonic instant after which no answer is waited for. One at least is given.

    Raises:
        DataError: no process could be started.
        Exception: what the task raises.
    """
    answer_all, numbered = _resolve(task)(*words), enumerate(items)
    began_at, done = time.monotonic(), 0
    for position, item in numbered:
        yield Done(position, item, answer_all([item])[0])
        done += 1
        now = time.monotonic()
        if now >= until_at:
            return
        if workers > 1 and now - began_at >= ALONE_S:
            break
    else:
        return
    num_processes = workers
    if total is not None:
        item_s = (time.monotonic() - began_at) / done
        worthwhile = math.ceil((total - done) * item_s / max(ALONE_S, 1e-9))
        num_processes = max(1, min(workers, worthwhile, -(-(total - done) // at_once)))
    with closing(_Crew(task, words, num_processes)) as crew:
        found = crew.work(numbered, at_once, done, window, until_at)
        yield from found if window is None else _in_order(found, done)


def ahead(found: Generator[Done, None, None], size: int) -> Generator[Done, None, None]:
    """The same, fetched by a thread from now on, up to ``size`` ahead: processes go on while the caller computes."""
    ready: SimpleQueue[Done | BaseException | None] = SimpleQueue()
    room, stopped = threading.Semaphore(size), threading.Event()

    def fetch() -> None:
        last: BaseException | None = None
        try:
            with closing(found):
                for done in found:
                    room.acquire()
                    if stopped.is_set():
                        break
                    ready.put(done)
        except BaseException as error:  # it is raised where the next one is asked for
            last = error
        ready.put(last)

    thread = threading.Thread(target=fetch, name="reading ahead", daemon=True)
    thread.start()
    return _fetched(ready, room, stopped, thread)


def _fetched(
    ready: SimpleQueue[Done | BaseException | None],
    room: threading.Semaphore,
    stopped: threading.Event,
    thread: threading.Thread,
) -> Generator[Done, None, None]:
    try:
        while isinstance(done := ready.get(), Done):
            room.release()
            yield done
        if done is not None:
            raise done
    finally:
        stopped.set()
        room.release()
        thread.join(STOP_S)


def _in_order(found: Iterable[Done], first: int) -> Iterator[Done]:
    """The same from the ``first`` position on, each when those before it have come."""
    early: dict[int, Done] = {}
    for done in found:
        early[done.position] = done
        while first in early:
            yield early.pop(first)
            first += 1


def _resolve(task: str) -> Callable[..., Callable[[list[Any]], list[Any]]]:
    module, _, name = task.partition(":")
    found: Callable[..., Callable[[list[Any]], list[Any]]] = getattr(import_module(module), name)
    return found


#: Things with their positions that a process has at a time.
Chunk = list[tuple[int, Any]]


class _Crew:
    """Processes at work. One that ends by itself is replaced, and what it had is tried one by one."""

    def __init__(self, task: str, words: Sequence[str], num_processes: int) -> None:
        self.words = [task, *words]
        self.num_processes = num_processes
        #: How often a process ended by itself that had the thing at this position.
        self.losses: Counter[int] = Counter()
        self.failed_starts = 0
        #: The processes by what they answer on, and what they have.
        self.at_work: dict[Connection, tuple[subprocess.Popen[bytes], Chunk]] = {}
        #: Those that have nothing.
        self.idle: deque[tuple[Connection, subprocess.Popen[bytes]]] = deque()
        #: What is tried again.
        self.again: deque[Chunk] = deque()
        #: Positions that were given out or lost, and are not answered yet.
        self.open: set[int] = set()

    def launch(self) -> None:
        """Start a process. Its first answer, of nothing, says that it is there."""
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                # -P: modules of the user's working folder never stand in for those of Python.
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), *self.words],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=bytecode_environment(),
                start_new_session=True,
            )
        self.at_work[ours] = (process, [])

    def work(
        self, numbered: Iterator[tuple[int, Any]], at_once: int, first: int, window: int | None, until_at: float
    ) -> Iterator[Done]:
        """The answers as they come, to what is ``numbered`` from ``first`` on."""
        given = first
        for _ in range(self.num_processes):
            self.launch()
        while True:
            while self.idle and (window is None or given - min(self.open, default=given) < window or self.again):
                chunk = self.again.popleft() if self.again else list(islice(numbered, at_once))
                if not chunk:
                    break
                given = max(given, chunk[-1][0] + 1)
                self.give(chunk)
            if not self.open and not any(chunk == [] for _, chunk in self.at_work.values()):
                return
            left_s = until_at - time.monotonic()
            ready = wait(list(self.at_work), None if left_s == math.inf else max(0.0, left_s))
            for ours in ready:
                assert isinstance(ours, Connection)
                yield from self.answered(ours)
            if not ready or time.monotonic() >= until_at:
                return

    def give(self, chunk: Chunk) -> None:
        """Have an idle process work on it."""
        ours, process = self.idle.popleft()
        self.at_work[ours] = (process, chunk)
        self.open.update(position for position, _ in chunk)
        with suppress(OSError):  # it has just ended, which its missing answer says
            ours.send([item for _, item in chunk])

    def answered(self, ours: Connection) -> list[Done]:
        """What a process has to say; its end is an answer too."""
        process, chunk = self.at_work.pop(ours)
        try:
            answers = ours.recv()
        except (EOFError, OSError):
            ours.close()
            return self.ended(process, chunk)
        self.idle.append((ours, process))
        if isinstance(answers, Exception):
            raise answers
        self.open.difference_update(position for position, _ in chunk)
        return [Done(position, item, answer) for (position, item), answer in zip(chunk, answers, strict=True)]

    def ended(self, process: subprocess.Popen[bytes], chunk: Chunk) -> list[Done]:
        """After a process ended by itself: what is given up."""
        code = process.wait()
        if not chunk:
            self.failed_starts += 1
            if self.failed_starts > self.num_processes:
                raise DataError(
                    f"a process that reads images ended with code {code} as it started; is there memory for "
                    f"{self.num_processes} of them?"
                )
        self.launch()
        self.losses.update(position for position, _ in chunk)
        lost = [each for each in chunk if self.losses[each[0]] >= MOST_LOSSES]
        self.again.extend([each] for each in chunk if each not in lost)
        self.open.difference_update(position for position, _ in lost)
        return [Done(position, item, None, lost=True) for position, item in lost]

    def close(self) -> None:
        """End all processes."""
        for ours, process in [*self.idle, *((ours, process) for ours, (process, _) in self.at_work.items())]:
            ours.close()
            process.kill()
            process.wait()


def main() -> None:
    """A process that works, until its asker is gone."""
    number, task, *words = sys.argv[1:]
    with Connection(int(number)) as asker, suppress(EOFError, OSError):
        answer_all = _resolve(task)(*words)
        asker.send([])
        while True:
            items = asker.recv()
            try:
                answers: list[Any] | Exception = answer_all(items)
            except Exception as error:  # it is raised again where the answer is read
                answers = error
            asker.send(answers)
