"""What profiling finds out about a candidate, and the search for its largest batch. Pure: a probe is a callable.

A profile's claim is a certificate: a batch of ``batch`` ran the real training step under the cap in a fresh process,
and ``batch + 1`` did not (or a stated limit other than memory ended the search). Nothing is returned that did not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.units import format_size


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds measured on the real pipeline in a fresh process, at one batch size.

    ``startup_s`` from asking for the process to a model on the device; ``warmup_s`` what the first steps cost more
    than later ones; ``dummy_step_s`` a step fed with a batch already there (the paper's dummy loader); ``step_s`` a
    step fed by the real loader (median), within ``step_low_s`` to ``step_high_s`` (its 95 % interval);
    ``eval_image_s`` seconds per image of evaluation by size; ``eval_first_s`` the extra cost of an evaluation's first
    batch; ``save_s`` writing a checkpoint.
    """

    startup_s: float
    warmup_s: float
    dummy_step_s: float
    step_s: float
    step_low_s: float
    step_high_s: float
    eval_image_s: dict[int, float]
    eval_first_s: float
    save_s: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One fresh process that ran the real step at ``batch``: whether it stayed within the cap, and its peak.

    ``points`` are further batches that a scout ran in the same process, with their peaks: they place later probes and
    prove nothing. ``usable_bytes`` is the peak that a batch can be expected to reach, ``outside_bytes`` what of it
    lay outside the allocator.
    """

    batch: int
    passed: bool
    peak_bytes: int | None = None
    reason: str = ""
    fatal: bool = False  # no smaller batch would help: the model cannot be built, or fails at this size
    parameters: int = 0
    wall_s: float = 0.0
    timing: Timing | None = None
    points: tuple[tuple[int, int], ...] = ()
    usable_bytes: int | None = None
    outside_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The measured facts of a candidate: parameters, its certified batch, and its timing at that batch."""

    candidate: Candidate
    parameters: int
    batch: int
    batch_why: str
    peak_bytes: int
    timing: Timing
    probes: tuple[Probe, ...]
    cached: bool = False

    @property
    def images_per_s(self) -> float:
        """Training images per second with the real loader."""
        return self.batch / self.timing.step_s

    @property
    def dummy_images_per_s(self) -> float:
        """Training images per second with the dummy loader."""
        return self.batch / self.timing.dummy_step_s

    @property
    def outside_bytes(self) -> int:
        """The most that any probe held outside the allocator."""
        return max((probe.outside_bytes for probe in self.probes), default=0)

    @property
    def wall_s(self) -> float:
        """Seconds that all its probes took."""
        return math.fsum(probe.wall_s for probe in self.probes)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A candidate that will not be trained, and why."""

    candidate: Candidate
    reason: str


@dataclass(kw_only=True)
class _Search:
    """The bracket while it closes: every probe by batch size."""

    run: Callable[[int, bool], Probe]
    cap_bytes: int
    limit: int
    probes: list[Probe] = field(default_factory=list)

    def ask(self, batch: int, *, sure: bool = False) -> Probe:
        probe = self.run(batch, sure)
        self.probes.append(probe)
        return probe

    @property
    def largest_passed(self) -> int:
        failed = self.smallest_failed
        return max((p.batch for p in self.probes if p.passed and p.batch < failed), default=0)

    @property
    def smallest_failed(self) -> int:
        return min((p.batch for p in self.probes if not p.passed), default=self.limit + 1)

    @property
    def points(self) -> list[tuple[int, int]]:
        """Batches and their peaks, ascending; scouted ones among them."""
        passed = [p for p in self.probes if p.passed]
        ran = {p.batch: p.peak_bytes for p in passed if p.peak_bytes is not None}
        return sorted({**dict(point for p in passed for point in p.points), **ran}.items())

    def predicted(self) -> float | None:
        """Where the line through the smallest and the largest point meets the cap; None without a slope."""
        points = self.points
        if len(points) < 2:
            return None
        (low, low_bytes), (high, high_bytes) = points[0], points[-1]
        slope = (high_bytes - low_bytes) / (high - low)
        usable = min((p.usable_bytes for p in self.probes if p.usable_bytes is not None), default=self.cap_bytes)
        return None if slope <= 0 else high + (usable - high_bytes) / slope


#: A jump to more than FAR times the largest point stops short of the prediction by this share: it passes then, and the
#: line through it is good to an image or two. From a point at half the way the line is good to 1.5 % (H200: resnet18,
#: resnet50, resnest26d, resnest50d_1s4x24d).
SHORT, FAR = 0.95, 2.5

#: A prediction is sure if a fresh process passed within this share of it.
NEAR = 0.9

#: From this stride on the line has misled so often that the bracket is halved.
MISLED = 16


def largest_batch(
    run: Callable[[int, bool], Probe], *, cap_bytes: int, limit: int, first: int = 8, smallest: int = 2
) -> tuple[int, str, list[Probe]]:
    """The largest batch that passes, why the search ended there, and every probe in order.

    Memory is close to affine in the batch, so two points give a line (one scout, or two small probes), a jump to its
    prediction (to just short of a far one) a better line, and strides that double close the bracket. Memory need not
    be monotone for the result to hold: it says that the batch passed and the next did not.

    Args:
        run: runs one probe in a fresh process; told whether the size is likely to be the result, so that it may be
            timed at once.
        cap_bytes: the memory cap, for the prediction only; a probe's ``passed`` decides.
        limit: the largest batch worth asking for (training images, or the recipe's), at least ``smallest``.
        first: where to start; ``smallest`` the least batch that can be trained (ResNeSt's batch norm needs 2).

    Returns:
        ``(batch, why, probes)``; batch is 0 if none passed, and ``why`` then is the reason.
    """
    search = _Search(run=run, cap_bytes=cap_bytes, limit=limit)
    start = max(smallest, min(first, limit))
    probe = search.ask(start)
    if probe.fatal:
        return 0, probe.reason, search.probes
    if not probe.passed:
        smaller = search.ask(smallest) if start > smallest else probe
        if not smaller.passed:
            why = smaller.reason if smaller.fatal else f"{smallest} images do not fit: {smaller.reason}"
            return 0, why, search.probes
    elif start < limit and len(search.points) < 2:
        search.ask(min(limit, 3 * start))
    stride = 1
    while (hi := search.smallest_failed) - (lo := search.largest_passed) > 1:
        guess, stride = _next_guess(search, lo, hi, stride)
        guess = max(lo + 1, min(hi - 1, guess))
        predicted = search.predicted()
        search.ask(guess, sure=predicted is not None and guess == int(predicted) and lo >= NEAR * guess)
    batch = search.largest_passed
    if batch == limit:
        return batch, f"{batch} is as large as the recipe or the data allow; memory would allow more", search.probes
    failure = next(p for p in search.probes if p.batch == batch + 1 and not p.passed)
    return batch, f"{batch} ran within {format_size(cap_bytes)}, {batch + 1} did not: {failure.reason}", search.probes


def _next_guess(search: _Search, lo: int, hi: int, stride: int) -> tuple[int, int]:
    """Where to look between ``lo`` (passed) and ``hi`` (failed, or beyond the limit), and the next stride."""
    predicted, failed = search.predicted(), hi <= search.limit
    reach = max([lo, *(batch for batch, _ in search.points if batch < hi)])
    if failed and hi > FAR * reach:
        return 3 * hi // 4, stride  # a far jump failed: what passes near it makes the line a good one
    if failed and (predicted is None or stride > MISLED):
        return (lo + hi) // 2, stride
    if predicted is None:
        return 2 * lo, stride
    if not failed and predicted >= hi:
        return search.limit, stride
    if not failed and predicted > FAR * reach:
        return int(SHORT * predicted), stride
    if lo < int(predicted) < hi:
        return int(predicted), 2 * stride if failed else 1
    return (lo + stride if predicted < hi else hi - stride), 2 * stride


def to_dict(profile: Profile) -> dict[str, Any]:
    """The profile as plain JSON values; :func:`from_dict` is its inverse."""
    import dataclasses

    return dataclasses.asdict(profile)


def _probe(value: dict[str, Any]) -> Probe:
    timing = value["timing"]
    if timing is not None:
        timing = Timing(**{**timing, "eval_image_s": {int(px): s for px, s in timing["eval_image_s"].items()}})
    return Probe(**{**value, "timing": timing, "points": tuple((b, n_bytes) for b, n_bytes in value["points"])})


def from_dict(value: dict[str, Any], *, cached: bool | None = None) -> Profile:
    """The profile that :func:`to_dict` wrote; ``cached`` overrides where it came from."""
    timing = Timing(
        **{**value["timing"], "eval_image_s": {int(px): s for px, s in value["timing"]["eval_image_s"].items()}}
    )
    return Profile(
        **{
            **value,
            "candidate": Candidate(**value["candidate"]),
            "timing": timing,
            "probes": tuple(_probe(probe) for probe in value["probes"]),
            "cached": value["cached"] if cached is None else cached,
        }
    )
