"""What a report says, as plain text: sections of paragraphs, tables and collapsible lists.

:func:`sections` makes them from a Report, and the formats of report/render.py only set them, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fitwithin.report import pareto, search_sections
from fitwithin.report.schema import CandidateRow, Report
from fitwithin.report.summary import STATUSES, capitalize, delivered_method, format_amount, is_plan
from fitwithin.report.tables import DASH, Cell, Column, Section, Table, accuracy_cell, clean, format_or_dash, table_of
from fitwithin.units import format_count, format_duration, format_size

METHODS = (
    "The paper's Table 1 on this data, with 95 % intervals. The delivered model is highlighted; `fitwithin predict` "
    "uses it."
)

INFERENCE = (
    "ms/image was measured by the profile: one view at the training size, the same for all candidates. The winner's "
    "own views are listed below."
)


def sections(report: Report) -> list[Section]:
    """Every section that has something to say, in reading order."""
    settings = tuple(f"{row.name}: {text}" for row in _ranked(report) if (text := _settings(row)))
    everything = [
        Section("promises", "Promises", tables=(_promises(report),)),
        Section("methods", "Ways to use the winner", (METHODS,), (_methods(report),)),
        Section(
            "candidates",
            "Plan" if is_plan(report) else "Candidates",
            (_front_note(report),),
            (candidates(report),),
            (("Why these settings", settings),),
        ),
        *search_sections.sections(report),
        Section("views", "Views and the ensemble", (report.ensemble_why,), (_views(report),)),
        _receipt(report),
        _data(report),
        Section("request", "Request", tables=(_facts("Every option", report.request, nothing="off"),)),
        Section("notes", "Notes", report.notes),
    ]
    shown = []
    for section in everything:
        tables = tuple(table for table in section.tables if table.rows)
        paragraphs = tuple(clean(text) for text in section.paragraphs if text)
        lists = tuple((title, tuple(clean(line) for line in lines)) for title, lines in section.collapsible if lines)
        if tables or (paragraphs and not section.tables):
            shown.append(section._replace(paragraphs=paragraphs, tables=tables, collapsible=lists))
    return shown


def _receipt(report: Report) -> Section:
    receipt = report.receipt
    balance = "the books balance" if receipt.balanced else "THE BOOKS DO NOT BALANCE: the phases do not add up"
    ended = f"The {'plan' if is_plan(report) else 'run'} {'finished' if receipt.finished else 'did NOT finish'}"
    starts = f"{receipt.starts} {'start' if receipt.starts == 1 else 'starts'}"
    proof = f"{ended} after {starts}; {balance}; data fingerprint {receipt.data_fingerprint or DASH}."
    tables = (_phases(report), _facts("Device", receipt.device), _facts("Versions", receipt.versions))
    return Section("receipt", "Receipt", (proof,), tables)


def _data(report: Report) -> Section:
    data = report.data
    classes = tuple(data.get("classes", ()))
    broken = tuple(f"{item['path']}: {item['reason']}" for item in data.get("broken", ()))
    images = {"path": data.get("path"), "classes": len(classes) or None, **data.get("counts", {})}
    lists = (
        (f"{len(classes):,} classes", classes),
        (f"{len(broken):,} broken {'file' if len(broken) == 1 else 'files'}, left out", broken),
    )
    return Section("data", "Data", (data.get("split") or "",), (_facts("Images", images),), lists)


def candidates(report: Report) -> Table:
    """The candidates, best first: a plan's with what each would take, a run's with what each reached."""
    ranked = _ranked(report)
    highlighted = next((place for place, row in enumerate(ranked) if row.name == report.winner), None)
    if is_plan(report):
        columns = (
            Column("Candidate"),
            Column("Status", rank=7),
            Column("Params", number=True, rank=3),
            Column("Precision", rank=8),
            Column("px", number=True, rank=8),
            Column("Batch", number=True),
            Column("Epochs", number=True),
            Column("Images/s", number=True, rank=2),
            Column("on dummies", number=True, rank=9),
            Column("Predicted", number=True),
            Column("Range", number=True, rank=6),
            Column("Peak", number=True, rank=5),
        )
        rows: list[tuple[Cell | str | None, ...]] = [
            (
                Cell(row.name, below=row.reason),
                _status(row, report),
                format_or_dash(row.parameters, format_count),
                row.precision,
                str(row.train_px),
                format_or_dash(row.batch, str),
                format_or_dash(row.epochs, "{:.1f}".format),
                format_or_dash(row.images_per_s, "{:,.0f}".format),
                format_or_dash(row.dummy_images_per_s, "{:,.0f}".format),
                format_or_dash(row.predicted_s, format_duration),
                _range(row),
                format_or_dash(row.peak_bytes, format_size),
            )
            for row in ranked
        ]
        return table_of("What fits, and what it would take", columns, rows)
    columns = (
        Column("Candidate"),
        Column("Status", rank=1),
        Column("Val", number=True),
        Column("Params", number=True, rank=6),
        Column("Batch", number=True, rank=3),
        Column("Epochs", number=True, rank=2),
        Column("Images/s", number=True, rank=7),
        Column("Predicted", number=True, rank=4),
        Column("Actual", number=True, rank=4),
        Column("ms/image", number=True, rank=6),
        Column("Peak", number=True, rank=5),
        Column("Front", rank=3),
    )
    rows = [
        (
            Cell(row.name, below="; ".join(filter(None, (row.reason, _dominated(row))))),
            _status(row, report),
            accuracy_cell(row.validation),
            format_or_dash(row.parameters, format_count),
            format_or_dash(row.batch, str),
            format_or_dash(row.epochs, "{:.1f}".format),
            format_or_dash(row.images_per_s, "{:,.0f}".format),
            format_or_dash(row.predicted_s, format_duration),
            format_or_dash(row.actual_s, format_duration),
            format_or_dash(row.inference_ms, "{:.3g}".format),
            format_or_dash(row.peak_bytes, format_size),
            None if row.front is None else Cell("yes", tone="good") if row.front else Cell("no", tone="muted"),
        )
        for row in ranked
    ]
    return table_of("The paper's Table 2 on this data and machine", columns, rows, highlighted)


def _status(row: CandidateRow, report: Report) -> Cell:
    tones = {"trained": "good", "failed": "bad", "rejected": "muted"}
    return Cell("winner" if row.name == report.winner else row.status, tone=tones.get(row.status, ""))


def _front_note(report: Report) -> str:
    """What the column Front says; empty where nothing was tried."""
    tried = [row for row in report.candidates if row.front is not None]
    if not tried:
        return ""
    names = [pareto.OBJECTIVES[field] for field in pareto.known_objectives(tried)]
    note = (
        f"Front: the candidate is on the Pareto front. No other one is at least as good in "
        f"{' and '.join(', '.join(names).rsplit(', ', 1))}, to two digits, and better in one of them."
    )
    return f"{note} {INFERENCE}" if any(row.inference_ms is not None for row in tried) else note


def _dominated(row: CandidateRow) -> str:
    return f"not on the front, {row.dominated_by} is better" if row.dominated_by else ""


def choices(report: Report) -> list[tuple[str, str]]:
    """Every candidate that has one, with the reason for its status and its settings."""
    found = [(row.name, clean("; ".join(filter(None, (row.reason, _settings(row)))))) for row in _ranked(report)]
    return [(name, why) for name, why in found if why]


def _promises(report: Report) -> Table:
    columns = (
        Column("Promise"),
        Column("Limit", number=True),
        Column("Spent", number=True),
        Column("Used", number=True, rank=1),
        Column("Kept"),
        Column("Note", wrap=True, rank=2),
    )
    rows = [
        (
            capitalize(limit.name),
            format_amount(limit.limit, limit.unit),
            format_amount(limit.spent, limit.unit),
            f"{100 * limit.spent / limit.limit:.1f} %" if limit.limit else None,
            Cell("✓ yes", tone="good") if limit.kept else Cell("✗ NO", tone="bad"),
            limit.note,
        )
        for limit in report.receipt.limits
    ]
    return table_of("What was promised and what was spent", columns, rows)


def _methods(report: Report) -> Table:
    columns = (
        Column("Method", wrap=True),
        Column("Candidate", rank=3),
        Column("Train px", number=True, rank=2),
        Column("Test px", wrap=True, rank=1),
        Column("Val", number=True),
        Column("Test", number=True),
        Column("Note", wrap=True, rank=4),
    )
    rows = [
        (
            method.method,
            method.candidate if method.candidate != report.winner else None,
            str(method.train_px),
            method.test_px,
            accuracy_cell(method.validation),
            accuracy_cell(method.test),
            method.note,
        )
        for method in report.methods
    ]
    used = delivered_method(report)
    highlighted = next((place for place, method in enumerate(report.methods) if method is used), None)
    return table_of("Ways to use the winner", columns, rows, highlighted)


def _views(report: Report) -> Table:
    columns = (
        Column("View"),
        Column("Val", number=True),
        Column("ms/image", number=True),
        Column("Averaged"),
        Column("Reason", wrap=True, rank=1),
    )
    rows = [
        (
            view.name,
            accuracy_cell(view.validation),
            f"{view.ms_per_image:.3g}",
            Cell("✓ yes", tone="good") if view.chosen else Cell("no", tone="muted"),
            view.reason,
        )
        for view in report.views
    ]
    return table_of("Views of the winner, one by one", columns, rows)


def _phases(report: Report) -> Table:
    phases = report.receipt.phases
    columns = (
        Column("Phase"),
        Column("Time", number=True),
        Column("GPU time", number=True),
        Column("Peak memory", number=True),
        Column("Entries", number=True, rank=1),
    )
    rows: list[tuple[Cell | str | None, ...]] = [
        (
            capitalize(phase.phase),
            format_duration(phase.spent_s),
            format_duration(phase.gpu_s),
            format_or_dash(phase.peak_bytes, format_size),
            str(phase.entries),
        )
        for phase in phases
    ]
    if rows:
        spent, gpu = sum(phase.spent_s for phase in phases), sum(phase.gpu_s for phase in phases)
        peak = max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)
        entries = str(sum(phase.entries for phase in phases))
        rows.append(("All", format_duration(spent), format_duration(gpu), format_or_dash(peak, format_size), entries))
    return table_of("What each phase took", columns, rows, len(rows) - 1 if rows else None)


def _facts(caption: str, facts: Mapping[str, Any], nothing: str = DASH) -> Table:
    """A table of names and values: ``memory_bytes`` reads "memory" and prints as a size, ``time_s`` as a duration."""
    labels = {key: re.sub(r"_(bytes|s|ms)$", "", key).replace("_", " ") for key in facts}
    rows = [(labels[key], _value(key, value, nothing)) for key, value in facts.items()]
    return table_of(caption, (Column(caption, wrap=True), Column("Value", wrap=True)), rows)


def _value(key: str, value: Any, nothing: str) -> str:
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_value(str(inner), item, nothing)}" for inner, item in value.items()) or nothing
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(key, item, nothing) for item in value) or nothing
    if isinstance(value, (int, float)):
        for suffix, unit in (("_bytes", "bytes"), ("_ms", "ms"), ("_s", "s")):
            if key.endswith(suffix) and not key.endswith("per_s"):
                return format_amount(value, unit)
        return f"{value:,}" if isinstance(value, int) and key != "seed" else f"{value:g}"
    return str(value)


def _ranked(report: Report) -> list[CandidateRow]:
    """Trained by validation accuracy, the winner first among equals; then planned, failed and rejected."""

    def key(row: CandidateRow) -> tuple[int, float, bool]:
        order = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        return order, -row.validation.share if row.validation else 0.0, row.name != report.winner

    return sorted(report.candidates, key=key)


def _settings(row: CandidateRow) -> str:
    """How well its time was predicted, why this batch size, and what the profile took."""
    profiled = f"profiled in {format_duration(row.profile_s)}" if row.profile_s else None
    if row.profile_cached:
        profiled = "profile read from the cache"
    return "; ".join(filter(None, (_prediction(row), row.batch_why, profiled)))


def _prediction(row: CandidateRow) -> str | None:
    """The time of the steps alone against its prediction, and that of the process's start."""
    predicted_s, actual_s = row.predicted_training_s, row.actual_training_s
    start_predicted_s, start_s = row.predicted_startup_s, row.actual_startup_s
    if predicted_s is None or not actual_s or start_predicted_s is None or start_s is None:
        return None
    return (
        f"steps took {format_duration(actual_s)}, predicted {format_duration(predicted_s)} "
        f"({100 * (predicted_s / actual_s - 1):+.1f} %), the start {start_s:.1f}s, predicted {start_predicted_s:.1f}s"
    ).replace("-", "\u2212")


def _range(row: CandidateRow) -> str | None:
    low, high = row.predicted_low_s, row.predicted_high_s
    return None if low is None or high is None else f"{format_duration(low)}–{format_duration(high)}"
