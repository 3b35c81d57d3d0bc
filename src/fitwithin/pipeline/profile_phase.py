"""The profile phase of a run: every candidate's batch and step time, within the budget, in its ledger, on its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fitwithin import events
from fitwithin.accountant import OpenEntry
from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.margins import EXIT_S
from fitwithin.events import CandidateProfiled, CandidateRejected
from fitwithin.files import cache_root
from fitwithin.machine import cores
from fitwithin.pipeline import slots
from fitwithin.pipeline.context import RunContext
from fitwithin.profiling import compare, interpolate, variants
from fitwithin.profiling.cache import ProfileCache, data_shape
from fitwithin.profiling.candidate_profiler import OUT_OF_TIME, CandidateProfiler
from fitwithin.profiling.profile import Prior, Profile, Rejection, prior
from fitwithin.units import format_count, format_duration, format_size

#: Under scope ``total``, profiling may take this share of the budget; the first candidate, by which a refusal can say
#: what would do, so many seconds if the budget has them.
PROFILE_SHARE = 0.4
REFUSAL_S = 60.0

#: Where less than this is left for all of them, that one is profiled alone on several slots: others would be too late.
FIRST_ALONE_S = 16.0

#: Where candidates are searched side by side on one device, the share of the time for that; the rest is for timing.
SEARCH_SHARE = 0.6

#: Under scope ``candidate`` profiling comes on top of the candidates' budgets; no candidate takes longer than this.
#: (Depthwise kernels are built at run time for every new batch size: seconds a probe on a GPU.)
PROFILE_WITHIN_S = 600.0

#: A profile takes about so many seconds on a GPU (docs/log.md); comparing a backbone's precisions and layouts is taken
#: to last so many, and comparing only the layouts of all of them, in one process, so many and so many more for each.
#: Where profiles would take more than this share of the budget they are brief, and one per backbone does for all its
#: sizes; where comparing would, only layouts are compared, or nothing.
FULL_PROFILE_S, COMPARE_S, LAYOUTS_S, BRIEF_SHARE = 8.0, 3.0, (2.0, 1.5), 0.1

#: Takes what was found out about a candidate.
Record = Callable[[Profile | Rejection], None]

#: What is known by now, by the candidate's name.
Known = Mapping[str, Profile | Rejection]


def open_cache(run: RunContext) -> ProfileCache:
    """The profiles that are known of this machine, these limits and data of this shape."""
    machine = {"cores": cores(), **run.engine.describe()}
    return ProfileCache(cache_root() / "profiles", machine, run.setting, data_shape(run.images))


def profile(run: RunContext, *, refresh: bool = False) -> list[Profile | Rejection]:
    """The profile phase: every candidate of the grid, from the cache where it is known unless ``refresh`` says not."""
    known: dict[str, Profile | Rejection] = {**events.profiled(run.store), **events.rejected(run.store)}
    cache = open_cache(run)
    run.reporter.begin("profiling", len(run.candidates))

    def record(found: Profile | Rejection) -> None:
        known[found.candidate.name] = found
        run.reporter.say(_line(found))
        if isinstance(found, Profile):
            run.store.append(CandidateProfiled(profile=found))
        else:
            run.store.append(CandidateRejected(rejection=found))

    def record_and_cache(found: Profile | Rejection) -> None:
        if isinstance(found, Profile):
            cache.put(found)
        record(found)

    for candidate in run.candidates:
        if not refresh and candidate.name not in known and (cached := cache.get(candidate)) is not None:
            record(cached)
    bounded = run.request.recipe.batch == "largest" and run.request.recipe.max_batch is not None
    wanted = {(candidate.model, candidate.train_px) for candidate in _unknown(run, known)}
    quick = bounded and not refresh and not _affords(run, FULL_PROFILE_S * len(wanted) / run.request.slots)
    for candidate in _unknown(run, known) if quick else ():
        if (cached := cache.get(candidate, quick=True)) is not None:
            record(cached)
    if run.request.recipe.compare_variants:
        extent = _extent(run, len({model for model, _ in wanted}), refresh=refresh)
        _prune(run, cache, known, record, refresh=refresh, extent=extent)
    if quick:
        _profile(run, interpolate.largest(_unknown(run, known)), known, record_and_cache, quick=True)
        recipe, view_sizes = run.request.recipe, run.request.test_sizes
        for found in interpolate.interpolate_profiles(_profiles(known), _unknown(run, known), recipe, view_sizes):
            record_and_cache(found)
    _profile(run, _unknown(run, known), known, record_and_cache, quick=quick)
    return [known[candidate.name] for candidate in run.candidates]


def _unknown(run: RunContext, known: Known) -> list[Candidate]:
    return [candidate for candidate in run.candidates if candidate.name not in known]


def _profiles(known: Known) -> list[Profile]:
    return [found for found in known.values() if isinstance(found, Profile)]


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


# --- precisions and layouts ------------------------------------------------------------------------------------------


def _extent(run: RunContext, models: int, *, refresh: bool) -> compare.Extent:
    """How far the precisions and layouts of so many backbones can be compared."""
    (once_s, each_s), here = LAYOUTS_S, -(-models // run.request.slots)
    if refresh or _affords(run, COMPARE_S * here):
        return "whole"
    return "quick" if _affords(run, once_s + each_s * here) else "known"


def _affords(run: RunContext, seconds: float) -> bool:
    """Whether the budget can do with that much for finding out about candidates."""
    budget = run.request.budget
    return budget.scope == "candidate" or seconds <= BRIEF_SHARE * budget.limit_s(run.request.num_gpus)


def _prune(
    run: RunContext, cache: ProfileCache, known: Known, record: Record, *, refresh: bool, extent: compare.Extent
) -> None:
    """Reject what loses at a small batch, before it is profiled; where there is no time to compare the whole, all but
    one precision and layout of each backbone."""
    unknown = _unknown(run, known)
    models = sorted({candidate.model for candidate in unknown})
    left_s = PROFILE_WITHIN_S * len(models)
    if run.request.budget.scope == "total":
        left_s = profiling_left_s(run)
    if not unknown or left_s <= 0:
        return
    lost = _compared(run, cache, known, models, left_s, refresh=refresh, extent=extent)
    if extent != "whole":
        names = {*known, *(rejection.candidate.name for rejection in lost)}
        there = [candidate for candidate in run.candidates if isinstance(known.get(candidate.name), Profile)]
        waiting = [candidate for candidate in unknown if candidate.name not in names]
        left_out = variants.default_variants_only([*there, *waiting])
        lost += [rejection for rejection in left_out if rejection.candidate not in there]
    for rejection in lost:
        if rejection.candidate.name not in known:
            record(rejection)


def _compared(
    run: RunContext,
    cache: ProfileCache,
    known: Known,
    models: Sequence[str],
    left_s: float,
    *,
    refresh: bool,
    extent: compare.Extent,
) -> list[Rejection]:
    """Those that lose; each slot compares a share of the backbones, or one after the other."""
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
                    on_progress=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
                    on_peak=opened.peak,
                    cache=cache,
                    refresh=refresh,
                    extent=extent,
                    trial_s=trial_s,
                )

        return work

    promised_s = run.promise_s(left_s, gpus=0)
    slots.run_on_slots(run, "profile", reserved_s=lambda: promised_s, next_work=next_work, on_done=lost.extend)
    return lost


# --- profiles --------------------------------------------------------------------------------------------------------


def _profile(run: RunContext, unknown: list[Candidate], known: Known, record: Record, *, quick: bool) -> None:
    """Profile candidates of which nothing is known."""
    jobs = run.engine.max_parallel(run.request.jobs, run.request.budget.memory_bytes) if unknown else 1
    if jobs > 1:
        _profile_on_one_device(run, unknown, known, record, jobs, quick=quick)
    elif unknown:
        _profile_on_slots(run, unknown, known, record, quick=quick)


def profiling_left_s(run: RunContext) -> float:
    """Seconds of the clock that are left of profiling's share, of each limit: of device time, what held no device (the
    start) has taken nothing."""
    budget, ledger = run.request.budget, run.accountant.ledger()
    left_s = [PROFILE_SHARE * budget.time_s - ledger.spent_s()] if budget.time_s is not None else []
    if budget.gpu_time_s is not None:
        left_s.append((PROFILE_SHARE * budget.gpu_time_s - ledger.spent_s(gpu=True)) / run.request.num_gpus)
    return min(left_s)


def _limits_s(run: RunContext, known: Known, rounds: int) -> tuple[float, float]:
    """Seconds for so many rounds of profiling, and for its first profile, which may go on past the share."""
    if run.request.budget.scope == "candidate":
        return PROFILE_WITHIN_S * rounds, PROFILE_WITHIN_S
    phase_limit_s = profiling_left_s(run)
    if _profiles(known):
        return phase_limit_s, phase_limit_s
    usable_s = run.accountant.remaining(run.request.data_parallel).usable_s
    return phase_limit_s, max(phase_limit_s, min(REFUSAL_S, usable_s - EXIT_S))


def _take_next(waiting: list[Candidate], at_work: set[Candidate]) -> Candidate:
    """Take the next one to search. One size of a backbone places the probes of the next: where there are others, they
    come first."""
    families = {replace(candidate, train_px=0) for candidate in at_work}
    candidate = next((each for each in waiting if replace(each, train_px=0) not in families), waiting[0])
    waiting.remove(candidate)
    at_work.add(candidate)
    return candidate


def _profiler(
    run: RunContext,
    candidate: Candidate,
    setting: JobSettings,
    known: Known,
    on_peak: Callable[[int | None], None],
    *,
    quick: bool,
) -> CandidateProfiler:
    return CandidateProfiler(
        candidate,
        setting,
        run.engine,
        n_train=run.data.train,
        on_progress=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
        on_peak=on_peak,
        quick=quick,
    )


def _profile_on_slots(run: RunContext, unknown: list[Candidate], known: Known, record: Record, *, quick: bool) -> None:
    """Profile candidates one after the other or on several slots, each alone on its devices and with an entry."""
    waiting, at_work = list(unknown), set[Candidate]()
    phase_limit_s, first_limit_s = _limits_s(run, known, -(-len(unknown) // run.request.slots))
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
                record(Rejection(candidate=candidate, reason=OUT_OF_TIME))
                continue
            promised_s = run.promise_s(left_s, gpus=run.request.data_parallel)
            opened = run.book("profile", candidate.name, reserved_s=promised_s)
            profiler = _profiler(run, candidate, run.seated(slot), known, opened.peak, quick=quick)
            place = prior(_profiles(known), candidate)
            return partial(_profile_within, opened, profiler, run.engine.now() + left_s, place)
        return None

    def on_done(found: Profile | Rejection) -> None:
        nonlocal alone
        at_work.remove(found.candidate)
        alone = False
        record(found)

    promised_s = run.promise_s(max(phase_limit_s, first_limit_s), gpus=0)
    slots.run_on_slots(run, "profile", reserved_s=lambda: promised_s, next_work=next_work, on_done=on_done)


def _profile_within(
    opened: OpenEntry, profiler: CandidateProfiler, until_at: float, place: Prior | None
) -> Profile | Rejection:
    with opened:
        return profiler.profile(until_at, place)


def _profile_on_one_device(
    run: RunContext, unknown: list[Candidate], known: Known, record: Record, jobs: int, *, quick: bool
) -> None:
    """Search the batches of so many candidates side by side on slots that share one device; then time each alone."""
    left_s = max(_limits_s(run, known, -(-len(unknown) // jobs)))
    if left_s <= 0:
        for candidate in unknown:
            record(Rejection(candidate=candidate, reason=OUT_OF_TIME))
        return
    waiting, at_work = list(unknown), set[Candidate]()
    searched: list[CandidateProfiler] = []
    search_ends_at, ends_at = run.engine.now() + SEARCH_SHARE * left_s, run.engine.now() + left_s
    gpus = run.request.data_parallel
    with run.accountant.entry("profile", gpus=gpus, reserved_s=run.promise_s(left_s, gpus=gpus)) as opened:

        def next_work(_: int) -> slots.Work[tuple[CandidateProfiler, Rejection | None]] | None:
            if not waiting:
                return None
            candidate = _take_next(waiting, at_work)
            profiler = _profiler(run, candidate, run.setting, known, opened.peak, quick=quick)
            place = prior([*_profiles(known), *searched], candidate)
            return lambda: (profiler, profiler.search(search_ends_at, place, alone=False))

        def on_done(done: tuple[CandidateProfiler, Rejection | None]) -> None:
            profiler, rejection = done
            at_work.remove(profiler.candidate)
            if rejection is not None:
                record(rejection)
            else:
                searched.append(profiler)

        slots.side_by_side(run.engine, jobs, next_work, on_done)
        for profiler in searched:
            record(profiler.time(ends_at))
