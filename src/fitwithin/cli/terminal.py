"""What a command shows while it works, and what it prints in the end."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from fitwithin.cli.interrupt import interruptible
from fitwithin.units import format_size

if TYPE_CHECKING:
    from fitwithin.inference.bench import Speed
    from fitwithin.inference.model import Model
    from fitwithin.inference.predictions import Evaluation
    from fitwithin.pipeline.context import Reporter
    from fitwithin.pipeline.result import Result
    from fitwithin.pipeline.statement import Statement


@contextmanager
def reporter(as_json: bool) -> Iterator[Reporter]:
    """Shows progress: bars on a terminal, plain lines elsewhere, nothing with --json. Ctrl-C ends what is inside."""
    from fitwithin.cli.progress import Bars, Plain
    from fitwithin.pipeline.context import Silent

    screen = console()
    with interruptible():
        if as_json:
            yield Silent()
        elif screen.is_terminal:
            with Bars(screen) as bars:
                yield bars
        else:
            yield Plain(screen)


def console() -> Any:
    """The terminal as rich prints to it. Into a pipe, tables are 160 columns wide, not 80."""
    from rich.console import Console

    class Screen(Console):
        """Goes on without a word where the reader of the output has gone, as after ``| head``."""

        def on_broken_pipe(self) -> None:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    screen = Screen()
    return screen if screen.is_terminal else Screen(width=160)


def say(line: str, *, err: bool = False) -> None:
    """Print a line; a character that the terminal cannot show becomes a question mark."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(line.encode(encoding, "replace").decode(encoding), err=err)


def print_ledger(statement: Statement, as_json: bool) -> None:
    """Print a statement of the ledger on the terminal, or as JSON."""
    if as_json:
        typer.echo(json.dumps(statement.to_dict(), indent=1))
        return
    from rich.table import Table

    from fitwithin.pipeline.statement import COLUMNS

    table = Table(box=None, header_style="bold")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place in (1, 2) else "right")
    for row in statement.rows():
        table.add_row(*row)
    screen = console()
    screen.print(table, "", *statement.sentences(), sep="\n", highlight=False)


def print_speeds(found: Sequence[Speed], model: Model, device: str, as_json: bool) -> None:
    """Print what passes of a model take on the terminal, or as JSON."""
    if as_json:
        rows = [{**dataclasses.asdict(each), "images_per_s": each.images_per_s} for each in found]
        typer.echo(json.dumps({"device": device, "views": len(model.ensemble.views), "passes": rows}, indent=1))
        return
    from rich.table import Table

    views = ", ".join(view.name for view in sorted(model.ensemble.views))
    table = Table(box=None, header_style="bold", title=f"{model.ensemble.candidate} on {device}: {views}")
    for name in ("images a pass", "median ms", "99th percentile", "images/s", "peak memory", "passes"):
        table.add_column(name, justify="right")
    for each in found:
        times = (f"{each.p50_ms:.3g}", f"{each.p99_ms:.3g}", f"{each.images_per_s:,.0f}")
        table.add_row(str(each.batch), *times, format_size(each.peak_bytes), str(each.passes))
    console().print(table, highlight=False)


def print_accuracy(found: Evaluation, as_json: bool) -> None:
    """Print the accuracy on a labelled folder on the terminal, or as JSON."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    from fitwithin.report.tables import clean

    low, high = found.top1.interval
    title = f"{found.top1.share:.1%} ({low:.1%} to {high:.1%}) of {found.top1.total:,}"
    table = Table("class", "images", "right", title=title)
    for name, accuracy in found.by_class.items():
        table.add_row(Text(clean(name)), f"{accuracy.total:,}", f"{accuracy.share:.1%}")
    console().print(table)
    typer.echo(f"right class among the first five: {found.top5.share:.1%}")
    for path in found.unreadable:
        say(f"  not readable: {path}", err=True)


def print_report(result: Result, as_json: bool, *, whole: bool = False) -> None:
    """Print the answer of the report on the terminal, or the ``whole``, or all of it as JSON."""
    if as_json:
        typer.echo(result.report.to_json())
        return
    from fitwithin.report import render

    screen = console()
    folder, page = str(result.folder), (result.folder / "report.html").resolve()
    screen.print(render.render_text(result.report, folder) if whole else render.render_answer(result.report, folder))
    more = "" if whole else f"Everything else: fitwithin report {shlex.quote(folder)}\n"
    screen.print(f"\n{more}Report: {page}", soft_wrap=True, highlight=False, markup=False)
