"""A whole run: profile, plan, train, choose the ensemble, write the report.

Everything that happens is an event in the run's store. A resumed run goes through the same phases and skips what has
happened already.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fitwithin import events
from fitwithin.engine.results import Failure, TrainResult
from fitwithin.errors import BudgetError, UsageError
from fitwithin.events import CandidateProfiled, PlanMade
from fitwithin.pipeline import (
    choose,
    evaluate_phase,
    finish,
    linear_probes,
    members,
    profile_phase,
    search_phase,
    slots,
    train_phase,
)
from fitwithin.pipeline.context import RunContext
from fitwithin.planning import plan as plans
from fitwithin.planning import search_plan
from fitwithin.planning.cost import affordable_to_evaluate, evaluation_reserve_s, quick_to_use
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.profiling.candidate_profiler import OUT_OF_TIME
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.report.schema import Report
from fitwithin.units import format_duration


def execute(run: RunContext, frozen: Plan | None = None) -> Report:
    """Carry a run from where it stands to its report."""
    plan = make_plan(run, frozen)
    train(run, plan)
    train_phase.clean_trials(run)
    winner, why = evaluate_phase.choose_winner(run, plan)
    chief, *twins = evaluate_phase.evaluate(run, plan, winner)
    chief = members.with_others(run, plan, winner, chief)
    return finish.close(run, plan, [chief, *twins], winner, why)


def make_plan(run: RunContext, frozen: Plan | None = None) -> Plan:
    """The plan: the stored one, the frozen one, or one made from a profile of every candidate."""
    stored = run.store.latest(PlanMade)
    if stored is not None:
        return stored.plan
    plan = frozen if frozen is not None else _planned(run)
    trials = tuple(linear_probes.from_probes(run, trial) for trial in plan.trials)
    plan = replace(plan, trials=trials, probed=linear_probes.probed(run))
    for known in frozen.profiles if frozen is not None else ():
        run.store.append(CandidateProfiled(profile=known))
    run.store.append(PlanMade(plan=plan))
    return plan


def _planned(run: RunContext) -> Plan:
    if not run.weights:
        return _plan(run)
    try:
        if run.candidates:
            return _plan(run)
    except BudgetError as error:
        run.reporter.say(f"nothing is fine-tuned: {error}")
    # Linear probes are all that there is time for.
    return Plan(trials=(), rejections=(), request=run.request, fingerprint=run.images.fingerprint)


def _plan(run: RunContext) -> Plan:
    known = profile_phase.profile(run)
    budget = run.request.budget
    left = run.remaining().less(run.closing_s + train_phase.evaluation_margin_s(run))
    profiles = [found for found in known if isinstance(found, Profile)]
    rejections = [found for found in known if isinstance(found, Rejection)]
    if rejections and not profiles and all(rejection.reason == OUT_OF_TIME for rejection in rejections):
        limit = format_duration(run.request.limit_s)
        raise BudgetError(
            f"{limit} is too short: the time was over before any candidate was profiled; give twice as much"
        )
    rejections += choose.left_out(run)
    profiles, slow = quick_to_use(profiles, budget.image_ms)
    rejections += slow
    workload = run.workload
    if budget.scope == "total":
        profiles, too_expensive = affordable_to_evaluate(profiles, left.usable_s, workload)
        rejections += too_expensive
    else:
        left = replace(left, time_s=run.request.limit_s, gpu_time_s=math.inf)
    facts: dict[str, Any] = {"left": left, "request": run.request, "fingerprint": run.images.fingerprint}
    if run.request.search != "exhaustive" and len(profiles) > 1:
        found = search_plan.plan(profiles, rejections, workload, **facts, pool=run.pool)
        if found is not None:
            return found
    try:
        return plans.make_plan(profiles, rejections, workload, **facts)
    except BudgetError:
        if budget.scope == "candidate" or len(profiles) < 2:
            raise
    profiles, too_expensive = affordable_to_evaluate(profiles, left.usable_s, workload, share=0.0, times=1.0)
    return plans.make_plan(profiles, [*rejections, *too_expensive], workload, **facts)


def train(run: RunContext, plan: Plan) -> None:
    """The instantiation phase: every trial of the plan that has not ended yet, or the trials of its search."""
    # The only trial is the winner: its process goes on with its evaluation.
    if not plan.trials:
        return
    alone = plan.search is None and len(plan.trials) == 1
    in_process = alone and train_phase.evaluates_in_process(run, plan.trials[0])
    kept_s = _kept_s(plan, run, evaluates_in_process=in_process)
    if plan.search is not None:
        evaluating_s = max(0.0, kept_s - run.closing_s)
        search_phase.train(run, plan, left=lambda: run.remaining().less(kept_s), evaluating_s=evaluating_s)
        return
    trained, failed = events.outcomes(run.store)
    done = trained.keys() | failed.keys()
    waiting = [(n, trial) for n, trial in enumerate(plan.trials) if trial.name not in done]
    at_work: dict[str, float] = {}  # when each running trial must have ended

    def ask(slot: int) -> slots.Work[tuple[TrialPlan, TrainResult | Failure]] | None:
        if not waiting:
            return None
        number, trial = waiting.pop(0)
        idle = run.request.slots - 1 - len(at_work)
        ends_at = train_phase.trial_ends_at(
            run,
            trial,
            kept_s=kept_s,
            later_s=[later.allotted_s for _, later in waiting],
            others_free_at=[*at_work.values(), *[run.engine.now()] * idle],
            evaluates_in_process=in_process,
        )
        at_work[trial.name] = ends_at
        return train_phase.start_trial(
            run,
            trial,
            slot,
            ends_at=ends_at,
            frozen=plan.frozen,
            label=f"{number + 1} of {len(plan.trials)}" if len(plan.trials) > 1 else "",
            last=not waiting,
            evaluates_in_process=in_process,
        )

    def record(ended: tuple[TrialPlan, TrainResult | Failure]) -> None:
        trial, outcome = ended
        del at_work[trial.name]
        train_phase.record_trial(run, trial, outcome)

    if waiting:
        reserved_s = run.remaining().less(kept_s).usable_s
        if run.request.budget.scope == "candidate":
            reserved_s = run.request.limit_s * -(-len(waiting) // run.request.slots)
        slots.run_on_slots(run, "train", reserved_s=reserved_s, next_work=ask, on_done=record)


def _kept_s(plan: Plan, run: RunContext, *, evaluates_in_process: bool) -> float:
    """Seconds that no trial may use under scope ``total``: for closing, and for evaluation by another process, that of
    the winner and (but not in a search) of the same candidate in the other precision."""
    if run.request.budget.scope == "candidate":
        return 0.0
    if evaluates_in_process:
        return run.closing_s
    twins = 2 if plan.search is None and {trial.candidate.precision for trial in plan.trials} >= {"amp", "fp32"} else 1
    evaluating_s = evaluation_reserve_s(max(trial.evaluation_s for trial in plan.trials)) * twins
    return evaluating_s + train_phase.evaluation_margin_s(run) + run.closing_s


def check_plan(plan: Plan, fingerprint: str) -> None:
    """UsageError unless the plan was drawn up for this data."""
    if plan.fingerprint != fingerprint:
        raise UsageError(
            f"the plan was drawn up for other data (fingerprint {plan.fingerprint[:12]}, these have "
            f"{fingerprint[:12]}); draw up a new one with `fitwithin plan`"
        )
    if not plan.trials and not plan.probed:
        raise UsageError("the plan trains nothing; draw up a new one with `fitwithin plan`")
