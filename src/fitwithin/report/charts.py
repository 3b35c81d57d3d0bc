"""The charts of a report as data: what templates/charts.js draws in the reader's browser, and the same as tables.

Pure: a Report in, plain values out. Times are in the unit that suits the longest of a chart, memory in GiB, accuracies
in percent. Why the browser draws: docs/decisions/0018-charts-in-the-browser.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitwithin.report.schema import CandidateRow, CurvePoint, Report
from fitwithin.report.search_report import TrialRow, rung_name
from fitwithin.report.tables import Cell, Column, Table, accuracy_cell, clean, table_of

#: A page holds about so many readings of the loss; each curve keeps at least LEAST_READINGS and at most MOST_READINGS.
PAGE_READINGS, LEAST_READINGS, MOST_READINGS = 4000, 40, 200


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of the page; ``anchor`` is its id there."""

    anchor: str
    title: str
    #: What is drawn, as JSON values: ``kind`` (points, lines or spans), axes, and ``series``, a list of candidates with
    #: their ``points`` [x, y] or [x, y, low, high], the most important first.
    data: dict[str, Any]
    #: The same figures.
    table: Table
    #: Every single reading, a line for each candidate, where that is too much for the table.
    readings: tuple[str, ...] = ()


def charts(report: Report) -> list[Chart]:
    """The charts for which the report has something to show; the search's own is the last, if there is one."""
    scale, unit = time_unit([row.actual_s for row in report.candidates if row.validation and row.actual_s is not None])
    cap = report.request.get("memory_bytes")
    made = (
        _points(
            report,
            anchor="chart-time",
            title="Validation accuracy against training time",
            x_title="training time",
            unit=unit,
            x_of=lambda row: None if row.actual_s is None else row.actual_s / scale,
        ),
        _points(
            report,
            anchor="chart-memory",
            title="Validation accuracy against peak memory",
            x_title="peak memory",
            unit="GiB",
            x_of=lambda row: row.peak_bytes / 2**30 if row.peak_bytes else None,
            cap=cap / 2**30 if cap else None,
        ),
        loss_curves(report),
        predicted_against_actual(report),
        accuracy_over_rungs(report),
    )
    return [chart for chart in made if chart]


def thinned(report: Report) -> Report:
    """The report with long curves cut down to what a page shows (:func:`thin`)."""
    count = max(1, sum(bool(row.curve) for row in report.candidates))
    most = max(LEAST_READINGS, min(MOST_READINGS, PAGE_READINGS // count))
    return replace(report, candidates=tuple(replace(row, curve=thin(row.curve, most)) for row in report.candidates))


def thin(curve: tuple[CurvePoint, ...], most: int) -> tuple[CurvePoint, ...]:
    """At most ``most`` (4 or more) of the readings, in order: both ends, and the lowest and highest of equal parts."""
    if len(curve) <= most:
        return curve
    parts, inner = (most - 2) // 2, range(1, len(curve) - 1)
    places = {0, len(curve) - 1}
    for part in range(parts):
        own = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
        if own:
            places |= {min(own, key=lambda place: curve[place].loss), max(own, key=lambda place: curve[place].loss)}
    return tuple(curve[place] for place in sorted(places))


def _points(
    report: Report,
    *,
    anchor: str,
    title: str,
    x_title: str,
    unit: str,
    x_of: Callable[[CandidateRow], float | None],
    cap: float | None = None,
) -> Chart | None:
    """A point for each candidate that was validated; those on the report's one Pareto front are marked."""
    series, cells = [], []
    for row in _ranked(report):
        x = x_of(row)
        if row.validation is None or x is None:
            continue
        point = [x, 100 * row.validation.share, *(100 * end for end in row.validation.interval)]
        series.append({**_named(report, row.name), "group": row.precision, "front": row.front, "points": [point]})
        front = None if row.front is None else Cell("yes", tone="good") if row.front else Cell("no", tone="muted")
        cells.append((_label(report, row.name), row.precision, f"{x:.4g}", accuracy_cell(row.validation), front))
    if not series:
        return None
    axes = {"x": _axis(x_title, unit), "y": _axis("validation accuracy", "%")}
    data = {"kind": "points", **axes, "cap": cap, "series": series}
    figures = _figures(f"{x_title.capitalize()} ({unit})", "Val")
    columns = (Column("Candidate"), Column("Precision"), *figures, Column("Front"))
    caption = f"{title}, with 95 % intervals" + ("" if cap is None else f"; the cap is {cap:.2f} GiB")
    return Chart(anchor=anchor, title=title, data=data, table=table_of(caption, columns, cells, _highlighted(series)))


def loss_curves(report: Report) -> Chart | None:
    """Training loss against epochs for each trained candidate; the axis is logarithmic where it spans a decade."""
    series, cells, readings = [], [], []
    for row in _ranked(report):
        points = [[point.epoch, point.loss] for point in row.curve if math.isfinite(point.loss)]
        if row.status != "trained" or len(points) < 2:
            continue
        series.append({**_named(report, row.name), "points": points})
        losses = [loss for _, loss in points]
        figures = (points[-1][0], losses[0], min(losses), losses[-1])
        cells.append((_label(report, row.name), *(f"{figure:.4g}" for figure in figures)))
        readings.append(f"{clean(row.name)}: " + ", ".join(f"{loss:.4g} at {epoch:.4g}" for epoch, loss in points))
    if not series:
        return None
    drawn = [loss for each in series for _, loss in each["points"]]
    decades = min(drawn) > 0 and max(drawn) / min(drawn) > 10
    title = "Training loss against epochs"
    columns = (Column("Candidate"), *_figures("Epochs", "First loss", "Lowest", "Last"))
    return Chart(
        anchor="chart-loss",
        title=title,
        data={"kind": "lines", "x": _axis("epochs"), "y": _axis("training loss", log=decades), "series": series},
        table=table_of(title, columns, cells, _highlighted(series)),
        readings=tuple(readings),
    )


def predicted_against_actual(report: Report) -> Chart | None:
    """What each candidate's training was predicted to take, with the interval, what it took, and the error."""
    rows = [row for row in _ranked(report) if row.predicted_s and row.actual_s is not None]
    scale, unit = time_unit([row.actual_s or 0.0 for row in rows])
    series, cells = [], []
    for row in rows:
        predicted, actual = (row.predicted_s or 0.0) / scale, (row.actual_s or 0.0) / scale
        low = predicted if row.predicted_low_s is None else row.predicted_low_s / scale
        high = predicted if row.predicted_high_s is None else row.predicted_high_s / scale
        error = f"{100 * ((row.actual_s or 0.0) / (row.predicted_s or 1.0) - 1):+.1f} %".replace("-", "−")
        span = {"predicted": predicted, "low": low, "high": high, "actual": actual, "error": error}
        series.append({**_named(report, row.name), **span})
        between = Cell(f"{predicted:.4g}", aside=f"{low:.4g}–{high:.4g}" if low < high else "")
        cells.append((_label(report, row.name), between, f"{actual:.4g}", error))
    if not series:
        return None
    title = "Predicted against actual training time"
    columns = (Column("Candidate"), *_figures(f"Predicted ({unit})", f"Actual ({unit})", "Error"))
    return Chart(
        anchor="chart-prediction",
        title=title,
        data={"kind": "spans", "x": _axis("training time", unit), "series": series},
        table=table_of(title, columns, cells, _highlighted(series)),
    )


def accuracy_over_rungs(report: Report) -> Chart | None:
    """A search: validation accuracy against the GPU time that a candidate has had so far, a line over its rungs.

    Those that came furthest stand first. ``delivered`` is the place of the point whose model is handed over.
    """
    climbs = _climbs(report)
    if report.search is None or not climbs:
        return None
    scale, unit = time_unit([gpu_s for climb in climbs.values() for gpu_s, _ in climb])
    title, series, cells = "Validation accuracy against GPU time, rung by rung", [], []
    for name, climb in climbs.items():
        names = [trial.name for _, trial in climb]
        delivered = names.index(report.search.delivered) if report.search.delivered in names else None
        points = []
        for gpu_s, trial in climb:
            assert trial.accuracy is not None
            points.append([gpu_s / scale, 100 * trial.accuracy.share, *(100 * end for end in trial.accuracy.interval)])
            what = rung_name(trial.rung) + (", delivered" if trial.name == report.search.delivered else "")
            cells.append((_label(report, name), what, f"{gpu_s / scale:.4g}", accuracy_cell(trial.accuracy)))
        series.append({**_named(report, name), "points": points, "delivered": delivered})
    axes = {"x": _axis("GPU time of the candidate so far", unit, log=True), "y": _axis("validation accuracy", "%")}
    columns = (Column("Candidate"), Column("Trained", wrap=True), *_figures(f"GPU time so far ({unit})", "Val"))
    return Chart(
        anchor="chart-rungs",
        title=title,
        data={"kind": "lines", **axes, "marks": True, "series": series},
        table=table_of(f"{title}, with 95 % intervals", columns, cells),
    )


def _climbs(report: Report) -> dict[str, list[tuple[float, TrialRow]]]:
    """By candidate the GPU-seconds that it had had after each validated trial; the winner first, then who came far."""
    found: dict[str, list[tuple[float, TrialRow]]] = {}
    had: dict[str, float] = {}
    for trial in report.search.trials if report.search else ():
        had[trial.candidate] = had.get(trial.candidate, 0.0) + trial.gpu_s
        if trial.accuracy is not None and had[trial.candidate] > 0:
            found.setdefault(trial.candidate, []).append((had[trial.candidate], trial))

    def key(name: str) -> tuple[bool, int, float]:
        last = found[name][-1][1].accuracy
        return name != report.winner, -len(found[name]), -last.share if last else 0.0

    return {name: found[name] for name in sorted(found, key=key)}


def time_unit(seconds: Sequence[float]) -> tuple[float, str]:
    """The divisor and the name of the unit in which the longest of these reads best."""
    longest = max(seconds, default=0.0)
    return (3600.0, "hours") if longest >= 2 * 3600 else (60.0, "minutes") if longest >= 180 else (1.0, "seconds")


def _axis(title: str, unit: str = "", *, log: bool = False) -> dict[str, Any]:
    return {"title": title, "unit": unit, "log": log}


def _ranked(report: Report) -> list[CandidateRow]:
    """The winner first, then by accuracy."""
    return sorted(
        report.candidates,
        key=lambda row: (row.name != report.winner, -row.validation.share if row.validation else 1.0),
    )


def _named(report: Report, name: str) -> dict[str, Any]:
    return {"name": clean(name), "winner": name == report.winner}


def _label(report: Report, name: str) -> str:
    return f"{name} (winner)" if name == report.winner else name


def _figures(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, number=True) for title in titles)


def _highlighted(series: Sequence[dict[str, Any]]) -> int | None:
    """The place of the winner's row, if it has one."""
    return next((place for place, each in enumerate(series) if each["winner"]), None)
