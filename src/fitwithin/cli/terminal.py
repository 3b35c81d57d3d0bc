"""What a command shows while it works, how Ctrl-C ends it, and how a report is printed in the end."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fitwithin.cli.progress import Reporter
    from fitwithin.pipeline.result import Evaluation, Result
    from fitwithin.pipeline.statement import Statement

INTERRUPTED = "fitwithin: interrupted; `fitwithin resume RUN` goes on where it stands"

#: The exit code of what Ctrl-C ended.
INTERRUPTED_CODE = 128 + signal.SIGINT

STDERR = 2

#: Seconds that a process has after Ctrl-C to end what it began and to settle its books.
GRACE_S = 10.0


@contextmanager
def reporter(as_json: bool) -> Iterator[Reporter]:
    """Bars on a terminal, plain lines elsewhere, nothing where another program reads; Ctrl-C ends it, come what may."""
    from fitwithin.cli.progress import Bars, Plain, Silent

    screen = console()
    with interruptible():
        if as_json:
            yield Silent()
        elif screen.is_terminal:
            with Bars(screen) as bars:
                yield bars
        else:
            yield Plain(screen)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside and says how to go on; the process itself after GRACE_S.

    Python raises KeyboardInterrupt between any two of its instructions, also where nobody can: in a destructor, which
    loses it, or in a lock's own code, which stays taken or raises something else (docs/log.md). Its workers end with
    this process, and a run goes on from wherever it was ended.
    """
    heard, signals = os.pipe()
    os.set_blocking(signals, False)
    Thread(target=_end, args=(heard,), name="interrupts", daemon=True).start()
    before = signal.set_wakeup_fd(signals)
    interrupted = False
    try:
        yield
    except BaseException as error:
        interrupted = _interrupts(error)
        if not interrupted:
            raise
        typer.echo(INTERRUPTED, err=True)
        raise typer.Exit(INTERRUPTED_CODE) from None
    finally:
        if not interrupted:  # else the process must end
            signal.set_wakeup_fd(before)
            os.close(signals)


def _interrupts(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or was raised over one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _end(heard: int) -> None:
    """End the process GRACE_S after the first SIGINT that is ``heard`` of; not where no signals come any more."""
    ends_at = math.inf
    while (left_s := ends_at - time.monotonic()) > 0:
        if not select.select([heard], [], [], min(left_s, GRACE_S))[0]:
            continue
        numbers = os.read(heard, 64)
        if not numbers:
            os.close(heard)
            return
        if signal.SIGINT in numbers:
            ends_at = min(ends_at, time.monotonic() + GRACE_S)
    with suppress(OSError):  # not through sys.stderr, whose lock may be what was waited for
        os.write(STDERR, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_CODE)


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
