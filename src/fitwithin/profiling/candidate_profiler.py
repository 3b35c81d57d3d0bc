"""A candidate while it is profiled: the search for its largest batch, and its timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import JobSettings, ProbeJob
from fitwithin.engine.results import Failure, Probe, Progress
from fitwithin.profiling.batch_search import SMALLEST_BATCH, accum_options, knee, largest_batch
from fitwithin.profiling.profile import Prior, Profile, Rejection, max_batch_of

#: A limit of the recipe, or one of the data up to here, is tried first: one probe instead of three when memory is
#: ample. Otherwise the search begins at SMALL_BATCH.
TRY_LIMIT_FIRST, SMALL_BATCH = 64, 8

#: The most seconds of a probe: a model that hangs is rejected.
PROBE_WITHIN_S = 300.0

OUT_OF_TIME = "no time was left to profile it"

#: A probe that found the device's memory taken by others is repeated this often, after these seconds.
CROWDED_RETRIES, CROWDED_PAUSE_S = 2, 5.0

#: Takes the progress of probes; its text begins with the candidate's name.
ProgressCallback = Callable[[Progress], None]


class CandidateProfiler:
    """A candidate while it is profiled: first its largest batch is found, then that is timed.

    Args:
        n_train: training images; no batch is larger.
        on_progress: called at the start of every probe, and with what the probes report.
        on_peak: called after every probe with its peak memory in bytes, None if unknown.
        quick: the recipe's limit is tried first, and timed briefly.
    """

    def __init__(
        self,
        candidate: Candidate,
        setting: JobSettings,
        engine: Engine,
        *,
        n_train: int,
        on_progress: ProgressCallback,
        on_peak: Callable[[int | None], None] = lambda peak_bytes: None,
        quick: bool = False,
    ) -> None:
        self.candidate = candidate
        self._setting = setting
        self._engine = engine
        self._on_progress = on_progress
        self._on_peak = on_peak
        self._quick = quick
        #: The images of an update that the recipe fixes for every candidate; 0 if it does not.
        self._fixed_batch = min(n_train, setting.recipe.batch) if isinstance(setting.recipe.batch, int) else 0
        #: The processes that share an update; a probe runs the share of one.
        self._ranks = setting.data_parallel
        self._limit = min(n_train, setting.recipe.max_batch or n_train, self._fixed_batch or n_train) // self._ranks
        #: By batch and the accumulation steps in which it was timed, 0 if it was not.
        self._by_batch: dict[tuple[int, int], Probe] = {}
        self._probes: list[Probe] = []
        self._until_at = 0.0
        #: Why no more probes can be run; empty if they can.
        self._stop_reason = ""
        self._prior: Prior | None = None
        self._cuda_graph = True
        self._why = ""
        #: The largest batch that passed; 0 before the search is over.
        self.batch = 0

    def profile(self, until_at: float, prior: Prior | None = None) -> Profile | Rejection:
        """The profile, or why there is none: searched and timed before ``until_at``."""
        return self.search(until_at, prior) or self.time(until_at)

    def search(self, until_at: float, prior: Prior | None = None, *, alone: bool = True) -> Rejection | None:
        """Find the largest batch that passes, before ``until_at``; the rejection if there is none.

        Nothing is timed if other candidates are searched on the device (not ``alone``).
        """
        if self._ranks > 1 and self._limit < SMALLEST_BATCH:
            reason = f"the recipe or the data allow {self._ranks} processes not even {SMALLEST_BATCH} images each"
            return Rejection(candidate=self.candidate, reason=f"{reason}; choose a smaller --data-parallel")
        self._until_at = until_at
        self._prior = prior or self._prior
        bounded = self._setting.recipe.max_batch is not None or self._limit <= TRY_LIMIT_FIRST
        first = self._limit if bounded or self._quick else SMALL_BATCH
        limit_is_timed = alone and self._setting.recipe.batch == "largest"
        self.batch, self._why, _ = largest_batch(
            # A limit that is tried first is probably the result, so it is timed at once.
            lambda batch: self._probe(batch, accum_steps=int(limit_is_timed and batch == self._limit == first)),
            cap_bytes=self._setting.memory_bytes,
            limit=self._limit,
            first=first,
            prior=None if self._quick else prior,
            known=[probe for (_, accum_steps), probe in self._by_batch.items() if not accum_steps],
        )
        if self.batch == 0 or self._stop_reason:
            return Rejection(candidate=self.candidate, reason=self._stop_reason or self._why)
        return None

    @property
    def max_batch(self) -> float | None:
        """Where its memory meets the cap, in images; None if that is not known, or another limit ended the search."""
        return max_batch_of(self.batch, self._probes)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe so far, in order."""
        return tuple(self._probes)

    def time(self, until_at: float) -> Profile | Rejection:
        """Time the batch that the recipe wants, in fresh processes; if the largest one fails there, search below it."""
        wanted = self._setting.recipe.batch
        while True:
            self._until_at = until_at
            if self._fixed_batch:
                return self._profile_accumulated()
            timed = self._probe(self.batch, accum_steps=1, rates=wanted == "knee")
            found = self._to_profile(timed, self._why)
            if isinstance(found, Profile) and wanted == "knee":
                return self._at_the_knee(found)
            if isinstance(found, Profile) or self._stop_reason or timed.fatal or self.batch <= SMALLEST_BATCH:
                return found
            self._by_batch[self.batch, 0] = timed
            if (rejection := self.search(until_at)) is not None:
                return rejection

    def _to_profile(self, timed: Probe, why: str, *, accum_steps: int = 1) -> Profile | Rejection:
        if timed.timing is None or timed.peak_bytes is None:
            return Rejection(candidate=self.candidate, reason=self._stop_reason or timed.reason)
        return Profile(
            candidate=self.candidate,
            parameters=timed.parameters,
            batch=timed.batch * self._ranks,
            batch_why=why if self._ranks == 1 else f"{self._ranks} processes take {timed.batch} each; {why}",
            peak_bytes=timed.peak_bytes,
            timing=timed.timing,
            probes=self.probes,
            cuda_graph=self._cuda_graph,
            accum_steps=accum_steps,
            largest=self.batch,
            quick=self._quick,
        )

    def _at_the_knee(self, largest: Profile) -> Profile:
        """The profile at the knee of the throughput; that at the largest batch if it is the knee, or if this fails."""
        batch, why = knee(largest.timing.rates)
        if batch == largest.batch // self._ranks:
            return replace(largest, batch_why=f"{largest.batch_why}; {why}")
        found = self._to_profile(self._probe(batch, accum_steps=1), f"{why}; {largest.batch_why}")
        return found if isinstance(found, Profile) else replace(largest, probes=self.probes)

    def _profile_accumulated(self) -> Profile | Rejection:
        """The profile of an update of the recipe's batch, in as few accumulation steps as fit."""
        batch = self._fixed_batch
        found: Profile | Rejection = Rejection(candidate=self.candidate, reason=f"{batch} images cannot be divided")
        share, rest = divmod(batch, self._ranks)
        if rest:
            reason = f"the recipe's {batch} images an update cannot be shared equally by {self._ranks} processes"
            return Rejection(candidate=self.candidate, reason=reason)
        for accum_steps in accum_options(share, self.batch):
            parts = f"in {accum_steps} parts of {share // accum_steps}" if accum_steps > 1 else "at once"
            why = f"{batch} images an update are held for all candidates, here {parts}; {self._why}"
            timed = self._probe(share, accum_steps=accum_steps)
            found = self._to_profile(timed, why, accum_steps=accum_steps)
            if isinstance(found, Profile) or self._stop_reason or timed.fatal:
                break
        return found

    def _probe(self, batch: int, *, accum_steps: int = 0, rates: bool = False) -> Probe:
        """Probe a batch, or return its earlier probe; with ``accum_steps`` it is timed, in so many parts."""
        known = self._by_batch.get((batch, accum_steps)) or self._by_batch.get((batch, 1))
        if known is not None and accum_steps <= 1:
            return known
        if self._stop_reason:
            return Probe(batch=batch, passed=False, reason=self._stop_reason, fatal=True)
        text = f"{self.candidate.name}: batch {batch}{', timed' if accum_steps else ''}"
        self._on_progress(Progress(step=len(self._probes), total=0, text=text))
        started_at = self._engine.now()
        probe = self._outcome(batch, accum_steps=accum_steps, rates=rates)
        probe = replace(probe, wall_s=self._engine.now() - started_at)
        self._by_batch[batch, accum_steps] = probe
        self._probes.append(probe)
        return probe

    def _outcome(self, batch: int, *, accum_steps: int, rates: bool) -> Probe:
        """The result of a probe, which is repeated if that may change it."""
        known = (self._prior, *self._probes)
        job = ProbeJob(
            setting=self._setting,
            candidate=self.candidate,
            batch=batch,
            timed=accum_steps > 0,
            # Processes that train together would have to agree on the scouted batches.
            scout=not self._probes and not accum_steps and batch < self._limit and self._ranks == 1,
            limit=self._limit,
            non_allocator_bytes=max((each.non_allocator_bytes for each in known if each), default=0),
            cuda_graph=self._cuda_graph,
            accum_steps=max(1, accum_steps),
            rates=rates,
            quick=self._quick and accum_steps > 0,
        )
        ends_at = min(self._until_at, self._engine.now() + PROBE_WITHIN_S)
        for pauses in range(CROWDED_RETRIES + 1):
            outcome = self._run(job, ends_at)
            if job.scout and isinstance(outcome, Failure) and outcome.kind != "deadline":
                # Perhaps a scouted batch failed: repeat the small one alone.
                outcome = self._run(replace(job, scout=False), ends_at)
            if isinstance(outcome, Probe) and _failed_for_unknown_kernels(outcome, job):
                job = replace(job, non_allocator_bytes=outcome.non_allocator_bytes, scout=False)
                outcome = self._run(job, ends_at)
            if isinstance(outcome, Probe) and outcome.graph_capture_failed:
                self._cuda_graph, job = False, replace(job, cuda_graph=False)
                outcome = self._run(job, ends_at)
            if not (isinstance(outcome, Probe) and outcome.memory_taken_by_others):
                break
            if pauses < CROWDED_RETRIES:
                self._engine.sleep(CROWDED_PAUSE_S)
        if isinstance(outcome, Probe):
            if outcome.memory_taken_by_others:
                self._stop_reason = outcome.reason  # nothing is certified by what others take
            return outcome
        if outcome.kind == "deadline":
            hung = f"a step of {batch} images did not come to an end within {PROBE_WITHIN_S:g} s"
            self._stop_reason = hung if self._engine.now() < self._until_at else OUT_OF_TIME
        return Probe(
            batch=batch,
            passed=False,
            peak_bytes=outcome.peak_bytes,
            reason=self._stop_reason or outcome.reason,
            fatal=bool(self._stop_reason) or self._at_any_size(outcome, batch),
        )

    def _run(self, job: ProbeJob, until_at: float) -> Probe | Failure:
        outcome = self._engine.run(job, until_at=until_at, on_progress=self._on_progress)
        assert isinstance(outcome, Probe | Failure)
        self._on_peak(outcome.peak_bytes)
        return outcome

    def _at_any_size(self, failure: Failure, batch: int) -> bool:
        """Whether a smaller batch would fail in the same way."""
        if batch <= SMALLEST_BATCH:
            return failure.kind in ("error", "died")
        first_and_small = not self._probes and not self._prior and batch <= SMALL_BATCH
        ran_already = self.batch > 0  # this size ran before it was timed: the cause is another, such as a full disk
        return failure.kind == "error" and (first_and_small or ran_already)


def _failed_for_unknown_kernels(probe: Probe, job: ProbeJob) -> bool:
    """Whether it failed while much memory was kept free for kernels that nobody had measured; now they are."""
    other = probe.passed or probe.fatal or probe.memory_taken_by_others or probe.graph_capture_failed
    return not other and job.non_allocator_bytes == 0 and probe.non_allocator_bytes > 0
