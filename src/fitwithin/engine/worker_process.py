"""The processes of one job, as the engine sees them: what they say, how they end, and what that comes to."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from fitwithin.engine.jobs import EvaluateJob, Job, TrainJob
from fitwithin.engine.launch import ENDED, receive
from fitwithin.engine.margins import LAST_WORDS_S
from fitwithin.engine.results import Failure, Outcome, Probe, Progress, TrainResult
from fitwithin.errors import DeviceError

P = TypeVar("P")


@dataclass
class Child:
    """A worker process: the connection to it, the socket that reports its end, its number; later answer and exit."""

    connection: Connection
    status: socket.socket
    pid: int
    answer: Outcome | None = None
    gone: bool = False
    killed: bool = False
    code: int = 0

    @property
    def over(self) -> bool:
        """Whether it says nothing more."""
        return self.gone or self.answer is not None

    @property
    def failed(self) -> bool:
        """Whether those that work with it need not go on."""
        return self.gone or _failed(self.answer)

    def hear(self) -> Progress | None:
        """Take what it says now."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.gone = True
            return None
        if kind == "done":
            self.answer = value
        return value if kind == "progress" else None

    def kill(self) -> None:
        """End it."""
        self.killed = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def await_end(self) -> None:
        """Wait for its exit status; a process that answered but does not end is killed.

        Raises:
            DeviceError: it does not end even when killed.
        """
        try:
            kind, self.code = receive(self.status, 10.0)
            assert kind == ENDED
        except TimeoutError:
            if self.killed:
                raise DeviceError(
                    f"worker process {self.pid} does not end even when killed; the driver may hang"
                ) from None
            self.kill()
            self.await_end()

    def outcome(self) -> Outcome | None:
        """Its answer; without one, how it ended; None if it was killed because another process had failed."""
        if self.answer is not None or (self.killed and not self.gone):
            return self.answer
        how = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
        return Failure(kind="died", reason=f"the worker process ended without an answer ({how})")

    def close(self) -> None:
        """Close connection and socket."""
        self.connection.close()
        self.status.close()


def listen(
    children: Sequence[Child],
    until_at: float,
    heartbeat_timeout_s: float,
    on_progress: Callable[[Progress], None],
) -> Failure | None:
    """Hear the processes of a job until all are over; a Failure if ``until_at`` came first, or if they were silent for
    ``heartbeat_timeout_s``. Once one has failed, the others are killed."""
    heard_at, words_until_at = time.monotonic(), until_at
    while speaking := [child for child in children if not child.over]:
        now = time.monotonic()
        ends_at = min(until_at, heard_at + heartbeat_timeout_s)
        if now >= min(ends_at, words_until_at):
            for child in speaking:
                child.kill()
            if now < ends_at or any(child.failed for child in children):
                return None
            if now < until_at:
                return Failure(kind="hung", reason=f"nothing was heard of the worker for {now - heard_at:.0f} s")
            return Failure(kind="deadline", reason="its time was over and the worker was ended")
        ready = wait([child.connection for child in speaking], min(ends_at - now, words_until_at - now, 0.5))
        for child in (child for child in speaking if child.connection in ready):
            heard_at = time.monotonic()
            if (progress := child.hear()) is not None:
                on_progress(progress)
            if child.failed:
                words_until_at = min(words_until_at, heard_at + LAST_WORDS_S)
    return None


def merged(outcomes: Sequence[Outcome | None]) -> Outcome:
    """The answer of processes that work together: the first one's, with the memory of the largest.

    Of several failures the one that says most counts: memory held by others, then too little memory, then what happened
    to one process; last, that another is gone. None stands for a process that was killed before it could answer.
    """
    failures = [answer for answer in outcomes if _failed(answer)]
    if failures:
        failure = min(failures, key=_rank)
        if isinstance(failure, Failure) and failure.kind == "deserted":
            return replace(failure, kind="died")
        assert failure is not None
        return failure
    first = outcomes[0]
    assert first is not None, "a process is killed only after another failed"
    if isinstance(first, TrainResult):
        return replace(first, peak_bytes=max(each.peak_bytes for each in outcomes if isinstance(each, TrainResult)))
    if not isinstance(first, Probe):
        return first
    # Each of them has to keep the cap.
    probes = [each for each in outcomes if isinstance(each, Probe)]
    needed = [each.needed_bytes for each in probes if each.needed_bytes is not None]
    return replace(
        first,
        peak_bytes=max((each.peak_bytes for each in probes if each.peak_bytes is not None), default=None),
        needed_bytes=max(needed, default=None),
        usable_bytes=min((each.usable_bytes for each in probes if each.usable_bytes is not None), default=None),
        non_allocator_bytes=max(each.non_allocator_bytes for each in probes),
    )


def _failed(answer: Outcome | None) -> bool:
    return isinstance(answer, Failure) or (isinstance(answer, Probe) and not answer.passed)


def _rank(failure: Outcome | None) -> int:
    if isinstance(failure, Probe):
        return 0 if failure.memory_taken_by_others else 1
    assert isinstance(failure, Failure)
    return {"memory": 2, "deserted": 5, "died": 3}.get(failure.kind, 4)


class Standby(Generic[P]):
    """The processes that have trained and wait for an evaluation, with their jobs; asked from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: list[tuple[TrainJob, P]] = []

    def add(self, trial: TrainJob, process: P) -> None:
        """The process of that trial stays."""
        with self._lock:
            self._there.append((trial, process))

    def part(self, job: Job) -> tuple[P | None, list[P]]:
        """The process that does the job, one that evaluates a model of its candidate; and those that must end for it:
        at an evaluation all others, else those on its device (finals of a search side by side end one by one)."""
        evaluated = (job.candidate, job.setting.pack) if isinstance(job, EvaluateJob) else None
        with self._lock:
            leave = [pair for pair in self._there if evaluated or pair[0].setting.device == job.setting.device]
            self._there = [pair for pair in self._there if pair not in leave]
        able = next((pair for pair in leave if (pair[0].candidate, pair[0].setting.pack) == evaluated), None)
        return (able[1] if able else None), [pair[1] for pair in leave if pair is not able]

    def all(self) -> list[P]:
        """Every process; none stays any longer."""
        with self._lock:
            there, self._there = self._there, []
        return [process for _, process in there]
