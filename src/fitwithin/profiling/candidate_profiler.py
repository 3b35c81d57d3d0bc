"""A candidate while it is measured: the search for its largest batch, probe by probe, and its timing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Semaphore
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import JobSettings, ProbeJob
from fitwithin.engine.results import Failure, Probe, Progress
from fitwithin.profiling.batch_search import expected_edge, knee, largest_batch, parts
from fitwithin.profiling.profile import Prior, Profile, Rejection, edge_of

#: Batch norm over one value fails in training (ResNeSt), so two images are the least.
SMALLEST_BATCH = 2

#: A limit up to here (set by the recipe or the data) is tried first: one probe instead of three when memory is ample.
TRY_LIMIT_FIRST = 64

#: Otherwise the search begins here.
SMALL_BATCH = 8

#: No single probe lasts longer: a model that hangs is rejected, not waited for.
PROBE_WITHIN_S = 300.0

OUT_OF_TIME = "no time was left to profile it"

#: A probe that found the device's memory taken by others is asked again so often, after so many seconds.
CROWDED_RETRIES, CROWDED_PAUSE_S = 2, 5.0

#: Told of every probe: the candidate's name and the size.
Tell = Callable[[Progress], None]


class CandidateProfiler:
    """A candidate while it is measured: first its largest batch is found, then that is timed."""

    def __init__(
        self,
        candidate: Candidate,
        setting: JobSettings,
        engine: Engine,
        *,
        n_train: int,
        tell: Tell,
        lanes: Semaphore | None = None,
        brief: bool = False,
    ) -> None:
        self._lanes = lanes or Semaphore()
        self.candidate, self._setting, self._engine, self._tell = candidate, setting, engine, tell
        self._brief = brief
        #: What an update takes for every candidate, if the recipe says so; in parts of max_batch at the most.
        self._held = min(n_train, setting.recipe.batch) if isinstance(setting.recipe.batch, int) else 0
        #: Processes that share an update. What is probed is the share of one; a limit is an update's.
        self._ranks = setting.data_parallel
        self._limit = min(n_train, setting.recipe.max_batch or n_train, self._held or n_train) // self._ranks
        self._asked: dict[tuple[int, int], Probe] = {}  # by batch and the parts in which it was timed, 0 if it was not
        self._taken: list[Probe] = []
        self._until_at = 0.0
        self._ended = ""  # why nothing more can be found out, if so
        self._placed = False
        self._captured = True
        self._outside_bytes = 0
        self.batch, self._why = 0, ""
        self._searched = False
        #: Called whenever a probe of the search is over.
        self.on_probe: Callable[[], None] = lambda: None

    def search(self, until_at: float, place: Prior | None = None, *, beside: bool = False) -> Rejection | None:
        """Find the largest batch that runs, ``beside`` others at work or alone; the reason if there is none."""
        if self._ranks > 1 and self._limit < SMALLEST_BATCH:
            reason = f"the recipe or the data allow {self._ranks} processes not even {SMALLEST_BATCH} images each"
            return Rejection(candidate=self.candidate, reason=f"{reason}; choose a smaller --data-parallel")
        self._until_at, self._placed, self._searched = until_at, place is not None, False
        self._outside_bytes = place.non_allocator_bytes if place is not None else self._outside_bytes
        first = self._limit if self._limit <= TRY_LIMIT_FIRST or self._brief else SMALL_BATCH
        at_once = not beside and self._setting.recipe.batch == "largest"
        self.batch, self._why, _ = largest_batch(
            # A limit that is tried first is likely to be the result: it is timed at once, if nothing disturbs that.
            lambda batch: self._ask(batch, accum_steps=int(at_once and batch == self._limit == first)),
            cap_bytes=self._setting.memory_bytes,
            limit=self._limit,
            first=first,
            smallest=SMALLEST_BATCH,
            prior=None if self._brief else place,
            known=[probe for (_, accum_steps), probe in self._asked.items() if not accum_steps],
            run_both=self._ask_both if beside else None,
        )
        self._searched = True
        if self.batch == 0 or self._ended:
            return Rejection(candidate=self.candidate, reason=self._ended or self._why)
        return None

    @property
    def edge(self) -> float | None:
        """Where its memory meets the cap, in images; while the search goes on, where it is about to end."""
        if self._searched:
            return edge_of(self.batch, self.probes)
        return expected_edge(self.probes, cap_bytes=self._setting.memory_bytes, limit=self._limit)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe so far, in order."""
        return tuple(self._taken)

    def time(self, until_at: float) -> Profile | Rejection:
        """Time the batch that the recipe wants, in fresh processes; if the largest one fails there, search on below."""
        wanted = self._setting.recipe.batch
        while True:
            self._until_at = until_at
            if self._held:
                return self._in_parts(self._held)  # which tries smaller parts by itself
            timed = self._ask(self.batch, accum_steps=1, rates=wanted == "knee")
            found = self._profile(timed, self._why)
            if isinstance(found, Profile) and wanted == "knee":
                return self._at_the_knee(found)
            if isinstance(found, Profile) or self._ended or timed.fatal or self.batch <= SMALLEST_BATCH:
                return found
            self._asked[self.batch, 0] = timed
            if (rejection := self.search(until_at)) is not None:
                return rejection

    def _profile(self, timed: Probe, why: str, *, accum_steps: int = 1) -> Profile | Rejection:
        if timed.timing is None or timed.peak_bytes is None:
            return Rejection(candidate=self.candidate, reason=self._ended or timed.reason)
        return Profile(
            candidate=self.candidate,
            parameters=timed.parameters,
            batch=timed.batch * self._ranks,
            batch_why=why if self._ranks == 1 else f"{self._ranks} processes take {timed.batch} each; {why}",
            peak_bytes=timed.peak_bytes,
            timing=timed.timing,
            probes=self.probes,
            captured=self._captured,
            accum_steps=accum_steps,
            largest=self.batch,
            brief=self._brief,
        )

    def _at_the_knee(self, largest: Profile) -> Profile:
        """The profile at the knee of the throughput; the one at the largest batch if that is it, or if that failed."""
        batch, why = knee(largest.timing.rates)
        if batch == largest.batch // self._ranks:
            return replace(largest, batch_why=f"{largest.batch_why}; {why}")
        found = self._profile(self._ask(batch, accum_steps=1), f"{why}; {largest.batch_why}")
        return found if isinstance(found, Profile) else replace(largest, probes=self.probes)

    def _in_parts(self, batch: int) -> Profile | Rejection:
        """An update of ``batch`` images, in as few parts as fit."""
        found: Profile | Rejection = Rejection(candidate=self.candidate, reason=f"{batch} images cannot be divided")
        share, rest = divmod(batch, self._ranks)
        if rest:
            reason = f"the recipe's {batch} images an update cannot be shared equally by {self._ranks} processes"
            return Rejection(candidate=self.candidate, reason=reason)
        for accum_steps in parts(share, self.batch):
            told = f"in {accum_steps} parts of {share // accum_steps}" if accum_steps > 1 else "at once"
            why = f"{batch} images an update are held for all candidates, here {told}; {self._why}"
            timed = self._ask(share, accum_steps=accum_steps)
            found = self._profile(timed, why, accum_steps=accum_steps)
            if isinstance(found, Profile) or self._ended or timed.fatal:
                break
        return found

    def _ask_both(self, batch: int, other: int) -> list[Probe]:
        """Probe two batches at once if a lane is free for the second, else the first alone."""
        if not self._lanes.acquire(blocking=False):
            return [self._ask(batch)]
        with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
            beside = pool.submit(self._ask_in_lane, other)
            return [self._ask(batch), beside.result()]

    def _ask_in_lane(self, batch: int) -> Probe:
        """Probe a batch in a lane that was taken for it."""
        try:
            return self._ask(batch, lane=nullcontext())
        finally:
            self._lanes.release()

    def _ask(
        self, batch: int, *, accum_steps: int = 0, rates: bool = False, lane: AbstractContextManager[Any] | None = None
    ) -> Probe:
        """Probe a batch; with ``accum_steps`` it is timed, in so many parts."""
        for known in ((batch, accum_steps), (batch, 1)):
            if known in self._asked and accum_steps <= 1:
                return self._asked[known]
        if self._ended:
            return Probe(batch=batch, passed=False, reason=self._ended, fatal=True)
        what = f"{self.candidate.name}: batch {batch}{', timed' if accum_steps else ''}"
        self._tell(Progress(step=len(self._taken), total=0, text=what))
        with lane or self._lanes:
            begun_at = self._engine.now()
            probe = self._probe(batch, accum_steps=accum_steps, rates=rates)
        self._asked[batch, accum_steps] = replace(probe, wall_s=self._engine.now() - begun_at)
        self._taken.append(self._asked[batch, accum_steps])
        self.on_probe()
        return self._asked[batch, accum_steps]

    def _probe(self, batch: int, *, accum_steps: int, rates: bool) -> Probe:
        job = ProbeJob(
            setting=self._setting,
            candidate=self.candidate,
            batch=batch,
            timed=accum_steps > 0,
            # Processes that train together would have to agree on where to look, and on who ran out of memory there.
            scout=not self._taken and not accum_steps and batch < self._limit and self._ranks == 1,
            limit=self._limit,
            non_allocator_bytes=max([self._outside_bytes, *(probe.non_allocator_bytes for probe in self._taken)]),
            cuda_graph=self._captured,
            accum_steps=max(1, accum_steps),
            rates=rates,
            quick=self._brief and accum_steps > 0,
        )
        ends_at = min(self._until_at, self._engine.now() + PROBE_WITHIN_S)
        for pauses in range(CROWDED_RETRIES + 1):
            outcome = self._engine.do(job, until_at=ends_at, on_progress=self._tell)
            if job.scout and isinstance(outcome, Failure) and outcome.kind != "deadline":
                # It may have been the scouted size that failed: the small one is asked alone before it is judged.
                outcome = self._engine.do(replace(job, scout=False), until_at=ends_at, on_progress=self._tell)
            if isinstance(outcome, Probe) and outcome.graph_capture_failed:
                self._captured, job = False, replace(job, cuda_graph=False)
                outcome = self._engine.do(job, until_at=ends_at, on_progress=self._tell)
            if not (isinstance(outcome, Probe) and outcome.memory_taken_by_others):
                break
            if pauses < CROWDED_RETRIES:
                self._engine.rest(CROWDED_PAUSE_S)
        if isinstance(outcome, Probe) and outcome.memory_taken_by_others:
            self._ended = outcome.reason  # what others take is no fact of the candidate: nothing is certified
        if isinstance(outcome, Failure):
            if outcome.kind == "deadline" and self._engine.now() < self._until_at:
                self._ended = f"a step of {batch} images did not come to an end within {PROBE_WITHIN_S:g} s"
            elif outcome.kind == "deadline":
                self._ended = OUT_OF_TIME
            return Probe(
                batch=batch,
                passed=False,
                reason=self._ended or outcome.reason,
                fatal=bool(self._ended) or self._at_any_size(outcome, batch),
            )
        assert isinstance(outcome, Probe)
        return outcome

    def _at_any_size(self, failure: Failure, batch: int) -> bool:
        """Whether it would fail like this at a smaller batch too; else one may do."""
        if batch <= SMALLEST_BATCH:
            return failure.kind in ("error", "died")
        first_and_small = not self._taken and not self._placed and batch <= SMALL_BATCH
        ran_already = self.batch > 0  # what is timed has a size that ran: a full disk is no matter of size
        return failure.kind == "error" and (first_and_small or ran_already)
