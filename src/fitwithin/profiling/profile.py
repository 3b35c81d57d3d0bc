"""What profiling finds out about a candidate. Pure; the search for its largest batch is profiling/batch_search.py's.

A profile's claim is a certificate: a batch of ``batch`` ran the real training step under the cap in a fresh process,
and ``batch + 1`` did not (or a stated limit other than memory ended the search). Nothing is returned that did not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fitwithin.candidate import Candidate
from fitwithin.engine.results import Probe, Timing


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What a neighbour's certificate says of a candidate: its largest batch, and bytes per image. It places probes.

    ``non_allocator_bytes`` is what the neighbour held outside the allocator: the same backbone loads the same kernels.
    """

    batch: int
    image_bytes: float
    non_allocator_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The measured facts of a candidate: parameters, its certified batch, and its timing at that batch.

    ``batch`` is what an update takes, in ``accum_steps`` parts; ``largest`` is the certified batch, ``batch`` if that
    is 0. ``cuda_graph``: on CUDA its step ran, and has to run, as a recorded graph. ``quick``: its timing was short, or
    is derived from that of a larger size.
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
    def trials(self) -> int:
        """How many batch sizes were run to find the largest, repetitions and scouted ones included."""
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


class HasProbes(Protocol):
    """A candidate whose largest batch was found (:class:`Profile` is one), or is about to be."""

    @property
    def candidate(self) -> Candidate:
        """Whose."""

    @property
    def max_batch(self) -> float | None:
        """Where its memory meets the cap, in images; None if that is not known, or if something else was the limit."""

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What was tried."""


def max_batch_of(batch: int, probes: Iterable[Probe]) -> float | None:
    """Half an image above ``batch`` if the next one was tried and failed, else None."""
    return batch + 0.5 if any(not probe.passed and probe.batch == batch + 1 for probe in probes) else None


def prior(known: Iterable[HasProbes], candidate: Candidate) -> Prior | None:
    """What the profile of the same backbone at another size says, if there is one whose limit was memory.

    Activations grow with the number of pixels, and everything else stays: bytes per image scale by the square of the
    size, and so does the batch. (Certified on an H200: within one image of the truth; benchmarks/profile_phase.py.)
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
    """Batches and the memory they needed, ascending; for a batch that ran twice, the larger."""
    points: dict[int, int] = {}
    for batch, needed_bytes in (point for probe in probes for point in probe.memory_points):
        points[batch] = max(needed_bytes, points.get(batch, 0))
    return sorted(points.items())


def slope_of(points: Sequence[tuple[int, int]]) -> float:
    """Bytes per image between the smallest and the largest point."""
    (low, low_bytes), (high, high_bytes) = points[0], points[-1]
    return (high_bytes - low_bytes) / (high - low)
