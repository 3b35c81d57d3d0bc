"""The end of a run: choose the views to average, deliver the ensemble, close the ledger, write the report."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fitwithin.data.dataset import Images
from fitwithin.engine.margins import ENDING_S, LEAVING_S
from fitwithin.events import RunFinished
from fitwithin.inference.calibration import BALANCED
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.model import hand_over
from fitwithin.pipeline import evaluate_phase, search_phase, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.evaluate_phase import Member
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.report import build, model_card
from fitwithin.report.render import write_report
from fitwithin.report.schema import Report
from fitwithin.units import format_duration

#: How many reference pictures a model comes with.
NUM_REFERENCES = 8

#: The longer side of the pictures of mistakes, in pixels.
PICTURE_PX = 160


def close(run: RunContext, plan: Plan, members: Sequence[Member], winner: TrialPlan, why: str) -> Report:
    """Choose the views on validation data, deliver the ensemble, close the ledger and write the report.

    ENDING_S are charged beforehand for writing the receipt and leaving. If that took longer, as on a slow disk, it is
    charged and written once more.
    """
    labels = {split: np.asarray(run.images.labels[run.images.indices(split)]) for split in ("val", "test")}
    train_labels = np.asarray(run.images.labels[run.images.indices("train")])
    chief = members[0]
    choice = evaluate_phase.choose_views(chief, labels, run.request.budget.image_ms)
    if run.request.balance == "auto":
        choice = evaluate_phase.weigh_classes(chief, labels, choice, train_labels)
    views = run.request.views
    rows = [row for member in reversed(members) for row in evaluate_phase.table1_rows(member, labels, views)]
    rows.append(evaluate_phase.delivered_row(chief, labels, choice))
    trial = train_phase.trial_folder(Path(), winner)
    batch = chief.evaluated.batch
    temperature, temperature_why = evaluate_phase.fit_temperature(chief, labels, choice)
    hand_over(
        Ensemble(
            candidate=winner.candidate.name,
            trial=str(trial),
            views=choice.views,
            batch=batch,
            temperature=temperature,
            novelty=chief.evaluated.novelty,
            class_weights=choice.class_weights,
            members=tuple(other.folder for other in chief.others),
        ),
        run.folder,
        _references(run.images),
    )
    assessments = evaluate_phase.assessments(run, chief, labels, choice, temperature)
    mistakes = assessments[-1].mistakes if assessments else ()
    pictures = _pictures(run.images, (each.path for each in mistakes))
    tested = [run.images.paths[int(i)] for i in run.images.indices("test")]
    (run.folder / "test-paths.json").write_text(json.dumps(tested), encoding="utf-8")
    run.reporter.begin("writing the report")
    for _ in range(2):
        with run.accountant.entry("report", reserved_s=run.promise_s(run.closing_s, gpus=0)) as opened:
            opened.ahead_s = ENDING_S
        charged_until_at = run.engine.now() + ENDING_S
        report = build.report(
            run.request,
            plan,
            run.store,
            run.accountant.ledger(),
            winner=winner.candidate.name,
            winner_why=why,
            methods=rows,
            views=evaluate_phase.view_rows(chief, labels, choice),
            ensemble_why=choice.why,
            notes=_notes(run, plan, members),
            classes=evaluate_phase.class_rows(chief, labels, choice, run.images.classes, train_labels),
            assessments=assessments,
            temperature_why=temperature_why,
            balance_why=choice.balance_why or BALANCED[run.request.balance],
            usage=evaluate_phase.usage(chief, choice),
            members=[other.candidate.name for other in chief.joined(choice)],
        )
        write_report(report, run.folder, pictures)
        model_card.write(report, run.folder)
        if run.engine.now() + LEAVING_S <= charged_until_at:
            break
    run.store.append(RunFinished(winner=winner.candidate.name))
    return report


def _references(images: Images) -> dict[str, bytes]:
    """Some validation images as JPEGs, of different classes if there are so many."""
    val = images.indices("val")
    chosen = val[np.linspace(0, len(val) - 1, min(NUM_REFERENCES, len(val))).astype(int)]
    return {f"{place + 1}.jpg": _jpeg(images.image(int(i)), quality=95) for place, i in enumerate(chosen)}


def _jpeg(pixels: npt.NDArray[np.uint8], *, quality: int, px: int | None = None) -> bytes:
    """An image's file, scaled down to a longer side of ``px``."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if px is not None:
        picture.thumbnail((px, px))
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _pictures(images: Images, paths: Iterable[str]) -> dict[str, bytes]:
    """Small JPEGs of those images, by their paths."""
    places = {path: place for place, path in enumerate(images.paths)}
    return {path: _jpeg(images.image(places[path]), quality=80, px=PICTURE_PX) for path in paths}


def _notes(run: RunContext, plan: Plan, members: Sequence[Member]) -> list[str]:
    notes = []
    if plan.search is not None:
        trials = search_phase.current_search(run, plan.search).trials
        bounded = next((trial for trial in trials if trial.unspent_s), None)
        if bounded is not None:
            left_s = run.remaining().less(run.closing_s).usable_s
            notes.append(f"{format_duration(left_s)} of the budget are left unspent: {bounded.why}.")
    expected = len(run.request.views)
    for member in members:
        for split in ("val", "test") if run.data.test else ("val",):
            there = sum(not view.member for view in member.logits[split])
            if there < expected:
                notes.append(
                    f"{member.candidate.name}: {there} of {expected} views were evaluated on {split}; time was over"
                )
    if not run.data.test:
        notes.append("There is no test split: no figure here was measured on images that played no part in choosing.")
    return notes
