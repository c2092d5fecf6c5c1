"""Top of the page: the tables that it opens with, the result in one sentence, and the banner of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featstore.formatting import counted
from featstore.report.resolution_text import ranking_line
from featstore.report.tables import Average, Row, Table, ranked

__all__ = ["BANNER", "Problem", "opening_tables", "problems_of", "result_sentence"]

BANNER = {
    "shards_on_both_sides": "Leakage",
    "keys_on_both_sides": "Leakage",
    "exact_duplicates": "Leakage",
    "near_duplicates": "Leakage",
    "not_converged": "Fits that did not converge",
    "classes_not_in_training": "Test classes absent from training",
}
"""Kinds of warnings that the banner shows, with their heading. Other kinds are below their table."""

MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One heading of the banner: the names of the tasks, and a line for each task and kind of warning."""

    heading: str
    tasks: tuple[str, ...]
    lines: tuple[str, ...]


def problems_of(tables: Sequence[Table]) -> tuple[Problem, ...]:
    """Aggregate the warnings of all tables that put their scores in doubt."""
    found: dict[str, dict[str, str]] = {heading: {} for heading in BANNER.values()}
    for warning in (each for table in tables for each in table.warnings):
        if warning.kind in BANNER:  # both tracks read the same clips, and warn of the same duplicates
            found[BANNER[warning.kind]].setdefault(str(warning), warning.task)
    return tuple(
        Problem(heading=heading, tasks=tuple(dict.fromkeys(lines.values())), lines=tuple(lines))
        for heading, lines in found.items()
        if lines
    )


def opening_tables(tables: Sequence[Table]) -> tuple[Table, ...]:
    """Both tracks of the first protocol, which is strict if it has scores."""
    here = [table for table in tables if table.protocol == tables[0].protocol]
    return tuple(table for table in here if table.measure in ("", "knn")) or tuple(here[:2])


def result_sentence(tables: Sequence[Table]) -> str:
    """State the best encoder of each table, and which others are not significantly different from it."""
    if not tables:
        return ""
    parts = "; ".join(f"on {_place(table)}, {_best(table)}" for table in tables)
    return f"By the {tables[0].protocol} protocol: {parts}."


def _place(table: Table) -> str:
    return {"": "Track A", "knn": "Track B"}.get(table.measure, f"Track B ({table.measure})")


def _best(table: Table) -> str:
    own = [at for at in ranked(table) if not table.columns[at].published]
    line = ranking_line(table)
    best = [at for at in own if at in line.best] or own[:1]
    named = _listed([table.columns[at].label for at in best])
    cell = line.cell(best[0])
    where = f"on {line.task}" if isinstance(line, Row) else f"on average over {counted(line.n_tasks, 'task')}"
    if cell is None or (isinstance(line, Average) and line.n_scored[best[0]] < line.n_tasks):
        return "no encoder has scores of all tasks"
    score = f"{cell.value:.3f}" if cell.half_width is None else f"{cell.value:.3f} ±{cell.half_width:.3f}"
    if not line.best:
        return f"{named} scores {score} {where}"
    return f"{named} {'is' if len(best) == 1 else 'are'} best {where} ({score}){_versus(table, line, own, best)}"


def _versus(table: Table, line: Row | Average, own: Sequence[int], best: Sequence[int]) -> str:
    if line.resolution is None:
        return ""
    tied = [table.columns[at].label for at in own if at in line.inside_noise]
    if tied:
        return f", not significantly different from {_listed(tied)}"
    others = [at for at in own if at in line.ranks and at not in best]
    if not others or line.not_comparable:
        return ""
    return ", significantly better than " + (
        table.columns[others[0]].label if len(others) == 1 else f"the other {len(others)}"
    )


def _listed(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    shown = [*names[:MAX_NAMED], *([f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
