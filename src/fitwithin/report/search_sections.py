"""What a report says of its search, and of what more time would buy: sections, as report/sections.py has them."""

from __future__ import annotations

from collections.abc import Collection

from fitwithin.planning.forecast import Forecast, format_points
from fitwithin.planning.search import FINAL
from fitwithin.planning.stats import format_confidence
from fitwithin.report.schema import Report
from fitwithin.report.search_report import EliminationRow, SearchReport, TrialRow, TrialState, rung_name
from fitwithin.report.summary import capitalize, format_accuracy
from fitwithin.report.tables import (
    DASH,
    Cell,
    Column,
    Columns,
    Section,
    Table,
    accuracy_cell,
    format_or_dash,
    table_by_column,
)
from fitwithin.units import format_duration

_TONES = {TrialState.DELIVERED: "good", TrialState.STOPPED: "muted", TrialState.FAILED: "bad"}

#: A factor of the time, in a word.
_TIMES = {2.0: "twice", 4.0: "four times"}


def sections(report: Report) -> list[Section]:
    """The search and the forecast; report/sections.py leaves out what has nothing to say."""
    search, forecast = report.search, report.forecast
    found = []
    if search is not None:
        trials = tuple(_trial(trial) for trial in search.trials)
        found.append(
            Section(
                "search",
                "The search",
                (search.summary, *_outcome(search)),
                (_rungs(search), _accuracy_by_rung(report, search)),
                (("Every trial, in order", trials),),
            )
        )
    if forecast is not None:
        tables = (_forecasts(report, forecast),) if forecast.forecasts else ()
        found.append(Section("forecast", "What more time would buy", (forecast.why,), tables))
    return found


def _outcome(search: SearchReport) -> list[str]:
    """What is delivered, and how many were never tried, in a sentence each."""
    found = [f"Delivered is {search.delivered_why}."] if search.delivered is not None else []
    left_out = [out for out in search.eliminations if out.rung is None]
    if left_out and search.trials:
        were = "candidate was" if len(left_out) == 1 else "candidates were"
        found.append(f"{len(left_out):,} {were} never tried ({left_out[0].reason}).")
    return found


def _rungs(search: SearchReport) -> Table:
    """What each rung was promised, and what it took."""
    all_s = sum(trial.gpu_s for trial in search.trials)
    on = {rung: [trial for trial in search.trials if trial.rung == rung] for rung in (*range(len(search.rungs)), FINAL)}
    groups = [*on.values(), *([list(search.trials)] if search.trials else [])]
    counts = [f"{each.count}" for each in search.rungs] + [f"{max(1, len(on[FINAL]))}"]
    seconds = [format_duration(each.seconds) for each in search.rungs] + [f"≥ {format_duration(search.final_s)}"]
    nothing = [DASH] * (len(groups) - len(on))
    failed = [sum(trial.state == TrialState.FAILED for trial in trials) for trials in groups]
    gpu_s = [sum(trial.gpu_s for trial in trials) for trials in groups]
    columns: Columns = [
        (Column("Rung"), [_rung(rung) for rung in on] + ["All"] * len(nothing)),
        (Column("Planned", number=True), counts + nothing),
        (Column("Each", number=True), seconds + nothing),
        (Column("Tried", number=True), [f"{len(trials)}" if trials else None for trials in groups]),
        (Column("Failed", number=True, rank=2), [f"{count}" if count else None for count in failed]),
        (Column("Time", number=True, rank=3), [_time(trials) for trials in groups]),
        (Column("GPU time", number=True), [format_duration(s) if s else None for s in gpu_s]),
        (Column("Share", number=True, rank=1), [f"{100 * s / all_s:.0f} %" if s else None for s in gpu_s]),
    ]
    return table_by_column("GPU time promised and spent on each rung", columns, len(on) if all_s else None)


def _rung(rung: int) -> str:
    """A rung as a title."""
    return "Final" if rung == FINAL else capitalize(rung_name(rung))


def _time(trials: Collection[TrialRow]) -> str:
    """What they took by the clock; the dash where that is their GPU time."""
    if all(trial.charged_s == trial.gpu_s for trial in trials):
        return DASH
    return format_duration(sum(trial.charged_s for trial in trials))


def _accuracy_by_rung(report: Report, search: SearchReport) -> Table:
    """A row for each candidate that was tried: how it did on every rung, what it took, and why it is out."""
    rungs = sorted({trial.rung for trial in search.trials} - {FINAL})
    rungs += [FINAL] if any(trial.rung == FINAL for trial in search.trials) else []
    out = {each.candidate: each for each in search.eliminations}
    by_candidate: dict[str, dict[int, TrialRow]] = {}
    for trial in search.trials:
        by_candidate.setdefault(trial.candidate, {})[trial.rung] = trial
    names = sorted(by_candidate, key=lambda name: _order(name == report.winner, by_candidate[name]))
    trials = [by_candidate[name] for name in names]
    why = [_out(out.get(name), by_candidate[name]) for name in names]
    gpu_s = [sum(trial.gpu_s for trial in each.values()) for each in trials]
    columns: Columns = [
        (Column("Candidate"), names),
        *(
            (Column(_rung(rung), number=True, rank=1 if place else 3), [_reached(each.get(rung)) for each in trials])
            for place, rung in enumerate(rungs)
        ),
        (Column("Time", number=True, rank=4), [_time(each.values()) for each in trials]),
        (Column("GPU time", number=True, rank=2), [format_duration(seconds) for seconds in gpu_s]),
        (Column("Out"), [each[0] for each in why]),
        (Column("How sure", number=True), [each[1] for each in why]),
        (Column("Why", wrap=True, rank=5), [each[2] for each in why]),
    ]
    highlighted = next((place for place, name in enumerate(names) if name == report.winner), None)
    return table_by_column("Validation accuracy on every rung, and who is out when", columns, highlighted)


def _order(won: bool, trials: dict[int, TrialRow]) -> tuple[bool, int, float]:
    """The winner first, then who came furthest, then who was best there."""
    last = list(trials.values())[-1]
    return not won, -len(trials), -last.accuracy.share if last.accuracy else 0.0


def _reached(trial: TrialRow | None) -> Cell:
    if trial is None:
        return Cell()
    cell = Cell(trial.state) if trial.accuracy is None else accuracy_cell(trial.accuracy)
    return cell._replace(tone=_TONES.get(trial.state, ""))


def _out(out: EliminationRow | None, trials: dict[int, TrialRow]) -> tuple[Cell, Cell, str]:
    """When a candidate is out, how sure that is, and why."""
    if out is None or out.rung is None:
        delivered = any(trial.state == TrialState.DELIVERED for trial in trials.values())
        return Cell("delivered", tone="good") if delivered else Cell(), Cell(), ""
    trial = trials.get(out.rung)
    if trial is not None and trial.state == TrialState.FAILED:
        return Cell(f"failed on {rung_name(out.rung)}", tone="bad"), Cell(), out.reason
    after = Cell(f"after {rung_name(out.rung)}")
    if out.cutoff is None:
        return after, Cell(), out.reason
    went_on = f"the last one that went on had {out.cutoff.percent}"
    if out.confidence is None:
        return after, Cell("unknown"), f"{went_on}; {out.cutoff.total:,} images cannot tell the two apart"
    return after, Cell(format_confidence(out.confidence).replace("more than", ">")), went_on


def _trial(trial: TrialRow) -> str:
    """A trial in a line: what it was promised, took and reached, and what became of it."""
    accuracy = trial.accuracy
    reached = "no model" if accuracy is None else f"{accuracy.percent} ({format_accuracy(accuracy)[1]})"
    took = f"{format_duration(trial.charged_s)} of {format_duration(trial.promised_s)} promised"
    gpu = "" if trial.gpu_s == trial.charged_s else f", {format_duration(trial.gpu_s)} of GPU time"
    return f"{trial.candidate}: {rung_name(trial.rung)}, {reached} in {took}{gpu}; {trial.state} ({trial.why})"


def _forecasts(report: Report, forecast: Forecast) -> Table:
    """The expected accuracies beside the one that was reached."""
    limit_s = report.request.get("time_s") or report.request.get("gpu_time_s")
    reached = forecast.points[-1].accuracy.share
    found = forecast.forecasts
    limits = [format_or_dash(limit_s and limit_s * each.factor, format_duration) for each in found]
    shares = [Cell(f"{100 * each.share:.1f} %", f"{100 * each.low:.1f}–{100 * each.high:.1f}") for each in found]
    columns: Columns = [
        (Column("Time"), [_TIMES.get(each.factor, f"{each.factor:g} times") for each in found]),
        (Column("Limit", number=True, rank=1), limits),
        (Column("Expected val", number=True), shares),
        (Column("More", number=True), [f"{format_points(each.share - reached)} points" for each in found]),
    ]
    return table_by_column("Expected of a longer run, with 95 % intervals", columns)
