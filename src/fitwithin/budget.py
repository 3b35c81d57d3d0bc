"""What one run may spend, and what is left of it. Durations are ``*_s``; instants are ``*_at``, on one clock.

The clock is ``time.monotonic``: on Linux it is the same for every process of a boot, so an instant can be handed
to a worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fitwithin.errors import UsageError

Clock = Callable[[], float]

ACCOUNTINGS = ("process", "allocator")
SCOPES = ("total", "candidate")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one run may spend. Every limit is a promise that is measured; None means unlimited."""

    #: The cap on each process's memory on the device, at any point.
    memory_bytes: int
    #: What the cap counts: the ``process`` as the driver sees it, or PyTorch's caching ``allocator`` alone, which is
    #: the measure of the challenge's organisers.
    accounting: str = "process"
    #: Wall-clock seconds from process start.
    time_s: float | None = None
    #: Seconds that devices are held, summed over them.
    gpu_time_s: float | None = None
    #: Whether the time limits bound the whole run (``total``) or each ``candidate``, as in the paper.
    scope: str = "total"
    #: Milliseconds per image of the ensemble, and images per second.
    inference_ms: float | None = None
    throughput_per_s: float | None = None
    #: Bytes of its weights and of what it computes in a pass.
    inference_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0:
            raise UsageError("--memory must be more than 0; give a size such as 6GiB")
        if self.time_s is None and self.gpu_time_s is None:
            raise UsageError("a run needs a time budget; give --time 3h (wall clock) or --gpu-time 9h (device time)")
        for name, value in (("time", self.time_s), ("gpu-time", self.gpu_time_s), ("inference", self.inference_ms)):
            if value is not None and value <= 0:
                raise UsageError(f"--{name} must be more than 0, got {value:g}; give a longer time")
        if self.throughput_per_s is not None and not 0 < self.throughput_per_s < math.inf:
            raise UsageError(f"--throughput must be more than 0, got {self.throughput_per_s:g}; give images per second")
        if self.inference_bytes is not None and self.inference_bytes <= 0:
            raise UsageError("--inference-memory must be more than 0; give a size such as 500MB")
        if self.accounting not in ACCOUNTINGS:
            raise UsageError(f"{self.accounting!r} is not a memory accounting; choose from {', '.join(ACCOUNTINGS)}")
        if self.scope not in SCOPES:
            raise UsageError(f"{self.scope!r} is not a scope; choose from {', '.join(SCOPES)}")

    @property
    def image_ms(self) -> float | None:
        """The milliseconds that an image may take, by the tighter of both limits; None without any."""
        limits = [self.inference_ms, None if self.throughput_per_s is None else 1e3 / self.throughput_per_s]
        return min((limit for limit in limits if limit is not None), default=None)

    def limit_s(self, gpus: int = 1) -> float:
        """The tighter of the two time limits in wall-clock seconds, if at most ``gpus`` devices are held at once."""
        limits = (self.time_s, None if self.gpu_time_s is None else self.gpu_time_s / gpus)
        return min(limit for limit in limits if limit is not None)


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """What is left of a budget at an instant: wall-clock and device seconds; infinity where there is no limit.

    It is for trials that hold ``gpus`` devices each: one after the other, or ``slots`` side by side.
    """

    time_s: float
    gpu_time_s: float
    gpus: int = 1
    slots: int = 1

    @property
    def usable_s(self) -> float:
        """Wall-clock seconds that one trial may last."""
        return min(self.time_s, self.slot_s)

    @property
    def slot_s(self) -> float:
        """Seconds of trials that the device time pays for, added up."""
        return self.gpu_time_s / self.gpus

    @property
    def together_s(self) -> float:
        """Seconds that trials in all slots may last, added up."""
        return min(self.slots * self.time_s, self.slot_s)

    def less(self, seconds: float) -> Remaining:
        """What is left if a trial of so many seconds shall follow."""
        return replace(self, time_s=self.time_s - seconds, gpu_time_s=self.gpu_time_s - seconds * self.gpus)
