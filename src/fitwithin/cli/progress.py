"""What a person sees while a run lasts: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID, TextColumn

#: Seconds between plain lines of one phase when the output is no terminal.
PLAIN_EVERY_S = 15.0

#: Characters of a terminal from which on the bars are long.
WIDE = 100


class Plain:
    """Lines: one when a phase or trial begins, then one every PLAIN_EVERY_S; each names what it is about."""

    def __init__(self, console: Console) -> None:
        self._console = console
        #: By lane: what goes on there, and when a line last showed it.
        self._lanes: dict[int | None, tuple[str, float]] = {}

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """Print what begins."""
        if lane is None:
            self._lanes.clear()
        self._lanes[lane] = (what, time.monotonic())
        self.say(what)

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """Print how far it is, if the last line is PLAIN_EVERY_S old."""
        what, shown_at = self._lanes.get(lane, ("", 0.0))
        if time.monotonic() - shown_at >= PLAIN_EVERY_S:
            self._lanes[lane] = (what, time.monotonic())
            counted = f" {done}/{total}" if total else ""
            self.say(f"{what}:{counted} {text}".rstrip())

    def say(self, line: str) -> None:
        """Print the line as it is."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cut(template: str, style: str = "none") -> TextColumn:
    """A column of one line, which ends in "…" where the terminal is too narrow for all columns."""
    from rich.progress import TextColumn
    from rich.table import Column
    from rich.text import Text

    class Cut(TextColumn):
        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    return Cut(template, style=style, markup=False, table_column=Column())


class Bars:
    """A bar for each phase or trial that is going on; lines worth keeping scroll above them."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
        from rich.table import Column

        whole = Column(no_wrap=True)
        self._bars: Progress = Progress(
            SpinnerColumn(table_column=whole),
            _cut("{task.description}"),
            BarColumn(bar_width=24 if console.width >= WIDE else 10, table_column=whole),
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            _cut("{task.fields[text]}", style="dim"),
            console=console,
            transient=True,
        )
        self._tasks: dict[int | None, TaskID] = {}

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """Show a new bar in place of the old one of its lane, or, without a lane, of all bars."""
        for old in [lane] if lane is not None and None not in self._tasks else list(self._tasks):
            if old in self._tasks:
                self._bars.remove_task(self._tasks.pop(old))
        self._tasks[lane] = self._bars.add_task(what, total=total, text="")

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """Move the bar."""
        if (task := self._tasks.get(lane)) is not None:
            self._bars.update(task, completed=done, total=total or None, text=text)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
