"""The profile phase of a run: every candidate's batch and pace, within the budget, in its books, on its slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fitwithin.profiling import interpolate, profile_candidates, variants
from fitwithin.profiling.cache import ProfileCache, data_shape
from fitwithin.profiling.candidate_profiler import OUT_OF_TIME
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.units import format_count, format_duration, format_size

#: Under scope ``total``, profiling may take this share of the budget; the first candidate, by which a refusal can say
#: what would do, so many seconds if the budget has them.
PROFILE_SHARE = 0.4
REFUSAL_S = 60.0

#: Where less than this is left for all of them, that one is measured alone on several slots: others would be too late.
ALONE_S = 16.0

#: Under scope ``candidate`` profiling comes on top of the candidates' budgets; no candidate takes longer than this.
#: (Depthwise kernels are built at run time for every new batch size: seconds a probe on a GPU.)
PROFILE_WITHIN_S = 600.0

#: A profile takes about so many seconds on a GPU (docs/log.md); comparing a backbone's precisions and layouts is taken
#: to last so many, and comparing only the layouts of all of them, in one process, so many and so many more for each.
#: Where profiles would take more than this share of the budget they are brief, and one per backbone does for all its
#: sizes; where comparing would, only layouts are compared, or nothing.
WHOLE_S, COMPARE_S, LAYOUTS_S, BRIEF_SHARE = 8.0, 3.0, (2.0, 1.5), 0.1

#: Told of what was found out about a candidate.
Note = Callable[[Profile | Rejection], None]


def open_cache(run: RunContext) -> ProfileCache:
    """The profiles that are known of this machine, these limits and data of this shape."""
    machine = {"cores": cores(), **run.engine.describe()}
    return ProfileCache(cache_root() / "profiles", machine, run.setting, data_shape(run.images))


def _prune(
    run: RunContext,
    cache: ProfileCache,
    known: Mapping[str, Profile | Rejection],
    note: Note,
    *,
    refresh: bool,
    compare: profile_candidates.Compare,
) -> None:
    """Turn away what loses at a small batch, before it is profiled; where there is no time to compare the whole, all
    but one precision and layout of each backbone."""
    unknown = [candidate for candidate in run.candidates if candidate.name not in known]
    models = {candidate.model for candidate in unknown}
    left_s = PROFILE_WITHIN_S * len(models)
    if run.request.budget.scope == "total":
        left_s = _profiling_s(run, first=False)
    if not unknown or left_s <= 0:
        return
    screened = [candidate for candidate in run.candidates if candidate.model in models]

    def screen(part: Sequence[Candidate], slot: int) -> list[Rejection]:
        return profile_candidates.screen(
            part,
            run.seated(slot),
            run.engine,
            until_at=ends_at,
            tell=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
            cache=cache,
            refresh=refresh,
            compare=compare,
            turn_s=_turn_s(run, len(models)),
        )

    ends_at = run.engine.now() + left_s
    lost = _compared(run, screened, screen, left_s, compare)
    if compare != "whole":
        names = {*known, *(rejection.candidate.name for rejection in lost)}
        there = [candidate for candidate in run.candidates if isinstance(known.get(candidate.name), Profile)]
        waiting = [candidate for candidate in unknown if candidate.name not in names]
        lost += [rejection for rejection in variants.firsts([*there, *waiting]) if rejection.candidate not in there]
    for rejection in lost:
        if rejection.candidate.name not in known:
            note(rejection)


def _compared(
    run: RunContext,
    candidates: Sequence[Candidate],
    screen: Callable[[Sequence[Candidate], int], list[Rejection]],
    left_s: float,
    compare: profile_candidates.Compare,
) -> list[Rejection]:
    """Those who lose; where there are several slots each compares a share of the backbones, or one after the other."""
    if run.request.slots == 1 or compare == "known":
        with run.accountant.entry("profile", "", gpus=1, reserved_s=run.promise_s(left_s, gpus=1)):
            return screen(candidates, 0)
    models = sorted({candidate.model for candidate in candidates})
    parts = len(models) if compare == "whole" else min(len(models), run.request.slots)
    waiting = [[each for each in candidates if each.model in models[n::parts]] for n in range(parts)]
    lost: list[Rejection] = []

    def ask(slot: int) -> slots.Work[list[Rejection]] | None:
        if not waiting:
            return None
        part, promised_s = waiting.pop(0), run.promise_s(left_s, gpus=run.request.data_parallel)
        opened = run.book("profile", "", reserved_s=promised_s)

        def work() -> list[Rejection]:
            with opened:
                return screen(part, slot)

        return work

    promised_s = run.promise_s(left_s, gpus=0)
    slots.fill(run, "profile", reserved_s=lambda: promised_s, ask=ask, told=lost.extend)
    return lost


def profile(run: RunContext, *, refresh: bool = False) -> list[Profile | Rejection]:
    """The profile phase: every candidate of the grid, from the cache where it is known unless ``refresh`` says not."""
    known: dict[str, Profile | Rejection] = {**events.profiled(run.store), **events.rejected(run.store)}
    cache = open_cache(run)
    run.reporter.begin("profiling", len(run.candidates))

    def note(found: Profile | Rejection) -> None:
        known[found.candidate.name] = found
        run.reporter.say(_told(found))
        if isinstance(found, Profile):
            run.store.append(CandidateProfiled(profile=found))
        else:
            run.store.append(CandidateRejected(rejection=found))

    for candidate in run.candidates:
        if not refresh and candidate.name not in known and (cached := cache.get(candidate)) is not None:
            note(cached)
    bounded = run.request.recipe.batch == "largest" and run.request.recipe.max_batch is not None
    wanted = {(candidate.model, candidate.train_px) for candidate in _unknown(run, known)}
    brief = bounded and not refresh and not _affords(run, WHOLE_S * len(wanted) / run.request.slots)
    for candidate in _unknown(run, known) if brief else ():
        if (cached := cache.get(candidate, brief=True)) is not None:
            note(cached)
    if run.request.recipe.compare_variants:
        compare = _comparison(run, len({model for model, _ in wanted}), refresh=refresh)
        _prune(run, cache, known, note, refresh=refresh, compare=compare)

    def found_out(found: Profile | Rejection) -> None:
        if isinstance(found, Profile):
            cache.put(found)
        note(found)

    if brief:
        _measure(run, interpolate.largest(_unknown(run, known)), known, found_out, brief=True)
        profiles = [found for found in known.values() if isinstance(found, Profile)]
        recipe, view_sizes = run.request.recipe, run.request.view_sizes
        for found in interpolate.derived(profiles, _unknown(run, known), recipe, view_sizes):
            found_out(found)
    _measure(run, _unknown(run, known), known, found_out, brief=brief)
    return [known[candidate.name] for candidate in run.candidates]


def _unknown(run: RunContext, known: Mapping[str, Profile | Rejection]) -> list[Candidate]:
    return [candidate for candidate in run.candidates if candidate.name not in known]


def _comparison(run: RunContext, models: int, *, refresh: bool) -> profile_candidates.Compare:
    """How far the precisions and layouts of so many backbones can be compared."""
    (once_s, each_s), here = LAYOUTS_S, -(-models // run.request.slots)
    if refresh or _affords(run, COMPARE_S * here):
        return "whole"
    return "brief" if _affords(run, once_s + each_s * here) else "known"


def _turn_s(run: RunContext, models: int) -> float:
    """How long a turn of one of so many backbones is, before there is a plan: its budget, or an equal share of it."""
    limit_s = run.request.budget.limit_s(run.request.held)
    return limit_s if run.request.budget.scope == "candidate" else limit_s / models


def _affords(run: RunContext, seconds: float) -> bool:
    """Whether the budget can do with that much for finding out about candidates."""
    budget = run.request.budget
    return budget.scope == "candidate" or seconds <= BRIEF_SHARE * budget.limit_s(run.request.held)


def _measure(
    run: RunContext, unknown: list[Candidate], known: Mapping[str, Profile | Rejection], note: Note, *, brief: bool
) -> None:
    """Measure candidates that nothing is known of."""
    if unknown and run.request.slots > 1:
        _measure_on_slots(run, unknown, known, note, brief=brief)
    elif unknown:
        _measure_in_turn(run, unknown, known, note, brief=brief)


def _measure_in_turn(
    run: RunContext, unknown: list[Candidate], known: Mapping[str, Profile | Rejection], note: Note, *, brief: bool
) -> None:
    """Measure candidates one after the other, each with an entry in the books, or side by side on one GPU in one."""
    gpus = run.request.data_parallel
    measured = any(isinstance(found, Profile) for found in known.values())
    lanes = run.engine.lanes(run.request.jobs, run.request.budget.memory_bytes)
    for group in [unknown] if lanes > 1 else [[candidate] for candidate in unknown]:
        left_s = _profiling_s(run, first=not measured, times=-(-len(group) // lanes))
        measured = True
        if left_s <= 0:
            for candidate in group:
                note(Rejection(candidate=candidate, reason=OUT_OF_TIME))
            continue
        promised_s = run.promise_s(left_s, gpus=gpus)
        key = group[0].name if len(group) == 1 else ""
        with run.accountant.entry("profile", key, gpus=gpus, reserved_s=promised_s) as opened:
            for found in _measured(run, group, known, run.setting, left_s, lanes=lanes, brief=brief):
                opened.peak(found.peak_bytes if isinstance(found, Profile) else None)
                note(found)


def _profiling_s(run: RunContext, *, first: bool, times: int = 1) -> float:
    """Seconds that are left for profiling ``times`` candidates; the ``first`` may go on past their share."""
    if run.request.budget.scope == "candidate":
        return PROFILE_WITHIN_S * times
    return max(_share_s(run), _refusal_s(run)) if first else _share_s(run)


def _share_s(run: RunContext) -> float:
    """Seconds of the clock that are left of profiling's share, of each limit: of device time, what held no device (the
    start) has taken nothing."""
    budget, ledger = run.request.budget, run.accountant.ledger()
    left_s = [PROFILE_SHARE * budget.time_s - ledger.spent_s()] if budget.time_s is not None else []
    if budget.gpu_time_s is not None:
        left_s.append((PROFILE_SHARE * budget.gpu_time_s - ledger.spent_s(gpu=True)) / run.request.held)
    return min(left_s)


def _refusal_s(run: RunContext) -> float:
    """Seconds within which the first candidate is measured, whatever the share: never more than there are."""
    return min(REFUSAL_S, run.accountant.remaining(run.request.data_parallel).usable_s - EXIT_S)


def _measured(
    run: RunContext,
    group: Sequence[Candidate],
    known: Mapping[str, Profile | Rejection],
    setting: JobSettings,
    left_s: float,
    *,
    lanes: int = 1,
    brief: bool,
) -> Iterator[Profile | Rejection]:
    """What is found out about a group, with what is known of its neighbours by now."""
    return profile_candidates.measure(
        group,
        setting,
        run.engine,
        n_train=run.data.train,
        until_at=run.engine.now() + left_s,
        tell=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
        known=[each for each in known.values() if isinstance(each, Profile)],
        lanes=lanes,
        brief=brief,
    )


def _measure_on_slots(
    run: RunContext, unknown: list[Candidate], known: Mapping[str, Profile | Rejection], note: Note, *, brief: bool
) -> None:
    """Measure candidates side by side, each alone on the GPUs of a slot."""
    waiting, at_work = list(unknown), set[Candidate]()
    measured = any(isinstance(found, Profile) for found in known.values())
    stretch_s = _profiling_s(run, first=False, times=-(-len(unknown) // run.request.slots))
    ends_at = run.engine.now() + stretch_s
    first_s = _refusal_s(run) if run.request.budget.scope == "total" else 0.0
    alone = not measured and stretch_s < min(first_s, ALONE_S)

    def ask(slot: int) -> slots.Work[Profile | Rejection] | None:
        nonlocal measured
        while waiting and not (alone and at_work):
            # One size of a backbone places the probes of the next: where there are others, they come first.
            families = {replace(candidate, train_px=0) for candidate in at_work}
            candidate = next((each for each in waiting if replace(each, train_px=0) not in families), waiting[0])
            waiting.remove(candidate)
            left_s = PROFILE_WITHIN_S
            if run.request.budget.scope == "total":
                left_s = ends_at - run.engine.now()
                left_s = left_s if measured else max(left_s, first_s)
            measured = True
            if left_s <= 0:
                note(Rejection(candidate=candidate, reason=OUT_OF_TIME))
                continue
            at_work.add(candidate)
            promised_s = run.promise_s(left_s, gpus=run.request.data_parallel)
            opened = run.book("profile", candidate.name, reserved_s=promised_s)
            found = _measured(run, [candidate], known, run.seated(slot), left_s, brief=brief)
            return partial(_alone, found, opened)
        return None

    def told(found: Profile | Rejection) -> None:
        nonlocal alone
        at_work.remove(found.candidate)
        alone = False
        note(found)

    promised_s = run.promise_s(stretch_s if measured else max(stretch_s, first_s), gpus=0)
    slots.fill(run, "profile", reserved_s=lambda: promised_s, ask=ask, told=told)


def _alone(measured: Iterator[Profile | Rejection], opened: OpenEntry) -> Profile | Rejection:
    """The one that is measured, within its entry."""
    with opened:
        (found,) = measured
        opened.peak(found.peak_bytes if isinstance(found, Profile) else None)
    return found


def _told(found: Profile | Rejection) -> str:
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
