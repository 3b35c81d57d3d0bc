"""The whole story of a run: profile, plan, train, choose the ensemble, write the report.

Everything that happens is an event in the run's store; a run that was interrupted is carried on by telling the same
story again and skipping what has happened already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from fitwithin import contest, finish, gather, instantiate, profiling, searching
from fitwithin import planning as plans
from fitwithin.certificates import Cache, data_shape
from fitwithin.costs import evaluation_kept_s
from fitwithin.errors import UsageError
from fitwithin.machine import cores
from fitwithin.measurement import OUT_OF_TIME
from fitwithin.pack import cache_root
from fitwithin.planning import Plan
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
    left_s, gpus = run.request.limit_s, run.request.data_parallel
    if budget.scope == "total":
        left_s = run.accountant.remaining(gpus).usable_s
    profiles = [found for found in known if isinstance(found, Profile)]
    rejections = [found for found in known if isinstance(found, Rejection)]
    available_s = left_s - (0.0 if budget.scope == "candidate" else run.closing_s)
    if run.request.search == "halving" and len(profiles) > 1:
        found = contest.plan(
            profiles,
            rejections,
            available_s=available_s,
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
        available_s=available_s,
        limit_s=run.request.limit_s,
        scope=budget.scope,
        data=run.data,
        recipe=run.request.recipe,
        view_sizes=run.request.view_sizes,
        request=run.request.to_dict(),
        fingerprint=run.images.fingerprint,
    )


def open_cache(run: Run) -> Cache:
    """The profiles that are known of this machine, these limits and data of this shape."""
    machine = {"cores": cores(), **run.engine.describe()}
    return Cache(cache_root() / "profiles", machine, run.setting, data_shape(run.images))


def _prune(
    run: Run,
    cache: Cache,
    known: Mapping[str, Profile | Rejection],
    note: Callable[[Profile | Rejection], None],
    *,
    refresh: bool,
) -> None:
    """Turn away what loses at a small batch, before it is profiled."""
    unknown = [candidate for candidate in run.candidates if candidate.name not in known]
    models = {candidate.model for candidate in unknown}
    left_s = PROFILE_WITHIN_S * len(models)
    if run.request.budget.scope == "total":
        left_s = PROFILE_SHARE * run.request.limit_s - run.accountant.books().spent_s()
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
    budget, events = run.request.budget, run.store.events("profiled", "rejected")
    gpus = run.request.data_parallel
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
    measured = any(isinstance(found, Profile) for found in known.values())
    lanes = run.engine.lanes(run.request.jobs, budget.memory_bytes) if unknown else 1
    # One after the other each has an entry in the books; side by side they share one.
    for group in [unknown] if lanes > 1 else [[candidate] for candidate in unknown]:
        left_s = PROFILE_WITHIN_S * -(-len(group) // lanes)
        if budget.scope == "total":
            share_s = PROFILE_SHARE * run.request.limit_s - run.accountant.books().spent_s()
            left_s = share_s if measured else max(share_s, REFUSAL_S)
        measured = True
        if left_s <= 0:
            for candidate in group:
                note(Rejection(candidate=candidate, reason=OUT_OF_TIME))
            continue
        # Measuring for a refusal may go on past a very short budget; the books promise no more than there is.
        promised_s = run.promise_s(left_s, gpus=gpus)
        key = group[0].name if len(group) == 1 else ""
        with run.accountant.entry("profile", key, gpus=gpus, reserved_s=promised_s) as opened:
            for found in profiling.measure(
                group,
                run.setting,
                run.engine,
                n_train=run.data.train,
                until_at=run.engine.now() + left_s,
                tell=lambda progress: run.reporter.advance(len(known), len(run.candidates), progress.text),
                known=[each for each in known.values() if isinstance(each, Profile)],
                lanes=lanes,
            ):
                if isinstance(found, Profile):
                    opened.peak(found.peak_bytes)
                    cache.put(found)
                note(found)
    return [known[candidate.name] for candidate in run.candidates]


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
    kept_s, gpus = _kept_s(plan, run), run.request.data_parallel
    if plan.search is not None:
        searching.train(run, plan, left_s=lambda: run.accountant.remaining(gpus).usable_s - kept_s)
        return
    trained, failed = gather.outcomes(run.store.events("turn"))
    done = set(trained) | set(failed)
    for number, turn in enumerate(plan.turns):
        if turn.name in done:
            continue
        later_s = sum(later.allotted_s for later in plan.turns[number + 1 :] if later.name not in done)
        ends_at = instantiate.turn_ends_at(
            turn, run.request.budget, run.accountant, run.engine.now(), gpus=gpus, kept_s=kept_s, later_s=later_s
        )
        told = f"{number + 1} of {len(plan.turns)}"
        instantiate.carry_out(run, turn, ends_at=ends_at, frozen=plan.frozen, told=told)


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
