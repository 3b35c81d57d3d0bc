"""From trained candidates to the handed-over ensemble: the winner, its views, and the four ways of using it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import Evaluated, Trained
from fitwithin.errors import RunFolderError
from fitwithin.files import put_text
from fitwithin.inference.ensemble import Choice, Floats, View, average, choose, correct, describe, softmax
from fitwithin.planning.stats import Estimate
from fitwithin.report.schema import MethodRow, ViewRow

ENSEMBLE = "ensemble.json"

Labels = npt.NDArray[np.int64]


def logits_path(folder: Path, split: str, view: View) -> Path:
    """Where the logits [N, K] of a split under a view are kept."""
    return folder / f"logits-{split}-{view.px}{'-flipped' if view.flip else ''}.npy"


def read_logits(folder: Path, split: str, view: View) -> Floats:
    """The logits that an evaluation wrote."""
    return np.asarray(np.load(logits_path(folder, split, view), allow_pickle=False), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What is handed over: the winner's folder within the run, and the views to average."""

    candidate: str
    folder: str
    views: tuple[View, ...]
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :func:`read` is its inverse."""
        return asdict(self)


def write(ensemble: Ensemble, run: Path) -> None:
    """Keep the ensemble in the run's folder."""
    put_text(run / ENSEMBLE, json.dumps(ensemble.to_dict(), indent=1))


def read(run: Path) -> Ensemble:
    """The ensemble that a run handed over; RunFolderError if it has not (yet)."""
    path = run / ENSEMBLE
    if not path.is_file():
        raise RunFolderError(f"{run} holds no finished model (no {ENSEMBLE}); `fitwithin resume {run}` finishes a run")
    value = json.loads(path.read_text(encoding="utf-8"))
    return Ensemble(**{**value, "views": tuple(View(**view) for view in value["views"])})


def pick(trained: Mapping[str, Trained]) -> tuple[str, str]:
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
    evaluated: Evaluated
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
