"""The instantiation phase by a search: trials are asked for, carried out as turns, and told of, within one budget.

What was asked and how it ended are events of the run's store; a run that was interrupted tells the search both once
more and goes on with the trial that it was at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fitwithin import contest, gather, instantiate
from fitwithin.costs import costs
from fitwithin.halving import Halving
from fitwithin.jobs import Failure, Trained
from fitwithin.planning import Plan, Planned, Turn, turn_from_dict
from fitwithin.profile import Profile
from fitwithin.search import Trial
from fitwithin.session import Run

#: Why a trial came to no turn.
TOO_SHORT = "its time does not pay for two steps"


def train(run: Run, plan: Plan, *, left_s: Callable[[], float]) -> None:
    """Carry out trials until the search has none left.

    Args:
        left_s: the seconds that all trials to come may last together, now.
    """
    assert plan.search is not None
    profiles = gather.profiled(run.store.events("profiled"))
    search = stand(run, plan.search)
    while (asked := _asked(run, search, profiles, left_s())) is not None:
        trial, turn = asked
        outcome: Trained | Failure = Failure(kind="deadline", reason=TOO_SHORT)
        if turn is None:
            run.store.append("turn", {"name": contest.turn_name(trial), "trained": None, "reason": TOO_SHORT})
        else:
            charged_s = run.accountant.books().lasted_s(turn.name, phase="train")
            ends_at = run.engine.now() + min(trial.seconds - charged_s, left_s())
            outcome = instantiate.carry_out(run, turn, ends_at=ends_at, frozen=plan.frozen, told=_told(trial, search))
        ended = outcome.reason if isinstance(outcome, Failure) else outcome
        search.tell(trial.number, contest.score(ended, run.data.val))


def _asked(run: Run, search: Halving, profiles: dict[str, Profile], left_s: float) -> tuple[Trial, Turn | None] | None:
    """The next trial with its turn: the one that was interrupted, else a new one."""
    if search.running:
        trial = search.running[0]
        body = next(e.body for e in run.store.events("trial") if e.body["trial"]["number"] == trial.number)
        return trial, None if body["turn"] is None else turn_from_dict(body["turn"])
    new = search.ask(left_s=left_s)
    if new is None:
        return None
    profile = profiles[new.candidate.name]
    cost = costs(profile, run.data, run.request.recipe, run.request.view_sizes, "total")
    turn = contest.turn_over((profile, cost), new.seconds, data=run.data, recipe=run.request.recipe, trial=new)
    if turn is not None and new.after is not None and run.request.recipe.continues:
        turn = replace(turn, after=contest.turn_name(search.trials[new.after - 1]))
    body = {"left_s": left_s, "trial": asdict(new), "turn": None if turn is None else asdict(turn)}
    run.store.append("trial", body)
    return new, turn


def _told(trial: Trial, search: Halving) -> str:
    """What is trained now, in words."""
    if trial.final:
        return "the final training"
    counts = search.ladder.counts if search.ladder else (1,)
    place = sum(other.rung == trial.rung for other in search.trials)
    return f"rung {trial.rung + 1} of {len(counts)}, {place} of {counts[trial.rung]}"


def pick(run: Run, facts: Planned) -> tuple[str, str] | None:
    """The name of the turn whose model the search hands over, and why; None if no trial could be validated."""
    search = stand(run, facts)
    best = search.best
    if best is None:
        return None
    tried = {trial.candidate for trial in search.trials}
    why = f"Of {len(tried)} candidates that were tried it is the best on validation data after equal time"
    return contest.turn_name(best), f"{why}, and then had the final training." if best.final else f"{why}."


def stand(run: Run, facts: Planned) -> Halving:
    """The search as the store tells it."""
    events = run.store.events("trial", "turn")
    asked = gather.trials(events)
    trained, failed = gather.outcomes(events)
    ended: dict[str, Any] = {**trained, **failed}
    return contest.told_again(facts, asked, ended, run.data.val)
