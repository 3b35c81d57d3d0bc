"""The processes that stay after a turn, each for the evaluation of what it trained."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from fitwithin.engine.jobs import EvaluateJob, Job, TrainJob

P = TypeVar("P")


class Staying(Generic[P]):
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
