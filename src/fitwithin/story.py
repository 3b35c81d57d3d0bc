"""What a report says, as plain text: sections of paragraphs, tables and folded lists.

:func:`story` makes them from a Report, and page.py's three voices only set them. So the three can't disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fitwithin.headline import STATUSES, amount, delivered, is_plan, share, titled
from fitwithin.report import CandidateRow, Estimate, Report
from fitwithin.units import format_count, format_duration, format_size

DASH = "–"
_WAYS = {1: "One way", 2: "Two ways", 3: "Three ways", 4: "Four ways", 5: "Five ways", 6: "Six ways"}


class Cell(NamedTuple):
    """A table's cell: its text, an interval beside it, a reason below it, and a tone (good, bad, muted)."""

    text: str = DASH
    aside: str = ""
    below: str = ""
    tone: str = ""

    @property
    def line(self) -> str:
        """Text and interval on one line."""
        return f"{self.text} ({self.aside})" if self.aside else self.text


class Column(NamedTuple):
    """A table's column; ``rank`` orders what falls away on a narrow terminal, the highest first, 0 never."""

    title: str
    number: bool = False
    rank: int = 0
    wrap: bool = False


class Table(NamedTuple):
    """Columns and rows; the first cell of a row names it; ``strong`` is the row to set off, if any."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: int | None = None

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Name and reason of every row that has one: printed under the table where cells are a single line."""
        return [(row[0].text, row[0].below) for row in self.rows if row[0].below]


class Section(NamedTuple):
    """A heading with its paragraphs, tables and folds (summary, lines: shown closed in HTML, cut short elsewhere)."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folds: tuple[tuple[str, tuple[str, ...]], ...] = ()


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
            tables=(candidates(report),),
            folds=(("Why these settings", settings),),
        ),
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
    columns = _columns(
        "Candidate, Status7, Val>, Params>3, Precision8, px>8, Batch>, Epochs>, "
        "Images/s>2, on dummies>9, Predicted>, Range>6, Actual>, Peak>5"
        if plan
        else "Candidate, Status1, Val>, Params>6, Precision8, px>8, Batch>3, Epochs>2, "
        "Images/s>7, on dummies>9, Predicted>4, Range>8, Actual>4, Peak>5"
    )
    tones = {"trained": "good", "failed": "bad", "rejected": "muted"}
    ranked = _ranked(report)
    rows = [
        (
            Cell(row.name, below=row.reason),
            Cell("winner" if row.name == report.winner else row.status, tone=tones.get(row.status, "")),
            _share(row.validation),
            _number(row.parameters, format_count),
            row.precision if plan else None,
            str(row.train_px) if plan else None,
            _number(row.batch, str),
            _number(row.epochs, "{:.1f}".format),
            _number(row.images_per_s, "{:,.0f}".format),
            _number(row.dummy_images_per_s, "{:,.0f}".format),
            _number(row.predicted_s, format_duration),
            _range(row) if plan else None,
            _number(row.actual_s, format_duration),
            _number(row.peak_bytes, format_size),
        )
        for row in ranked
    ]
    strong = next((place for place, row in enumerate(ranked) if row.name == report.winner), None)
    caption = "What fits, and what it would take" if plan else "The paper's Table 2 on this data and machine"
    return _table(caption, columns, rows, strong)


def choices(report: Report) -> list[tuple[str, str]]:
    """Every candidate that has one, with the reason for its fate and its settings."""
    told = {row.name: clean("; ".join(filter(None, (row.reason, _settings(row))))) for row in _ranked(report)}
    return [(name, why) for name, why in told.items() if why]


def _promises(report: Report) -> Table:
    columns = _columns("Promise, Limit>, Spent>, Used>1, Kept, Note~2")
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
    return _table("What was promised and what was spent", columns, rows)


def _methods(report: Report) -> Table:
    columns = _columns("Method~, Candidate3, Train px>2, Test px~1, Val>, Test>, Note~4")
    rows = [
        (
            method.method,
            method.candidate if method.candidate != report.winner else None,
            str(method.train_px),
            method.test_px,
            _share(method.validation),
            _share(method.test),
            method.note,
        )
        for method in report.methods
    ]
    used = delivered(report)
    strong = next((place for place, method in enumerate(report.methods) if method is used), None)
    return _table("Ways to use the winner", columns, rows, strong)


def _views(report: Report) -> Table:
    columns = _columns("View, Val>, ms/image>, Averaged, Reason~1")
    rows = [
        (
            view.name,
            _share(view.validation),
            f"{view.ms_per_image:.3g}",
            Cell("✓ yes", tone="good") if view.chosen else Cell("no", tone="muted"),
            view.reason,
        )
        for view in report.views
    ]
    return _table("Views of the winner, one by one", columns, rows)


def _phases(report: Report) -> Table:
    phases = report.receipt.phases
    columns = _columns("Phase, Time>, GPU time>, Peak memory>, Entries>1")
    rows: list[tuple[Cell | str | None, ...]] = [
        (
            titled(phase.phase),
            format_duration(phase.spent_s),
            format_duration(phase.gpu_s),
            _number(phase.peak_bytes, format_size),
            str(phase.entries),
        )
        for phase in phases
    ]
    if rows:
        spent, gpu = sum(phase.spent_s for phase in phases), sum(phase.gpu_s for phase in phases)
        peak = max((phase.peak_bytes for phase in phases if phase.peak_bytes is not None), default=None)
        entries = str(sum(phase.entries for phase in phases))
        rows.append(("All", format_duration(spent), format_duration(gpu), _number(peak, format_size), entries))
    return _table("What each phase took", columns, rows, len(rows) - 1 if rows else None)


def _facts(caption: str, facts: Mapping[str, Any], nothing: str = DASH) -> Table:
    """A table of names and values: ``memory_bytes`` reads "memory" and prints as a size, ``time_s`` as a duration."""
    labels = {key: re.sub(r"_(bytes|s|ms)$", "", key).replace("_", " ") for key in facts}
    rows = [(labels[key], _value(key, value, nothing)) for key, value in facts.items()]
    return _table(caption, (Column(caption, wrap=True), Column("Value", wrap=True)), rows)


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


def _columns(titles: str) -> tuple[Column, ...]:
    """Columns in short: ``>`` after a title means numbers, ``~`` a column that wraps, a digit its rank."""
    parts = [re.fullmatch(r"(.*?)(>?)(~?)(\d?)", title) for title in titles.split(", ")]
    return tuple(Column(part[1], bool(part[2]), int(part[4] or 0), bool(part[3])) for part in parts if part)


def _table(
    caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str | None]], strong: int | None = None
) -> Table:
    """A table of clean cells, without the columns in which no row has anything to say."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell or DASH) for cell in row] for row in rows]
    cells = [[cell._replace(text=clean(cell.text), below=clean(cell.below)) for cell in row] for row in cells]
    places = [place for place in range(len(columns)) if any(row[place].text != DASH for row in cells)]
    kept = tuple(tuple(row[place] for place in places) for row in cells)
    return Table(caption, tuple(columns[place] for place in places), kept, strong)


def _ranked(report: Report) -> list[CandidateRow]:
    """Trained by validation accuracy, the winner first among equals; then planned, failed and rejected."""

    def key(row: CandidateRow) -> tuple[int, float, bool]:
        order = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        return order, -row.validation.share if row.validation else 0.0, row.name != report.winner

    return sorted(report.candidates, key=key)


def _settings(row: CandidateRow) -> str:
    """How well its time was predicted, why this batch size, and what finding out took."""
    profiled = None if row.profile_s is None else f"profiled in {format_duration(row.profile_s)}"
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


def _share(estimate: Estimate | None) -> Cell:
    return Cell(*share(estimate)) if estimate else Cell()


def _range(row: CandidateRow) -> str | None:
    low, high = row.predicted_low_s, row.predicted_high_s
    return None if low is None or high is None else f"{format_duration(low)}–{format_duration(high)}"


def _number(value: float | None, form: Callable[[Any], str]) -> str | None:
    return None if value is None else form(value)


def clean(text: Any) -> str:
    """One line of text that any encoding takes: file names may hold control characters and lone surrogates."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip().encode("utf-8", "replace").decode("utf-8")
