"""What a report says, as plain text: sections of paragraphs, tables and folded lists.

:func:`story` makes them from a Report, and report/render.py's three voices only set them. So the three can't disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fitwithin.report import pareto, search_sections
from fitwithin.report.schema import CandidateRow, Report
from fitwithin.report.summary import STATUSES, amount, delivered, is_plan, titled
from fitwithin.report.tables import (
    DASH,
    Cell,
    Column,
    Section,
    Table,
    clean,
    columns_of,
    in_words,
    share_cell,
    table_of,
)
from fitwithin.units import format_count, format_duration, format_size

_WAYS = {1: "One way", 2: "Two ways", 3: "Three ways", 4: "Four ways", 5: "Five ways", 6: "Six ways"}


def story(report: Report) -> list[Section]:
    """Every section that has something to say, in reading order."""
    receipt, data = report.receipt, report.data
    ways = f"{_WAYS.get(len(report.methods), f'{len(report.methods)} ways')} to use the winner"
    classes = tuple(clean(name) for name in data.get("classes", ()))
    broken = tuple(clean(f"{item['path']}: {item['reason']}") for item in data.get("broken", ()))
    images = {"path": data.get("path"), "classes": len(classes) or None, **data.get("counts", {})}
    settings = tuple(clean(f"{row.name}: {text}") for row in _ranked(report) if (text := _settings(row)))
    books = (
        "the books balance" if receipt.balanced else "THE BOOKS DO NOT BALANCE: the phases do not add up to the total"
    )
    ended = f"The {'plan' if is_plan(report) else 'run'} {'finished' if receipt.finished else 'did NOT finish'}"
    starts = f"{receipt.starts} {'start' if receipt.starts == 1 else 'starts'}"
    proof = f"{ended} after {starts}; {books}; data fingerprint {receipt.data_fingerprint or DASH}."
    everything = [
        Section("promises", "Promises", tables=(_promises(report),)),
        Section("methods", ways, ("The paper's Table 1 on this data, with 95 % intervals.",), (_methods(report),)),
        Section(
            "candidates",
            "Plan" if is_plan(report) else "Candidates",
            (_fronts(report),),
            tables=(candidates(report),),
            folds=(("Why these settings", settings),),
        ),
        *search_sections.sections(report),
        Section("views", "Views and the ensemble", (report.ensemble_why,), (_views(report),)),
        Section(
            "receipt",
            "Receipt",
            (proof,),
            (_phases(report), _facts("Device", receipt.device), _facts("Versions", receipt.versions)),
        ),
        Section(
            "data",
            "Data",
            (data.get("split") or "",),
            (_facts("Images", images),),
            (
                (f"{len(classes):,} classes", classes),
                (f"{len(broken):,} broken {'file' if len(broken) == 1 else 'files'}, left out", broken),
            ),
        ),
        Section("request", "Request", tables=(_facts("Every option", report.request, nothing="off"),)),
        Section("notes", "Notes", report.notes),
    ]
    told = []
    for section in everything:
        tables = tuple(table for table in section.tables if table.rows)
        paragraphs = tuple(clean(text) for text in section.paragraphs if text)
        folds = tuple(fold for fold in section.folds if fold[1])
        if tables or (paragraphs and not section.tables):
            told.append(section._replace(paragraphs=paragraphs, tables=tables, folds=folds))
    return told


def candidates(report: Report) -> Table:
    """The candidates, best first: a plan's with what each would take, a run's with what each reached."""
    plan = is_plan(report)
    columns = columns_of(
        "Candidate, Status7, Val>, Params>3, Precision8, px>8, Batch>, Epochs>, "
        "Images/s>2, on dummies>9, Predicted>, Range>6, Actual>, Peak>5"
        if plan
        else "Candidate, Status1, Val>, Params>6, Precision8, px>8, Batch>3, Epochs>2, "
        "Images/s>7, Predicted>4, Range>8, Actual>4, ms/image>6, Peak>5, Front3"
    )
    tones = {"trained": "good", "failed": "bad", "rejected": "muted"}
    ranked = _ranked(report)
    rows = [
        (
            Cell(row.name, below="; ".join(filter(None, (row.reason, _beaten(row))))),
            Cell("winner" if row.name == report.winner else row.status, tone=tones.get(row.status, "")),
            share_cell(row.validation),
            in_words(row.parameters, format_count),
            row.precision if plan else None,
            str(row.train_px) if plan else None,
            in_words(row.batch, str),
            in_words(row.epochs, "{:.1f}".format),
            in_words(row.images_per_s, "{:,.0f}".format),
            *([in_words(row.dummy_images_per_s, "{:,.0f}".format)] if plan else []),
            in_words(row.predicted_s, format_duration),
            _range(row) if plan else None,
            in_words(row.actual_s, format_duration),
            *([] if plan else [in_words(row.inference_ms, "{:.3g}".format)]),
            in_words(row.peak_bytes, format_size),
            *([] if plan else [_front(row)]),
        )
        for row in ranked
    ]
    strong = next((place for place, row in enumerate(ranked) if row.name == report.winner), None)
    caption = "What fits, and what it would take" if plan else "The paper's Table 2 on this data and machine"
    return table_of(caption, columns, rows, strong)


def _fronts(report: Report) -> str:
    """What the column Front says; empty where nothing was tried."""
    tried = [row for row in report.candidates if row.front is not None]
    if not tried:
        return ""
    names = " and ".join(", ".join(pareto.COMPARED[field] for field in pareto.compared(tried)).rsplit(", ", 1))
    inference = (
        " ms/image is what the profile measured of evaluation at the training size, alike for all; the winner's own "
        "views stand below."
        if any(row.inference_ms is not None for row in tried)
        else ""
    )
    return f"Front: no other candidate is at least as good in {names}, to two digits, and better in one.{inference}"


def _front(row: CandidateRow) -> Cell:
    if row.front is None:
        return Cell()
    return Cell("yes", tone="good") if row.front else Cell("no", tone="muted")


def _beaten(row: CandidateRow) -> str:
    return f"not on the front, beaten by {row.beaten_by}" if row.beaten_by else ""


def choices(report: Report) -> list[tuple[str, str]]:
    """Every candidate that has one, with the reason for its fate and its settings."""
    told = {row.name: clean("; ".join(filter(None, (row.reason, _settings(row))))) for row in _ranked(report)}
    return [(name, why) for name, why in told.items() if why]


def _promises(report: Report) -> Table:
    columns = columns_of("Promise, Limit>, Spent>, Used>1, Kept, Note~2")
    rows = [
        (
            titled(limit.name),
            amount(limit.limit, limit.unit),
            amount(limit.spent, limit.unit),
            f"{100 * limit.spent / limit.limit:.1f} %" if limit.limit else None,
            Cell("✓ yes", tone="good") if limit.kept else Cell("✗ NO", tone="bad"),
            limit.note,
        )
        for limit in report.receipt.limits
    ]
    return table_of("What was promised and what was spent", columns, rows)


def _methods(report: Report) -> Table:
    columns = columns_of("Method~, Candidate3, Train px>2, Test px~1, Val>, Test>, Note~4")
    rows = [
        (
            method.method,
            method.candidate if method.candidate != report.winner else None,
            str(method.train_px),
            method.test_px,
            share_cell(method.validation),
            share_cell(method.test),
            method.note,
        )
        for method in report.methods
    ]
    used = delivered(report)
    strong = next((place for place, method in enumerate(report.methods) if method is used), None)
    return table_of("Ways to use the winner", columns, rows, strong)


def _views(report: Report) -> Table:
    columns = columns_of("View, Val>, ms/image>, Averaged, Reason~1")
    rows = [
        (
            view.name,
            share_cell(view.validation),
            f"{view.ms_per_image:.3g}",
            Cell("✓ yes", tone="good") if view.chosen else Cell("no", tone="muted"),
            view.reason,
        )
        for view in report.views
    ]
    return table_of("Views of the winner, one by one", columns, rows)


def _phases(report: Report) -> Table:
    phases = report.receipt.phases
    columns = columns_of("Phase, Time>, GPU time>, Peak memory>, Entries>1")
    rows: list[tuple[Cell | str | None, ...]] = [
        (
            titled(phase.phase),
            format_duration(phase.spent_s),
            format_duration(phase.gpu_s),
            in_words(phase.peak_bytes, format_size),
            str(phase.entries),
        )
        for phase in phases
    ]
    if rows:
        spent, gpu = sum(phase.spent_s for phase in phases), sum(phase.gpu_s for phase in phases)
        peak = max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)
        entries = str(sum(phase.entries for phase in phases))
        rows.append(("All", format_duration(spent), format_duration(gpu), in_words(peak, format_size), entries))
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
                return amount(value, unit)
        return f"{value:,}" if isinstance(value, int) and key != "seed" else f"{value:g}"
    return str(value)


def _ranked(report: Report) -> list[CandidateRow]:
    """Trained by validation accuracy, the winner first among equals; then planned, failed and rejected."""

    def key(row: CandidateRow) -> tuple[int, float, bool]:
        order = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        return order, -row.validation.share if row.validation else 0.0, row.name != report.winner

    return sorted(report.candidates, key=key)


def _settings(row: CandidateRow) -> str:
    """How well its time was predicted, why this batch size, and what finding out took."""
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
