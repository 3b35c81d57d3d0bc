"""What a report says, as plain text: sections of paragraphs, tables and collapsible lists.

:func:`sections` makes them from a Report, and the formats of report/render.py only set them, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fitwithin.report import assessment_sections, pretrained, search_sections
from fitwithin.report.answer import left_out, shown
from fitwithin.report.candidate_row import OBJECTIVES, known_objectives
from fitwithin.report.schema import CandidateRow, Report
from fitwithin.report.summary import STATUSES, capitalize, delivered_method, format_amount, is_plan
from fitwithin.report.tables import (
    DASH,
    Cell,
    Column,
    Columns,
    Section,
    Table,
    accuracy_cell,
    clean,
    format_or_dash,
    table_by_column,
    table_of,
)
from fitwithin.units import format_count, format_duration, format_size

METHODS = (
    "The paper's Table 1 on this data, with 95 % intervals. The delivered model is highlighted; `fitwithin predict` "
    "uses it."
)

#: Of the backbones that were not tried, the report's table shows so many; the list of those left out has all.
NEXT_BEST = 8

EXPECTED = (
    "Expected: accuracy on validation data if the backbone alone had all the time, by trainings on other data. It "
    "orders backbones; how hard these images are, it cannot know."
)

INFERENCE = (
    "ms/image was measured by the profile: one view at the training size, the same for all candidates. The winner's "
    "own views are listed below."
)


def sections(report: Report) -> list[Section]:
    """Every section that has something to say, in reading order."""
    settings = tuple(f"{row.name}: {text}" for row in _ranked(report) if (text := _settings(row)))
    out, names = left_out(report)
    everything = [
        Section("promises", "Promises", tables=(_promises(report),)),
        Section("methods", "Ways to use the winner", (METHODS,), (_methods(report),)),
        Section(
            "candidates",
            "Plan" if is_plan(report) else "Candidates",
            (out, _front_note(report)),
            (candidates(report),),
            (("Why these settings", settings), (f"The {len(names):,} that were left out", names)),
        ),
        Section(
            "pretrained",
            "Pretrained weights",
            (report.pretrained_why, pretrained.LINEAR_HEAD if report.pretrained else ""),
            (pretrained.table(report),),
        ),
        Section("pool", "What was expected", (report.pool_why, EXPECTED), (expected(report),)),
        *search_sections.sections(report),
        Section("views", "Views and the ensemble", (report.ensemble_why,), (_views(report),)),
        *assessment_sections.sections(report),
        _receipt(report),
        _data(report),
        Section("request", "Request", tables=(_facts("Every option", report.request, nothing="off"),)),
        Section("notes", "Notes", report.notes),
    ]
    saying = []
    for section in everything:
        tables = tuple(table for table in section.tables if table.rows)
        paragraphs = tuple(clean(text) for text in section.paragraphs if text)
        lists = tuple((title, tuple(clean(line) for line in lines)) for title, lines in section.collapsible if lines)
        if tables or (paragraphs and not section.tables):
            saying.append(section._replace(paragraphs=paragraphs, tables=tables, collapsible=lists))
    return saying


def expected(report: Report) -> Table:
    """What was expected before anything was measured on the data: of what was tried, and of the next best."""
    tried = sum(row.taken for row in report.pool)
    rows = report.pool[: max(tried, min(tried + NEXT_BEST, len(report.pool)))]
    columns: Columns = [
        (Column("Backbone"), [row.model for row in rows]),
        (Column("px", number=True), [str(row.px) for row in rows]),
        (Column("Expected", number=True), [f"{100 * row.expected:.1f} %" for row in rows]),
        (Column("Tried"), ["yes" if row.taken else "no" for row in rows]),
        (Column("Why", wrap=True, rank=1), [row.reason.partition(" (")[0] for row in rows]),
    ]
    return table_by_column("What was expected", columns)


def _receipt(report: Report) -> Section:
    receipt = report.receipt
    balance = "the books balance" if receipt.balanced else "THE BOOKS DO NOT BALANCE: the phases do not add up"
    ended = f"The {'plan' if is_plan(report) else 'run'} {'finished' if receipt.finished else 'did NOT finish'}"
    starts = f"{receipt.starts} {'start' if receipt.starts == 1 else 'starts'}"
    proof = f"{ended} after {starts}; {balance}; data fingerprint {receipt.data_fingerprint or DASH}."
    proof += f" {receipt.data_excluded}." if receipt.data_excluded else ""
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
    said = tuple(capitalize(f"{text}.") for text in (data.get("split") or "", *data.get("notes", ())) if text)
    return Section("data", "Data", said, (_facts("Images", images),), lists)


def candidates(report: Report) -> Table:
    """The candidates, best first: a plan's with what each would take, a run's with what each reached."""
    rows, plan = _ranked(report), is_plan(report)
    parameters = [format_or_dash(row.parameters, format_count) for row in rows]
    paces = [format_or_dash(row.images_per_s, "{:,.0f}".format) for row in rows]
    dummies = [format_or_dash(row.dummy_images_per_s, "{:,.0f}".format) for row in rows]
    predicted = [format_or_dash(row.predicted_s, format_duration) for row in rows]
    columns: Columns = [
        (Column("Candidate"), [_name(row) for row in rows]),
        (Column("Status", rank=7 if plan else 1), [_status(row, report) for row in rows]),
        (Column("Val", number=True), [accuracy_cell(row.validation) for row in rows]),
        (Column("Params", number=True, rank=3 if plan else 6), parameters),
        (Column("Precision", rank=8), [row.precision if plan else None for row in rows]),
        (Column("px", number=True, rank=8), [str(row.train_px) if plan else None for row in rows]),
        (Column("Batch", number=True, rank=0 if plan else 3), [format_or_dash(row.batch, str) for row in rows]),
        (Column("Epochs", number=True, rank=2), [format_or_dash(row.epochs, "{:.1f}".format) for row in rows]),
        (Column("Images/s", number=True, rank=2 if plan else 7), paces),
        (Column("on dummies", number=True, rank=9), dummies if plan else [None] * len(rows)),
        (Column("Predicted", number=True, rank=0 if plan else 4), predicted),
        (Column("Range", number=True, rank=6), [_range(row) if plan else None for row in rows]),
        (Column("Actual", number=True, rank=4), [format_or_dash(row.actual_s, format_duration) for row in rows]),
        (
            Column("ms/image", number=True, rank=6),
            [None if plan else format_or_dash(row.inference_ms, "{:.3g}".format) for row in rows],
        ),
        (Column("Peak", number=True, rank=5), [format_or_dash(row.peak_bytes, format_size) for row in rows]),
        (Column("Front", rank=3), [_front(row) for row in rows]),
    ]
    highlighted = next((place for place, row in enumerate(rows) if row.name == report.winner), None)
    caption = "What fits, and what it would take" if plan else "The paper's Table 2 on this data and machine"
    return table_by_column(caption, columns, highlighted)


def _name(row: CandidateRow) -> Cell:
    better = f"not on the front, {row.dominated_by} is better" if row.dominated_by else ""
    return Cell(row.name, below="; ".join(filter(None, (row.reason, better))))


def _front(row: CandidateRow) -> Cell:
    if row.front is None:
        return Cell()
    return Cell("yes", tone="good") if row.front else Cell("no", tone="muted")


def _status(row: CandidateRow, report: Report) -> Cell:
    tones = {"trained": "good", "failed": "bad", "rejected": "muted"}
    return Cell("winner" if row.name == report.winner else row.status, tone=tones.get(row.status, ""))


def _front_note(report: Report) -> str:
    """What the column Front says; empty where nothing was tried."""
    tried = [row for row in report.candidates if row.front is not None]
    if not tried:
        return ""
    names = [OBJECTIVES[field] for field in known_objectives(tried)]
    note = (
        f"Front: the candidate is on the Pareto front. No other one is at least as good in "
        f"{' and '.join(', '.join(names).rsplit(', ', 1))}, to two digits, and better in one of them."
    )
    return f"{note} {INFERENCE}" if any(row.inference_ms is not None for row in tried) else note


def choices(report: Report) -> list[tuple[str, str]]:
    """Every candidate of the table that has one, with the reason for its status and its settings."""
    found = [(row.name, clean("; ".join(filter(None, (row.reason, _settings(row)))))) for row in _ranked(report)]
    return [(name, why) for name, why in found if why]


def _promises(report: Report) -> Table:
    limits = report.receipt.limits
    used = [f"{limit.used_pct:.1f} %" if limit.limit else None for limit in limits]
    columns: Columns = [
        (Column("Promise"), [capitalize(limit.name) for limit in limits]),
        (Column("Limit", number=True), [format_amount(limit.limit, limit.unit) for limit in limits]),
        (Column("Spent", number=True), [format_amount(limit.spent, limit.unit) for limit in limits]),
        (Column("Used", number=True, rank=1), used),
        (Column("Kept"), [_yes(limit.kept, no=Cell("✗ NO", tone="bad")) for limit in limits]),
        (Column("Note", wrap=True, rank=2), [limit.note for limit in limits]),
    ]
    return table_by_column("What was promised and what was spent", columns)


def _yes(value: bool, no: Cell) -> Cell:
    return Cell("✓ yes", tone="good") if value else no


def _methods(report: Report) -> Table:
    methods, used = report.methods, delivered_method(report)
    others = [method.candidate if method.candidate != report.winner else None for method in methods]
    columns: Columns = [
        (Column("Method", wrap=True), [method.method for method in methods]),
        (Column("Candidate", rank=3), others),
        (Column("Train px", number=True, rank=2), [str(method.train_px) for method in methods]),
        (Column("Test px", wrap=True, rank=1), [method.test_px for method in methods]),
        (Column("Val", number=True), [accuracy_cell(method.validation) for method in methods]),
        (Column("Test", number=True), [accuracy_cell(method.test) for method in methods]),
        (Column("Note", wrap=True, rank=4), [method.note for method in methods]),
    ]
    highlighted = next((place for place, method in enumerate(methods) if method is used), None)
    return table_by_column("Ways to use the winner", columns, highlighted)


def _views(report: Report) -> Table:
    views = report.views
    columns: Columns = [
        (Column("View"), [view.name for view in views]),
        (Column("Val", number=True), [accuracy_cell(view.validation) for view in views]),
        (Column("ms/image", number=True), [f"{view.ms_per_image:.3g}" for view in views]),
        (Column("Averaged"), [_yes(view.chosen, no=Cell("no", tone="muted")) for view in views]),
        (Column("Reason", wrap=True, rank=1), [view.reason for view in views]),
    ]
    return table_by_column("Views, one by one", columns)


def _phases(report: Report) -> Table:
    phases = report.receipt.phases
    peaks = [phase.peak_bytes for phase in phases]
    peaks += [max((peak for peak in peaks if peak is not None), default=None)]
    times = [[phase.spent_s for phase in phases], [phase.gpu_s for phase in phases]]
    spent, gpu = ([format_duration(each) for each in (*column, sum(column))] for column in times)
    entries = [phase.entries for phase in phases]
    columns: Columns = [
        (Column("Phase"), [*(capitalize(phase.phase) for phase in phases), "All"]),
        (Column("Time", number=True), spent),
        (Column("GPU time", number=True), gpu),
        (Column("Peak memory", number=True), [format_or_dash(peak, format_size) for peak in peaks]),
        (Column("Entries", number=True, rank=1), [str(count) for count in (*entries, sum(entries))]),
    ]
    return table_by_column("What each phase took", columns, len(phases))


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
    """Those that the table lists: trained ones by validation accuracy, the winner first among equals; then planned
    and failed ones."""

    def key(row: CandidateRow) -> tuple[int, float, bool]:
        return STATUSES.index(row.status), -row.validation.share if row.validation else 0.0, row.name != report.winner

    return sorted(shown(report), key=key)


def _settings(row: CandidateRow) -> str:
    """How well its time was predicted, why this batch size, and what the profile took."""
    profiled = f"profiled in {format_duration(row.profile_s)}" if row.profile_s else None
    if row.profile_cached:
        profiled = "profile read from the cache"
    return "; ".join(filter(None, (_prediction(row), row.batch_why, profiled)))


def _prediction(row: CandidateRow) -> str | None:
    """The time of the steps alone against its prediction, and that of the process's start; a linear head has none."""
    predicted_s, actual_s = row.predicted_training_s, row.actual_training_s
    start_predicted_s, start_s = row.predicted_startup_s, row.actual_startup_s
    if not predicted_s or not actual_s or start_predicted_s is None or start_s is None:
        return None
    return (
        f"steps took {format_duration(actual_s)}, predicted {format_duration(predicted_s)} "
        f"({100 * (predicted_s / actual_s - 1):+.1f} %), the start {start_s:.1f}s, predicted {start_predicted_s:.1f}s"
    ).replace("-", "\u2212")


def _range(row: CandidateRow) -> str | None:
    low, high = row.predicted_low_s, row.predicted_high_s
    return None if low is None or high is None else f"{format_duration(low)}–{format_duration(high)}"
