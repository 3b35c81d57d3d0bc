"""What a person sees while a run lasts: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

#: Seconds between plain lines of one phase when the output is no terminal.
PLAIN_EVERY_S = 15.0


class Reporter(Protocol):
    """Told what is going on; decides how to show it."""

    def begin(self, what: str, total: int | None = None) -> None:
        """A stretch of work begins; the one before has ended."""

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """The stretch has come so far."""

    def say(self, line: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Plain:
    """Lines: one when a stretch begins, then one every PLAIN_EVERY_S."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what = ""
        self._told_at = 0.0

    def begin(self, what: str, total: int | None = None) -> None:
        """One line."""
        self._what, self._told_at = what, time.monotonic()
        self.say(what)

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """One line every so often."""
        if time.monotonic() - self._told_at >= PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            counted = f" {done}/{total}" if total else ""
            self.say(f"{self._what}:{counted} {text}".rstrip())

    def say(self, line: str) -> None:
        """The line, unadorned."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar for the stretch that is going on; what is worth keeping scrolls above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        """A new bar in place of the old."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=total, text="")

    def advance(self, done: int, total: int | None, text: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None, text=text)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._bars.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
