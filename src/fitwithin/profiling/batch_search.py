"""The search for a candidate's largest batch: a line, a jump, a bracket that closes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fitwithin.engine.jobs import MIN_RATIO
from fitwithin.engine.results import Probe
from fitwithin.profiling.profile import Prior, memory_points, slope_of
from fitwithin.units import format_count, format_size

#: Batch norm over one value fails in training (ResNeSt), so two images are the least.
SMALLEST_BATCH = 2

#: The knee is the smallest batch with at least this share of the best throughput.
KNEE = 0.97

#: An allocator that maps pages of 20 MiB leaves half of one unused on average.
HALF_PAGE_BYTES = 10 * 2**20

#: A jump to more than MAX_EXTRAPOLATION times the largest point goes to this share of the prediction only: it passes,
#: and the line through it is good to an image or two.
UNDERSHOOT, MAX_EXTRAPOLATION = 0.95, 2.5

#: After strides beyond this one the bracket is halved: the line is not to be trusted.
BISECT_FROM_STRIDE = 16


@dataclass(kw_only=True)
class _Search:
    """The bracket while it closes: every probe by batch size."""

    run: Callable[[int], Probe]
    cap_bytes: int
    limit: int
    prior: Prior | None = None
    probes: list[Probe] = field(default_factory=list)

    def probe(self, batch: int) -> Probe:
        self.probes.append(self.run(batch))
        return self.probes[-1]

    @property
    def largest_passed(self) -> int:
        failed = self.smallest_failed
        return max((p.batch for p in self.probes if p.passed and p.batch < failed), default=0)

    @property
    def smallest_failed(self) -> int:
        return min((p.batch for p in self.probes if not p.passed), default=self.limit + 1)

    def predicted(self) -> float | None:
        """Where the line meets the cap: through the two largest points MIN_RATIO apart, or with the prior's slope."""
        points = memory_points(self.probes)
        if not points:
            return None
        high, high_bytes = points[-1]
        below = [point for point in points if high >= MIN_RATIO * point[0]]
        if not below and self.prior is None:
            below = points[:-1][:1]
        slope = slope_of([below[-1], points[-1]]) if below else self.prior.image_bytes if self.prior else 0.0
        if slope <= 0:
            return None
        usable = min((p.usable_bytes for p in self.probes if p.usable_bytes is not None), default=None)
        room = self.cap_bytes if usable is None else usable - HALF_PAGE_BYTES
        return high + (room - high_bytes) / slope


def largest_batch(
    run: Callable[[int], Probe],
    *,
    cap_bytes: int,
    limit: int,
    first: int = 8,
    prior: Prior | None = None,
    known: Iterable[Probe] = (),
) -> tuple[int, str, list[Probe]]:
    """The largest batch that passes, why the search ended there, and every probe in order.

    Memory is close to affine in the batch: two points (of one scout, or of two small probes) or a prior give a line,
    and the search jumps to its prediction. Strides that double then close the bracket. The result also holds if memory
    is not monotone: the batch passed and the next one did not.

    Args:
        run: runs one probe in a fresh process.
        cap_bytes: the memory cap, for the prediction only; a probe's ``passed`` decides.
        limit: the largest batch wanted, at least SMALLEST_BATCH.
        first: where to start without a ``prior``.
        known: probes of an earlier search, which goes on if one of them passed.

    Returns:
        ``(batch, why, probes)``; if none passed, batch is 0 and ``why`` the reason.
    """
    search = _Search(run=run, cap_bytes=cap_bytes, limit=limit, prior=prior, probes=list(known))
    if search.largest_passed:
        return _close(search)
    start = max(SMALLEST_BATCH, min(prior.batch if prior else first, limit))
    probe = search.probe(start)
    if probe.passed and start < limit and search.predicted() is None:
        search.probe(min(limit, 3 * start))
    elif not probe.passed and not probe.fatal and SMALLEST_BATCH < start <= first:
        probe = search.probe(SMALLEST_BATCH)
    return (0, probe.reason, search.probes) if probe.fatal else _close(search)


def _close(search: _Search) -> tuple[int, str, list[Probe]]:
    """Close the bracket around the largest batch that passes."""
    stride = 1
    while (hi := search.smallest_failed) - (lo := search.largest_passed) > 1:
        if lo == 0 and hi <= SMALLEST_BATCH:
            return 0, f"{SMALLEST_BATCH} images do not fit: {search.probes[-1].reason}", search.probes
        guess, stride = _next_guess(search, lo, hi, stride)
        search.probe(max(lo + 1, SMALLEST_BATCH, min(hi - 1, guess)))
    batch = search.largest_passed
    if batch == search.limit:
        return batch, f"{batch} is as large as the recipe or the data allow; memory would allow more", search.probes
    failure = next(p for p in search.probes if p.batch == batch + 1 and not p.passed)
    why = f"{batch} ran within {format_size(search.cap_bytes)}, {batch + 1} did not: {failure.reason}"
    return batch, why, search.probes


def _next_guess(search: _Search, lo: int, hi: int, stride: int) -> tuple[int, int]:
    """Where to look between ``lo`` (passed) and ``hi`` (failed, or beyond the limit), and the next stride."""
    predicted, failed = search.predicted(), hi <= search.limit
    if lo == 0 and search.prior is not None:
        return hi - stride, 2 * stride  # the prior promised too much
    largest_known = max([lo, *(batch for batch, _ in memory_points(search.probes) if batch < hi)])
    if failed and hi > MAX_EXTRAPOLATION * largest_known:
        return 3 * hi // 4, stride  # a far jump failed: what passes near it makes the line a good one
    if failed and (predicted is None or stride > BISECT_FROM_STRIDE):
        return (lo + hi) // 2, stride
    if predicted is None:
        return 2 * lo, stride
    if not failed and predicted >= hi:
        return search.limit, stride
    if not failed and predicted > MAX_EXTRAPOLATION * largest_known:
        return int(UNDERSHOOT * predicted), stride
    if lo < int(predicted) < hi:
        return int(predicted), 2 * stride if failed else 1
    return (lo + stride if predicted < hi else hi - stride), 2 * stride


def knee(rates: Mapping[int, float]) -> tuple[int, str]:
    """The smallest batch that reaches KNEE of the best throughput, and why; ``rates`` are images/s by batch."""
    best = max(rates, key=lambda batch: rates[batch])
    taken = min(batch for batch in rates if rates[batch] >= KNEE * rates[best])
    measured = ", ".join(f"{format_count(rates[batch])} at {batch}" for batch in sorted(rates))
    return taken, f"{taken} reaches {rates[taken] / rates[best]:.0%} of the best throughput (images/s: {measured})"


def accum_options(batch: int, largest: int) -> list[int]:
    """The numbers of equal parts, of two images or more, in which a batch fits ``largest``; the fewest first."""
    return [n for n in range(1, batch // 2 + 1) if batch % n == 0 and batch // n <= largest]
