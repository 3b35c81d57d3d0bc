"""What a command shows while it works, how Ctrl-C ends it, and how a report is printed in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from fitwithin.cli.interrupt import interruptible

if TYPE_CHECKING:
    from fitwithin.inference.predictions import Evaluation
    from fitwithin.pipeline.progress import Reporter
    from fitwithin.pipeline.result import Result
    from fitwithin.pipeline.statement import Statement


@contextmanager
def reporter(as_json: bool) -> Iterator[Reporter]:
    """Bars on a terminal, plain lines elsewhere, nothing where another program reads; Ctrl-C ends it, come what may."""
    from fitwithin.cli.progress import Bars, Plain
    from fitwithin.pipeline.progress import Silent

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
    """The terminal's; a pipe has no width: tables are laid out for a wide page there, not for 80 columns."""
    from rich.console import Console

    screen = Console()
    return screen if screen.is_terminal else Console(width=160)


def show_books(books: Statement, as_json: bool) -> None:
    """A statement of the books on the terminal, or as JSON."""
    if as_json:
        typer.echo(json.dumps(books.to_dict(), indent=1))
        return
    from rich.table import Table

    from fitwithin.pipeline.statement import COLUMNS

    table = Table(box=None, header_style="bold")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place in (1, 2) else "right")
    for row in books.rows():
        table.add_row(*row)
    screen = console()
    screen.print(table, "", *books.told(), sep="\n", highlight=False)


def show_accuracy(found: Evaluation, as_json: bool) -> None:
    """What a labelled folder showed, on the terminal or as JSON."""
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    from fitwithin.report import render

    console().print(render.accuracy_table(found.top1, found.by_class))
    typer.echo(f"within the first five: {found.top5.share:.1%}")
    for path in found.unreadable:
        typer.echo(f"  not readable: {path}", err=True)


def show(result: Result, as_json: bool) -> None:
    """The report on the terminal, or as JSON."""
    if as_json:
        typer.echo(result.report.to_json())
        return
    from fitwithin.report import render

    screen = console()
    render.print_report(result.report, screen)
    screen.print(f"\nReport: {(result.folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)
