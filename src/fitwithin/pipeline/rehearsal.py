"""How long a run's closing will take: a report of its size is drawn beforehand, while the workers still start."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fitwithin.candidate import Candidate
from fitwithin.engine.jobs import CURVE_POINTS, READING_S
from fitwithin.engine.margins import MEANWHILE_S
from fitwithin.pipeline.finish import meanwhile
from fitwithin.planning.cost import CLOSING_MARGIN
from fitwithin.planning.halving import ETA, MOST_RUNGS
from fitwithin.planning.search import FINAL
from fitwithin.planning.stats import Estimate
from fitwithin.report import render, svg
from fitwithin.report.render import write_report
from fitwithin.report.schema import CandidateRow, CurvePoint, Limit, Receipt, Report, Validation
from fitwithin.report.search_report import EliminationRow, RungRow, SearchReport, TrialRow
from fitwithin.request import Request

#: The end of a run writes its report twice, once for its own cost, and once more where the charts come after that. How
#: long it takes is the least of TIMED times.
WRITTEN, TIMED = 2, 3

#: Beside the report the ensemble and the books are written, and then the process ends, which takes up to 0.39 s and not
#: LEAVING_S alone.
BESIDE_S = 0.4


def rehearse(candidates: Sequence[Candidate], request: Request, *, charts: bool = True) -> tuple[float, float | None]:
    """Seconds to keep for closing a run over these candidates, and what drawing the charts takes (None without
    ``charts``). What drawing needs is imported by then.

    Charts are drawn once, which takes 1.0 to 1.3 s on two cores; at once again it takes 0.6 to 1.0, and at the end of a
    run 0.7 to 1.2 (docs/log.md).
    """
    report, drawing_s, kept_s, times = _sample(candidates, request), None, 0.0, WRITTEN
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as folder:
        drawn = render.NO_DRAWINGS
        if charts:
            svg.load()
            begun_at = time.monotonic()
            drawn = render.drawings(report)
            drawing_s = time.monotonic() - begun_at
            beside = meanwhile(request)
            kept_s = max(0.0, CLOSING_MARGIN * drawing_s - (MEANWHILE_S if beside else 0.0))
            times += not beside
        write_report(report, Path(folder), drawn)  # the first time its templates are read
        writing_s = min(_seconds(lambda: write_report(report, Path(folder), drawn)) for _ in range(TIMED))
        return kept_s + CLOSING_MARGIN * times * writing_s + BESIDE_S, drawing_s


def _seconds(work: Callable[[], None]) -> float:
    """Seconds of this thread's work. Others begin beside a rehearsal: every file that is opened or closed then waits
    5 ms for the interpreter: 0.1 s for what took 0.04 in the end (H200)."""
    begun_s = time.thread_time()
    work()
    return time.thread_time() - begun_s


def _sample(candidates: Sequence[Candidate], request: Request) -> Report:
    """A report as long as that run's will be; its figures mean nothing."""
    budget, limit_s = request.budget, request.limit_s
    each_s = limit_s / (1 if budget.scope == "candidate" else len(candidates))
    points = max(2, min(CURVE_POINTS, int(each_s / READING_S)))
    curve = tuple(
        CurvePoint(step=n, epoch=0.1 * n, elapsed_s=float(n), loss=1.0 + 1 / n, lr=0.1) for n in range(1, points + 1)
    )
    accuracy = Estimate(correct=1, total=2)
    validation = Validation(step=points, epoch=0.1 * points, accuracy=accuracy)
    rows = [
        CandidateRow(
            name=candidate.name,
            model=candidate.model,
            precision=candidate.precision,
            train_px=candidate.train_px,
            status="trained",
            reason="",
            epochs=0.1 * points,
            predicted_s=each_s,
            actual_s=each_s + number,
            predicted_training_s=each_s,
            actual_training_s=each_s + number,
            peak_bytes=budget.memory_bytes - number,
            validation=accuracy,
            validations=(validation,) * 3,
            curve=curve,
        )
        for number, candidate in enumerate(candidates)
    ]
    search = _sample_search(rows, each_s) if request.search != "exhaustive" and len(rows) > 1 else None
    limit = Limit(name="time", limit=limit_s, spent=limit_s, unit="s", kept=True)
    return Report(
        title="rehearsal",
        created_at="2000-01-01T00:00:00+00:00",
        request={},
        data={},
        candidates=tuple(rows),
        winner=rows[0].name,
        winner_why="",
        methods=(),
        views=(),
        ensemble_why="",
        receipt=Receipt(
            limits=(limit,),
            phases=(),
            balanced=True,
            starts=1,
            device={},
            versions={},
            data_fingerprint="",
            finished=True,
        ),
        search=search,
    )


def _sample_search(rows: Sequence[CandidateRow], each_s: float) -> SearchReport:
    """A search that tries them all, on as many rungs as there may be."""
    names, found = [row.name for row in rows], list[TrialRow]()
    counts = [len(names)]
    while counts[-1] > 2 and len(counts) < MOST_RUNGS:
        counts.append(-(-counts[-1] // ETA))
    for rung, count in [*enumerate(counts), (FINAL, 1)]:
        found += [
            TrialRow(
                number=number,
                candidate=name,
                turn=f"{name}-{rung}",
                rung=rung,
                promised_s=each_s,
                charged_s=each_s,
                gpu_s=each_s,
                accuracy=Estimate(correct=1, total=2),
                state="went on",
                why="50.0% after 1.0s, place 1",
            )
            for number, name in enumerate(names[:count])
        ]
    accuracy = Estimate(correct=1, total=2)
    out = [EliminationRow(candidate=name, rung=0, reason="", confidence=0.5, cut=accuracy) for name in names[1:]]
    return SearchReport(
        told="",
        rungs=tuple(RungRow(count=count, seconds=each_s) for count in counts),
        final_s=each_s,
        trials=tuple(found),
        verdicts=tuple(out),
        handed_over=None,
        handed_over_why="",
        second=None,
    )
