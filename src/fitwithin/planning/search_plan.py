"""The plan of a search, the plan of each of its trials, and the state of the search after a history. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitwithin.budget import Remaining
from fitwithin.engine.results import TrainResult
from fitwithin.errors import RunFolderError
from fitwithin.planning.cost import Costs, Workload, costs, evaluation_reserve_s
from fitwithin.planning.halving import FINAL_SHARE as USUAL_FINAL_SHARE
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import Plan, SearchPlan, TrialPlan, epochs_of, plan_trial
from fitwithin.planning.pool import FINAL_SHARE, Pool, curves_of
from fitwithin.planning.prior import LearningCurve
from fitwithin.planning.search import Score, SearchCandidate, Trial
from fitwithin.planning.stats import Accuracy, FailedTrial
from fitwithin.planning.tpe import TPEHalving
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.request import Request
from fitwithin.units import format_duration


@dataclass(frozen=True, kw_only=True)
class CostedCandidate:
    """A profile and the cost of each of its schedules: the recipe's, and if that resizes progressively also one at the
    whole size from the start, for trials too short for the changes."""

    profile: Profile
    schedules: tuple[tuple[Workload, Costs], ...]

    @property
    def usual(self) -> Costs:
        """What the recipe's own schedule costs."""
        return self.schedules[0][1]

    def trial_plan(self, seconds: float, trial: Trial | None = None) -> TrialPlan | None:
        """The most steps that ``seconds`` pay for, named after the trial; None if that is fewer than two."""
        counted = [(cost.affordable_steps(seconds), cost, workload) for workload, cost in self.schedules]
        steps, cost, workload = max(counted, key=lambda found: found[0])
        if steps < 2:
            return None
        planned = plan_trial(self.profile, cost, epochs_of(steps, self.profile, workload.data), seconds, workload)
        if trial is None:
            return planned
        return replace(planned, suffix=trial.suffix, why={**planned.why, "search": trial.why})


def costed(profile: Profile, workload: Workload) -> CostedCandidate:
    """What trials of a profile's candidate cost."""
    workloads = [workload]
    if workload.recipe.progressive_resizing:
        workloads.append(replace(workload, recipe=replace(workload.recipe, progressive_resizing=())))
    return CostedCandidate(profile=profile, schedules=tuple((each, costs(profile, each)) for each in workloads))


@dataclass(frozen=True, kw_only=True)
class AskEvent:
    """A search was asked with ``left_s`` GPU-seconds and ``time_left_s`` by the clock; its answer was ``trial``."""

    left_s: float
    trial: Trial
    time_left_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class TellEvent:
    """The trial of that name ended with ``outcome``, or failed for that reason."""

    name: str
    outcome: TrainResult | str


def plan(
    profiles: Sequence[Profile],
    rejections: Sequence[Rejection],
    workload: Workload,
    *,
    left: Remaining,
    request: Request,
    fingerprint: str,
    pool: Pool | None = None,
) -> Plan | None:
    """The plan of a search: the trials of its first rung; None if there is time for one candidate only.

    ``left`` is what all trials and the winner's evaluation may take.
    """
    known = {profile.candidate: costed(profile, workload) for profile in profiles}
    reserve_s = evaluation_reserve_s(max(one.usual.evaluation_s for one in known.values()))
    budget_s = left.less(reserve_s).together_s
    entrants = entrants_of([*known.values()], curves_of(pool), FINAL_SHARE * budget_s / left.slots)
    facts = SearchPlan(
        entrants=entrants,
        final_share=FINAL_SHARE if all(entrant.curve for entrant in entrants) else USUAL_FINAL_SHARE,
        budget_s=budget_s,
        slots=left.slots,
        min_gain=request.min_gain,
        seed=request.seed if request.search == "optuna" else None,
    )
    search = make_search(facts)
    if search.bracket is None:
        return None
    counts, seconds = search.bracket.counts, search.bracket.seconds
    trials, left_out = [], list(rejections)
    for entrant in search.entrants:
        trial = known[entrant.candidate].trial_plan(seconds[0])
        if entrant not in search.admitted:
            reason = f"left out: the time pays for {counts[0]} trials of {format_duration(seconds[0])} each"
            left_out.append(Rejection(candidate=entrant.candidate, reason=reason))
        elif trial is not None:
            trials.append(trial)
    if not trials:
        return None
    return Plan(
        trials=tuple(trials),
        rejections=tuple(left_out),
        request=request,
        fingerprint=fingerprint,
        search=replace(facts, counts=counts, seconds=seconds, final_s=search.final_s),
        profiles=tuple(replace(known[entrant.candidate].profile, probes=()) for entrant in search.entrants),
    )


def entrants_of(
    found: Sequence[CostedCandidate], curves: Mapping[tuple[str, int], LearningCurve], final_s: float
) -> tuple[SearchCandidate, ...]:
    """The entrants in the order in which they are tried; the last ones may be left out for want of time.

    Those first of which most is expected after ``final_s``, by their measured paces; where nothing is known, those with
    the most images per second.
    """
    entrants = []
    for one in sorted(found, key=lambda one: (one.usual.step_s / one.profile.batch, one.profile.candidate)):
        candidate, overhead_s = one.profile.candidate, min(cost.overhead_s() for _, cost in one.schedules)
        curve = curves.get((candidate.model, candidate.train_px))
        if curve is not None:
            curve = replace(curve, overhead_s=overhead_s, images_per_s=one.profile.batch / one.usual.step_s)
        entrants.append(SearchCandidate(candidate=candidate, overhead_s=overhead_s, curve=curve))
    if all(entrant.curve for entrant in entrants):
        entrants.sort(key=lambda entrant: -entrant.curve.logit(final_s) if entrant.curve else 0.0)
    return tuple(entrants)


def make_search(facts: SearchPlan) -> Halving:
    """The search at its beginning."""
    shape: dict[str, Any] = {"budget_s": facts.budget_s, "devices": facts.slots, "min_gain": facts.min_gain}
    shape["final_share"] = facts.final_share
    entrants, seed = facts.entrants, facts.seed
    return Halving(entrants, **shape) if seed is None else TPEHalving(entrants, seed=seed, **shape)


def score(outcome: TrainResult | str, n_val: int) -> Score:
    """The score of a trial; ``outcome`` is the reason if it failed."""
    if isinstance(outcome, str):
        return FailedTrial(reason=outcome)
    if outcome.best is None:
        return FailedTrial(reason="its time was over before it could be validated")
    return Accuracy(correct=outcome.best, total=n_val)


def replay(facts: SearchPlan, history: Sequence[AskEvent | TellEvent], n_val: int) -> Halving:
    """The search after ``history``.

    Raises:
        RunFolderError: this version's search would have chosen other trials.
    """
    search = make_search(facts)
    numbers: dict[str, int] = {}
    for event in history:
        if isinstance(event, TellEvent):
            search.tell(numbers[event.name], score(event.outcome, n_val))
            continue
        trial = event.trial
        if search.ask(left_s=event.left_s, time_left_s=event.time_left_s) != trial:
            raise RunFolderError(
                f"this version of fitwithin would not choose trial {trial.number} ({trial.name}) of this run's search; "
                f"resume with the version that began the run, or start a new one"
            )
        numbers[trial.name] = trial.number
    return search
