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
from fitwithin.engine.margins import LAST_WORDS_S
from fitwithin.engine.results import Failure, Outcome, Probe, Progress, TrainResult

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

    def outcome(self) -> Outcome | None:
        """Its answer; of one that went without, how it ended; nothing of one that was ended for another's sake."""
        if self.answer is not None or (self.killed and not self.gone):
            return self.answer
        how = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
        return Failure(kind="died", reason=f"the worker process ended without an answer ({how})")

    def close(self) -> None:
        """Nothing more is said or heard."""
        self.connection.close()
        self.status.close()


def listen(
    children: Sequence[Child],
    until_at: float,
    heartbeat_timeout_s: float,
    on_progress: Callable[[Progress], None],
) -> Failure | None:
    """Hear the processes of a job until all are over; a Failure if their time was, or if they were silent for
    ``heartbeat_timeout_s``.

    Once one has failed, the others are ended.
    """
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
        loader_timeout_s = min(ends_at - now, words_until_at - now, 0.5)
        for ready in wait([child.connection for child in speaking], loader_timeout_s):
            heard_at = time.monotonic()
            child = next(child for child in speaking if child.connection is ready)
            if (progress := child.hear()) is not None:
                on_progress(progress)
            if child.failed:
                words_until_at = min(words_until_at, heard_at + LAST_WORDS_S)
    return None


def merged(outcomes: Sequence[Outcome | None]) -> Outcome:
    """What the answers of processes that work together come to: the first one's, with the memory of the largest.

    Of several that failed, the failure that says most counts: memory held by others, then too little memory, then what
    happened to one; last, that one was deserted. None stands for a process that was ended before it could say anything.
    """
    failures = [answer for answer in outcomes if answer is not None and _failed(answer)]
    if failures:
        failure = min(failures, key=_rank)
        if isinstance(failure, Failure) and failure.kind == "deserted":
            return replace(failure, kind="died")
        return failure
    answers = [answer for answer in outcomes if answer is not None]
    assert len(answers) == len(outcomes), "whoever is ended has no answer because another failed"
    first = answers[0]
    if isinstance(first, TrainResult):
        peaks = [answer.peak_bytes for answer in answers if isinstance(answer, TrainResult)]
        return replace(first, peak_bytes=max(peaks))
    if isinstance(first, Probe):
        return _one(first, [answer for answer in answers if isinstance(answer, Probe)])
    return first


def _one(first: Probe, probes: Sequence[Probe]) -> Probe:
    """The probe that several processes made together: each of them has to keep the cap."""
    peaks = [probe.peak_bytes for probe in probes if probe.peak_bytes is not None]
    needed = [probe.needed_bytes for probe in probes if probe.needed_bytes is not None]
    usable = [probe.usable_bytes for probe in probes if probe.usable_bytes is not None]
    return replace(
        first,
        peak_bytes=max(peaks, default=None),
        needed_bytes=max(needed, default=None),
        usable_bytes=min(usable, default=None),
        non_allocator_bytes=max(probe.non_allocator_bytes for probe in probes),
    )


def _failed(answer: Outcome | None) -> bool:
    return isinstance(answer, Failure) or (isinstance(answer, Probe) and not answer.passed)


def _rank(failure: Outcome) -> int:
    if isinstance(failure, Probe):
        return 0 if failure.memory_taken_by_others else 1
    assert isinstance(failure, Failure)
    return {"memory": 2, "deserted": 5, "died": 3}.get(failure.kind, 4)


class Standby(Generic[P]):
    """Those that stay, with their turns; asked from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: list[tuple[TrainJob, P]] = []

    def add(self, turn: TrainJob, process: P) -> None:
        """The process of that turn stays."""
        with self._lock:
            self._there.append((turn, process))

    def part(self, job: Job) -> tuple[P | None, list[P]]:
        """The one that does the job, and those that must end for it: at an evaluation all others, else whoever has
        its device (finals of a search side by side end one by one)."""
        evaluates = isinstance(job, EvaluateJob)
        with self._lock:
            leave = [pair for pair in self._there if evaluates or pair[0].setting.device == job.setting.device]
            self._there = [pair for pair in self._there if pair not in leave]
        able = next((pair for pair in leave if _does(pair[0], job)), None)
        return (able[1] if able else None), [pair[1] for pair in leave if pair is not able]

    def all(self) -> list[P]:
        """Everyone; none stays any longer."""
        with self._lock:
            there, self._there = self._there, []
        return [process for _, process in there]


def _does(turn: TrainJob, job: Job) -> bool:
    """Whether the process of that turn can do the job: evaluate a model of its candidate."""
    if not isinstance(job, EvaluateJob):
        return False
    return (turn.candidate, turn.setting.pack) == (job.candidate, job.setting.pack)
