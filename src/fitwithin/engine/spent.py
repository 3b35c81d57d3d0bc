"""An engine without workers: for a run that is resumed when there is no time left to start any."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fitwithin.engine.jobs import Job
from fitwithin.engine.results import Failure, Progress
from fitwithin.engine.threads import Threads


@dataclass
class Spent:
    """Begins nothing: whatever it is asked to do is over at once. ``machine`` is what is known of where the run was."""

    machine: dict[str, Any]
    evaluates_in_process: bool = False

    def describe(self) -> dict[str, Any]:
        """As the engine before it."""
        return dict(self.machine)

    def prepare(self, until_at: float = math.inf) -> bool:
        """It never can."""
        del until_at
        return False

    def lanes(self, wanted: int, memory_bytes: int) -> int:
        """One; it begins none."""
        del wanted, memory_bytes
        return 1

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def rest(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def do(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Failure:
        """A deadline."""
        del job, until_at, on_progress
        return Failure(kind="deadline", reason="its time was over before the workers had started")

    def crew(self, count: int) -> Threads:
        """Threads that are told so."""
        return Threads(count, self.close)

    def close(self) -> None:
        """There is nothing to end."""
