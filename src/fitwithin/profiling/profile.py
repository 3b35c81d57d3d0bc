"""What profiling finds out about a candidate. Pure.

A profile is a certificate: a batch of ``batch`` ran the real training step under the cap in a fresh process, and
``batch + 1`` did not (or a stated limit other than memory ended the search).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fitwithin.candidate import Candidate
from fitwithin.engine.results import Probe, Timing

if TYPE_CHECKING:
    from fitwithin.profiling.candidate_profiler import CandidateProfiler


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What another size's certificate suggests for a candidate: its largest batch, bytes per image, and bytes outside
    the allocator (the same backbone loads the same kernels)."""

    batch: int
    image_bytes: float
    non_allocator_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The measured facts of a candidate.

    ``batch`` is what an update takes, in ``accum_steps`` parts; ``largest`` is the certified batch, 0 if that is
    ``batch``. ``cuda_graph``: on CUDA its step ran, and must run, as a recorded graph. ``quick``: its timing was short,
    or is derived from that of a larger size.
    """

    candidate: Candidate
    parameters: int
    batch: int
    batch_why: str
    peak_bytes: int
    timing: Timing
    probes: tuple[Probe, ...]
    cuda_graph: bool = True
    accum_steps: int = 1
    largest: int = 0
    cached: bool = False
    quick: bool = False

    @property
    def images_per_s(self) -> float:
        """Training images per second with the real loader."""
        return self.batch / self.timing.step_s

    @property
    def dummy_images_per_s(self) -> float:
        """Training images per second with the dummy loader."""
        return self.batch / self.timing.dummy_step_s

    @property
    def certified(self) -> int:
        """The largest batch that ran at once."""
        return self.largest or self.batch

    @property
    def max_batch(self) -> float | None:
        """Where its memory meets the cap, in images: just above the certified batch; None if another limit ended it."""
        return max_batch_of(self.certified, self.probes)

    @property
    def num_tried(self) -> int:
        """The number of batches run to find the largest, with repetitions and scouted ones."""
        return sum(1 + len(probe.scouted) for probe in self.probes if not (probe.passed and probe.timing is not None))

    @property
    def non_allocator_bytes(self) -> int:
        """The most that any probe held outside the allocator."""
        return max((probe.non_allocator_bytes for probe in self.probes), default=0)

    @property
    def wall_s(self) -> float:
        """Seconds that all its probes took."""
        return math.fsum(probe.wall_s for probe in self.probes)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A candidate that will not be trained, and why."""

    candidate: Candidate
    reason: str


def max_batch_of(batch: int, probes: Iterable[Probe]) -> float | None:
    """Half an image above ``batch`` if the next one was tried and failed, else None."""
    return batch + 0.5 if any(not probe.passed and probe.batch == batch + 1 for probe in probes) else None


def prior(known: Iterable[Profile | CandidateProfiler], candidate: Candidate) -> Prior | None:
    """What the same backbone's certificate at another size suggests; None without one whose limit was memory.

    Bytes per image scale with the number of pixels, and the batch with its inverse. (On an H200 within one image of the
    truth; benchmarks/profile_phase.py.)
    """
    for other in known:
        if replace(other.candidate, train_px=candidate.train_px) != candidate or other.candidate == candidate:
            continue
        points, max_batch = memory_points(other.probes), other.max_batch
        if len(points) < 2 or max_batch is None:
            continue
        growth = (candidate.train_px / other.candidate.train_px) ** 2
        return Prior(
            batch=int(max_batch / growth),
            image_bytes=growth * slope_of(points),
            non_allocator_bytes=max(probe.non_allocator_bytes for probe in other.probes),
        )
    return None


def memory_points(probes: Iterable[Probe]) -> list[tuple[int, int]]:
    """Batches and the memory they needed, ascending; the larger one for a batch that ran twice."""
    points: dict[int, int] = {}
    for batch, needed_bytes in (point for probe in probes for point in probe.memory_points):
        points[batch] = max(needed_bytes, points.get(batch, 0))
    return sorted(points.items())


def slope_of(points: Sequence[tuple[int, int]]) -> float:
    """Bytes per image between the smallest and the largest point."""
    (low, low_bytes), (high, high_bytes) = points[0], points[-1]
    return (high_bytes - low_bytes) / (high - low)
