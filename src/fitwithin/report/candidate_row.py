"""A candidate's row in the report, from everything that is known about it, and the Pareto front of all of them.

The front is of accuracy against training time, inference time and memory. A candidate is on it if no other is at least
as good in all of them and better in one. Training time is what it was given, not what it took. Times and memory are
compared to two digits. What is not known of every candidate (a run by a frozen plan has no profiles) is left out for
all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.engine.results import BUSY, TrainResult
from fitwithin.files import decode
from fitwithin.ledger import Entry
from fitwithin.planning.plan import TrialPlan
from fitwithin.planning.stats import Accuracy
from fitwithin.profiling.profile import Profile
from fitwithin.report.schema import CandidateRow, CandidateStatus, CurvePoint, Validation

#: Digits to which times and memory are compared: a timing of a second is good to no more.
DIGITS = 2

#: What is compared, in words, by the field of a candidate's row.
OBJECTIVES = {
    "validation": "accuracy",
    "allotted_s": "the training time given",
    "inference_ms": "inference time",
    "peak_bytes": "memory",
}

#: Values of which more is better, in the same order for all candidates.
Objectives = tuple[float, ...]


def _how_it_ended(plan: TrialPlan, trained: TrainResult) -> str:
    """How a trial ended, in words."""
    went = f"planned {plan.epochs:g} epochs, took {round(trained.epochs, 3):g}"
    if trained.ended == "complete":
        more = f", {trained.steps - plan.steps:,} more than planned" if trained.steps > plan.steps else ", as planned"
        text = f"complete: {trained.steps:,} steps{more}"
    elif trained.ended == "shortened":
        text = f"{went}: the machine was slower than profiled, so the schedule was shortened, down to a rate of 0"
    else:
        text = f"{went}: its time was over before the last step; the model is the last one saved"
    if trained.nan_restarts:
        text += f"; {trained.nan_restarts} times the loss was not a number: training went back to the checkpoint, "
        text += "with half the learning rate"
    if trained.averaged:
        text += "; delivered is the mean of its first and its last weights"
    if trained.cpu_taken >= BUSY:
        text += f"; other programs took {trained.cpu_taken:.0%} of the CPU meanwhile"
    return text


def _predicted_s(plan: TrialPlan, result: TrainResult | None) -> tuple[float, float, float]:
    """Seconds that a trial should take for the steps that it took, else for those planned; the ends of the interval."""
    if not plan.steps:  # a linear probe
        return plan.predicted_s, plan.predicted_low_s, plan.predicted_high_s
    steps = plan.steps if result is None else result.steps
    grown = steps / plan.steps
    whole_s = plan.predicted_s + (steps - plan.steps) * plan.batch / plan.images_per_s
    return (
        whole_s,
        whole_s - grown * (plan.predicted_s - plan.predicted_low_s),
        whole_s + grown * (plan.predicted_high_s - plan.predicted_s),
    )


def candidate_row(
    candidate: Candidate,
    profile: Profile | None,
    status: CandidateStatus,
    reason: str | None,
    *,
    trial: TrialPlan | None = None,
    trials: Sequence[TrialPlan] = (),
    results: Mapping[str, TrainResult] | None = None,
    entries: Sequence[Entry] = (),
    n_val: int = 0,
) -> CandidateRow:
    """One row of the report, about one ``trial`` of the candidate, if it had any.

    Args:
        reason: why the candidate was rejected, or the trial failed.
        trials: all trials of the candidate.
        results: by name, those of all trials that left a model.
        entries: what the ledger holds of the candidate's trials.
        n_val: how many validation images there are.
    """
    results = results or {}
    facts: dict[str, Any] = {}
    if profile is not None:
        facts.update(
            parameters=profile.parameters,
            batch=profile.batch,
            batch_why=profile.batch_why,
            images_per_s=profile.images_per_s,
            dummy_images_per_s=profile.dummy_images_per_s,
            profile_s=profile.wall_s,
            profile_cached=profile.cached,
            peak_bytes=profile.peak_bytes,
        )
        image_s = profile.timing.eval_image_s.get(candidate.train_px)
        facts["inference_ms"] = None if image_s is None else 1e3 * image_s
    started = {entry.key for entry in entries}
    if trial is not None:
        counted = [each for each in trials if each.name in started] or [trial]
        expected = [_predicted_s(each, results.get(each.name)) for each in counted]
        facts.update(
            parameters=trial.parameters,
            batch=trial.batch,
            images_per_s=trial.images_per_s,
            dummy_images_per_s=trial.dummy_images_per_s,
            epochs=trial.epochs,
            steps=trial.steps,
            predicted_s=math.fsum(whole_s for whole_s, _, _ in expected),
            predicted_low_s=math.fsum(low_s for _, low_s, _ in expected),
            predicted_high_s=math.fsum(high_s for _, _, high_s in expected),
        )
        reason = reason if reason is not None else trial.why["epochs"]
    if entries:
        facts["actual_s"] = sum(entry.charged_s or 0.0 for entry in entries)
        facts["allotted_s"] = math.fsum(each.allotted_s for each in trials if each.name in started)
    if trial is not None and trial.name in results:
        trained = results[trial.name]
        peaks = [entry.peak_bytes for entry in entries if entry.peak_bytes is not None]
        facts.update(
            epochs=trained.epochs,
            steps=trained.steps,
            peak_bytes=max([trained.peak_bytes, *peaks]),
            validation=None if trained.best is None else Accuracy(correct=trained.best, total=n_val),
            validations=tuple(decode(Validation, validation) for validation in trained.validations),
            curve=tuple(decode(CurvePoint, point) for point in trained.curve),
            predicted_startup_s=trial.startup_s,
            actual_startup_s=trained.startup_s,
            # the first steps' extra cost included
            predicted_training_s=trial.warmup_s + trained.steps * trial.batch / trial.images_per_s,
            actual_training_s=trained.training_s,
        )
        reason = _how_it_ended(trial, trained) if trial.steps else trial.why["epochs"]
    return CandidateRow(
        name=candidate.name,
        model=candidate.model,
        precision=candidate.precision,
        train_px=candidate.train_px,
        status=status,
        reason=reason or "",
        **facts,
    )


def known_objectives(rows: Sequence[CandidateRow]) -> list[str]:
    """The fields that are known of every candidate that was tried; accuracy always is."""
    tried = [row for row in rows if row.validation is not None]
    return [field for field in OBJECTIVES if all(getattr(row, field) is not None for row in tried)]


def dominates(one: Objectives, other: Objectives) -> bool:
    """Whether ``one`` is at least as good in everything and better in something."""
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def dominated_by(objectives: Mapping[str, Objectives]) -> dict[str, str | None]:
    """For each name None where it is on the front, else the name on the front that dominates it: the best in the first
    objective."""
    # From the best on: whatever dominates a name stands before it, and is on the front or dominated by one that is.
    ordered = sorted(objectives, key=lambda name: objectives[name], reverse=True)
    front: list[str] = []
    found: dict[str, str | None] = {}
    for name in ordered:
        found[name] = next((other for other in front if dominates(objectives[other], objectives[name])), None)
        if found[name] is None:
            front.append(name)
    return {name: found[name] for name in objectives}


def with_pareto(rows: Sequence[CandidateRow]) -> tuple[CandidateRow, ...]:
    """The rows, and of those that were tried whether they are on the front, or which candidate dominates them."""
    fields = known_objectives(rows)
    found = dominated_by({row.name: _objectives(row, fields) for row in rows if row.validation is not None})
    return tuple(
        replace(row, front=found[row.name] is None, dominated_by=found[row.name]) if row.name in found else row
        for row in rows
    )


def _objectives(row: CandidateRow, fields: Sequence[str]) -> Objectives:
    assert row.validation is not None
    costs = [float(f"{getattr(row, field):.{DIGITS}g}") for field in fields if field != "validation"]
    return (row.validation.share, *(-cost for cost in costs))
