"""Leaderboards and comparisons laid out as rows of text, which the terminal, Markdown, LaTeX and HTML show alike."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from featstore.records import Protocol, ScoreRecord
from featstore.report.comparison import Comparison, Difference
from featstore.report.resolution_text import rank_columns, resolution_notes
from featstore.report.tables import LOWER_IS_BETTER, NOT_AVERAGED, Average, Place, Row, Table, place_of, ranked

__all__ = [
    "MISSING",
    "Grid",
    "GridCell",
    "GridRow",
    "comparison_grids",
    "flags_of",
    "grid",
    "measure_title",
    "table_title",
]

MISSING = "–"
MEASURE_TITLES = {
    "": "Track A, linear probe",
    "knn": "Track B, k nearest neighbours",
    "retrieval": "Track B, audio-to-audio retrieval",
    "clustering": "Track B, clustering",
    "pairs": "Track B, pairs of the same class",
    "zero-shot": "Track B, zero-shot classification by texts",
    "text": "Track B, retrieval by texts",
}


def table_title(measure: str, protocol: Protocol) -> str:
    """Title of the table of a measure of Track B, or of Track A (an empty text), under a protocol."""
    return f"{measure_title(measure)} ({protocol} protocol)"


def measure_title(measure: str) -> str:
    """Title of a measure of Track B, or of Track A (an empty text)."""
    return MEASURE_TITLES.get(measure, f"Track B, {measure}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """One entry as text, and its mark: the best, not significantly different from the best, or not comparable.

    ``letters`` are those of its tie groups, which only LaTeX shows.
    """

    text: str
    best: bool = False
    inside_noise: bool = False
    not_comparable: bool = False
    letters: str = ""

    @property
    def marked(self) -> str:
        """The entry with its mark."""
        mark = "▸ " if self.best else "≈ " if self.inside_noise else "? " if self.not_comparable else ""
        return mark + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One line: its labels (the encoder of a leaderboard, task and metric of a comparison), then its entries."""

    labels: tuple[str, ...]
    cells: tuple[GridCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table laid out as text, which the terminal, Markdown and HTML show alike.

    Attributes
    ----------
    header : tuple of str
        Of the labels, then of the entries; an entry's header may have a second line.
    n_labels : int
        Number of columns that are labels.
    sections : tuple of tuple of GridRow
        Rows in groups, which a rule separates.
    notes, warnings : tuple of str
        Lines below the table.
    """

    title: str
    header: tuple[str, ...]
    n_labels: int
    sections: tuple[tuple[GridRow, ...], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[GridRow, ...]:
        """The rows of all sections."""
        return tuple(row for section in self.sections for row in section)


def grid(table: Table) -> Grid:
    """Lay out a table: a row for each encoder, the best average first, and a column for each average and task.

    Columns of ranks and ties are first, and a last row has the smallest difference that each column can resolve. Values
    have three decimals and half of their interval; a missing score is a dash.
    """
    averages = [average for average in table.averages if average.n_tasks > 1]
    lines: list[Row | Average] = [*averages, *table.rows]
    ranks = rank_columns(table)
    order = ranked(table)
    sections = (
        [column for column in order if not table.columns[column].published],
        [column for column in order if table.columns[column].published],
    )
    return Grid(
        title=table_title(table.measure, table.protocol),
        header=(
            "Encoder",
            *(header for header, _ in ranks),
            *(
                f"Average\n{average.n_tasks}{' public' if average.over == 'public' else ''} tasks"
                for average in averages
            ),
            *(f"{row.task}{flags_of(row)}\n{row.metric}" for row in table.rows),
        ),
        n_labels=1,
        sections=tuple(
            tuple(
                GridRow(
                    labels=(table.columns[column].label,),
                    cells=(
                        *(GridCell(text=entries[column]) for _, entries in ranks),
                        *(_cell(line, column) for line in lines),
                    ),
                )
                for column in section
            )
            for section in sections
            if section
        )
        + ((_resolutions(lines, n_ranks=len(ranks)),) if ranks else ()),
        notes=_notes(table),
        warnings=tuple(map(str, table.warnings)),
    )


def _resolutions(lines: Sequence[Row | Average], *, n_ranks: int) -> tuple[GridRow, ...]:
    """The last row: the smallest difference that each column can resolve."""
    smallest = (None if line.resolution is None else line.resolution.smallest_difference for line in lines)
    cells = [GridCell(text=MISSING if each is None else f"{each:.3f}") for each in smallest]
    return (GridRow(labels=("Resolution",), cells=(*[GridCell(text="")] * n_ranks, *cells)),)


def flags_of(row: Row) -> str:
    """Flags behind the name of a task: ``*`` is private, ``†`` is scored under several manifests."""
    return ("*" if row.private else "") + ("†" if row.manifests > 1 else "")


def _cell(line: Row | Average, column: int) -> GridCell:
    return GridCell(
        text=_shown(line, column),
        best=column in line.best,
        inside_noise=column in line.inside_noise,
        not_comparable=column in line.not_comparable,
        letters="" if line.resolution is None else line.resolution.letters[column],
    )


def _shown(line: Row | Average, column: int) -> str:
    cell = line.cell(column)
    if cell is None:
        return MISSING
    if isinstance(line, Average) and line.n_scored[column] < line.n_tasks:
        return f"{cell.value:.3f} ({line.n_scored[column]} of {line.n_tasks})"
    text = f"{cell.value:.3f}" if cell.half_width is None else f"{cell.value:.3f} ±{cell.half_width:.3f}"
    return f"{text} ✓" if cell.certified else text


SIGNIFICANCE = "5 % over all pairs (Holm); McNemar's test or paired t test"


def _notes(table: Table) -> tuple[str, ...]:
    notes: list[str] = []
    marked: list[Row | Average] = [*table.rows, *table.averages]
    widths = [cell for row in table.rows for cell in row.cells if cell is not None and cell.half_width is not None]
    if widths:
        notes.append("±: half of the 95 % interval (without one: standard deviation over seeds)")
    has_worse = any(len(line.ranks) > len(line.best | line.inside_noise | line.not_comparable) for line in marked)
    notes += resolution_notes(table)
    if any(cell.certified for row in table.rows for cell in row.cells if cell is not None):
        notes.append("✓: certified by `featstore audit`")
    if any(average.n_tasks > 1 for average in table.averages):
        notes.append("Average: weighted by the eval_weight of each task")
    if any(line.best for line in marked):
        notes.append("▸: best of its column")
    if any(line.inside_noise for line in marked):
        notes.append("≈: not significantly different from the best")
    if has_worse:
        notes.append("no mark: significantly worse than the best")
        notes.append(f"significance: {SIGNIFICANCE}")
    if any(line.not_comparable for line in marked):
        notes.append("?: not comparable with the best; `featstore report --compare A B` prints the reason")
    if any(row.one_seed for row in table.rows):
        notes.append("some heads were trained with one seed: the variance over seeds is not in the marks")
    if any(row.private for row in table.rows):
        notes.append("*: private task, excluded from the average over public tasks")
    if any(row.manifests > 1 for row in table.rows):
        notes.append("†: scored under different manifests, not comparable: score them again")
    if any(column.published for column in table.columns):
        notes.append("(published): printed by others, not computed here, never marked as best")
    notes += _scale_notes(
        {row.metric for row in table.rows}, lower=any(each.lower_is_better for each in table.averages)
    )
    notes += superseded_notes(table.superseded, version=table.protocol_version)
    return tuple(notes)


def _scale_notes(metrics: Set[str], *, lower: bool = False) -> list[str]:
    """Notes on metrics that averages exclude; with ``lower``, averages are of an error."""
    errors, unbounded = sorted(metrics & LOWER_IS_BETTER), sorted(metrics & (NOT_AVERAGED - LOWER_IS_BETTER))
    excluded = "" if lower else ", excluded from averages"
    notes = [f"lower is better{excluded}: {', '.join(errors)}"] if errors else []
    if unbounded:
        notes.append(f"no upper bound, excluded from averages: {', '.join(unbounded)}")
    return notes


def superseded_notes(superseded: Sequence[ScoreRecord], *, version: int) -> list[str]:
    """Name the scores of older protocol versions, which are not shown, and the command that scores them again."""
    if not superseded:
        return []
    named = sorted({f"{each.task} by {each.encoder}" for each in superseded})
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    command = "retrieve" if all(each.track == "B" for each in superseded) else "probe"
    return [
        f"not shown, because an older protocol version than {version} is not comparable: {', '.join(named[:5])}{more}; "
        f"run `featstore {command} TASK --store STORE --results DIR` again"
    ]


def comparison_grids(comparison: Comparison) -> tuple[Grid, ...]:
    """Lay out a comparison: a table for each protocol, track and measure, in which better values are marked."""
    places = dict.fromkeys(each.place for each in comparison.differences)
    return tuple(_comparison_grid(comparison, place=place) for place in places)


def _comparison_grid(comparison: Comparison, *, place: Place) -> Grid:
    here = [each for each in comparison.differences if each.place == place]
    several = {each.task for each in here if sum(other.task == each.task for other in here) > 1}
    averages = [each for each in comparison.averages if each.place == place]
    notes = [
        "delta: the first encoder minus the second; averages are weighted by eval_weight",
        "▸: better, significant at 5 % for this task alone",
        "p: McNemar's exact test for accuracy, a paired t test for other metrics",
    ]
    notes += sorted({f"{each.title}: not compared, {each.unpaired}" for each in (*here, *averages) if each.unpaired})
    if any(each.one_seed for each in here):
        notes.append("some heads were trained with one seed: the variance over seeds is not in the test")
    lower = any(each.metric in LOWER_IS_BETTER for each in averages)
    notes += _scale_notes({each.metric for each in here}, lower=lower)
    superseded = [each for each in comparison.superseded if place_of(each) == place]
    notes += superseded_notes(superseded, version=2)
    alone = ((comparison.only_a, comparison.a), (comparison.only_b, comparison.b))
    missing = [f"{n} of {name}" for n, name in alone if n]
    if missing:
        notes.append(f"not shown, because only one of the two encoders has them: {', '.join(missing)}")
    sections = (
        tuple(_difference(each, with_settings=each.task in several) for each in here),
        tuple(_difference(each, with_settings=False) for each in averages),
    )
    return Grid(
        title=f"{table_title(place[2], place[0])}: {comparison.a} - {comparison.b}",
        header=("Task", "Metric", comparison.a, comparison.b, "delta", "95 % interval", "p"),
        n_labels=2,
        sections=tuple(section for section in sections if section),
        notes=tuple(notes),
    )


def _difference(found: Difference, *, with_settings: bool) -> GridRow:
    chosen = [f"{name}={value}" for name, value in found.settings if name != "measure"]
    settings = ", ".join(chosen) if with_settings else ""
    interval = MISSING if found.low is None or found.high is None else f"{found.low:+.3f}, {found.high:+.3f}"
    name = found.task or found.title.removeprefix("Weighted ").capitalize()
    return GridRow(
        labels=(f"{name} ({settings})" if settings else name, found.metric),
        cells=(
            GridCell(text=f"{found.value_a:.3f}", best=found.better == "A"),
            GridCell(text=f"{found.value_b:.3f}", best=found.better == "B"),
            GridCell(text=f"{found.difference:+.3f}"),
            GridCell(text=interval),
            GridCell(text=MISSING if found.p is None else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"),
        ),
    )
