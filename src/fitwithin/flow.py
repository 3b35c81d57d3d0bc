"""The whole story of a run: profile, plan, train, choose the ensemble, write the report.

Everything that happens is an event in the run's store; a run that was interrupted is carried on by telling the same
story again and skipping what has happened already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from fitwithin import contest, finish, gather, instantiate, profiling, searching, slots
from fitwithin import planning as plans
from fitwithin.accountant import Open
from fitwithin.candidate import Candidate
from fitwithin.certificates import Cache, data_shape
from fitwithin.costs import evaluation_kept_s
from fitwithin.errors import UsageError
from fitwithin.jobs import Failure, Setting, Trained
from fitwithin.machine import cores
from fitwithin.measurement import OUT_OF_TIME
from fitwithin.pack import cache_root
from fitwithin.planning import Plan, Turn
from fitwithin.profile import Profile, Rejection
from fitwithin.profile import to_dict as profile_to_dict
from fitwithin.report import Report
from fitwithin.session import Run
from fitwithin.store import latest
from fitwithin.units import format_count, format_duration, format_size

#: Under scope ``total``, profiling may take this share of the budget; the first candidate is measured in any case, so
#: that a refusal can say what would do.
PROFILE_SHARE = 0.4
REFUSAL_S = 60.0

#: Under scope ``candidate`` profiling comes on top of the candidates' budgets; no candidate takes longer than this.
#: (Depthwise kernels are built at run time for every new batch size: seconds a probe on a GPU.)
PROFILE_WITHIN_S = 600.0

#: Told of what was found out about a candidate.
Note = Callable[[Profile | Rejection], None]


def tell(run: Run, frozen: Plan | None = None) -> Report:
    """Carry a run from where it stands to its report."""
    plan = draw_up(run, frozen)
    train(run, plan)
    members, winner, why = finish.evaluate(run, plan)
    return finish.close(run, plan, members, winner, why)


def draw_up(run: Run, frozen: Plan | None = None) -> Plan:
    """The plan: the stored one, the frozen one, or one drawn up from a profile of every candidate."""
    stored = latest(run.store.events("plan"), "plan")
    if stored is not None:
        return plans.from_json(json.dumps(stored))
    plan = frozen if frozen is not None else _planned(run)
    run.store.append("plan", json.loads(plan.to_json()))
    return plan


def _planned(run: Run) -> Plan:
    known = profile(run)
    budget = run.request.budget
    left = run.remaining().less(run.closing_s)
    profiles = [found for found in known if isinstance(found, Profile)]
    rejections = [found for found in known if isinstance(found, Rejection)]
    if run.request.search == "halving" and len(profiles) > 1:
        found = contest.plan(
            profiles,
            rejections,
            left=left,
            data=run.data,
            recipe=run.request.recipe,
            view_sizes=run.request.view_sizes,
            request=run.request.to_dict(),
            fingerprint=run.images.fingerprint,
        )
        if found is not None:
            return found
    return plans.draw_up(
        profiles,
        rejections,
        available_s=run.request.limit_s if budget.scope == "candidate" else left.usable_s,
        limit_s=run.request.limit_s,
        scope=budget.scope,
        data=run.data,
        recipe=run.request.recipe,
        view_sizes=run.request.view_sizes,
        request=run.request.to_dict(),
        fingerprint=run.images.fingerprint,
        slots=left.slots,
        slot_s=left.slot_s,
    )


def open_cache(run: Run) -> Cache:
    """The profiles that are known of this machine, these limits and data of this shape."""
    machine = {"cores": cores(), **run.engine.describe()}
    return Cache(cache_root() / "profiles", machine, run.setting, data_shape(run.images))


def _prune(
    run: Run,
    cache: Cache,
    known: Mapping[str, Profile | Rejection],
    note: Note,
    *,
    refresh: bool,
) -> None:
    """Turn away what loses at a small batch, before it is profiled."""
    unknown = [candidate for candidate in run.candidates if candidate.name not in known]
    models = {candidate.model for candidate in unknown}
    left_s = PROFILE_WITHIN_S * len(models)
    if run.request.budget.scope == "total":
        left_s = _profiling_s(run, first=False)
    if not unknown or left_s <= 0:
        return
    with run.accountant.entry("profile", "", gpus=1, reserved_s=run.promise_s(left_s, gpus=1)):
        lost = profiling.screen(
            [candidate for candidate in run.candidates if candidate.model in models],
            run.setting,
            run.engine,
            until_at=run.engine.now() + left_s,
            tell=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
            cache=cache,
            refresh=refresh,
        )
    for rejection in lost:
        if rejection.candidate.name not in known:
            note(rejection)


def profile(run: Run, *, refresh: bool = False) -> list[Profile | Rejection]:
    """The profile phase: every candidate of the grid, from the cache where it is known unless ``refresh`` says not."""
    events = run.store.events("profiled", "rejected")
    known: dict[str, Profile | Rejection] = {**gather.profiled(events), **gather.rejected(events)}
    cache = open_cache(run)
    run.reporter.begin("profiling", len(run.candidates))

    def note(found: Profile | Rejection) -> None:
        known[found.candidate.name] = found
        run.reporter.say(_told(found))
        if isinstance(found, Profile):
            run.store.append("profiled", profile_to_dict(found))
        else:
            run.store.append("rejected", {"candidate": asdict(found.candidate), "reason": found.reason})

    for candidate in run.candidates:
        if not refresh and candidate.name not in known and (cached := cache.get(candidate)) is not None:
            note(cached)
    if run.request.recipe.prune:
        _prune(run, cache, known, note, refresh=refresh)
    unknown = [candidate for candidate in run.candidates if candidate.name not in known]

    def found_out(found: Profile | Rejection) -> None:
        if isinstance(found, Profile):
            cache.put(found)
        note(found)

    if unknown and run.request.slots > 1:
        _measure_on_slots(run, unknown, known, found_out)
    elif unknown:
        _measure(run, unknown, known, found_out)
    return [known[candidate.name] for candidate in run.candidates]


def _measure(run: Run, unknown: list[Candidate], known: Mapping[str, Profile | Rejection], note: Note) -> None:
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
        # Measuring for a refusal may go on past a very short budget; the books promise no more than there is.
        promised_s = run.promise_s(left_s, gpus=gpus)
        key = group[0].name if len(group) == 1 else ""
        with run.accountant.entry("profile", key, gpus=gpus, reserved_s=promised_s) as opened:
            for found in _measured(run, group, known, run.setting, left_s, lanes=lanes):
                opened.peak(found.peak_bytes if isinstance(found, Profile) else None)
                note(found)


def _profiling_s(run: Run, *, first: bool, times: int = 1) -> float:
    """Seconds that are left for profiling ``times`` candidates; the ``first`` is measured in any case."""
    if run.request.budget.scope == "candidate":
        return PROFILE_WITHIN_S * times
    share_s = PROFILE_SHARE * run.request.budget.limit_s(run.request.held) - run.accountant.books().spent_s()
    return max(share_s, REFUSAL_S) if first else share_s


def _measured(
    run: Run,
    group: Sequence[Candidate],
    known: Mapping[str, Profile | Rejection],
    setting: Setting,
    left_s: float,
    *,
    lanes: int = 1,
) -> Iterator[Profile | Rejection]:
    """What is found out about a group, with what is known of its neighbours by now."""
    return profiling.measure(
        group,
        setting,
        run.engine,
        n_train=run.data.train,
        until_at=run.engine.now() + left_s,
        tell=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
        known=[each for each in known.values() if isinstance(each, Profile)],
        lanes=lanes,
    )


def _measure_on_slots(run: Run, unknown: list[Candidate], known: Mapping[str, Profile | Rejection], note: Note) -> None:
    """Measure candidates side by side, each alone on the GPUs of a slot."""
    waiting, at_work = list(unknown), set[Candidate]()
    measured = any(isinstance(found, Profile) for found in known.values())
    stretch_s = _profiling_s(run, first=False, times=-(-len(unknown) // run.request.slots))
    ends_at = run.engine.now() + stretch_s
    refusing = not measured and stretch_s < REFUSAL_S

    def ask(slot: int) -> slots.Work[Profile | Rejection] | None:
        nonlocal measured
        while waiting and not (refusing and at_work):  # for a refusal one goes on past its share, and has it all
            # One size of a backbone places the probes of the next: where there are others, they come first.
            families = {replace(candidate, train_px=0) for candidate in at_work}
            candidate = next((each for each in waiting if replace(each, train_px=0) not in families), waiting[0])
            waiting.remove(candidate)
            left_s = PROFILE_WITHIN_S
            if run.request.budget.scope == "total":
                left_s = ends_at - run.engine.now()
                left_s = max(left_s, REFUSAL_S) if refusing and not measured else left_s
            measured = True
            if left_s <= 0:
                note(Rejection(candidate=candidate, reason=OUT_OF_TIME))
                continue
            at_work.add(candidate)
            promised_s = run.promise_s(left_s, gpus=run.request.data_parallel)
            opened = run.book("profile", candidate.name, reserved_s=promised_s)
            found = _measured(run, [candidate], known, run.seated(slot), left_s)
            return partial(_alone, found, opened)
        return None

    def told(found: Profile | Rejection) -> None:
        at_work.remove(found.candidate)
        note(found)

    promised_s = run.promise_s(max(stretch_s, REFUSAL_S if refusing else 0.0), gpus=0)
    slots.fill(run, "profile", reserved_s=lambda: promised_s, ask=ask, told=told)


def _alone(measured: Iterator[Profile | Rejection], opened: Open) -> Profile | Rejection:
    """The one that is measured, within its entry."""
    with opened:
        (found,) = measured
        opened.peak(found.peak_bytes if isinstance(found, Profile) else None)
    return found


def _told(found: Profile | Rejection) -> str:
    if isinstance(found, Rejection):
        return f"  {found.candidate.name}: rejected, {found.reason}"
    origin = "from the cache" if found.cached else f"{len(found.probes)} probes in {format_duration(found.wall_s)}"
    return (
        f"  {found.candidate.name}: batch {found.batch}, {format_count(found.images_per_s)} images/s, "
        f"{format_size(found.peak_bytes)} ({origin})"
    )


def train(run: Run, plan: Plan) -> None:
    """The instantiation phase: every turn of the plan that has not ended yet, or the trials of its search."""
    kept_s = _kept_s(plan, run)
    if plan.search is not None:
        searching.train(run, plan, left=lambda: run.remaining().less(kept_s))
        return
    trained, failed = gather.outcomes(run.store.events("turn"))
    waiting = [(n, turn) for n, turn in enumerate(plan.turns) if turn.name not in trained and turn.name not in failed]
    at_work: dict[str, float] = {}  # the turns' names, and when each of them must have ended

    def ask(slot: int) -> slots.Work[tuple[Turn, Trained | Failure]] | None:
        if not waiting:
            return None
        number, turn = waiting.pop(0)
        now = run.engine.now()
        idle = run.request.slots - 1 - len(at_work)
        ends_at = instantiate.turn_ends_at(
            turn,
            run.request.budget,
            run.accountant,
            now,
            gpus=run.request.data_parallel,
            kept_s=kept_s,
            later_s=[later.allotted_s for _, later in waiting],
            others_free_at=[*at_work.values(), *[now] * idle],
        )
        at_work[turn.name] = ends_at
        told = f"{number + 1} of {len(plan.turns)}"
        return instantiate.begun(run, turn, slot, ends_at=ends_at, frozen=plan.frozen, told=told)

    def told(ended: tuple[Turn, Trained | Failure]) -> None:
        turn, outcome = ended
        del at_work[turn.name]
        instantiate.conclude(run, turn, outcome)

    def reserved_s() -> float:
        """All of them, by the clock."""
        if run.request.budget.scope == "candidate":
            return run.request.limit_s * -(-len(waiting) // run.request.slots)
        return run.remaining().less(kept_s).usable_s

    if waiting:
        slots.fill(run, "train", reserved_s=reserved_s, ask=ask, told=told)


def _kept_s(plan: Plan, run: Run) -> float:
    """Under scope ``total``, what no turn may touch: evaluating the winner and its twin, and closing."""
    if run.request.budget.scope == "candidate":
        return 0.0
    twins = 2 if {turn.candidate.precision for turn in plan.turns} >= {"amp", "fp32"} else 1
    return evaluation_kept_s(max(turn.evaluation_s for turn in plan.turns)) * twins + run.closing_s


def check_plan(plan: Plan, fingerprint: str) -> None:
    """UsageError unless the plan was drawn up for this data."""
    if plan.fingerprint != fingerprint:
        raise UsageError(
            f"the plan was drawn up for other data (fingerprint {plan.fingerprint[:12]}, this folder has "
            f"{fingerprint[:12]}); draw up a new one with `fitwithin plan`"
        )
    if plan.search is not None:
        raise UsageError(
            "the plan is a search, whose later trials depend on how the first ones end; "
            "draw up a plan with --search exhaustive to carry it out step by step"
        )
    if not plan.turns:
        raise UsageError("the plan trains nothing; draw up a new one with `fitwithin plan`")
