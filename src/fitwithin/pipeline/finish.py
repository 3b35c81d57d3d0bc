"""The end of a run: evaluate the winner, choose the views to average, hand the ensemble over, close the books."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fitwithin.events import RunFinished
from fitwithin.inference import bundle
from fitwithin.inference.bundle import Ensemble
from fitwithin.machine import cores
from fitwithin.pipeline import evaluate_phase, search_phase, train_phase
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.evaluate_phase import Member
from fitwithin.planning.cost import CLOSING_MARGIN, LEAVING_ALONE_S, LEAVING_S
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.report import build, render
from fitwithin.report.render import write_report
from fitwithin.report.schema import Report
from fitwithin.request import Request
from fitwithin.units import format_duration

#: Why a report has no charts.
CHARTS_LEFT_OUT = "There was no time left to draw the charts."
CHARTS_LOST = "The charts are missing: the run's process ended before they were drawn."


def meanwhile(request: Request) -> bool:
    """Whether charts can be drawn while the winner is evaluated: not where that has all the cores.

    (Beside the thread that drew, an evaluation of 0.2 s by two threads on two cores had done nothing after 0.4.)
    """
    return cores() > 1 and request.device.startswith("cuda")


class Drawing:
    """The charts of the report, where they are asked for: drawn by a thread once that has begun, or when they are asked
    for. They tell of training, not of evaluation."""

    def __init__(self, draw: Callable[[], render.Drawings], pool: ThreadPoolExecutor | None) -> None:
        self._draw, self._pool = draw, pool
        self._drawn: Future[render.Drawings] | None = None

    def begin(self) -> None:
        """Begin, if a thread is to do it and has not begun."""
        if self._pool is not None and self._drawn is None:
            self._drawn = self._pool.submit(self._draw)

    def there(self) -> render.Drawings | None:
        """The charts, if they have been drawn."""
        return self._drawn.result() if self._drawn is not None and self._drawn.done() else None

    def result(self) -> render.Drawings:
        """The charts."""
        self.begin()
        return self._draw() if self._drawn is None else self._drawn.result()


@contextmanager
def drawing(run: RunContext, plan: Plan, winner: TrialPlan) -> Iterator[Drawing]:
    """The charts of the report. A thread draws them while the winner is evaluated, where cores are free for that; not
    before it is at work, for every look into the books beside a thread that draws takes 5 to 15 ms instead of 0.2."""
    if run.drawing_s is None:
        yield Drawing(lambda: render.NO_DRAWINGS, None)
        return
    report = build.report(run.request, plan, run.store, run.accountant.ledger(), winner=winner.candidate.name)
    if not meanwhile(run.request):
        yield Drawing(lambda: render.drawings(report), None)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="charts") as pool:
        yield Drawing(lambda: render.drawings(report), pool)


def close(
    run: RunContext, plan: Plan, members: Sequence[Member], winner: TrialPlan, why: str, charts: Drawing
) -> Report:
    """Choose the views on validation data, hand the ensemble over, close the books and write the report.

    Charts that were not drawn meanwhile come last, if there is time: whoever is killed over them has handed over.
    """
    labels = {split: np.asarray(run.images.labels[run.images.indices(split)]) for split in ("val", "test")}
    chief = members[0]
    choice = evaluate_phase.choose_views(chief, labels, run.request.budget.inference_ms)
    rows = [row for member in reversed(members) for row in evaluate_phase.methods(member, labels, run.request.views)]
    rows.append(evaluate_phase.handed_over(chief, labels, choice))
    folder = train_phase.turn_folder(Path(), winner)
    batch = chief.evaluated.batch
    bundle.write(
        Ensemble(candidate=winner.candidate.name, folder=str(folder), views=choice.views, batch=batch), run.folder
    )
    tested = [run.images.paths[int(i)] for i in run.images.indices("test")]
    (run.folder / "test-paths.json").write_text(json.dumps(tested), encoding="utf-8")

    def gathered(finished: bool, charts_why: str | None = None) -> Report:
        return build.report(
            run.request,
            plan,
            run.store,
            run.accountant.ledger(),
            winner=winner.candidate.name,
            winner_why=why,
            methods=rows,
            views=evaluate_phase.view_rows(chief, labels, choice),
            ensemble_why=choice.why,
            notes=[*_notes(run, plan, members), *([charts_why] if charts_why else [])],
            finished=finished,
        )

    run.reporter.begin("writing the report")
    leaving_s = LEAVING_ALONE_S if run.hurried else LEAVING_S
    drawn, draws = charts.there(), False
    with run.accountant.entry("report", reserved_s=run.promise_s(run.closing_s, gpus=0)) as opened:
        begun_at = run.engine.now()
        write_report(gathered(False), run.folder, drawn or render.NO_DRAWINGS)
        writing_s = run.engine.now() - begun_at
        if drawn is None and run.drawing_s is not None:
            draws = _time_left_s(run) >= writing_s + CLOSING_MARGIN * run.drawing_s + writing_s + leaving_s
        opened.charge_ahead(writing_s + (0.0 if draws else leaving_s))
    charts_why = None if drawn is not None else CHARTS_LOST if draws else CHARTS_LEFT_OUT
    report = gathered(True, charts_why)
    write_report(report, run.folder, drawn or render.NO_DRAWINGS)
    run.store.append(RunFinished(winner=winner.candidate.name))
    if draws:
        with run.accountant.entry("report", reserved_s=run.promise_s(run.closing_s, gpus=0)) as opened:
            drawn = charts.result()
            opened.charge_ahead(writing_s + leaving_s)
        report = gathered(True)
        write_report(report, run.folder, drawn)
    return report


def _time_left_s(run: RunContext) -> float:
    """Seconds by the clock that the whole run has left."""
    return math.inf if run.request.budget.scope == "candidate" else run.remaining().time_s


def _notes(run: RunContext, plan: Plan, members: Sequence[Member]) -> list[str]:
    notes = []
    if plan.search is not None:
        bounded = next((trial for trial in search_phase.stand(run, plan.search).trials if trial.unspent_s), None)
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
