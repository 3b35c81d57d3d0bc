"""The end of a run: evaluate the winner, choose the views to average, hand the ensemble over, close the books."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fitwithin import assemble, gather, instantiate, page, searching
from fitwithin.assemble import Ensemble, Member, read_logits
from fitwithin.costs import LEAVING_ALONE_S, LEAVING_S, WATCHDOG_S
from fitwithin.ensemble import View
from fitwithin.errors import TrainingError
from fitwithin.jobs import EVALUATED, Evaluated, Failure, evaluated_from_dict, read_evaluated
from fitwithin.places import put_text
from fitwithin.planning import Plan, Turn
from fitwithin.report import Report
from fitwithin.session import Run
from fitwithin.units import format_duration


def choose(run: Run, plan: Plan) -> tuple[Turn, str]:
    """The turn that won, and why.

    Raises:
        TrainingError: no turn left a model.
    """
    events = run.store.events("turn", "trial")
    trained, failed = gather.outcomes(events)
    if not trained:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise TrainingError(f"no candidate left a model ({reasons}); `fitwithin plan` shows what would fit")
    name, why = assemble.pick(trained)
    if plan.search is not None:
        name, why = searching.pick(run, plan.search) or (name, why)
    return gather.turns(plan, events)[name], why


def evaluate(run: Run, plan: Plan, winner: Turn) -> list[Member]:
    """Evaluate the winner, and its twin in the other precision, under all views, on validation and on test, once.
    The winner stands first."""
    events = run.store.events("turn", "trial")
    trained, _ = gather.outcomes(events)
    turns = gather.turns(plan, events)
    chosen = [winner.name]
    if plan.search is None:
        other = assemble.twin(winner.candidate, [turns[key].candidate for key in trained])
        chosen += [other.name] if other is not None else []
    return [_member(run, turns[key], trained[key].best is not None) for key in chosen]


def _member(run: Run, turn: Turn, validated: bool) -> Member:
    name, folder = turn.name, instantiate.turn_folder(run.folder, turn)
    done = next((body for e in run.store.events("evaluated") if (body := e.body)["name"] == name), None)
    if done is None:
        run.reporter.begin(f"evaluating {name}")
        done = {"name": name, "evaluated": asdict(_evaluate(run, turn, folder)), "validated": validated}
        run.store.append("evaluated", done)
    evaluated = evaluated_from_dict(done["evaluated"])
    logits: dict[str, dict[View, Any]] = {}
    for view in run.request.views:
        for split in ("val", "test"):
            if (split, view.name) in evaluated.done:
                logits.setdefault(split, {})[view] = read_logits(folder, split, view)
    return Member(candidate=turn.candidate, evaluated=evaluated, logits=logits)


def _evaluate(run: Run, turn: Turn, folder: Path) -> Evaluated:
    now, budget = run.engine.now(), run.request.budget
    if budget.scope == "candidate":
        books = run.accountant.books()
        name = turn.name
        charged_s = sum(e.charged_s or 0.0 for e in books.entries if e.key == name and e.phase != "profile")
        left_s = turn.allotted_s - charged_s
    else:
        left_s = run.accountant.remaining().usable_s - run.closing_s
    until_at = now + left_s
    job = instantiate.evaluation(run, turn, until_at=until_at - WATCHDOG_S)
    with run.accountant.entry("evaluate", turn.name, gpus=1, reserved_s=left_s) as opened:
        outcome: Any = Failure(kind="deadline", reason="no time was left")
        for _ in range(instantiate.ATTEMPTS):
            if run.engine.now() >= job.until_at:
                break
            outcome = run.engine.do(job, until_at=until_at, on_progress=run.progress)
            opened.peak(outcome.peak_bytes)
            if not (isinstance(outcome, Failure) and outcome.kind in ("died", "hung")):
                break
    if isinstance(outcome, Failure):
        run.reporter.say(f"  evaluating {turn.candidate.name} failed: {outcome.reason}")
        found = read_evaluated(folder / EVALUATED)  # what it was done with by then
        return found or Evaluated(done=(), ms_per_image={}, batch=turn.batch, peak_bytes=outcome.peak_bytes or 0)
    assert isinstance(outcome, Evaluated)
    return outcome


def close(run: Run, plan: Plan, members: Sequence[Member], winner: Turn, why: str) -> Report:
    """Choose the views on validation data, hand the ensemble over, close the books and write the report."""
    labels = {split: np.asarray(run.images.labels[run.images.indices(split)]) for split in ("val", "test")}
    chief = members[0]
    choice = assemble.choose_views(chief, labels, run.request.budget.inference_ms)
    rows = [row for member in reversed(members) for row in assemble.methods(member, labels, run.request.views)]
    rows.append(assemble.handed_over(chief, labels, choice))
    folder = instantiate.turn_folder(Path(), winner)
    batch = chief.evaluated.batch
    assemble.write(
        Ensemble(candidate=winner.candidate.name, folder=str(folder), views=choice.views, batch=batch), run.folder
    )
    tested = [run.images.paths[int(i)] for i in run.images.indices("test")]
    (run.folder / "test-paths.json").write_text(json.dumps(tested), encoding="utf-8")

    def gathered(finished: bool) -> Report:
        return gather.report(
            run.request,
            plan,
            run.store.events(),
            winner=winner.candidate.name,
            winner_why=why,
            methods=rows,
            views=assemble.view_rows(chief, labels, choice),
            ensemble_why=choice.why,
            notes=_notes(run, plan, members),
            finished=finished,
        )

    run.reporter.begin("writing the report")
    leaving_s = LEAVING_ALONE_S if run.hurried else LEAVING_S
    with run.accountant.entry("report", reserved_s=run.promise_s(run.closing_s, gpus=0)) as opened:
        begun_at = run.engine.now()
        write_report(gathered(False), run.folder)
        opened.charge_ahead(run.engine.now() - begun_at + leaving_s)
    report = gathered(True)
    write_report(report, run.folder)
    run.store.append("finished", {"winner": winner.candidate.name})
    return report


def _notes(run: Run, plan: Plan, members: Sequence[Member]) -> list[str]:
    notes = []
    if plan.search is not None:
        bounded = next((trial for trial in searching.stand(run, plan.search).trials if trial.refunded_s), None)
        if bounded is not None:
            left_s = run.remaining().less(run.closing_s).usable_s
            notes.append(f"{format_duration(left_s)} of the budget are left unspent: {bounded.why}.")
    expected = len(run.request.views)
    for member in members:
        for split in ("val", "test"):
            there = len(member.logits.get(split, {}))
            if there < expected and (split == "val" or run.data.test):
                notes.append(
                    f"{member.candidate.name}: {there} of {expected} views were evaluated on {split}; time was over"
                )
    if not run.data.test:
        notes.append("There is no test split: no figure here was measured on images that played no part in choosing.")
    return notes


def write_report(report: Report, folder: Path) -> None:
    """report.json, report.md, report.html and receipt.json in ``folder``."""
    texts: dict[str, Callable[[], str]] = {
        "report.json": report.to_json,
        "receipt.json": lambda: json.dumps(asdict(report.receipt), indent=1, allow_nan=False),
        "report.md": lambda: page.markdown(report),
        "report.html": lambda: page.html(report),
    }
    for name, text in texts.items():
        put_text(folder / name, text())
