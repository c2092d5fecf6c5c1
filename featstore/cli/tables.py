"""Tables, painted: leaderboards, rows of text, verdicts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from featstore.formatting import harmless
from featstore.report import Grid, GridCell, GridRow, grid

if TYPE_CHECKING:
    from featstore.report import Leaderboard

__all__ = ["leaderboard_tables", "painted", "plain_table", "show", "verdict_table"]

FILE_COLUMNS = 10_000


def show(*renderables: RenderableType, stream: TextIO | None = None) -> None:
    """Print on stdout (or `stream`): in colour on a terminal, and in a file as wide as it takes."""
    console = Console(file=sys.stdout if stream is None else stream, highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS  # a table is no wider than its content: nothing is cut, nothing is padded
    for renderable in renderables:
        console.print(renderable)


def _text(text: str, *, style: str = "") -> Text:
    """Words of others, of which neither rich nor a terminal takes any for a command."""
    return Text(harmless(text, keep="\n"), style=style)


def _table(title: str | None) -> Table:
    told = None if title is None else _text(title, style="bold")
    return Table(title=told, title_justify="left", box=box.SIMPLE_HEAD)


def leaderboard_tables(board: Leaderboard) -> Group:
    """Paint every table of a leaderboard."""
    return painted(grid(table) for table in board.tables)


def painted(grids: Iterable[Grid]) -> Group:
    """Paint tables."""
    return Group(*map(_painted, grids))


def _painted(laid_out: Grid) -> Group:
    notes = (_text(f"  {note}", style="dim") for note in laid_out.notes)
    warnings = (Padding(_text(f"! {each}", style="yellow"), (0, 0, 0, 2)) for each in laid_out.warnings)
    return Group(_Fitting(laid_out), *notes, *warnings, Text())


class _Fitting:
    """A table that no terminal is too narrow for: columns that do not fit go into a further one below, unbroken."""

    def __init__(self, laid_out: Grid) -> None:
        self._grid = laid_out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=FILE_COLUMNS)
        left = list(range(2, len(self._grid.header)))
        title: str | None = self._grid.title
        while left or title is not None:
            fits = len(left)
            while fits > 1 and console.measure(self._table(left[:fits]), options=wide).maximum > options.max_width:
                fits -= 1
            yield self._table(left[:fits], title=title)
            left, title = left[fits:], None

    def _table(self, columns: Sequence[int], *, title: str | None = None) -> Table:
        table = _table(title)
        for index in (0, 1, *columns):
            table.add_column(_text(self._grid.header[index]), justify="left" if index < 2 else "right", overflow="fold")
        for section in (self._grid.rows, self._grid.averages):
            for row in section:
                entries = _entries(row)
                table.add_row(*(entries[index] for index in (0, 1, *columns)))
            table.add_section()
        return table


def _entries(row: GridRow) -> tuple[Text, ...]:
    return (_text(row.head), _text(row.metric, style="dim"), *map(_entry, row.cells))


def _entry(cell: GridCell) -> Text:
    # A mark is a letter of the text as well as a style: a log and a colour-blind reader see it too.
    if cell.best:
        return Text(f"▸ {cell.text}", style="bold green")
    return Text(cell.marked)


_NUMBER = re.compile(r"[0-9][0-9.,]*(?=[\s%]|$)")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """Lay out rows of text. A column whose every entry begins with a number (a hash is none) is set flush right."""
    table = _table(title)
    for index, heading in enumerate(header):
        numeric = bool(rows) and all(_NUMBER.match(row[index]) for row in rows)
        table.add_column(_text(heading), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


_VERDICTS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_PROSE_COLUMNS = 100


def verdict_table(rows: Sequence[tuple[str, str, str, str]], *, title: str) -> Table:
    """Lay out checks: name, verdict, what was measured, and under it what to do where there is something."""
    table = _table(title)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured", max_width=_PROSE_COLUMNS)
    for name, verdict, measured, advice in rows:
        style = _VERDICTS[verdict]
        told = _text(measured)
        if advice:
            told.append(f"\n→ {harmless(advice)}", style=style)
        table.add_row(_text(name), Text(verdict.upper() if verdict == "failed" else verdict, style=style), told)
    return table
