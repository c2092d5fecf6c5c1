"""Leaderboards of the page: frozen views of tables, which the template renders."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featstore.formatting import counted
from featstore.records import sha256_of
from featstore.report.grids import flags_of, grid, measure_title, table_title
from featstore.report.latex import grids_to_latex
from featstore.report.page_summary import BANNER
from featstore.report.resolution import Resolution
from featstore.report.resolution_text import rank_columns, resolution_sentence, short_letters
from featstore.report.tables import Average, Leaderboard, Row, Table, ranked
from featstore.report.text import to_csv

__all__ = [
    "Bar",
    "BoardView",
    "Entry",
    "Head",
    "Matrix",
    "RankRow",
    "Section",
    "board_anchor",
    "board_view",
    "entry_of",
    "recipe_anchor",
    "sections_of",
    "task_anchor",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An interval on an axis, in per cent of its length."""

    left: float
    width: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One score of a table: its text, sort value and bar."""

    text: str
    plus_minus: str
    tip: str
    value: float | None
    best: bool
    inside_noise: bool
    bar: Bar | None
    not_comparable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """One encoder of a ranking: its ranks and ties by `BoardView.rank_heads`, its averages by `BoardView.spans`."""

    label: str
    anchor: str
    style: int
    ranks: tuple[str, ...]
    averages: tuple[Entry, ...]
    n_scored: int
    n_tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An encoder or a task at the side or the top of a matrix.

    Attributes
    ----------
    detail : str
        The metric of a task.
    anchor : str
        Section of a task.
    style : int
        Colour and marker of an encoder, or -1.
    """

    name: str
    title: str = ""
    detail: str = ""
    anchor: str = ""
    style: int = -1
    published: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Encoders by tasks, or tasks by encoders: whichever has fewer columns. The last line is the resolution.

    Attributes
    ----------
    corner : str
        Heading of the first column.
    rows : tuple of (Head, tuple of Entry)
    resolution : tuple of str
        Smallest difference of each task, or empty; a row, or a column if rows are tasks.
    """

    corner: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Head, tuple[Entry, ...]], ...]
    resolution: tuple[str, ...]

    @property
    def by_task(self) -> bool:
        """Whether rows are tasks."""
        return self.corner == "Task"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardView:
    """One protocol, track and measure: encoders ranked by their averages, and a matrix of encoders and tasks.

    Attributes
    ----------
    is_main : bool
        Whether it is Track A or ``knn``; other measures are folded, unless they are the first of their protocol.
    summary : str
        The best encoder, for the line of a folded board.
    axis : (float, float)
        Ends of the ranking's bars.
    sentence : str
        What the test clips can resolve.
    notes : tuple of str
        Definitions of the columns and marks.
    csv, latex : str
        The table in these formats, as data URIs.
    """

    anchor: str
    title: str
    name: str
    is_main: bool
    summary: str
    rank_heads: tuple[str, ...]
    spans: tuple[str, ...]
    axis: tuple[float, float]
    ranking: tuple[RankRow, ...]
    published: tuple[RankRow, ...]
    matrix: Matrix
    sentence: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    csv: str
    latex: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The boards of one protocol."""

    protocol: str
    anchor: str
    boards: tuple[BoardView, ...]


def sections_of(tables: Sequence[Table], *, styles: Mapping[str, int]) -> tuple[Section, ...]:
    """Lay out all tables by protocol."""
    protocols = dict.fromkeys(table.protocol for table in tables)
    return tuple(
        Section(
            protocol=protocol,
            anchor=f"protocol-{protocol}",
            boards=tuple(board_view(table, styles=styles) for table in tables if table.protocol == protocol),
        )
        for protocol in protocols
    )


def board_view(table: Table, *, styles: Mapping[str, int]) -> BoardView:
    """Lay out a table.

    Parameters
    ----------
    styles : mapping
        Label of an encoder -> number of its colour and marker.
    """
    laid_out = grid(table)
    axis = _axis(table)
    ranks = rank_columns(table)
    rank = {
        at: RankRow(
            label=column.label,
            anchor=recipe_anchor(column.encoder, column.fingerprint),
            style=styles.get(column.label, -1),
            ranks=tuple(entries[at] for _, entries in ranks),
            averages=tuple(_average_entry(average, at, axis=axis) for average in table.averages),
            n_scored=table.averages[-1].n_scored[at],
            n_tasks=table.averages[-1].n_tasks,
        )
        for at, column in enumerate(table.columns)
    }
    order = ranked(table)
    with_average = [at for at in order if table.averages[-1].values[at] is not None]
    sentence = resolution_sentence(table)
    return BoardView(
        anchor=board_anchor(table),
        title=table_title(table.measure, table.protocol),
        name=measure_title(table.measure),
        is_main=table.measure in ("", "knn"),
        summary=f"{counted(len(table.rows), 'task')}, best: {table.columns[order[0]].label}",
        rank_heads=tuple(" ".join(header.split()) for header, _ in ranks),
        spans=tuple(_span_name(average.over, average.n_tasks) for average in table.averages),
        axis=axis,
        ranking=tuple(rank[at] for at in with_average if not table.columns[at].published),
        published=tuple(rank[at] for at in with_average if table.columns[at].published),
        matrix=_matrix(table, order, styles=styles, with_resolution=bool(ranks)),
        sentence=sentence,
        notes=tuple(note for note in laid_out.notes if note != sentence),
        warnings=tuple(str(each) for each in table.warnings if each.kind not in BANNER),
        csv=_data_uri(to_csv(Leaderboard(tables=(table,))), "text/csv"),
        latex=_data_uri(grids_to_latex([laid_out]), "application/x-tex"),
    )


def _matrix(table: Table, order: Sequence[int], *, styles: Mapping[str, int], with_resolution: bool) -> Matrix:
    tasks = tuple(
        Head(name=row.task + flags_of(row), title=row.title, detail=row.metric, anchor=task_anchor(row.task))
        for row in table.rows
    )
    encoders = tuple(
        Head(
            name=table.columns[at].label,
            style=styles.get(table.columns[at].label, -1),
            published=table.columns[at].published,
        )
        for at in order
    )
    by_encoder = [tuple(entry_of(row, at) for row in table.rows) for at in order]
    smallest = (None if row.resolution is None else row.resolution.smallest_difference for row in table.rows)
    resolution = tuple("–" if each is None else f"{each:.3f}" for each in smallest) if with_resolution else ()
    if len(tasks) > len(encoders):
        by_task = zip(*by_encoder, strict=True)
        rows = tuple(zip(tasks, by_task, strict=True))
        return Matrix(corner="Task", heads=encoders, rows=rows, resolution=resolution)
    return Matrix(
        corner="Encoder", heads=tasks, rows=tuple(zip(encoders, by_encoder, strict=True)), resolution=resolution
    )


def _data_uri(text: str, mime: str) -> str:
    encoded = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    return f"data:{mime};charset=utf-8;base64,{encoded}"


def board_anchor(table: Table) -> str:
    """Anchor of a table; a measure in a file of results is untrusted text."""
    measure = "" if table.measure in ("", "knn") else f"-{sha256_of(table.measure)[:12]}"
    return f"board-{table.protocol}-{table.track}{measure}"


def task_anchor(task: str) -> str:
    """Anchor of a task, made of a hash, because a name is untrusted text."""
    return f"task-{sha256_of(task)[:12]}"


def recipe_anchor(encoder: str, fingerprint: str) -> str:
    """Anchor of a recipe; stores may have one recipe under two names."""
    return f"recipe-{sha256_of([encoder, fingerprint])[:12]}"


def entry_of(row: Row, at: int) -> Entry:
    """One score of a task, with a bar on the axis of the task."""
    # Most scores are within 0 to 1, the default axis; metrics beyond it extend the axis.
    there = [each for each in row.cells if each is not None]
    ends = [end for each in there for end in (each.value, each.low, each.high) if end is not None]
    entry = _entry(row, at, axis=(min(0.0, *ends), max(1.0, *ends)))
    return replace(entry, tip=entry.tip + _rank_tip(row.resolution, at))


def _rank_tip(resolution: Resolution | None, at: int) -> str:
    if resolution is None or (ends := resolution.ranks[at]) is None:
        return ""
    rank = f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return f", rank {rank}, tie {short_letters(resolution.letters[at])}"


def _average_entry(average: Average, at: int, *, axis: tuple[float, float]) -> Entry:
    entry = _entry(average, at, axis=axis)
    if entry.value is None or average.n_scored[at] == average.n_tasks:
        return entry
    partly = f"{average.n_scored[at]} of {average.n_tasks} tasks"
    return replace(entry, plus_minus=partly, tip=f"{entry.tip}, {partly} only")


def _entry(line: Row | Average, at: int, *, axis: tuple[float, float]) -> Entry:
    cell = line.cell(at)
    if cell is None:
        return Entry(text="–", plus_minus="", tip="no score", value=None, best=False, inside_noise=False, bar=None)
    lowest, highest = axis

    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 100 * (value - lowest) / (highest - lowest))), 1)

    low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
    has_interval = cell.low is not None
    return Entry(
        text=f"{cell.value:.3f}{' ✓' if cell.certified else ''}",
        plus_minus="" if cell.half_width is None else f"±{cell.half_width:.3f}",
        tip=f"{cell.value:.4f}"
        + (f", {low:.4f} to {high:.4f}" if has_interval else "")
        + (", certified" if cell.certified else ""),
        value=cell.value,
        best=at in line.best,
        inside_noise=at in line.inside_noise,
        not_comparable=at in line.not_comparable,
        bar=Bar(left=place(low), width=round(place(high) - place(low), 1), at=place(cell.value)),
    )


def _span_name(over: str, n_tasks: int) -> str:
    kind = "public task" if over == "public" else "task"
    return f"Average, {counted(n_tasks, kind)}"


def _axis(table: Table) -> tuple[float, float]:
    """From the lowest to the highest end of the intervals of averages, rounded outwards to 0.05."""
    ends = [
        end
        for average in table.averages
        for value, interval in zip(average.values, average.intervals, strict=True)
        if value is not None
        for end in (value, *(interval or ()))
    ]
    if not ends:
        return 0.0, 1.0
    low, high = np.floor(min(ends) * 20) / 20, np.ceil(max(ends) * 20) / 20
    return (float(low), float(high)) if high > low else (float(low), float(low) + 0.05)
