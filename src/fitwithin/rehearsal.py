"""How long a run's closing will take: a report of its size is drawn beforehand, while the workers still start."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fitwithin.candidate import Candidate
from fitwithin.costs import CLOSING_MARGIN
from fitwithin.estimate import Estimate
from fitwithin.finish import write_report
from fitwithin.halving import ETA, MOST_RUNGS
from fitwithin.jobs import CURVE_POINTS, READING_S
from fitwithin.report import CandidateRow, CurvePoint, Limit, Receipt, Report, Validation
from fitwithin.request import Request
from fitwithin.search import FINAL
from fitwithin.trials import RungRow, SearchReport, TrialRow, VerdictRow

#: The end of a run writes its report twice, once for its own cost. How long it takes is the least of TIMED times.
WRITTEN, TIMED = 2, 3

#: Beside the report the ensemble and the books are written, and then the process ends, which takes up to 0.39 s and not
#: LEAVING_S alone.
BESIDE_S = 0.4


def rehearse(candidates: Sequence[Candidate], request: Request) -> float:
    """Seconds to keep for closing a run over these candidates."""
    report = _sample(candidates, request)
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as folder:
        write_report(report, Path(folder))  # the first time its templates are read
        writing_s = min(_seconds(lambda: write_report(report, Path(folder))) for _ in range(TIMED))
    return CLOSING_MARGIN * WRITTEN * writing_s + BESIDE_S


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
                fate="went on",
                why="50.0% after 1.0s, place 1",
            )
            for number, name in enumerate(names[:count])
        ]
    accuracy = Estimate(correct=1, total=2)
    out = [VerdictRow(candidate=name, rung=0, reason="", confidence=0.5, cut=accuracy) for name in names[1:]]
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
