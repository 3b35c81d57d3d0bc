"""A report for readers, in three voices: the terminal (rich), Markdown and one HTML file.

They set what sections.py and summary.py say, and add nothing but the charts (charts.py), which stand in the HTML alone.
Jinja2 and rich are imported inside functions: ``fitwithin --help`` needs neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fitwithin.files import write_text_atomic
from fitwithin.planning.stats import Estimate
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.report.schema import Report
from fitwithin.report.sections import candidates, choices, story
from fitwithin.report.summary import caution, contested, headline, is_plan, tiles
from fitwithin.report.tables import Table, clean
from fitwithin.units import format_count, format_size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable

#: A terminal is told of so many trials of a search; the files have them all.
MOST_TRIALS = 24

_WRAP_AT = 16  # characters a wrapping column may shrink to before whole columns fall away


def render_text(report: Report) -> RenderableType:
    """The report for a terminal, fit for 80 columns and better with more."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(clean(report.title), style="bold"), Text(report.created_at, style="dim")]
    parts += [Text(), Text(clean(headline(report)), style="bold green" if report.winner else "bold")]
    parts += [
        Text(clean(text), style="dim") for text in (report.winner_why, contested(report), caution(report)) if text
    ]
    for section in story(report):
        parts += [Text(), Text(section.title.upper(), style="bold cyan")]
        parts += [Text(clean(text)) for text in section.paragraphs]
        for table in section.tables:
            parts += [_Fitted(table), *_reason_lines(table.reasons)]
        for summary, lines in section.folds:
            if section.anchor == "search" and len(lines) > MOST_TRIALS:
                summary, lines = f"{summary}: the first {MOST_TRIALS} of {len(lines):,}", lines[:MOST_TRIALS]
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

    return Group(_Fitted(candidates(report)), *_reason_lines(choices(report)))


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, without charts."""
    lines = [f"# {_md(report.title)}", f"**{_md(headline(report))}**"]
    lines += [_md(text) for text in (report.winner_why, contested(report), caution(report)) if text]
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


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """The charts of a report as SVG, each with its caption; ``climbs`` stands beside the search."""

    shown: tuple[tuple[str, str], ...]
    climbs: str | None


#: A report without charts.
NO_DRAWINGS = Drawings(shown=(), climbs=None)


def drawings(report: Report) -> Drawings:
    """Its charts, which nothing of the receipt changes."""
    from fitwithin.report import charts

    drawn = (
        ("Accuracy against time", charts.accuracy_against_time(report)),
        ("Accuracy against memory", charts.accuracy_against_memory(report)),
        ("Training loss", charts.loss_curves(report)),
        ("Predicted against actual time", charts.predicted_against_actual(report)),
    )
    shown = tuple((caption, chart) for caption, chart in drawn if chart)
    return Drawings(shown=shown, climbs=charts.accuracy_over_rungs(report))


def html(report: Report, drawn: Drawings | None = None) -> str:
    """The report as one HTML file that asks nothing of the network and runs no script.

    Charts that are ``drawn`` are not drawn again. The whole report stands in it once more as JSON
    (``<script type="application/json" id="report">``), which ``fitwithin.report.schema.from_json`` reads.
    """
    from importlib.resources import files

    import jinja2

    drawn = drawn or drawings(report)
    sections, told = story(report), clean(headline(report))
    before = [section.anchor for section in sections if section.anchor in ("candidates", "views")]
    # "<", ">" and "&" only occur inside JSON strings: escaped there, no datum can close the script element.
    data = report.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    source = (files("fitwithin") / "report" / "templates" / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        title=clean(report.title),
        created_at=clean(report.created_at),
        why=_kept(clean(f"{report.winner_why} {contested(report)}")),
        plan=is_plan(report),
        headline=told,
        headline_set=_kept(told),
        caution=caution(report),
        tiles=list(tiles(report)),
        sections=sections,
        charts=drawn.shown,
        beside={"search": ("Accuracy against GPU time, rung by rung", drawn.climbs)} if drawn.climbs else {},
        charts_after=before[-1] if drawn.shown and before else None,
        data=data,
    )


def _kept(text: str) -> str:
    """The text with its figures kept beside their units where a line ends."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%])(?!on |and |with |images|test|val)", "\u00a0", text)


def profile_table(found: Sequence[Profile | Rejection]) -> list[RenderableType]:
    """What profiling found: batches, trials and paces; and why a candidate was turned away."""
    from rich import box
    from rich.table import Table as RichTable

    heads = ("candidate", "batch", "trials", "images/s", "ms a step", "± %", "dummy", "loader", "start, s", "peak")
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    reasons = []
    for each in found:
        if isinstance(each, Rejection):
            reasons.append((each.candidate.name, f"turned away: {each.reason}"))
            continue
        timing = each.timing
        table.add_row(
            each.candidate.name,
            f"{each.batch}" if each.accum_steps == 1 else f"{each.accum_steps} x {each.batch // each.accum_steps}",
            "cached" if each.cached else str(each.trials),
            format_count(each.images_per_s),
            f"{timing.step_s * 1e3:.2f}",
            f"{100 * (timing.step_high_s / timing.step_s - 1):.1f}",
            f"{timing.dummy_step_s * 1e3:.2f}",
            f"{timing.loader_step_s * 1e3:.2f}",
            f"{timing.startup_s + timing.warmup_s:.1f}",
            format_size(each.peak_bytes),
        )
        reasons.append((each.candidate.name, each.batch_why))
    return [table, *_reason_lines(reasons)]


def accuracy_table(top1: Estimate, by_class: Mapping[str, Estimate]) -> RichTable:
    """How many images were classified right, overall and by class."""
    from rich.table import Table as RichTable

    low, high = top1.interval
    table = RichTable("class", "images", "right", title=f"{top1.share:.1%} ({low:.1%} to {high:.1%}) of {top1.total:,}")
    for name, estimate in by_class.items():
        table.add_row(name, f"{estimate.total:,}", f"{estimate.share:.1%}")
    return table


def _md(text: str) -> str:
    """Text that Markdown shows as it is; underscores inside words are safe and stay readable."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


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


def write_report(report: Report, folder: Path, drawn: Drawings) -> None:
    """report.json, report.md, report.html (with the charts ``drawn``) and receipt.json in ``folder``."""
    texts: dict[str, Callable[[], str]] = {
        "report.json": report.to_json,
        "receipt.json": lambda: json.dumps(asdict(report.receipt), indent=1, allow_nan=False),
        "report.md": lambda: markdown(report),
        "report.html": lambda: html(report, drawn),
    }
    for name, text in texts.items():
        write_text_atomic(folder / name, text())
