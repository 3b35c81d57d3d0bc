"""The plan of a search: who enters, what its ladder is, the turn that a trial comes to, and where it stands. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitwithin.budget import Remaining
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.results import TrainResult
from fitwithin.errors import RunFolderError
from fitwithin.planning.cost import Costs, costs, evaluation_kept_s
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import Plan, SearchPlan, TrialPlan, epochs_of, name_of, turn_of
from fitwithin.planning.search import FINAL, SearchCandidate, Trial
from fitwithin.planning.stats import Score
from fitwithin.planning.tpe import TPEHalving
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.recipe import Recipe
from fitwithin.request import Request
from fitwithin.units import format_duration

#: What a turn's name and folder have behind the candidate's.
FINAL_NAME, RUNG_NAME = "final", "rung{}"


@dataclass(frozen=True, kw_only=True)
class CostedCandidate:
    """A profile with the ways in which its candidate can be trained, and what each costs: the recipe's, and where that
    resizes progressively also at the whole size from the start, for turns too short for the changes."""

    profile: Profile
    ways: tuple[tuple[Recipe, Costs], ...]

    @property
    def usual(self) -> Costs:
        """What the recipe's own way costs."""
        return self.ways[0][1]

    def within(self, seconds: float) -> tuple[Recipe, Costs, int]:
        """The way in which so many seconds pay for the most steps, what it costs, and those steps."""
        counted = [(recipe, cost, cost.affordable_steps(seconds)) for recipe, cost in self.ways]
        return max(counted, key=lambda way: way[2])


def priced(profile: Profile, data: DataFacts, recipe: Recipe, view_sizes: Sequence[int]) -> CostedCandidate:
    """What trials of a profile's candidate cost."""
    recipes = [recipe, replace(recipe, progressive_resizing=())] if recipe.progressive_resizing else [recipe]
    return CostedCandidate(
        profile=profile, ways=tuple((way, costs(profile, data, way, view_sizes, "total")) for way in recipes)
    )


@dataclass(frozen=True, kw_only=True)
class AskEvent:
    """A search was asked: the seconds that were left, those until the end, and the trial that it answered."""

    left_s: float
    trial: Trial
    longest_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class TellEvent:
    """A search was told how the turn of that name ended; of one that failed, the reason."""

    name: str
    outcome: TrainResult | str


def entrants(known: Sequence[CostedCandidate]) -> list[SearchCandidate]:
    """The candidates in the order in which they should be tried: the most images per second first.

    Nothing else is known before the first rung. It decides only who is left out where the time does not pay for all.
    """
    ordered = sorted(known, key=lambda one: (one.usual.step_s / one.profile.batch, one.profile.candidate))
    return [
        SearchCandidate(candidate=one.profile.candidate, fixed_s=min(cost.beside_s() for _, cost in one.ways))
        for one in ordered
    ]


def plan(
    profiles: Sequence[Profile],
    rejections: Sequence[Rejection],
    *,
    left: Remaining,
    data: DataFacts,
    recipe: Recipe,
    view_sizes: Sequence[int],
    request: Request,
    fingerprint: str,
    min_gain: float | None = None,
    seed: int | None = None,
) -> Plan | None:
    """The plan of a search: the turns of its first rung; None where there is time for one candidate only.

    Args:
        left: what all trials and the winner's evaluation may take.
        seed: who enters is sampled by it; without one all do, as far as the time pays for them.
    """
    known = {profile.candidate: priced(profile, data, recipe, view_sizes) for profile in profiles}
    kept_s = evaluation_kept_s(max(one.usual.evaluation_s for one in known.values()))
    budget_s = left.less(kept_s).together_s
    facts = SearchPlan(
        entrants=tuple(entrants([*known.values()])),
        budget_s=budget_s,
        slots=left.slots,
        min_gain=min_gain,
        seed=seed,
    )
    search = begun(facts)
    if search.ladder is None:
        return None
    counts, seconds = search.ladder.counts, search.ladder.seconds
    turns, turned_away = [], list(rejections)
    for entrant in search.entrants:
        turn = turn_over(known[entrant.candidate], seconds[0], data=data)
        if entrant not in search.entering:
            reason = f"left out: the time pays for {counts[0]} trials of {format_duration(seconds[0])} each"
            turned_away.append(Rejection(candidate=entrant.candidate, reason=reason))
        elif turn is not None:
            turns.append(turn)
    if not turns:
        return None
    facts = replace(facts, counts=counts, seconds=seconds, final_s=search.final_s)
    return Plan(
        turns=tuple(turns),
        rejections=tuple(turned_away),
        request=request,
        fingerprint=fingerprint,
        search=facts,
        profiles=tuple(replace(known[entrant.candidate].profile, probes=()) for entrant in search.entrants),
    )


def begun(facts: SearchPlan) -> Halving:
    """The search at its beginning."""
    shape: dict[str, Any] = {"budget_s": facts.budget_s, "devices": facts.slots, "min_gain": facts.min_gain}
    return (
        Halving(facts.entrants, **shape) if facts.seed is None else TPEHalving(facts.entrants, seed=facts.seed, **shape)
    )


def turn_over(one: CostedCandidate, seconds: float, *, data: DataFacts, trial: Trial | None = None) -> TrialPlan | None:
    """The turn that ``seconds`` pay for, named after its trial; None for fewer than two steps."""
    recipe, cost, steps = one.within(seconds)
    if steps < 2:
        return None
    turn = turn_of(one.profile, cost, epochs_of(steps, one.profile, data), seconds, data, recipe)
    return turn if trial is None else replace(turn, suffix=suffix(trial), why=(*turn.why, trial.why))


def suffix(trial: Trial) -> str:
    """What its turn's name has behind the candidate's."""
    if trial.rung == FINAL:
        return FINAL_NAME
    return RUNG_NAME.format(trial.rung) if trial.rung else ""


def score(outcome: TrainResult | str, n_val: int) -> Score:
    """What a turn's end says to the search; of one that failed, the reason."""
    if isinstance(outcome, str):
        return Score(reason=outcome)
    if outcome.best is None:
        return Score(reason="its time was over before it could be validated")
    return Score(correct=outcome.best, total=n_val)


def told_again(facts: SearchPlan, course: Sequence[AskEvent | TellEvent], n_val: int) -> Halving:
    """The search as it stands: asked again what it was asked and told what it was told, in the order of events.

    Raises:
        RunFolderError: this version's search would have gone another way.
    """
    search = begun(facts)
    numbers: dict[str, int] = {}
    for event in course:
        if isinstance(event, TellEvent):
            search.tell(numbers[event.name], score(event.outcome, n_val))
            continue
        trial = event.trial
        if search.ask(left_s=event.left_s, longest_s=event.longest_s) != trial:
            raise RunFolderError(
                f"trial {trial.number} of this run's search ({turn_name(trial)}) is not what this version of fitwithin "
                f"would try there; go on with the version that began the run, or start a new one"
            )
        numbers[turn_name(trial)] = trial.number
    return search


def turn_name(trial: Trial) -> str:
    """The name of a trial's turn."""
    return name_of(trial.candidate, suffix(trial))
