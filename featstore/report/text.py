"""Leaderboards as text. What a table says is decided once, in `grid`; Markdown and the terminal only paint it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from featstore.formatting import harmless, html_table
from featstore.records import Protocol, ScoreRecord, Track
from featstore.report.comparison import Comparison, Difference
from featstore.report.leaderboard import LOWER_IS_BETTER, NOT_AVERAGED, Average, Cell, Leaderboard, Row, Table

__all__ = [
    "MISSING",
    "Grid",
    "GridCell",
    "GridRow",
    "comparison_grids",
    "comparison_to_csv",
    "comparison_to_json",
    "grid",
    "grids_to_html",
    "grids_to_markdown",
    "to_csv",
    "to_json",
    "to_markdown",
]

MISSING = "–"
TRACK_TITLES = {"A": "Track A, linear probe", "B": "Track B, k nearest neighbours"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """One entry as text, and its mark: the best of its row, not significantly different from it, or not comparable."""

    text: str
    best: bool = False
    inside_noise: bool = False
    not_comparable: bool = False

    @property
    def marked(self) -> str:
        """The entry with its mark in text, but for the best."""
        return f"≈ {self.text}" if self.inside_noise else f"? {self.text}" if self.not_comparable else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One line: the task (or the average), the metric, then one entry per encoder."""

    head: str
    metric: str
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table laid out as text: every painter shows the same words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[GridRow, ...]
    averages: tuple[GridRow, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def grid(table: Table) -> Grid:
    """Lay out a table: three decimals, the half-width of the interval behind a value, a dash for what is missing."""
    return Grid(
        title=f"{TRACK_TITLES[table.track]} ({table.protocol} protocol)",
        header=("Task", "Metric", *(column.label for column in table.columns)),
        rows=tuple(_row(row) for row in table.rows),
        averages=(*(_average(average) for average in table.averages if average.n_tasks), *_not_averaged(table)),
        notes=_notes(table),
        warnings=tuple(map(str, table.warnings)),
    )


def _row(row: Row) -> GridRow:
    marks = ("*" if row.private else "") + ("†" if row.manifests > 1 else "")
    cells = tuple(
        GridCell(
            text=_shown(cell),
            best=column in row.best,
            inside_noise=column in row.inside_noise,
            not_comparable=column in row.not_comparable,
        )
        for column, cell in enumerate(row.cells)
    )
    return GridRow(head=row.title + marks, metric=row.metric, cells=cells)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    return f"{cell.value:.3f}" if cell.half_width is None else f"{cell.value:.3f} ±{cell.half_width:.3f}"


def _average(average: Average) -> GridRow:
    cells = []
    for column, (value, n_scored) in enumerate(zip(average.values, average.n_scored, strict=True)):
        if value is None:
            text = MISSING
        elif n_scored < average.n_tasks:
            text = f"{value:.3f} ({n_scored} of {average.n_tasks} tasks)"
        else:
            text = f"{value:.3f}"
        interval = average.intervals[column]
        if interval is not None:
            text += f" ±{(interval[1] - interval[0]) / 2:.3f}"
        cells.append(
            GridCell(
                text=text,
                best=column in average.best,
                inside_noise=column in average.inside_noise,
                not_comparable=column in average.not_comparable,
            )
        )
    tasks = f"{average.n_tasks} task" if average.n_tasks == 1 else f"{average.n_tasks} tasks"
    kinds = "public " if average.over == "public" else ""
    return GridRow(head=f"Weighted average, {kinds}{tasks}", metric="", cells=tuple(cells))


def _not_averaged(table: Table) -> tuple[GridRow, ...]:
    """A line for the tasks that no average takes, for their metrics are on other scales."""
    apart = [f"{row.title} ({row.metric})" for row in table.rows if row.metric in NOT_AVERAGED]
    if not apart or not any(average.n_tasks for average in table.averages):
        return ()
    cells = (GridCell(text="n/a"),) * len(table.columns)
    return (GridRow(head=f"Not averaged: {', '.join(apart)}", metric="", cells=cells),)


SIGNIFICANCE = "5 % over all pairs of a row (Holm); McNemar's test, or a paired t test"


def _notes(table: Table) -> tuple[str, ...]:
    notes = []
    marked: list[Row | Average] = [*table.rows, *table.averages]
    if any(cell is not None and cell.half_width is not None for row in table.rows for cell in row.cells):
        notes.append("±: half of the 95 % interval, or the deviation over seeds where there is none")
    if any(len(line.ranks) > len(line.best | line.inside_noise | line.not_comparable) for line in marked):
        notes += ["no mark: significantly worse than the best", f"marks: {SIGNIFICANCE}"]
    if any(line.inside_noise for line in marked):
        notes.append("≈: not significantly different from the best")
    if any(line.not_comparable for line in marked):
        notes.append("?: not comparable with the best: `featstore report --compare` has the reason")
    if any(row.one_seed for row in table.rows):
        notes.append("a head was trained with one seed: what other seeds change is not part of the marks")
    if any(row.private for row in table.rows):
        notes.append("*: a private task, left out of the average over public tasks")
    if any(row.manifests > 1 for row in table.rows):
        notes.append("†: scored under different manifests, so these values do not compare: score them again")
    if any(column.published for column in table.columns):
        notes.append("(published): as printed by others, not computed here, and never marked as best")
    notes += _scale_notes(row.metric for row in table.rows)
    notes += left_out_notes(table.left_out, version=table.protocol_version)
    return tuple(notes)


def _scale_notes(metrics: Iterable[str]) -> list[str]:
    there = set(metrics)
    errors, unbounded = sorted(there & LOWER_IS_BETTER), sorted(there & (NOT_AVERAGED - LOWER_IS_BETTER))
    notes = [f"less is better for {', '.join(errors)}, which no average includes"] if errors else []
    if unbounded:
        notes.append(f"{', '.join(unbounded)} has no upper end, and no average includes it")
    return notes


def left_out_notes(left_out: Sequence[ScoreRecord], *, version: int) -> list[str]:
    """Say which scores of an older protocol version are not shown, and what to do."""
    if not left_out:
        return []
    named = sorted({f"{each.task} by {each.encoder}" for each in left_out})
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    command = "retrieve" if all(each.track == "B" for each in left_out) else "probe"
    return [
        f"left out, for they were scored by an older protocol version than {version} and do not compare: "
        f"{', '.join(named[:5])}{more}; run `featstore {command} TASK --store STORE --results DIR` again"
    ]


def comparison_grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Lay out a comparison, one table for each protocol and track: the better of two is marked where it is sure."""
    places = dict.fromkeys((each.protocol, each.track) for each in comparison.differences)
    return tuple(_comparison_grid(comparison, protocol=protocol, track=track) for protocol, track in places)


def _comparison_grid(comparison: Comparison, *, protocol: Protocol, track: Track) -> Grid:
    here = [each for each in comparison.differences if (each.protocol, each.track) == (protocol, track)]
    several = {each.task for each in here if sum(other.task == each.task for other in here) > 1}
    averages = [each for each in comparison.averages if (each.protocol, each.track) == (protocol, track)]
    notes = [
        "the better is marked where a test is significant at 5 %: McNemar's exact test of accuracy, a paired t test of "
        "other metrics; each task by itself"
    ]
    notes += sorted({f"{each.title}: not compared, {each.unpaired}" for each in (*here, *averages) if each.unpaired})
    if any(each.one_seed for each in here):
        notes.append("a head was trained with one seed: what other seeds change is not part of the test")
    notes += _scale_notes(each.metric for each in here)
    left_out = [each for each in comparison.left_out if (each.protocol, each.track) == (protocol, track)]
    notes += left_out_notes(left_out, version=2)
    alone = ((comparison.only_a, comparison.a), (comparison.only_b, comparison.b))
    missing = [f"{n} of {name}" for n, name in alone if n]
    if missing:
        notes.append(f"scores that only one of the two has are left out: {', '.join(missing)}")
    return Grid(
        title=f"{TRACK_TITLES[track]} ({protocol} protocol): {comparison.a} less {comparison.b}",
        header=("Task", "Metric", comparison.a, comparison.b, "difference", "95 % interval", "p"),
        rows=tuple(_difference(each, tell_settings=each.task in several) for each in here),
        averages=tuple(_difference(each, tell_settings=False) for each in averages),
        notes=tuple(notes),
    )


def _difference(found: Difference, *, tell_settings: bool) -> GridRow:
    told = ", ".join(f"{name}={value}" for name, value in found.settings) if tell_settings else ""
    interval = MISSING if found.low is None or found.high is None else f"{found.low:+.3f} to {found.high:+.3f}"
    return GridRow(
        head=f"{found.title} ({told})" if told else found.title,
        metric=found.metric,
        cells=(
            GridCell(text=f"{found.value_a:.3f}", best=found.better == "A"),
            GridCell(text=f"{found.value_b:.3f}", best=found.better == "B"),
            GridCell(text=f"{found.difference:+.3f}"),
            GridCell(text=interval),
            GridCell(text=MISSING if found.p is None else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"),
        ),
    )


def to_markdown(board: Leaderboard) -> str:
    """Every table as GitHub-flavoured Markdown, the best entries in bold."""
    return grids_to_markdown(grid(table) for table in board.tables)


def grids_to_markdown(grids: Iterable[Grid]) -> str:
    """Tables as GitHub-flavoured Markdown, what is marked in bold."""
    return "\n".join(_markdown(laid_out) for laid_out in grids)


def _markdown(laid_out: Grid) -> str:
    lines = [f"### {laid_out.title}", "", _markdown_line(laid_out.header)]
    lines.append(_markdown_line(("---", "---", *("---:" for _ in laid_out.header[2:]))))
    for row in (*laid_out.rows, *laid_out.averages):
        lines.append(_markdown_line((row.head, row.metric, *(_bold(cell) for cell in row.cells))))
    if laid_out.notes:
        lines += ["", *(f"{note}  " for note in laid_out.notes)]
    if laid_out.warnings:
        lines += ["", *(f"- Warning: {each}" for each in laid_out.warnings)]
    return "\n".join([*lines, ""])


def grids_to_html(grids: Iterable[Grid]) -> str:
    """Tables as HTML, for notebooks."""
    return "\n".join(_html(laid_out) for laid_out in grids)


def _html(laid_out: Grid) -> str:
    rows = [
        (row.head, row.metric, *(f"▸ {cell.text}" if cell.best else cell.marked for cell in row.cells))
        for row in (*laid_out.rows, *laid_out.averages)
    ]
    notes = (*laid_out.notes, *(f"Warning: {each}" for each in laid_out.warnings))
    below = "".join(f"<li>{escape(harmless(note))}</li>" for note in notes)
    return html_table(laid_out.header, rows, caption=laid_out.title) + (f"<ul>{below}</ul>" if below else "")


def _bold(cell: GridCell) -> str:
    return f"**{cell.text}**" if cell.best else cell.marked


def _markdown_line(entries: Iterable[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


CSV_HEADER = (
    "line",
    "protocol",
    "track",
    "task",
    "metric",
    "encoder",
    "value",
    "half_width",
    "eval_weight",
    "private",
    "best",
    "inside_noise",
    "n_scored",
    "n_tasks",
    "published",
    "low",
    "high",
    "not_comparable",
    "rank_first",
    "rank_last",
)


def to_csv(board: Leaderboard) -> str:
    """Every entry of every table on a line of its own, unrounded.

    The column ``line`` is ``score`` or ``average``; of an average, ``task`` is ``public`` or ``all``. What is missing
    has no line.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    for table in board.tables:
        writer.writerows(_csv_lines(table))
    return text.getvalue()


def _csv_lines(table: Table) -> Iterable[dict[str, object]]:
    place = {"protocol": table.protocol, "track": table.track}
    for row in table.rows:
        for index, cell in enumerate(row.cells):
            if cell is not None:
                yield place | {
                    "line": "score",
                    "task": row.task,
                    "metric": row.metric,
                    "encoder": table.columns[index].label,
                    "value": cell.value,
                    "half_width": "" if cell.half_width is None else cell.half_width,
                    "eval_weight": row.eval_weight,
                    "private": str(row.private).lower(),
                    "best": str(index in row.best).lower(),
                    "inside_noise": str(index in row.inside_noise).lower(),
                    "published": str(table.columns[index].published).lower(),
                    "low": "" if cell.low is None else cell.low,
                    "high": "" if cell.high is None else cell.high,
                    **_compared(row, index),
                }
    for average in table.averages:
        for index, value in enumerate(average.values):
            if value is not None:
                yield place | {
                    "line": "average",
                    "task": average.over,
                    "encoder": table.columns[index].label,
                    "value": value,
                    "best": str(index in average.best).lower(),
                    "inside_noise": str(index in average.inside_noise).lower(),
                    "n_scored": average.n_scored[index],
                    "n_tasks": average.n_tasks,
                    "published": str(table.columns[index].published).lower(),
                    "low": "" if (interval := average.intervals[index]) is None else interval[0],
                    "high": "" if interval is None else interval[1],
                    **_compared(average, index),
                }


def _compared(line: Row | Average, column: int) -> dict[str, object]:
    first, last = line.ranks.get(column, ("", ""))
    return {
        "not_comparable": str(column in line.not_comparable).lower(),
        "rank_first": first,
        "rank_last": last,
    }


COMPARISON_CSV_HEADER = (
    "protocol",
    "track",
    "task",
    "metric",
    "settings",
    "value_a",
    "value_b",
    "difference",
    "low",
    "high",
    "better",
    "unpaired",
    "p",
    "one_seed",
)


def comparison_to_csv(comparison: Comparison) -> str:
    """One line for each difference, unrounded; an average has no task."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COMPARISON_CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    for each in (*comparison.differences, *comparison.averages):
        writer.writerow({**each.as_json(), "settings": json.dumps(dict(each.settings))})
    return text.getvalue()


def comparison_to_json(comparison: Comparison) -> str:
    """Differences, then averages, as one JSON array."""
    found = [each.as_json() for each in (*comparison.differences, *comparison.averages)]
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_json(records: Iterable[ScoreRecord]) -> str:
    """Score records as one JSON array."""
    return json.dumps([record.as_json() for record in records], indent=1, allow_nan=False, ensure_ascii=False) + "\n"
