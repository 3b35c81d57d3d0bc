"""From trained candidates to the handed-over ensemble: the winner, its views, and the four ways of using it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fitwithin import events
from fitwithin.candidate import Candidate, View, describe
from fitwithin.engine.margins import WATCHDOG_S
from fitwithin.engine.results import (
    EVALUATED,
    EvalResult,
    Failure,
    Floats,
    Progress,
    TrainResult,
    read_logits,
)
from fitwithin.errors import TrainingError
from fitwithin.events import ModelEvaluated
from fitwithin.files import read_json
from fitwithin.inference.ensemble import Choice, average, choose, correct, softmax
from fitwithin.pipeline import search_phase, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.planning.stats import Estimate
from fitwithin.report.schema import MethodRow, ViewRow

Labels = npt.NDArray[np.int64]


def pick(trained: Mapping[str, TrainResult]) -> tuple[str, str]:
    """The name of the best turn by validation accuracy, and why; the first in order on a tie.

    A turn that was cut before it could validate counts only where no turn validated.
    """
    validated = {name: turn.best for name, turn in trained.items() if turn.best is not None}
    if not validated:
        name = max(trained, key=lambda candidate: trained[candidate].epochs)
        return name, "No candidate reached a validation; this one trained the longest."
    name = max(validated, key=lambda candidate: validated[candidate])
    if len(validated) == 1:
        return name, "It is the only candidate that reached a validation."
    return name, f"It is the best of {len(validated)} candidates on validation data."


#: The paper's two precisions.
TWINS = {"amp": "fp32", "fp32": "amp"}


def twin(winner: Candidate, others: Sequence[Candidate]) -> Candidate | None:
    """The winner's twin in the other precision, if it was trained too: it completes the paper's Table 1."""
    other = replace(winner, precision=TWINS.get(winner.precision, ""))
    return other if other in others else None


@dataclass(frozen=True, kw_only=True)
class Member:
    """An evaluated candidate: its logits [N, K] by split and view, as far as they were computed."""

    candidate: Candidate
    evaluated: EvalResult
    logits: Mapping[str, Mapping[View, Floats]]


def methods(member: Member, labels: Mapping[str, Labels], views: Sequence[View]) -> list[MethodRow]:
    """The rows of the paper's Table 1 for one candidate: symmetric, asymmetric, and the ensemble."""
    plain = [view.px for view in views if not view.flip]
    train_px, largest = member.candidate.train_px, max(plain)
    amp = {"amp": " + AMP", "amp-bf16": " + AMP (bfloat16)"}.get(member.candidate.precision, "")
    ways: list[tuple[str, list[View]]] = []
    if train_px in plain:
        ways.append((f"Symmetric sizes{amp}", [View(px=train_px, flip=False)]))
    if largest != train_px:
        ways.append((f"Asymmetric sizes{amp}", [View(px=largest, flip=False)]))
    if len(views) > 1:
        ways.append((f"Asymmetric sizes + ensemble{amp}" if largest != train_px else f"Ensemble{amp}", list(views)))
    return [
        MethodRow(
            method=name,
            candidate=member.candidate.name,
            train_px=train_px,
            test_px=describe(used),
            validation=_estimate(member, "val", used, labels),
            test=_estimate(member, "test", used, labels),
        )
        for name, used in ways
    ]


def handed_over(member: Member, labels: Mapping[str, Labels], choice: Choice) -> MethodRow:
    """The row of what is handed over: the chosen views."""
    return MethodRow(
        method="Handed over",
        candidate=member.candidate.name,
        train_px=member.candidate.train_px,
        test_px=describe(choice.views),
        validation=_estimate(member, "val", choice.views, labels),
        test=_estimate(member, "test", choice.views, labels),
        note=choice.why,
        delivered=True,
    )


def choose_views(member: Member, labels: Mapping[str, Labels], limit_ms: float | None) -> Choice:
    """Which of the views to average, by validation data alone; the training size where nothing was computed.

    Where time was over before every view could be tested, those that were are chosen from, if one keeps the limit.
    """
    found = member.logits.get("val", {})
    if not found:
        only = View(px=member.candidate.train_px, flip=False)
        why = "time was over before any view could be evaluated: the training size alone"
        return Choice(views=(only,), why=why, reasons={})
    costs = {view: member.evaluated.ms_per_image[view.name] for view in found}
    untested = [view for view in found if view not in member.logits.get("test", {})]
    tested = [view for view in found if view not in untested]
    if not any(limit_ms is None or costs[view] <= limit_ms for view in tested):
        return choose(found, labels["val"], costs, limit_ms)
    choice = choose({view: found[view] for view in tested}, labels["val"], costs, limit_ms)
    return replace(choice, reasons={**choice.reasons, **dict.fromkeys(untested, "time was over before it was tested")})


def view_rows(member: Member, labels: Mapping[str, Labels], choice: Choice) -> list[ViewRow]:
    """One row for each view that was evaluated."""
    rows = []
    for view, logits in sorted(member.logits.get("val", {}).items()):
        estimate = Estimate(correct=correct(softmax(logits), labels["val"]), total=len(labels["val"]))
        rows.append(
            ViewRow(
                name=view.name,
                px=view.px,
                flip=view.flip,
                validation=estimate,
                ms_per_image=member.evaluated.ms_per_image[view.name],
                chosen=view in choice.views,
                reason=choice.reasons.get(view, ""),
            )
        )
    return rows


def _estimate(member: Member, split: str, views: Sequence[View], labels: Mapping[str, Labels]) -> Estimate | None:
    """Accuracy of the averaged views on a split; None if it has no labels or a view is missing."""
    found, truth = member.logits.get(split, {}), labels.get(split)
    if truth is None or not len(truth) or (truth < 0).any() or any(view not in found for view in views):
        return None
    return Estimate(correct=correct(average(found, views), truth), total=len(truth))


def choose_winner(run: RunContext, plan: Plan) -> tuple[TrialPlan, str]:
    """The turn that won, and why.

    Raises:
        TrainingError: no turn left a model.
    """
    trained, failed = events.outcomes(run.store)
    if not trained:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise TrainingError(f"no candidate left a model ({reasons}); `fitwithin plan` shows what would fit")
    name, why = pick(trained)
    if plan.search is not None:
        name, why = search_phase.pick(run, plan.search) or (name, why)
    return events.turns(plan, run.store)[name], why


def evaluate(run: RunContext, plan: Plan, winner: TrialPlan, at_work: Callable[[], None]) -> list[Member]:
    """Evaluate the winner, and its twin in the other precision, under all views, on validation and on test, once.
    The winner stands first. Whoever evaluates says so with ``at_work``."""
    trained, _ = events.outcomes(run.store)
    turns = events.turns(plan, run.store)
    chosen = [winner.name]
    if plan.search is None:
        other = twin(winner.candidate, [turns[key].candidate for key in trained])
        chosen += [other.name] if other is not None else []
    return [_member(run, turns[key], trained[key].best is not None, at_work) for key in chosen]


def _member(run: RunContext, turn: TrialPlan, validated: bool, at_work: Callable[[], None]) -> Member:
    name, folder = turn.name, train_phase.turn_folder(run.folder, turn)
    done = next((event for event in run.store.read(ModelEvaluated) if event.name == name), None)
    if done is None:
        run.reporter.begin(f"evaluating {name}")
        done = ModelEvaluated(name=name, result=_evaluate(run, turn, folder, at_work), validated=validated)
        run.store.append(done)
    evaluated = done.result
    logits: dict[str, dict[View, Any]] = {}
    for view in run.request.views:
        for split in ("val", "test"):
            if (split, view.name) in evaluated.done:
                logits.setdefault(split, {})[view] = read_logits(folder, split, view)
    return Member(candidate=turn.candidate, evaluated=evaluated, logits=logits)


def _evaluate(run: RunContext, turn: TrialPlan, folder: Path, at_work: Callable[[], None]) -> EvalResult:
    def note(progress: Progress) -> None:
        at_work()
        run.progress(progress)

    now, budget = run.engine.now(), run.request.budget
    if budget.scope == "candidate":
        ledger = run.accountant.ledger()
        left_s = turn.allotted_s - ledger.charged_s(turn.name) + ledger.charged_s(turn.name, phase="profile")
    else:
        left_s = run.accountant.remaining().usable_s - run.closing_s
    until_at = now + left_s
    job = train_phase.evaluation(run, turn, until_at=until_at - WATCHDOG_S)
    with run.accountant.entry("evaluate", turn.name, gpus=1, reserved_s=left_s) as opened:
        outcome: Any = Failure(kind="deadline", reason="no time was left")
        for _ in range(train_phase.ATTEMPTS):
            if run.engine.now() >= job.until_at:
                break
            outcome = run.engine.do(job, until_at=until_at, on_progress=note)
            opened.peak(outcome.peak_bytes)
            if not (isinstance(outcome, Failure) and outcome.kind in ("died", "hung")):
                break
    if isinstance(outcome, Failure):
        run.reporter.say(f"  evaluating {turn.candidate.name} failed: {outcome.reason}")
        found = read_json(EvalResult, folder / EVALUATED)  # what it was done with by then
        return found or EvalResult(done=(), ms_per_image={}, batch=turn.batch, peak_bytes=outcome.peak_bytes or 0)
    assert isinstance(outcome, EvalResult)
    return outcome
