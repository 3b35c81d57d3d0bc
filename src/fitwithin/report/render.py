"""A report for readers, in three voices: the terminal (rich), Markdown and one HTML file.

They set what sections.py and summary.py say, and add nothing but the charts (charts.py), which stand in the HTML alone.
Jinja2 and rich are imported inside functions: ``fitwithin --help`` needs neither.
"""

from __future__ import annotations

import functools
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fitwithin.files import write_text_atomic
from fitwithin.inference.quality import Mistake
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.report import charts, pretrained
from fitwithin.report.answer import Fact, answer, left_out
from fitwithin.report.schema import Report
from fitwithin.report.sections import candidates, choices, expected, sections
from fitwithin.report.summary import headline, is_plan, search_sentence, tiles, trust_note
from fitwithin.report.tables import Table, clean
from fitwithin.units import format_count, format_size

if TYPE_CHECKING:
    import jinja2
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable

#: A terminal shows so many lines of a list, such as the trials of a search; the files have them all.
MOST_LINES = 24

_WRAP_AT = 16  # characters a wrapping column may shrink to before whole columns fall away


def render_answer(report: Report, folder: str) -> RenderableType:
    """The beginning of the report for a terminal: what was made, what it costs, what was tried, what next."""
    from rich.console import Group
    from rich.text import Text

    parts = [*_head(report), *_fact_lines(answer(report, folder)), Text(), _Fitted(candidates(report))]
    if out := left_out(report)[0]:
        parts.append(Text(clean(out), style="dim"))
    return Group(*parts)


def _head(report: Report) -> list[RenderableType]:
    """Title, headline, and how far to trust it."""
    from rich.text import Text

    parts: list[RenderableType] = [Text(clean(report.title), style="bold"), Text(report.created_at, style="dim")]
    parts += [Text(), Text(clean(headline(report)), style="bold green" if report.winner else "bold")]
    notes = (report.winner_why, search_sentence(report), trust_note(report))
    return [*parts, *(Text(clean(text), style="dim") for text in notes if text)]


def _fact_lines(facts: Sequence[Fact]) -> list[RenderableType]:
    return _reason_lines([(fact.label, clean(fact.text)) for fact in facts])


def render_text(report: Report, folder: str = "RUN") -> RenderableType:
    """The report for a terminal, fit for 80 columns and better with more."""
    from rich.console import Group
    from rich.text import Text

    parts = [*_head(report), *_fact_lines(answer(report, folder))]
    for section in sections(report):
        parts += [Text(), Text(section.title.upper(), style="bold cyan")]
        parts += [Text(clean(text)) for text in section.paragraphs]
        for table in section.tables:
            parts += [_Fitted(table), *_reason_lines(table.reasons)]
        for summary, lines in section.collapsible:
            if section.anchor != "data" and len(lines) > MOST_LINES:
                summary, lines = f"{summary}: the first {MOST_LINES} of {len(lines):,}", lines[:MOST_LINES]
            if section.anchor == "data":  # names by the thousand: a dozen will do here
                more = f", and {len(lines) - 12:,} more" if len(lines) > 12 else ""
                parts.append(Text.assemble((f" {summary}: ", "bold"), ", ".join(lines[:12]) + more))
            else:
                reasons = [line.partition(": ")[::2] for line in lines]
                parts += [Text(f"\n {summary}", style="bold"), *_reason_lines(reasons)[1:]]
    return Group(*parts)


def plan_table(report: Report) -> RenderableType:
    """What ``fitwithin plan`` prints: what fits with which settings, the reason of every choice, what was left out."""
    from rich.console import Group
    from rich.text import Text

    out = left_out(report)[0]
    texts = (report.pretrained_why, report.pool_why, out)
    said = [line for text in texts if text for line in (Text(), Text(clean(text)))]
    pool: list[RenderableType] = [Text(), _Fitted(expected(report))] if report.pool else []
    if report.pretrained:
        pool = [Text(), _Fitted(pretrained.table(report)), *pool]
    return Group(_Fitted(candidates(report)), *_reason_lines(choices(report)), *said, *pool)


def markdown(report: Report, folder: str = "RUN") -> str:
    """The report as GitHub-flavoured Markdown, without charts."""
    lines = [f"# {_md(report.title)}", f"**{_md(headline(report))}**"]
    if facts := answer(report, folder):
        lines.append("\n".join(f"- {fact.label}: {_md(fact.text)}" for fact in facts))
    lines += [_md(text) for text in (report.winner_why, search_sentence(report), trust_note(report)) if text]
    for section in sections(report):
        lines.append(f"## {_md(section.title)}")
        if section.anchor == "notes":
            lines.append("\n".join(f"- {_md(text)}" for text in section.paragraphs))
            continue
        lines += [_md(text) for text in section.paragraphs]
        for table in section.tables:
            head = [f" {_md(column.title)} " for column in table.columns]
            rule = ["---:" if column.number else "---" for column in table.columns]
            body = [[f" {_md(cell.line)} " for cell in row] for row in table.rows]
            if table.highlighted is not None:
                body[table.highlighted][0] = f" **{body[table.highlighted][0].strip()}** "
            lines.append("\n".join(f"|{'|'.join(cells)}|" for cells in (head, rule, *body)))
            if table.reasons:
                lines.append("\n".join(f"- {_md(name)}: {_md(reason)}" for name, reason in table.reasons))
        for summary, items in section.collapsible:
            listed = "\n".join(f"- {_md(item)}" for item in items)
            lines.append(f"<details><summary>{_md(summary)}</summary>\n\n{listed}\n\n</details>")
    return "\n\n".join([*lines, f"Written {_md(report.created_at)} by fitwithin."]) + "\n"


def html(report: Report, folder: str = "RUN", pictures: Mapping[str, bytes] | None = None) -> str:
    """The report as one HTML file that asks nothing of the network; its own script draws the charts (report/charts.py).
    ``pictures`` are JPEGs of mistakes by their paths.

    The file also holds the report as JSON (``<script type="application/json" id="report">``), which
    :func:`fitwithin.report.schema.from_json` reads. Long curves are thinned; report.json has them whole.
    """
    report = charts.thinned(report)
    every_section, sentence = sections(report), clean(headline(report))
    before = [section.anchor for section in every_section if section.anchor in ("candidates", "views")]
    made = charts.charts(report)
    climbs = next((chart for chart in made if chart.anchor == "chart-rungs"), None)
    alone = [chart for chart in made if chart is not climbs]
    scripts = [_part("vendor/plot.min.js"), _part("charts.js")] if made else []
    return _template().render(
        title=clean(report.title),
        created_at=clean(report.created_at),
        why=_kept(clean(f"{report.winner_why} {search_sentence(report)}")),
        plan=is_plan(report),
        headline=sentence,
        headline_set=_kept(sentence),
        caution=trust_note(report),
        tiles=list(tiles(report)),
        facts=[Fact(fact.label, clean(fact.text)) for fact in answer(report, folder)],
        sections=every_section,
        mistakes=_shown_mistakes(report, pictures or {}),
        charts=alone,
        beside={"search": climbs} if climbs else {},
        charts_after=before[-1] if alone and before else None,
        data=_inert(report.to_json(indent=None)),
        drawn=_inert(json.dumps({chart.anchor: chart.data for chart in made}, allow_nan=False)),
        scripts=scripts,
        # No other script runs, whatever stands in the report.
        allowed=" ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts),
    )


def _shown_mistakes(report: Report, pictures: Mapping[str, bytes]) -> list[tuple[Mistake, str]]:
    """The surest mistakes of which there are pictures, as ``data:`` addresses."""
    found = report.assessments[-1].mistakes if report.assessments else ()
    return [
        (
            replace(each, path=clean(each.path), truth=clean(each.truth), answer=clean(each.answer)),
            f"data:image/jpeg;base64,{b64encode(pictures[each.path]).decode()}",
        )
        for each in found
        if each.path in pictures
    ]


def _inert(json_text: str) -> str:
    """JSON that no datum can end: "<", ">" and "&" only occur inside its strings, and are escaped there."""
    return json_text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _part(name: str) -> str:
    """A file of templates/."""
    from importlib.resources import files

    return (files("fitwithin") / "report" / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("report.html.j2"))


def _kept(text: str) -> str:
    """The text with its figures kept beside their units where a line ends."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%])(?!on |and |with |images|test|val)", "\u00a0", text)


def profile_table(found: Sequence[Profile | Rejection]) -> list[RenderableType]:
    """What profiling found: batches, trials and paces; and why a candidate was rejected."""
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
            "cached" if each.cached else str(each.num_tried),
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


def _md(text: str) -> str:
    """Text that Markdown shows as it is; underscores inside words are safe and stay readable."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*`\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", text)


class _Fitted:
    """A table that drops its least important columns until it fits into the width it is printed in."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        places = list(range(len(self.table.columns)))
        while not (fits := self.width(places) <= options.max_width):
            last = max(places, key=lambda place: (self.table.columns[place].rank, place))
            if self.table.columns[last].rank == 0:
                break  # those of rank 0 stay and wrap
            places.remove(last)
        yield self.drawn(places, rigid=fits)
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
            drawn.add_row(*cells, style="bold" if number == table.highlighted else "")
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


def write_report(report: Report, folder: Path, pictures: Mapping[str, bytes] | None = None) -> None:
    """Write report.json, report.md, report.html and receipt.json into ``folder``, each whole or not at all. The page
    shows the ``pictures`` of mistakes, JPEGs by their paths."""
    texts = {
        "report.json": report.to_json(),
        "receipt.json": json.dumps(asdict(report.receipt), indent=1, allow_nan=False),
        "report.md": markdown(report, str(folder)),
        "report.html": html(report, str(folder), pictures),
    }
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
