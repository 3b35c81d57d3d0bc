"""What a report says of its search, and of what more time would buy: sections, as report/sections.py has them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fitwithin.planning.forecast import Forecast, points_of
from fitwithin.planning.search import FINAL
from fitwithin.planning.stats import percent_sure
from fitwithin.report.schema import Report
from fitwithin.report.search_report import EliminationRow, SearchReport, TrialRow, rung_name
from fitwithin.report.summary import share, titled
from fitwithin.report.tables import DASH, Cell, Column, Section, Table, columns_of, in_words, share_cell, table_of
from fitwithin.units import format_duration

#: What became of a trial, in a word and its tone.
_TONES = {"handed over": "good", "went on": "", "dropped": "muted", "failed": "bad", "unfinished": "muted"}

#: A factor of the time, in a word.
_TIMES = {2.0: "twice", 4.0: "four times"}


def sections(report: Report) -> list[Section]:
    """The search and the outlook; report/sections.py leaves out what has nothing to say."""
    search, outlook = report.search, report.outlook
    told = []
    if search is not None:
        trials = tuple(_trial(trial) for trial in search.trials)
        told.append(
            Section(
                "search",
                "The search",
                (search.told, *_fate_of_all(search)),
                (_ladder(search), _climbs(report, search)),
                (("Every trial, in order", trials),),
            )
        )
    if outlook is not None:
        table = _forecasts(report, outlook)
        told.append(Section("outlook", "What more time would buy", (outlook.why,), (table,) if table.rows else ()))
    return told


def _fate_of_all(search: SearchReport) -> list[str]:
    """What is handed over, and how many were never tried, in a sentence each."""
    told = [f"Handed over is {search.handed_over_why}."] if search.handed_over is not None else []
    left_out = [verdict for verdict in search.verdicts if verdict.rung is None]
    if left_out and search.trials:
        were = "candidate was" if len(left_out) == 1 else "candidates were"
        told.append(f"{len(left_out):,} {were} never tried ({left_out[0].reason}).")
    return told


def _ladder(search: SearchReport) -> Table:
    """What each rung was promised, and what it took."""
    columns = columns_of("Rung, Planned>, Each>, Tried>, Failed>2, Time>3, GPU time>, Share>1")
    all_s = sum(trial.gpu_s for trial in search.trials)
    planned = [(rung, f"{each.count}", format_duration(each.seconds)) for rung, each in enumerate(search.rungs)]
    finals = [trial for trial in search.trials if trial.rung == FINAL]
    planned.append((FINAL, f"{max(1, len(finals))}", f"≥ {format_duration(search.final_s)}"))
    rows = [
        (_rung(rung), count, each, *_spent([t for t in search.trials if t.rung == rung], all_s))
        for rung, count, each in planned
    ]
    if search.trials:
        rows.append(("All", DASH, DASH, *_spent(search.trials, all_s)))
    return table_of("The ladder: GPU seconds promised, and spent", columns, rows, len(rows) - 1 if all_s else None)


def _rung(rung: int) -> str:
    """A rung as a title."""
    return "Final" if rung == FINAL else titled(rung_name(rung))


def _spent(trials: Sequence[TrialRow], all_s: float) -> tuple[str, ...]:
    """How many there were, how many failed, and what they took."""
    if not trials:
        return (DASH,) * 5
    gpu_s, failed = sum(trial.gpu_s for trial in trials), sum(trial.state == "failed" for trial in trials)
    part = f"{100 * gpu_s / all_s:.0f} %" if all_s else DASH
    return f"{len(trials)}", f"{failed}" if failed else DASH, _time(trials), format_duration(gpu_s), part


def _time(trials: Collection[TrialRow]) -> str:
    """What they took by the clock; nothing where that is their GPU time."""
    some = [trial for trial in trials if trial.charged_s != trial.gpu_s]
    return format_duration(sum(trial.charged_s for trial in trials)) if some else DASH


def _climbs(report: Report, search: SearchReport) -> Table:
    """A row for each candidate that was tried: how it did on every rung, what it took, and why it is out."""
    rungs = sorted({trial.rung for trial in search.trials} - {FINAL})
    rungs += [FINAL] if any(trial.rung == FINAL for trial in search.trials) else []
    columns = [
        Column("Candidate"),
        *(Column(_rung(rung), number=True, rank=1 if place else 3) for place, rung in enumerate(rungs)),
        *columns_of("Time>4, GPU time>2, Out, How sure>, Why~5"),
    ]
    out = {verdict.candidate: verdict for verdict in search.verdicts}
    by_candidate: dict[str, dict[int, TrialRow]] = {}
    for trial in search.trials:
        by_candidate.setdefault(trial.candidate, {})[trial.rung] = trial
    names = sorted(by_candidate, key=lambda name: _place(name == report.winner, by_candidate[name]))
    rows: list[tuple[Cell | str, ...]] = [
        (
            name,
            *(_on(by_candidate[name].get(rung)) for rung in rungs),
            _time(by_candidate[name].values()),
            format_duration(sum(trial.gpu_s for trial in by_candidate[name].values())),
            *_out(out.get(name), by_candidate[name], search),
        )
        for name in names
    ]
    strong = next((place for place, name in enumerate(names) if name == report.winner), None)
    return table_of("Validation accuracy on every rung, and who is out when", columns, rows, strong)


def _place(won: bool, trials: dict[int, TrialRow]) -> tuple[bool, int, float]:
    """The winner first, then who came furthest, then who was best there."""
    last = list(trials.values())[-1]
    return not won, -len(trials), -last.accuracy.share if last.accuracy else 0.0


def _on(trial: TrialRow | None) -> Cell:
    if trial is None:
        return Cell()
    if trial.accuracy is None:
        return Cell(trial.state, tone=_TONES[trial.state])
    return share_cell(trial.accuracy)._replace(tone=_TONES[trial.state])


def _out(verdict: EliminationRow | None, trials: dict[int, TrialRow], search: SearchReport) -> tuple[Cell, Cell, str]:
    """When a candidate is out, how sure that is, and why."""
    if verdict is None or verdict.rung is None:
        handed = any(trial.turn == search.handed_over for trial in trials.values())
        return Cell("handed over", tone="good") if handed else Cell(), Cell(), ""
    when = Cell(f"after {rung_name(verdict.rung)}")
    failed = trials.get(verdict.rung)
    if failed is not None and failed.state == "failed":
        return Cell(f"failed on {rung_name(verdict.rung)}", tone="bad"), Cell(), verdict.reason
    if verdict.cut is None:
        return when, Cell(), verdict.reason
    went_on = f"{share(verdict.cut)[0]} went on"
    if verdict.confidence is None:
        return when, Cell("cannot be told"), f"{went_on}; {verdict.cut.total:,} images cannot tell the two apart"
    return when, Cell(percent_sure(verdict.confidence).replace("more than", ">").replace("%", " %")), went_on


def _trial(trial: TrialRow) -> str:
    """A trial in a line: what it was promised, took and reached, and what became of it."""
    reached = f"{share(trial.accuracy)[0]} ({share(trial.accuracy)[1]})" if trial.accuracy else "no model"
    took = f"{format_duration(trial.charged_s)} of {format_duration(trial.promised_s)} promised"
    gpu = "" if trial.gpu_s == trial.charged_s else f", {format_duration(trial.gpu_s)} of GPU time"
    return f"{trial.candidate}: {rung_name(trial.rung)}, {reached} in {took}{gpu}; {trial.state} ({trial.why})"


def _forecasts(report: Report, outlook: Forecast) -> Table:
    """The expected accuracies beside the one that was reached."""
    limit_s = report.request.get("time_s") or report.request.get("gpu_time_s")
    columns = columns_of("Time, Limit>1, Expected val>, More>")
    if not outlook.forecasts:
        return Table("", (), ())
    reached = outlook.points[-1].share
    rows = [
        (
            _TIMES.get(each.factor, f"{each.factor:g} times"),
            in_words(limit_s and limit_s * each.factor, format_duration),
            Cell(f"{100 * each.share:.1f} %", f"{100 * each.low:.1f}–{100 * each.high:.1f}"),
            f"{points_of(each.share - reached)} points",
        )
        for each in outlook.forecasts
    ]
    return table_of("Expected of a longer run, with 95 % intervals", columns, rows)
