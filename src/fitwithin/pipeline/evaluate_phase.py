"""From trained candidates to the delivered ensemble: the winner, its evaluation, and the views to average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fitwithin import events
from fitwithin.candidate import Candidate, View, describe
from fitwithin.engine.margins import WATCHDOG_S
from fitwithin.engine.results import EVALUATED, EvalResult, Failure, Progress, TrainResult, read_logits
from fitwithin.errors import TrainingError
from fitwithin.events import ModelEvaluated
from fitwithin.files import read_json
from fitwithin.inference import calibration
from fitwithin.inference.assessment import assess
from fitwithin.inference.ensemble import Choice, average, choose, correct, softmax
from fitwithin.inference.quality import Assessment
from fitwithin.pipeline import search_phase, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import ClassRow, MethodRow, Usage, ViewRow

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

Labels = npt.NDArray[np.int64]


def best_trial(trained: Mapping[str, TrainResult]) -> tuple[str, str]:
    """The name of the best trial by validation accuracy, the first on a tie, and why; without any validation the trial
    that trained the longest."""
    validated = {name: result.best for name, result in trained.items() if result.best is not None}
    if not validated:
        name = max(trained, key=lambda each: trained[each].epochs)
        return name, "No candidate was validated in its time; this one trained the longest."
    name = max(validated, key=lambda each: validated[each])
    if len(validated) == 1:
        return name, "It is the only candidate that was validated."
    return name, f"It is the best of {len(validated)} candidates on validation data."


def other_precision(winner: Candidate, others: Sequence[Candidate]) -> Candidate | None:
    """The same candidate in the paper's other precision, if it was trained too, for the paper's Table 1."""
    other = replace(winner, precision={"amp": "fp32", "fp32": "amp"}.get(winner.precision, ""))
    return other if other in others else None


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another model that looks beside the winner: its candidate, its ``folder`` within the run, its weights' bytes."""

    candidate: Candidate
    folder: str
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """An evaluated candidate: its logits [N, K] by split and view, as far as computed, and those of ``others``, whose
    views have the numbers from 1 on."""

    candidate: Candidate
    evaluated: EvalResult
    logits: Mapping[str, Mapping[View, Floats]]
    others: tuple[Other, ...] = ()

    def shown(self, view: View) -> str:
        """The name of a view, with that of the model if it is another one."""
        own = replace(view, member=0).name
        return f"{own} of {self.others[view.member - 1].candidate.name}" if view.member else own

    def joined(self, choice: Choice) -> tuple[Other, ...]:
        """The others that look."""
        numbers = sorted({view.member for view in choice.views if view.member})
        return tuple(self.others[number - 1] for number in numbers)

    @property
    def num_classes(self) -> int | None:
        """How many classes it tells apart; None before any logits are known."""
        every = (rows for views in self.logits.values() for rows in views.values())
        return next((rows.shape[1] for rows in every), None)


def table1_rows(member: Member, labels: Mapping[str, Labels], views: Sequence[View]) -> list[MethodRow]:
    """The rows of the paper's Table 1 for one candidate."""
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
    return [_method_row(name, member, labels, used) for name, used in ways]


def delivered_row(member: Member, labels: Mapping[str, Labels], choice: Choice) -> MethodRow:
    """The row of what is delivered: the average of the chosen views."""
    row = _method_row("Delivered", member, labels, choice.views)
    validation, test = (_delivered_accuracy(member, split, choice, labels) for split in ("val", "test"))
    return replace(row, validation=validation, test=test, note=choice.why, delivered=True)


def _method_row(name: str, member: Member, labels: Mapping[str, Labels], views: Sequence[View]) -> MethodRow:
    return MethodRow(
        method=name,
        candidate=member.candidate.name,
        train_px=member.candidate.train_px,
        test_px=describe(views),
        validation=_accuracy(member, "val", views, labels),
        test=_accuracy(member, "test", views, labels),
    )


def choose_views(member: Member, labels: Mapping[str, Labels], limit_ms: float | None) -> Choice:
    """Which of the views to average, by validation data alone; the training size if nothing was computed.

    If the time was over before every view was tested, only the tested ones count, if one of them keeps the limit.
    """
    found = member.logits.get("val", {})
    if not found:
        only = View(px=member.candidate.train_px, flip=False)
        why = "the time was over before any view could be evaluated: the training size alone is used"
        return Choice(views=(only,), why=why, reasons={})
    costs = {view: member.evaluated.ms_per_image[view.name] for view in found}
    untested = [view for view in found if view not in member.logits.get("test", {})]
    tested = [view for view in found if view not in untested]
    if not any(limit_ms is None or costs[view] <= limit_ms for view in tested):
        return choose(found, labels["val"], costs, limit_ms)
    choice = choose({view: found[view] for view in tested}, labels["val"], costs, limit_ms)
    return replace(
        choice, reasons={**choice.reasons, **dict.fromkeys(untested, "the time was over before it was tested")}
    )


def usage(member: Member, choice: Choice) -> Usage | None:
    """What a pass of the model takes where it is used; None if it was not measured."""
    found, others = member.evaluated, member.joined(choice)
    found = replace(found, weight_bytes=found.weight_bytes + sum(other.weight_bytes for other in others))
    if not found.image_bytes:
        return None
    return Usage(batch=found.batch, used_bytes=found.used_bytes, novelty=found.novelty)


def view_rows(member: Member, labels: Mapping[str, Labels], choice: Choice) -> list[ViewRow]:
    """One row for each view that was evaluated."""
    return [
        ViewRow(
            name=member.shown(view),
            px=view.px,
            flip=view.flip,
            validation=Accuracy(correct=correct(softmax(logits), labels["val"]), total=len(labels["val"])),
            ms_per_image=member.evaluated.ms_per_image[view.name],
            chosen=view in choice.views,
            reason=choice.reasons.get(view, ""),
        )
        for view, logits in sorted(member.logits.get("val", {}).items())
    ]


def class_rows(
    member: Member, labels: Mapping[str, Labels], choice: Choice, classes: Sequence[str], train_labels: Labels
) -> list[ClassRow]:
    """How what is delivered does on each class."""
    hits = {}
    for split in ("val", "test"):
        if _accuracy(member, split, choice.views, labels) is not None:
            hits[split] = choice.probabilities(member.logits[split]).argmax(axis=1) == labels[split]

    def accuracy(split: str, label: int) -> Accuracy | None:
        own = hits[split][labels[split] == label] if split in hits else np.array([])
        return Accuracy(correct=int(own.sum()), total=len(own)) if len(own) else None

    counts = np.bincount(train_labels, minlength=len(classes))
    return [
        ClassRow(name=name, train=int(counts[label]), validation=accuracy("val", label), test=accuracy("test", label))
        for label, name in enumerate(classes)
    ]


def weigh_classes(member: Member, labels: Mapping[str, Labels], choice: Choice, train_labels: Labels) -> Choice:
    """The choice with the weights of classes that validation data support."""
    found, classes = member.logits.get("val", {}), member.num_classes
    if classes is None or any(view not in found for view in choice.views):
        return choice
    counts = np.bincount(train_labels, minlength=classes)
    balance = calibration.choose_balance(average(found, choice.views), labels["val"], counts)
    return replace(choice, class_weights=balance.class_weights, balance_why=balance.why)


def fit_temperature(member: Member, labels: Mapping[str, Labels], choice: Choice) -> tuple[float, str]:
    """The temperature of the chosen views' mean probabilities by validation data, and why it is that."""
    found, truth = member.logits.get("val", {}), labels["val"]
    if any(view not in found for view in choice.views):
        return 1.0, "Probabilities are as they come: there was no time to see how far they can be trusted."
    if len(truth) < calibration.LEAST_IMAGES:
        return 1.0, (
            f"Probabilities are as they come: {len(truth)} validation images are too few to fit a temperature "
            f"({calibration.LEAST_IMAGES} are needed)."
        )
    temperature = calibration.fit_temperature(choice.probabilities(found), truth)
    how = "surer" if temperature < 1 else "less sure"
    return temperature, (
        f"Probabilities are made {how} by a temperature of {temperature:.2f}, at which the {len(truth):,} validation "
        f"images are the most likely. It changes no answer."
    )


def assessments(
    run: RunContext, member: Member, labels: Mapping[str, Labels], choice: Choice, temperature: float
) -> list[Assessment]:
    """How good what is delivered is on each split that has labels."""
    return [
        assess(
            split,
            choice.probabilities(member.logits[split]),
            labels[split],
            classes=run.images.classes,
            paths=[run.images.paths[int(i)] for i in run.images.indices(split)],
            temperature=temperature,
        )
        for split in ("val", "test")
        if _accuracy(member, split, choice.views, labels) is not None
    ]


def _accuracy(member: Member, split: str, views: Sequence[View], labels: Mapping[str, Labels]) -> Accuracy | None:
    """Accuracy of the averaged views on a split; None if it has no labels or a view is missing."""
    found, truth = member.logits.get(split, {}), labels.get(split)
    if truth is None or not len(truth) or (truth < 0).any() or any(view not in found for view in views):
        return None
    return Accuracy(correct=correct(average(found, views), truth), total=len(truth))


def _delivered_accuracy(member: Member, split: str, choice: Choice, labels: Mapping[str, Labels]) -> Accuracy | None:
    """The accuracy of what is delivered on a split, where there is one."""
    if _accuracy(member, split, choice.views, labels) is None:
        return None
    found = choice.probabilities(member.logits[split])
    return Accuracy(correct=correct(found, labels[split]), total=len(labels[split]))


def choose_winner(run: RunContext, plan: Plan) -> tuple[TrialPlan, str]:
    """The trial that won, and why; TrainingError if no trial left a model."""
    trained, failed = events.outcomes(run.store)
    if not trained:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise TrainingError(f"no candidate left a model ({reasons}); `fitwithin plan` shows what would fit")
    name, why = best_trial(trained)
    if plan.search is not None:
        name, why = search_phase.best_trial(run, plan.search) or (name, why)
        name, why = _unless_probed_better(name, why, trained)
    return events.planned_trials(plan, run.store)[name], why


def _unless_probed_better(name: str, why: str, trained: Mapping[str, TrainResult]) -> tuple[str, str]:
    """The search's best trial, or the best linear probe if that is right more often."""
    probes = {each: result.best or 0 for each, result in trained.items() if not result.planned_steps}
    best = max(probes, key=lambda each: probes[each], default=name)
    if probes.get(best, 0) <= (trained[name].best or 0):
        return name, why
    return best, f"Its linear head is better on validation data than the best fine-tuning, {name}."


def evaluate(run: RunContext, plan: Plan, winner: TrialPlan) -> list[Member]:
    """Evaluate the winner, then the same candidate in the other precision, once, under all views on validation and
    test."""
    trained, _ = events.outcomes(run.store)
    trials = events.planned_trials(plan, run.store)
    chosen = [winner.name]
    if plan.search is None:
        other = other_precision(winner.candidate, [trials[key].candidate for key in trained])
        chosen += [other.name] if other is not None else []
    return [_member(run, trials[key], trained[key].best is not None) for key in chosen]


def _member(run: RunContext, trial: TrialPlan, validated: bool) -> Member:
    name, folder = trial.name, train_phase.trial_folder(run.folder, trial)
    done = next((event for event in run.store.read(ModelEvaluated) if event.name == name), None)
    if done is None:
        run.reporter.begin(f"evaluating {name}")
        done = ModelEvaluated(name=name, result=carry_out(run, trial), validated=validated)
        run.store.append(done)
    logits = {
        split: {
            view: read_logits(folder, split, view)
            for view in run.request.views
            if (split, view.name) in done.result.done
        }
        for split in ("val", "test")
    }
    return Member(candidate=trial.candidate, evaluated=done.result, logits=logits)


def left_s(run: RunContext, trial: TrialPlan) -> float:
    """The seconds that are left for the evaluation of a trial's model."""
    if run.request.budget.scope == "total":
        return run.accountant.remaining().usable_s - run.closing_s
    return train_phase.allotment_left_s(run, trial)


def carry_out(run: RunContext, trial: TrialPlan, views: Sequence[View] = ()) -> EvalResult:
    """The evaluation of a trial's model under these views, or those of the run, as far as time goes."""
    folder = train_phase.trial_folder(run.folder, trial)

    def note(progress: Progress) -> None:
        opened.peak(progress.facts.get("peak_bytes"))  # an evaluation that is killed reports no other
        run.progress(progress)

    now, within_s = run.engine.now(), left_s(run, trial)
    until_at = now + within_s
    job = train_phase.evaluation(run, trial, until_at=until_at - WATCHDOG_S)
    if views:
        sizes = tuple(sorted({view.px for view in views}))
        setting = replace(job.setting, view_sizes=sizes)
        job = replace(job, views=tuple(views), setting=setting, learns_novelty=False)
    with run.accountant.entry("evaluate", trial.name, gpus=1, reserved_s=within_s) as opened:
        outcome: Any = Failure(kind="deadline", reason="no time was left")
        for _ in range(train_phase.ATTEMPTS):
            if run.engine.now() >= job.until_at:
                break
            outcome = run.engine.run(job, until_at=until_at, on_progress=note)
            opened.peak(outcome.peak_bytes)
            if not (isinstance(outcome, Failure) and outcome.kind in ("died", "hung")):
                break
    if isinstance(outcome, Failure):
        run.reporter.say(f"  evaluating {trial.candidate.name} failed: {outcome.reason}")
        done = read_json(EvalResult, folder / EVALUATED)
        return done or EvalResult(done=(), ms_per_image={}, batch=trial.batch, peak_bytes=outcome.peak_bytes or 0)
    assert isinstance(outcome, EvalResult)
    return outcome
