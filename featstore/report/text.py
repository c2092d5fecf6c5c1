"""Leaderboards and comparisons as Markdown, HTML of notebooks, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable
from html import escape
from typing import Any

from featstore.diagnostics.certificate import hash_of_score
from featstore.formatting import harmless, html_table
from featstore.records import ScoreRecord
from featstore.report.comparison import Comparison
from featstore.report.grids import Grid, GridCell, grid
from featstore.report.tables import Average, Leaderboard, Row, Table

__all__ = [
    "board_to_json",
    "comparison_to_csv",
    "comparison_to_json",
    "grids_to_html",
    "grids_to_markdown",
    "to_csv",
    "to_json",
    "to_markdown",
]


def to_markdown(board: Leaderboard) -> str:
    """Every table as GitHub-flavoured Markdown, the best entries in bold."""
    return grids_to_markdown(grid(table) for table in board.tables)


def grids_to_markdown(grids: Iterable[Grid]) -> str:
    """Tables as GitHub-flavoured Markdown, the best entries in bold."""
    return "\n".join(_markdown(laid_out) for laid_out in grids)


def _markdown(laid_out: Grid) -> str:
    n_labels = laid_out.n_labels
    lines = [f"### {laid_out.title}", "", _markdown_line(each.replace("\n", "<br>") for each in laid_out.header)]
    lines.append(_markdown_line((*["---"] * n_labels, *["---:"] * (len(laid_out.header) - n_labels))))
    for row in laid_out.rows:
        lines.append(_markdown_line((*row.labels, *(_bold(cell) for cell in row.cells))))
    if laid_out.notes:
        lines += ["", *(f"{note}  " for note in laid_out.notes)]
    if laid_out.warnings:
        lines += ["", *(f"- Warning: {each}" for each in laid_out.warnings)]
    return "\n".join([*lines, ""])


def grids_to_html(grids: Iterable[Grid]) -> str:
    """Tables as HTML, for notebooks."""
    return "\n".join(_html(laid_out) for laid_out in grids)


def _html(laid_out: Grid) -> str:
    rows = [(*row.labels, *(cell.marked for cell in row.cells)) for row in laid_out.rows]
    notes = (*laid_out.notes, *(f"Warning: {each}" for each in laid_out.warnings))
    below = "".join(f"<li>{escape(harmless(note))}</li>" for note in notes)
    header = [each.replace("\n", ", ") for each in laid_out.header]
    return html_table(header, rows, caption=laid_out.title) + (f"<ul>{below}</ul>" if below else "")


def _bold(cell: GridCell) -> str:
    return f"**{cell.marked}**" if cell.best else cell.marked


def _markdown_line(entries: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(entry.splitlines()).replace("|", "\\|") for entry in entries) + " |"


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
    "measure",
    "ties",
    "over_tasks_rank_first",
    "over_tasks_rank_last",
    "smallest_difference",
    "certified",
)


def to_csv(board: Leaderboard) -> str:
    """Every entry of every table on a line of its own, unrounded.

    ``measure`` is empty for Track A. The column ``line`` is ``score`` or ``average``; of an average, ``task``
    is ``public`` or ``all``. What is missing has no line.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    for table in board.tables:
        writer.writerows(_csv_lines(table))
    return text.getvalue()


def _csv_lines(table: Table) -> Iterable[dict[str, object]]:
    place = {"protocol": table.protocol, "track": table.track, "measure": table.measure}
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
                    "certified": str(cell.certified).lower(),
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
    found: dict[str, object] = {
        "not_comparable": str(column in line.not_comparable).lower(),
        "rank_first": first,
        "rank_last": last,
    }
    if line.resolution is not None:
        found["ties"] = line.resolution.letters[column]
        smallest = line.resolution.smallest_difference
        found["smallest_difference"] = "" if smallest is None else smallest
    if isinstance(line, Average) and line.over_tasks is not None and (ends := line.over_tasks.ranks[column]):
        found["over_tasks_rank_first"], found["over_tasks_rank_last"] = ends
    return found


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
    "measure",
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
    return _array([each.as_json() for each in (*comparison.differences, *comparison.averages)])


def board_to_json(board: Leaderboard) -> str:
    """The tables as one JSON array, with averages, ranks and resolution."""
    return _array([table.as_json() for table in board.tables])


def to_json(records: Iterable[ScoreRecord], *, certified: Collection[str] = frozenset()) -> str:
    """Score records as one JSON array; a score whose hash is in `certified` also has ``"certified": true``."""
    found = []
    for record in records:
        mark = {"certified": True} if certified and hash_of_score(record) in certified else {}
        found.append({**record.as_json(), **mark})
    return _array(found)


def _array(found: list[Any]) -> str:
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
