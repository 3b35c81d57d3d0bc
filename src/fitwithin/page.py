"""A report for readers: one story told in three voices, the terminal (rich), Markdown and one HTML file.

:func:`story` turns a Report into sections of paragraphs, tables and folded lists, all plain text; the voices only
set them. So the three can't disagree. Jinja2 and rich are imported inside functions: ``fitwithin --help`` needs
neither. Charts come from charts.py and stand in the HTML alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fitwithin.report import CandidateRow, Estimate, Limit, MethodRow, Report
from fitwithin.units import format_count, format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable

DASH = "–"
_ORDER = ("trained", "planned", "failed", "rejected")
_WAYS = {1: "One way", 2: "Two ways", 3: "Three ways", 4: "Four ways", 5: "Five ways", 6: "Six ways"}
_WRAP_AT = 24  # characters a wrapping column may shrink to before whole columns fall away


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


class Tile(NamedTuple):
    """A large figure: what, how much, of how much; ``percent`` draws a bar."""

    label: str
    value: str
    detail: str
    percent: float | None = None
    kept: bool = True


class Section(NamedTuple):
    """A heading with its paragraphs, tables and folds (summary, lines: shown closed in HTML, cut short elsewhere)."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folds: tuple[tuple[str, tuple[str, ...]], ...] = ()


def headline(report: Report) -> str:
    """The run in a sentence or two: what was reached, within which limits, and what was spent; or what a plan found."""
    limits, allowed = report.receipt.limits, _allowed(report)
    if report.winner is None:
        within = f" within {allowed}" if allowed else ""
        counts = {status: sum(row.status == status for row in report.candidates) for status in _ORDER}
        if is_plan(report):
            return (
                f"{counts['planned']} of {len(report.candidates)} candidates fit{within}; nothing has been trained yet."
            )
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return (
            f"No model: none of {len(report.candidates)} candidates could be chosen{within} ({told or 'none tried'})."
        )
    row, used = report.row(report.winner), _delivered(report)
    estimate, split = (used.test, "test") if used and used.test else (used and used.validation, "validation")
    estimate = estimate or row.validation
    who = f"{row.model} ({row.precision}, {row.train_px} px)" + (f" with {used.method}" if used else "")
    reached = f"reaches {_share(estimate).line} on {estimate.total:,} {split} images" if estimate else "was trained"
    spent = ", ".join(_spent(limit) for limit in sorted(limits, key=lambda limit: limit.unit != "s"))
    broken = ", ".join(limit.name for limit in limits if not limit.kept)
    within = f", {'against limits of' if broken else 'within'} {allowed}" if allowed else ""
    return f"{who} {reached}{within}{': ' + spent if spent else ''}.{f' NOT KEPT: {broken}.' if broken else ''}"


def is_plan(report: Report) -> bool:
    """Whether this is a plan: no winner, and nothing trained or failed on the way."""
    return report.winner is None and all(row.status in ("planned", "rejected") for row in report.candidates)


def caution(report: Report) -> str:
    """How far to trust the winner's figures; empty without a winner."""
    if report.winner is None:
        return ""
    rivals = sum(row.validation is not None for row in report.candidates)
    best = f"the best of {rivals} on validation data, so its validation figure is optimistic"
    tested = any(method.test for method in report.methods)
    test = (
        "the test split was read once, after every choice" if tested else "there is no labelled test split to check it"
    )
    return f"The winner was chosen as {best}; {test}." if rivals > 1 else f"{test[0].upper()}{test[1:]}."


def story(report: Report) -> list[Section]:
    """Every section that has something to say, in reading order."""
    receipt, data = report.receipt, report.data
    ways = f"{_WAYS.get(len(report.methods), f'{len(report.methods)} ways')} to use the winner"
    classes = tuple(_clean(name) for name in data.get("classes", ()))
    broken = tuple(_clean(f"{item['path']}: {item['reason']}") for item in data.get("broken", ()))
    images = {"path": data.get("path"), "classes": len(classes) or None, **data.get("counts", {})}
    settings = tuple(_clean(f"{row.name}: {text}") for row in _ranked(report) if (text := _settings(row)))
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
            tables=(_candidates(report),),
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
        paragraphs = tuple(_clean(text) for text in section.paragraphs if text)
        folds = tuple(fold for fold in section.folds if fold[1])
        if tables or (paragraphs and not section.tables):
            told.append(section._replace(paragraphs=paragraphs, tables=tables, folds=folds))
    return told


def _promises(report: Report) -> Table:
    columns = _columns("Promise, Limit>, Spent>, Used>1, Kept, Note~2")
    rows = [
        (
            _title(limit.name),
            _amount(limit.limit, limit.unit),
            _amount(limit.spent, limit.unit),
            f"{100 * limit.spent / limit.limit:.1f} %" if limit.limit else None,
            Cell("✓ yes", tone="good") if limit.kept else Cell("✗ NO", tone="bad"),
            limit.note,
        )
        for limit in report.receipt.limits
    ]
    return _table("What was promised and what was spent", columns, rows)


def _methods(report: Report) -> Table:
    columns = _columns("Method~, Candidate2, Train/test px>1, Val>, Test>, Note~3")
    rows = [
        (
            method.method,
            method.candidate if method.candidate != report.winner else None,
            f"{method.train_px}/{method.test_px}",
            _share(method.validation),
            _share(method.test),
            method.note,
        )
        for method in report.methods
    ]
    used = _delivered(report)
    strong = next((place for place, method in enumerate(report.methods) if method is used), None)
    return _table("Ways to use the winner", columns, rows, strong)


def _candidates(report: Report) -> Table:
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
            _title(phase.phase),
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
                return _amount(value, unit)
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
    cells = [[cell._replace(text=_clean(cell.text), below=_clean(cell.below)) for cell in row] for row in cells]
    places = [place for place in range(len(columns)) if any(row[place].text != DASH for row in cells)]
    kept = tuple(tuple(row[place] for place in places) for row in cells)
    return Table(caption, tuple(columns[place] for place in places), kept, strong)


def _ranked(report: Report) -> list[CandidateRow]:
    """Trained by validation accuracy, the winner first among equals; then planned, failed and rejected."""

    def key(row: CandidateRow) -> tuple[int, float, bool]:
        order = _ORDER.index(row.status) if row.status in _ORDER else len(_ORDER)
        return order, -row.validation.share if row.validation else 0.0, row.name != report.winner

    return sorted(report.candidates, key=key)


def _delivered(report: Report) -> MethodRow | None:
    """The winner's method with the best validation accuracy, the later of equals; test accuracy has no say."""
    own = [method for method in report.methods if method.candidate == report.winner]
    return max(reversed(own), key=lambda method: method.validation.share if method.validation else -1.0, default=None)


def _settings(row: CandidateRow) -> str:
    """Why this batch size, and what finding out took."""
    profiled = None if row.profile_s is None else f"profiled in {format_duration(row.profile_s)}"
    if row.profile_cached:
        profiled = "profile read from the cache"
    return "; ".join(filter(None, (row.batch_why, profiled)))


def _allowed(report: Report) -> str:
    """The limits in words, ``6.00 GiB and 3h 00m``: those of the receipt, or of the request before there are any."""
    words = [_amount(limit.limit, limit.unit) + _on_gpu(limit) for limit in report.receipt.limits]
    asked = [(key, report.request.get(key)) for key in ("memory_bytes", "time_s")]
    words = words or [_value(key, value, "") for key, value in asked if value]
    return " and ".join(", ".join(words).rsplit(", ", 1))


def _spent(limit: Limit) -> str:
    word = {"bytes": "peak ", "s": "spent "}.get(limit.unit, "")
    return f"{word}{_amount(limit.spent, limit.unit)}{_on_gpu(limit)}"


def _on_gpu(limit: Limit) -> str:
    return " of GPU time" if limit.unit == "s" and "gpu" in limit.name.lower() else ""


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return format_size(value)
    return format_duration(value) if unit == "s" else f"{value:.3g} {unit}"


def _share(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    low, high = estimate.interval
    return Cell(f"{100 * estimate.share:.1f} %", f"{100 * low:.1f}–{100 * high:.1f}")


def _range(row: CandidateRow) -> str | None:
    low, high = row.predicted_low_s, row.predicted_high_s
    return None if low is None or high is None else f"{format_duration(low)}–{format_duration(high)}"


def _number(value: float | None, form: Callable[[Any], str]) -> str | None:
    return None if value is None else form(value)


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def _clean(text: Any) -> str:
    """One line of text that any encoding takes: file names may hold control characters and lone surrogates."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip().encode("utf-8", "replace").decode("utf-8")


def _md(text: str) -> str:
    """Text that Markdown shows as it is; underscores inside words are safe and stay readable."""
    text = _clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _tiles(report: Report) -> Iterator[Tile]:
    """The page's large figures: accuracy, then every limit with the share of it that was used."""
    used = _delivered(report)
    estimate = (used.test or used.validation) if used else None
    if estimate and used:
        of = f"95 % interval {_share(estimate).aside}, {estimate.total:,} images"
        yield Tile("Test accuracy" if used.test else "Validation accuracy", _share(estimate).text, of)
    elif is_plan(report):
        fit = sum(row.status == "planned" for row in report.candidates)
        yield Tile("Candidates that fit", f"{fit}", f"of {len(report.candidates)}")
    for limit in report.receipt.limits:
        of = f"of {_amount(limit.limit, limit.unit)}: {'kept' if limit.kept else 'NOT KEPT'}"
        percent = 100 * limit.spent / limit.limit if limit.limit else 0.0
        yield Tile(_title(limit.name), _amount(limit.spent, limit.unit), of, min(percent, 100.0), limit.kept)


def render_text(report: Report) -> RenderableType:
    """The report for a terminal, fit for 80 columns and better with more."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_clean(report.title), style="bold"), Text(report.created_at, style="dim")]
    parts += [Text(), Text(_clean(headline(report)), style="bold green" if report.winner else "bold")]
    parts += [Text(_clean(text), style="dim") for text in (report.winner_why, caution(report)) if text]
    for section in story(report):
        parts += [Text(), Text(section.title.upper(), style="bold cyan")]
        parts += [Text(_clean(text)) for text in section.paragraphs]
        for table in section.tables:
            parts += [_Fitted(table), *_reason_lines(table.reasons)]
        for summary, lines in section.folds:
            if section.anchor == "data":  # names by the thousand: a dozen will do here
                more = f", and {len(lines) - 12:,} more" if len(lines) > 12 else ""
                parts.append(Text.assemble((f" {summary}: ", "bold"), ", ".join(lines[:12]) + more))
            else:
                parts += [
                    Text(f"\n {summary}", style="bold"),
                    *_reason_lines([line.partition(": ")[::2] for line in lines])[1:],
                ]
    return Group(*parts)


def print_report(report: Report, console: Console) -> None:
    """Print the report on a rich console."""
    console.print(render_text(report))


def plan_table(report: Report) -> RenderableType:
    """What ``fitwithin plan`` prints: what fits with which settings, then the reason of every choice and rejection."""
    from rich.console import Group

    told = {row.name: "; ".join(filter(None, (row.reason, _settings(row)))) for row in _ranked(report)}
    return Group(
        _Fitted(_candidates(report)), *_reason_lines([(name, _clean(why)) for name, why in told.items() if why])
    )


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, without charts."""
    lines = [f"# {_md(report.title)}", f"**{_md(headline(report))}**"]
    lines += [_md(text) for text in (report.winner_why, caution(report)) if text]
    for section in story(report):
        lines.append(f"## {_md(section.title)}")
        if section.anchor == "notes":
            lines.append("\n".join(f"- {_md(text)}" for text in section.paragraphs))
            continue
        lines += [_md(text) for text in section.paragraphs]
        for table in section.tables:
            head = [f" {_md(column.title)} " for column in table.columns]
            rule = ["---:" if column.number else "---" for column in table.columns]
            body = [[f" {_md(cell.line)} " for cell in row] for row in table.rows]
            if table.strong is not None:
                body[table.strong][0] = f" **{body[table.strong][0].strip()}** "
            lines.append("\n".join(f"|{'|'.join(cells)}|" for cells in (head, rule, *body)))
            if table.reasons:
                lines.append("\n".join(f"- {_md(name)}: {_md(reason)}" for name, reason in table.reasons))
        for summary, items in section.folds:
            listed = "\n".join(f"- {_md(item)}" for item in items)
            lines.append(f"<details><summary>{_md(summary)}</summary>\n\n{listed}\n\n</details>")
    return "\n\n".join([*lines, f"Written {_md(report.created_at)} by fitwithin."]) + "\n"


def html(report: Report) -> str:
    """The report as one HTML file that asks nothing of the network and runs no script.

    The whole report stands in it once more as JSON (``<script type="application/json" id="report">``), which
    ``fitwithin.report.from_json`` reads.
    """
    from importlib.resources import files

    import jinja2

    from fitwithin import charts

    drawn = (
        ("Accuracy against time", charts.accuracy_against_time(report)),
        ("Accuracy against memory", charts.accuracy_against_memory(report)),
        ("Training loss", charts.loss_curves(report)),
        ("Predicted against actual time", charts.predicted_against_actual(report)),
    )
    shown = [(caption, chart) for caption, chart in drawn if chart]
    sections, told = story(report), _clean(headline(report))
    before = [section.anchor for section in sections if section.anchor in ("candidates", "views")]
    # "<", ">" and "&" only occur inside JSON strings: escaped there, no datum can close the script element.
    data = report.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    source = (files("fitwithin") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        title=_clean(report.title),
        created_at=_clean(report.created_at),
        why=_clean(report.winner_why),
        plan=is_plan(report),
        headline=told,
        headline_set=re.sub(
            r"(?<=\d) (?=[A-Za-z%])(?!on |and |images|test|val)", "\u00a0", told
        ),  # figures keep their unit
        caution=caution(report),
        tiles=list(_tiles(report)),
        sections=sections,
        charts=shown,
        charts_after=before[-1] if shown and before else None,
        data=data,
    )


class _Fitted:
    """A table that knows the width it is printed in, and drops its least important columns until it fits."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        places = self.places(options.max_width)
        yield self.drawn(places, rigid=self.width(places) <= options.max_width)
        gone = [column.title for place, column in enumerate(self.table.columns) if place not in places]
        if gone:
            yield Text(f" {options.max_width} characters leave no room for: {', '.join(gone)}", style="dim")

    def width(self, places: Sequence[int]) -> int:
        """Characters that these columns need, with wrapping columns at their narrowest."""
        from rich.cells import cell_len

        total = -1
        for place in places:
            column = self.table.columns[place]
            longest = max(cell_len(text) for text in (column.title, *(row[place].line for row in self.table.rows)))
            total += (min(longest, _WRAP_AT) if column.wrap else longest) + 3
        return total

    def places(self, width: int) -> list[int]:
        """The columns that go into ``width`` characters; those of rank 0 stay and wrap."""
        places = list(range(len(self.table.columns)))
        while self.width(places) > width:
            last = max(places, key=lambda place: (self.table.columns[place].rank, place))
            if self.table.columns[last].rank == 0:
                break
            places.remove(last)
        return places

    def drawn(self, places: Sequence[int], *, rigid: bool) -> RichTable:
        """The rich table of these columns; ``rigid`` where nothing but wrapping columns may wrap."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = self.table
        drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
        for place in places:
            column = table.columns[place]
            justify: Literal["left", "right"] = "right" if column.number else "left"
            drawn.add_column(Text(column.title), justify=justify, no_wrap=rigid and not column.wrap, overflow="fold")
        tones = {"good": "green", "bad": "bold red", "muted": "dim"}
        for number, row in enumerate(table.rows):
            cells = [Text(row[place].line, style=tones.get(row[place].tone, "")) for place in places]
            drawn.add_row(*cells, style="bold" if number == table.strong else "")
        return drawn


def _reason_lines(reasons: Sequence[tuple[str, str]]) -> list[RenderableType]:
    """Name and reason side by side, so that long reasons hang beside their name."""
    from rich.table import Table as RichTable
    from rich.text import Text

    if not reasons:
        return []
    grid = RichTable.grid(padding=(0, 1))
    grid.add_column(max_width=32, overflow="fold")
    grid.add_column(overflow="fold", ratio=1)
    for name, reason in reasons:
        grid.add_row(Text(f" {name}", style="bold"), Text(reason))
    return [Text(), grid]
