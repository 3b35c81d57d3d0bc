"""The profile phase of a run: every candidate's batch and step time, within the budget, on the slots of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fitwithin import events
from fitwithin.accountant import OpenEntry
from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.margins import EXIT_S
from fitwithin.engine.results import Progress
from fitwithin.events import CandidateProfiled, CandidateRejected
from fitwithin.files import cache_root
from fitwithin.machine import cores
from fitwithin.pipeline import slots
from fitwithin.pipeline.context import RunContext
from fitwithin.planning import prior as table
from fitwithin.planning.pool import profile_share
from fitwithin.profiling import compare, interpolate, variants
from fitwithin.profiling.cache import ProfileCache, data_shape
from fitwithin.profiling.candidate_profiler import OUT_OF_TIME, CandidateProfiler
from fitwithin.profiling.profile import Prior, Profile, Rejection, prior
from fitwithin.units import format_count, format_duration, format_size

#: Under scope ``total``, profiling candidates that the user named may take this share of the budget, with the start.
#: The first candidate may take REFUSAL_S if the budget has them, so that a refusal can say what would do.
PROFILE_SHARE, REFUSAL_S = 0.4, 60.0

#: If less than this is left for all, the first candidate is profiled alone: the others would come too late.
FIRST_ALONE_S = 16.0
#: The share of the time for a search of candidates side by side on one device; the rest is for timing.
SEARCH_SHARE = 0.6

#: Under scope ``candidate`` profiling comes on top of the candidates' budgets; none takes longer than this.
PROFILE_WITHIN_S = 600.0

#: Expected seconds on a GPU (docs/log.md): of a profile, of comparing one backbone's precisions and layouts, and of
#: comparing the layouts of all backbones in one process (a fixed part, and a part per backbone).
FULL_PROFILE_S, COMPARE_S, LAYOUTS_S = 8.0, 6.0, (2.0, 1.5)

#: If profiles and comparisons would take more than this share of the budget, profiles are quick, and one per backbone
#: serves all its sizes; if comparing would, only layouts are compared, or nothing.
BRIEF_SHARE = 0.1

#: The same where candidates were chosen: what is known of them already decides more.
CHOSEN_BRIEF_SHARE = 0.02


def open_cache(run: RunContext) -> ProfileCache:
    """The profiles that are known of this machine, these limits and data of this shape."""
    machine = {"cores": cores(), **run.engine.describe()}
    return ProfileCache(cache_root() / "profiles", machine, run.setting, data_shape(run.images))


def profile(run: RunContext, *, refresh: bool = False) -> list[Profile | Rejection]:
    """The profile phase: every candidate of the grid, from the cache where it is known unless ``refresh``."""
    return _ProfilePhase(run, refresh=refresh).profile()


def profiling_left_s(run: RunContext) -> float:
    """Seconds by the clock that are left of profiling's share, of the tighter limit."""
    budget, ledger = run.request.budget, run.accountant.ledger()
    if run.chosen:
        entries = ledger.by_phase().get("profile", ())
        spent_s = math.fsum(entry.weighted(entry.charged_s or 0.0, gpu=False) for entry in entries)
        return profile_share(run.request.limit_s) * run.request.limit_s - spent_s
    left_s = [PROFILE_SHARE * budget.time_s - ledger.spent_s()] if budget.time_s is not None else []
    if budget.gpu_time_s is not None:
        left_s.append((PROFILE_SHARE * budget.gpu_time_s - ledger.spent_s(gpu=True)) / run.request.num_gpus)
    return min(left_s)


class _ProfilePhase:
    """The phase while it lasts: ``known`` holds what was found out about candidates, by name."""

    def __init__(self, run: RunContext, *, refresh: bool) -> None:
        self.run = run
        self.refresh = refresh
        self.cache = open_cache(run)
        self.known: dict[str, Profile | Rejection] = {**events.profiled(run.store), **events.rejected(run.store)}
        #: Whether the recipe bounds the batch.
        self.bounded = run.request.recipe.batch == "largest" and run.request.recipe.max_batch is not None
        #: Whether profiles are timed briefly.
        self.quick = False

    def profile(self) -> list[Profile | Rejection]:
        """What is known of every candidate of the grid in the end."""
        run, recipe = self.run, self.run.request.recipe
        run.reporter.begin("profiling", len(run.candidates))
        if not self.refresh:
            self.record_cached(quick=False)
        wanted = {(candidate.model, candidate.train_px) for candidate in self.unknown}
        models = len({model for model, _ in wanted})
        whole_s = FULL_PROFILE_S * len(wanted) + recipe.compare_variants * COMPARE_S * models
        self.quick = self.bounded and not self.refresh and not self.affords(whole_s / run.request.slots)
        if self.quick:
            self.record_cached(quick=True)
        if recipe.compare_variants:
            self.reject_slower_variants(models)
        if self.quick:
            self.measure(interpolate.largest(self.unknown))
            profiles, view_sizes = self.profiles, run.request.test_sizes
            for found in interpolate.interpolate_profiles(profiles, self.unknown, recipe, view_sizes):
                self.record(found)
        self.measure(self.unknown)
        return [self.known[candidate.name] for candidate in run.candidates]

    @property
    def unknown(self) -> list[Candidate]:
        return [candidate for candidate in self.run.candidates if candidate.name not in self.known]

    @property
    def profiles(self) -> list[Profile]:
        return [found for found in self.known.values() if isinstance(found, Profile)]

    def record(self, found: Profile | Rejection) -> None:
        """Store and report what was found out about a candidate."""
        if isinstance(found, Profile) and not found.cached:
            self.cache.put(found)
        self.known[found.candidate.name] = found
        self.run.reporter.say(_line(found))
        if isinstance(found, Profile):
            self.run.store.append(CandidateProfiled(profile=found))
        else:
            self.run.store.append(CandidateRejected(rejection=found))

    def record_cached(self, *, quick: bool) -> None:
        for candidate in self.unknown:
            if (cached := self.cache.get(candidate, quick=quick)) is not None:
                self.record(cached)

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds are at most BRIEF_SHARE of the budget, or CHOSEN_BRIEF_SHARE."""
        budget = self.run.request.budget
        share = CHOSEN_BRIEF_SHARE if self.run.chosen else BRIEF_SHARE
        return budget.scope == "candidate" or seconds <= share * budget.limit_s(self.run.request.num_gpus)

    def on_progress(self, progress: Progress) -> None:
        self.run.reporter.advance(len(self.known), len(self.run.candidates), progress.text)

    # --- precisions and layouts ---------------------------------------------------------------------------------------

    def reject_slower_variants(self, num_models: int) -> None:
        """Reject precisions and layouts that lose at a small batch; without time for that all but one of a backbone."""
        run, unknown, total = self.run, self.unknown, self.run.request.budget.scope == "total"
        models = sorted({candidate.model for candidate in unknown})
        left_s = profiling_left_s(run) if total else PROFILE_WITHIN_S * len(models)
        if not unknown or left_s <= 0:
            return
        if run.chosen and run.pool:  # their profiles go first
            left_s -= math.fsum(each.profile_s for each in run.pool.taken) / run.request.slots
        left_s, extent = max(0.0, left_s), self.extent(left_s, -(-num_models // run.request.slots))
        lost = self.compare(models, left_s, extent)
        if (self.bounded and total) or extent != "whole":  # an unbounded batch may make another one the fastest
            names = {*self.known, *(rejection.candidate.name for rejection in lost)}
            there = [each for each in run.candidates if isinstance(self.known.get(each.name), Profile)]
            waiting = [candidate for candidate in unknown if candidate.name not in names]
            left_out = variants.default_variants_only([*there, *waiting], compared=extent == "whole")
            lost += [rejection for rejection in left_out if rejection.candidate not in there]
        for rejection in lost:
            if rejection.candidate.name not in self.known:
                self.record(rejection)

    def extent(self, left_s: float, rounds: int) -> compare.Extent:
        """How much is compared in so many seconds, in ``rounds`` of one backbone on each slot."""
        ways: dict[compare.Extent, float] = {"whole": COMPARE_S * rounds, "quick": LAYOUTS_S[0] + LAYOUTS_S[1] * rounds}
        if self.refresh:
            return "whole"
        return next((way for way, cost_s in ways.items() if self.affords(cost_s) and cost_s <= left_s), "known")

    def compare(self, models: Sequence[str], left_s: float, extent: compare.Extent) -> list[Rejection]:
        """The candidates that lose; each slot compares one backbone after the other, or a share of them at once."""
        run = self.run
        parts = len(models) if extent == "whole" else min(len(models), run.request.slots)
        waiting = [models[n::parts] for n in range(parts)]
        ends_at = run.engine.now() + left_s
        limit_s = run.request.budget.limit_s(run.request.num_gpus)
        trial_s = limit_s if run.request.budget.scope == "candidate" else limit_s / len(models)
        lost: list[Rejection] = []

        def next_work(slot: int) -> slots.Work[list[Rejection]] | None:
            if not waiting:
                return None
            part = waiting.pop(0)
            promised_s = run.promise_s(ends_at - run.engine.now(), gpus=run.request.data_parallel)
            opened = run.book("profile", "", reserved_s=promised_s)

            def work() -> list[Rejection]:
                with opened:
                    return compare.compare_variants(
                        [candidate for candidate in run.candidates if candidate.model in part],
                        run.seated(slot),
                        run.engine,
                        until_at=ends_at,
                        on_progress=self.on_progress,
                        on_peak=opened.peak,
                        cache=self.cache,
                        refresh=self.refresh,
                        extent=extent,
                        trial_s=trial_s,
                    )

            return work

        promised_s = run.promise_s(left_s, gpus=0)
        slots.run_on_slots(run, "profile", reserved_s=promised_s, next_work=next_work, on_done=lost.extend)
        return lost

    # --- profiles -----------------------------------------------------------------------------------------------------

    def measure(self, unknown: list[Candidate]) -> None:
        """Profile these candidates."""
        if not unknown:
            return
        jobs = self.run.engine.max_parallel(self.run.request.jobs, self.run.request.budget.memory_bytes)
        if jobs > 1:
            self.measure_on_one_device(unknown, jobs)
        else:
            self.measure_on_slots(unknown)

    def limits_s(self, rounds: int) -> tuple[float, float]:
        """Seconds for so many rounds of profiling, and for its first profile, which may exceed the share."""
        if self.run.request.budget.scope == "candidate":
            return PROFILE_WITHIN_S * rounds, PROFILE_WITHIN_S
        phase_limit_s = profiling_left_s(self.run)
        if self.profiles:
            return phase_limit_s, phase_limit_s
        usable_s = self.run.accountant.remaining(self.run.request.data_parallel).usable_s
        return phase_limit_s, max(phase_limit_s, min(REFUSAL_S, usable_s - EXIT_S))

    def expense(self, candidate: Candidate) -> tuple[bool, float]:
        """A key for the cheapest to profile first, since time may end before the last: depthwise kernels are dear. Else
        chosen candidates keep their order, the best expected first."""
        kind, backbone = self.run.request.device.kind, table.load().of(candidate.model)
        pace = 0.0 if self.run.chosen else backbone.image_us(kind, table.PACE_PX[kind])
        return backbone.depthwise and kind == "cuda", pace

    def profiler(self, candidate: Candidate, setting: JobSettings, opened: OpenEntry) -> CandidateProfiler:
        return CandidateProfiler(
            candidate,
            setting,
            self.run.engine,
            n_train=self.run.data.train,
            on_progress=self.on_progress,
            on_peak=opened.peak,
            quick=self.quick,
        )

    def measure_on_slots(self, unknown: list[Candidate]) -> None:
        """Profile candidates on the slots of the run, each alone on its devices and with an entry of its own."""
        run, at_work = self.run, set[Candidate]()
        waiting = sorted(unknown, key=self.expense)
        phase_limit_s, first_limit_s = self.limits_s(-(-len(unknown) // run.request.slots))
        ends_at = run.engine.now() + phase_limit_s
        first, alone = True, phase_limit_s < min(first_limit_s, FIRST_ALONE_S)

        def next_work(slot: int) -> slots.Work[Profile | Rejection] | None:
            nonlocal first
            while waiting and not (alone and at_work):
                candidate = _take_next(waiting, at_work)
                left_s = PROFILE_WITHIN_S
                if run.request.budget.scope == "total":
                    left_s = max(ends_at - run.engine.now(), first_limit_s if first else 0.0)
                first = False
                if left_s <= 0:
                    at_work.remove(candidate)
                    self.record(Rejection(candidate=candidate, reason=OUT_OF_TIME))
                    continue
                promised_s = run.promise_s(left_s, gpus=run.request.data_parallel)
                opened = run.book("profile", candidate.name, reserved_s=promised_s)
                profiler = self.profiler(candidate, run.seated(slot), opened)
                until_at, place = run.engine.now() + left_s, prior(self.profiles, candidate)
                return partial(_profile_within, opened, profiler, until_at, place)
            return None

        def on_done(found: Profile | Rejection) -> None:
            nonlocal alone
            at_work.remove(found.candidate)
            alone = False
            self.record(found)

        promised_s = run.promise_s(max(phase_limit_s, first_limit_s), gpus=0)
        slots.run_on_slots(run, "profile", reserved_s=promised_s, next_work=next_work, on_done=on_done)

    def measure_on_one_device(self, unknown: list[Candidate], jobs: int) -> None:
        """Search the batches of ``jobs`` candidates side by side on one device; then time each alone."""
        run, gpus = self.run, self.run.request.data_parallel
        left_s = max(self.limits_s(-(-len(unknown) // jobs)))
        if left_s <= 0:
            for candidate in unknown:
                self.record(Rejection(candidate=candidate, reason=OUT_OF_TIME))
            return
        waiting, at_work = list(unknown), set[Candidate]()
        searched: list[CandidateProfiler] = []
        search_ends_at, ends_at = run.engine.now() + SEARCH_SHARE * left_s, run.engine.now() + left_s
        with run.accountant.entry("profile", gpus=gpus, reserved_s=run.promise_s(left_s, gpus=gpus)) as opened:

            def next_work(_: int) -> slots.Work[tuple[CandidateProfiler, Rejection | None]] | None:
                if not waiting:
                    return None
                candidate = _take_next(waiting, at_work)
                profiler = self.profiler(candidate, run.setting, opened)
                place = prior([*self.profiles, *searched], candidate)
                return lambda: (profiler, profiler.search(search_ends_at, place, alone=False))

            def on_done(done: tuple[CandidateProfiler, Rejection | None]) -> None:
                profiler, rejection = done
                at_work.remove(profiler.candidate)
                if rejection is not None:
                    self.record(rejection)
                else:
                    searched.append(profiler)

            slots.side_by_side(run.engine, jobs, next_work, on_done)
            for profiler in searched:
                self.record(profiler.time(ends_at))


def _line(found: Profile | Rejection) -> str:
    if isinstance(found, Rejection):
        return f"  {found.candidate.name}: rejected, {found.reason}"
    many = "" if len(found.probes) == 1 else "s"
    origin = f"{len(found.probes)} probe{many} in {format_duration(found.wall_s)}"
    if found.cached or not found.wall_s:
        origin = "from the cache" if found.cached else "from a larger size"
    return (
        f"  {found.candidate.name}: batch {found.batch}, {format_count(found.images_per_s)} images/s, "
        f"{format_size(found.peak_bytes)} ({origin})"
    )


def _take_next(waiting: list[Candidate], at_work: set[Candidate]) -> Candidate:
    """Move the next candidate from ``waiting`` to ``at_work``: if possible of a backbone that is not at work, since one
    size of a backbone places the probes of the next."""
    families = {replace(candidate, train_px=0) for candidate in at_work}
    candidate = next((each for each in waiting if replace(each, train_px=0) not in families), waiting[0])
    waiting.remove(candidate)
    at_work.add(candidate)
    return candidate


def _profile_within(
    opened: OpenEntry, profiler: CandidateProfiler, until_at: float, place: Prior | None
) -> Profile | Rejection:
    with opened:
        return profiler.profile(until_at, place)
