"""Other models of the run that look beside the winner: which are evaluated, in time that is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fitwithin import events
from fitwithin.candidate import Candidate, View
from fitwithin.engine.results import EVALUATED, EvalResult, read_logits
from fitwithin.events import LinearProbed
from fitwithin.files import read_json
from fitwithin.pipeline import evaluate_phase, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.evaluate_phase import Member, Other
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.planning.pool import START_S

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: An evaluation is begun if so many times the time is left that the winner's took.
MARGIN = 1.5

#: Models that are right less often on validation data, by so many points, are not evaluated: they seldom help.
MOST_BEHIND = 10.0

#: With fewer validation images nobody can tell whether others help.
LEAST_IMAGES = 100


def with_others(run: RunContext, plan: Plan, winner: TrialPlan, member: Member) -> Member:
    """The winner's evaluation with those of the best other models of the run, as far as time is left.

    They look at their training size. The images of test are read, but its labels play no part: validation data decide
    who looks (inference/ensemble.py).
    """
    if not member.logits.get("val") or run.data.val < LEAST_IMAGES:
        return member
    found, needed_s = member, MARGIN * run.accountant.ledger().charged_s(winner.name, phase="evaluate")
    if train_phase.evaluates_in_process(run, winner):
        needed_s += START_S[run.request.device.kind]
    for trial in _best_others(run, plan, winner):
        evaluated = _evaluate(run, trial, needed_s)
        if evaluated is not None:
            found = _joined(run, found, trial, evaluated)
    return found


def _best_others(run: RunContext, plan: Plan, winner: TrialPlan) -> list[TrialPlan]:
    """The trials of the best other models on validation data, the best first: of each candidate one fine-tuned or
    trained from drawn weights, and its linear head, if that was fitted to pictures in the run's frame."""
    trained, _ = events.outcomes(run.store)
    heads = {event.trial.name: event.fit for event in run.store.read(LinearProbed) if event.trial is not None}
    trials, n_val = events.planned_trials(plan, run.store), run.data.val
    best = trained[winner.name].best
    if best is None or run.request.budget.inference_bytes is not None:
        return []
    least = best - MOST_BEHIND / 100 * n_val
    fit = run.request.recipe.fit
    right = {
        name: result.best
        for name, result in trained.items()
        if result.best is not None and result.best >= least and heads.get(name, fit) == fit
    }
    found: dict[tuple[Candidate, bool], TrialPlan] = {(winner.candidate, winner.name in heads): winner}
    for name in sorted(right, key=lambda name: (-right[name], name)):
        found.setdefault((trials[name].candidate, name in heads), trials[name])
    return [trial for trial in found.values() if trial != winner][: run.request.recipe.members]


def _views(run: RunContext, trial: TrialPlan) -> tuple[View, ...]:
    flips = (False, True) if any(view.flip for view in run.request.views) else (False,)
    return tuple(View(px=trial.candidate.train_px, flip=flip) for flip in flips)


def _evaluate(run: RunContext, trial: TrialPlan, needed_s: float) -> EvalResult | None:
    """The evaluation of another model under its views, each of both splits; None with less time than it needs.

    That of a linear head is there already, but for the mirrored view (training/linear_probe.py).
    """
    folder, views = train_phase.trial_folder(run.folder, trial), _views(run, trial)
    splits = ("val", "test") if run.data.test else ("val",)
    result = read_json(EvalResult, folder / EVALUATED)
    if result is None or any((split, views[0].name) not in result.done for split in splits):
        if evaluate_phase.left_s(run, trial) < needed_s:
            return None
        run.reporter.begin(f"evaluating {trial.name} as a member of the ensemble")
        result = evaluate_phase.carry_out(run, trial, views)
    whole = [view.name for view in views if all((split, view.name) in result.done for split in splits)]
    return replace(result, done=tuple((split, name) for split in splits for name in whole)) if whole else None


def _joined(run: RunContext, winner: Member, trial: TrialPlan, other: EvalResult) -> Member:
    """The winner's evaluation with that of another trial."""
    folder, number = train_phase.trial_folder(Path(), trial), len(winner.others) + 1
    logits: dict[str, Mapping[View, Floats]] = dict(winner.logits)
    ms_per_image, views = dict(winner.evaluated.ms_per_image), {view.name: view for view in _views(run, trial)}
    for split, name in other.done:
        view = views[name]
        rows = read_logits(run.folder / folder, split, view)
        as_member = replace(view, member=number)
        logits[split] = {**logits[split], as_member: rows}
        ms_per_image[as_member.name] = other.ms_per_image[name]
    evaluated = replace(winner.evaluated, ms_per_image=ms_per_image)
    added = Other(candidate=trial.candidate, folder=str(folder), weight_bytes=other.weight_bytes)
    return replace(winner, logits=logits, evaluated=evaluated, others=(*winner.others, added))
