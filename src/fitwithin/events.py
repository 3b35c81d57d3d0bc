"""The events of a run: what its store holds, read back as values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fitwithin.candidate import Candidate
from fitwithin.engine.results import TrainResult, train_result_from_dict
from fitwithin.planning.plan import Plan, TrialPlan, trial_plan_from_dict
from fitwithin.planning.search import Trial
from fitwithin.planning.search_plan import AskEvent, TellEvent
from fitwithin.profiling import profile as profiles
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.store import Event, bodies


def profiled(events: Sequence[Event]) -> dict[str, Profile]:
    """The profiles that the store holds, by candidate name."""
    found = (profiles.from_dict(body) for body in bodies(list(events), "profiled"))
    return {profile.candidate.name: profile for profile in found}


def rejected(events: Sequence[Event]) -> dict[str, Rejection]:
    """The rejections of the profile phase, by candidate name."""
    found = (
        Rejection(candidate=Candidate(**body["candidate"]), reason=body["reason"])
        for body in bodies(list(events), "rejected")
    )
    return {rejection.candidate.name: rejection for rejection in found}


def trials(events: Sequence[Event]) -> list[tuple[float, Trial]]:
    """What a search was asked: the seconds that were left, and the trial, in order."""
    found = bodies(list(events), "trial")
    return [
        (body["left_s"], Trial(**{**body["trial"], "candidate": Candidate(**body["trial"]["candidate"])}))
        for body in found
    ]


def course(events: Sequence[Event]) -> list[AskEvent | TellEvent]:
    """What a search was asked and told, in the order of events."""
    found: list[AskEvent | TellEvent] = []
    for event in events:
        if event.kind == "trial":
            ((left_s, trial),) = trials([event])
            longest_s = event.body.get("longest_s")
            time_left_s = math.inf if longest_s is None else longest_s
            found.append(AskEvent(left_s=left_s, trial=trial, time_left_s=time_left_s))
        elif event.kind == "turn":
            trained, failed = outcomes([event])
            found += [
                TellEvent(name=name, outcome=outcome) for ended in (trained, failed) for name, outcome in ended.items()
            ]
    return found


def turns(plan: Plan, events: Sequence[Event]) -> dict[str, TrialPlan]:
    """All turns by name: the plan's, and those that a search has had since, in order."""
    later = [trial_plan_from_dict(body["turn"]) for body in bodies(list(events), "trial") if body["turn"] is not None]
    return {turn.name: turn for turn in (*plan.trials, *later)}


def outcomes(events: Sequence[Event]) -> tuple[dict[str, TrainResult], dict[str, str]]:
    """How the turns ended: trained by name, and the reasons of those that failed."""
    trained: dict[str, TrainResult] = {}
    failed: dict[str, str] = {}
    for body in bodies(list(events), "turn"):
        if body["trained"] is not None:
            trained[body["name"]] = train_result_from_dict(body["trained"])
        else:
            failed[body["name"]] = body["reason"]
    return trained, failed
