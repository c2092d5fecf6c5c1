"""Tables on the terminal: leaderboards, rows of text, verdicts."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from featstore.formatting import harmless
from featstore.report import Grid, GridCell, grid

if TYPE_CHECKING:
    from featstore.report import Leaderboard

__all__ = ["facts_table", "leaderboard_tables", "lines_below", "painted", "plain_table", "show", "verdict_table"]

FILE_COLUMNS = 10_000
BLOCK_COLUMNS = 80
"""Width of leaderboards and prose in a file or a pipe; a terminal has its own."""

_LABEL_COLUMNS = 40


def show(*renderables: RenderableType, stream: TextIO | None = None) -> None:
    """Print on stdout (or `stream`): in colour and at its width on a terminal; elsewhere at COLUMNS, or unlimited."""
    console = Console(file=sys.stdout if stream is None else stream, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = FILE_COLUMNS  # a table is as wide as its content: no cell is cut or folded
    for renderable in renderables:
        console.print(renderable)


def _text(text: str, *, style: str = "") -> Text:
    """Untrusted text, which neither rich nor a terminal interprets."""
    return Text(harmless(text, keep="\n"), style=style)


def leaderboard_tables(board: Leaderboard) -> Group:
    """Every table of a leaderboard, for `show`."""
    return painted(grid(table) for table in board.tables)


def painted(grids: Iterable[Grid]) -> Group:
    """Tables, for `show`. Notes that several tables share are below the last one."""
    tables = list(grids)
    n_tables = Counter(note for each in tables for note in dict.fromkeys(each.notes))
    shared = tuple(note for note, n in n_tables.items() if n > 1)
    own = [replace(each, notes=tuple(note for note in each.notes if note not in shared)) for each in tables]
    own[-1:] = [replace(last, notes=last.notes + shared) for last in own[-1:]]
    return Group(*map(_painted, own))


def _painted(laid_out: Grid) -> _Blocks:
    n_labels = laid_out.n_labels
    notes = [Padding(_text(each, style="dim"), (0, 0, 0, 2), expand=False) for each in laid_out.notes]
    warnings = [Padding(_text(f"! {each}", style="yellow"), (0, 0, 0, 2), expand=False) for each in laid_out.warnings]
    return _Blocks(
        title=laid_out.title,
        header=[*laid_out.header[:n_labels], *(_WIDE_NAME.sub(r"\1\n", each) for each in laid_out.header[n_labels:])],
        n_labels=n_labels,
        is_numeric=[False] * n_labels + [True] * (len(laid_out.header) - n_labels),
        sections=[
            [(*map(_text, row.labels), *map(_entry, row.cells)) for row in section] for section in laid_out.sections
        ],
        below=[*notes, *warnings, Text()],
        file_columns=BLOCK_COLUMNS,
        is_compact=n_labels == 1,
    )


_WIDE_NAME = re.compile(r"(?m)^(?=.{15})(.{1,13}[-_])")
"""The start of a line wider than a score with its mark and interval, up to the last hyphen or underscore that fits."""


def _entry(cell: GridCell) -> Text:
    # The mark is part of the text as well as a style, for logs and for readers who do not see the colour.
    return Text(cell.marked, style="bold green" if cell.best else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """A table that fits any width: columns that do not fit follow in further blocks, each with the labels."""

    title: str | None
    header: Sequence[str]
    n_labels: int
    is_numeric: Sequence[bool]
    sections: Sequence[Sequence[Sequence[Text]]]
    below: Sequence[RenderableType] = ()
    file_columns: int
    is_compact: bool = False
    """Whether columns have one space between them and lines none at their ends."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if options.is_terminal else min(self.file_columns, options.max_width)
        wide = options.update(max_width=FILE_COLUMNS)
        lines: list[RenderableType] = [] if self.title is None else [_text(self.title, style="bold")]
        left = list(range(self.n_labels, len(self.header)))
        is_first = True
        while left or is_first:
            is_first = False
            fits = len(left)
            while fits > 1 and console.measure(self._table(left[:fits]), options=wide).maximum > width:
                fits -= 1
            lines += [self._table(left[:fits]), *([Text()] if self.is_compact else [])]
            left = left[fits:]
        for line in (*lines, *self.below):
            yield Constrain(line, width)

    def _table(self, columns: Sequence[int]) -> Table:
        padding = (0, 0 if self.is_compact else 1, 0, 0)
        table = Table(box=box.SIMPLE_HEAD, padding=padding, show_edge=not self.is_compact)
        shown = (*range(self.n_labels), *columns)
        for index in shown:
            table.add_column(
                _text(self.header[index]),
                justify="right" if self.is_numeric[index] else "left",
                overflow="fold",
                no_wrap=self.is_numeric[index],
                max_width=_LABEL_COLUMNS if index < self.n_labels and len(self.header) > 2 else None,
            )
        for section in self.sections:
            for row in section:
                table.add_row(*(row[index] for index in shown))
            table.add_section()
        return table


_NUMBER = re.compile(r"[0-9][0-9.,]*(?=[\s%]|$)")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> RenderableType:
    """Lay out rows of text, the first column as their labels.

    A column whose every entry begins with a number (not a hash), is a dash or is empty is aligned right.
    """
    return _Blocks(
        title=title,
        header=header,
        n_labels=1,
        is_numeric=[
            any(map(_NUMBER.match, column)) and all(not each.strip("-") or _NUMBER.match(each) for each in column)
            for column in ([row[at] for row in rows] for at in range(len(header)))
        ],
        sections=[[[_text(each) for each in row] for row in rows]],
        file_columns=FILE_COLUMNS,
    )


def lines_below(lines: Iterable[str]) -> Group:
    """Lines below a table, indented; long ones wrap with the same indent."""
    return Group(*(Padding(_text(line), (0, 0, 0, 2), expand=False) for line in lines))


def facts_table(facts: Iterable[tuple[str, str]]) -> RenderableType:
    """Lay out names and values without a header; long values wrap in their own column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(_text(name), _text(value))
    return Padding(table, (0, 0, 0, 2), expand=False)


_VERDICTS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_PROSE_COLUMNS = 100


def verdict_table(rows: Sequence[tuple[str, str, str, str]], *, title: str) -> Table:
    """Lay out checks: name, verdict, measurement and, below it, the advice."""
    table = Table(title=_text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured", max_width=_PROSE_COLUMNS)
    for name, verdict, measured, advice in rows:
        style = _VERDICTS[verdict]
        cell = _text(measured)
        if advice:
            cell.append(f"\n→ {harmless(advice)}", style=style)
        table.add_row(_text(name), Text(verdict.upper() if verdict == "failed" else verdict, style=style), cell)
    return table
