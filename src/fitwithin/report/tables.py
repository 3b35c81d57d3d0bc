"""What sections of a report are made of: cells, columns and tables, as plain text that every format can show."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fitwithin.planning.stats import Accuracy
from fitwithin.report.summary import format_accuracy

#: What stands where there is nothing to say.
DASH = "–"


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
    """A table's column: numbers are set to the right, ``wrap`` lets text take several lines. On a narrow terminal the
    columns with the highest ``rank`` are left out first, those of rank 0 never."""

    title: str
    number: bool = False
    rank: int = 0
    wrap: bool = False


class Table(NamedTuple):
    """Columns and rows; the first cell of a row names it; ``highlighted`` is the index of a row to set off, if any."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    highlighted: int | None = None

    @property
    def stacked(self) -> bool:
        """Whether intervals stand below their figures: three columns with both side by side are too wide for a page."""
        return sum(any(row[place].aside for row in self.rows) for place in range(len(self.columns))) > 2

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Name and reason of every row that has one: printed under the table where cells are a single line."""
        return [(row[0].text, row[0].below) for row in self.rows if row[0].below]


class Section(NamedTuple):
    """A heading with its paragraphs, tables and ``collapsible`` lists: a summary and its lines, closed in HTML."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    collapsible: tuple[tuple[str, tuple[str, ...]], ...] = ()


def table_of(
    caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str | None]], highlighted: int | None = None
) -> Table:
    """A table of clean cells, without the columns in which no row has anything to say."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell or DASH) for cell in row] for row in rows]
    cells = [[cell._replace(text=clean(cell.text), below=clean(cell.below)) for cell in row] for row in cells]
    places = [place for place in range(len(columns)) if any(row[place].text != DASH for row in cells)]
    kept = tuple(tuple(row[place] for place in places) for row in cells)
    return Table(caption, tuple(columns[place] for place in places), kept, highlighted)


#: Columns, each with its cells.
Columns = Sequence[tuple[Column, Sequence[Cell | str | None]]]


def table_by_column(caption: str, columns: Columns, highlighted: int | None = None) -> Table:
    """The same from columns with their cells."""
    heads, cells = [head for head, _ in columns], [column for _, column in columns]
    return table_of(caption, heads, list(zip(*cells, strict=True)), highlighted)


def accuracy_cell(accuracy: Accuracy | None) -> Cell:
    """An accuracy with its interval beside it."""
    return Cell(*format_accuracy(accuracy)) if accuracy else Cell()


def format_or_dash(value: float | None, form: Callable[[Any], str]) -> str:
    """The value as ``form`` writes it; the dash where there is none."""
    return DASH if value is None else form(value)


def clean(text: Any) -> str:
    """One line of text that any encoding takes: file names may hold control characters and lone surrogates."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip().encode("utf-8", "replace").decode("utf-8")
