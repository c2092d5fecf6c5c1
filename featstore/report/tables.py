"""Records of leaderboards: tables of cells by task and encoder, with averages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from featstore.errors import UsageError
from featstore.records import Protocol, ScoreRecord, Track
from featstore.report.resolution import Resolution
from featstore.report.warnings import WarningLine

__all__ = [
    "LOWER_IS_BETTER",
    "NOT_AVERAGED",
    "Average",
    "Cell",
    "Column",
    "Leaderboard",
    "Place",
    "Row",
    "Table",
    "is_averaged",
    "natural",
    "place_of",
    "place_order",
    "ranked",
]

LOWER_IS_BETTER = frozenset({"eer", "mae", "mse", "wer"})
"""Metrics for which lower is better; averages of several metrics exclude them."""

NOT_AVERAGED = LOWER_IS_BETTER | {"d_prime"}
"""Metrics that averages of several metrics exclude, because higher is not better or 1 is not the maximum."""


Place = tuple[Protocol, Track, str]
"""Protocol, track and measure of a table."""


def place_of(record: ScoreRecord) -> Place:
    """Return the table of a score."""
    return record.protocol, record.track, record.measure


def place_order(place: Place) -> tuple[bool, str, str, bool, str]:
    """Sort key of tables: strict before other protocols, track A before track B, ``knn`` before other measures."""
    protocol, track, measure = place
    return protocol != "strict", protocol, track, measure not in ("", "knn"), measure


def is_averaged(metric: str, *, own: str) -> bool:
    """Whether an average includes a metric: higher is better and 1 the maximum, or all its tasks have this metric."""
    return metric not in NOT_AVERAGED or metric == own


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One score in a table.

    Attributes
    ----------
    half_width : float or None
        Half of the 95 % interval, else the standard deviation over seeds, else None.
    low, high : float or None
        Ends of the interval, or the value plus and minus one standard deviation.
    certified : bool
        Whether a certificate of an audit covers the score.
    """

    value: float
    half_width: float | None
    low: float | None = None
    high: float | None = None
    certified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One encoder with one recipe and one choice of settings. Labels are unique within a table.

    A published column has scores that were published elsewhere; it is a reference and is never marked as best.
    """

    encoder: str
    fingerprint: str
    settings: tuple[tuple[str, Any], ...]
    label: str
    published: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task.

    Attributes
    ----------
    cells : tuple of Cell or None
        One per column; None for a missing score.
    best : frozenset of int
        Columns with the best score, without published ones; empty if fewer than two have a score.
    inside_noise : frozenset of int
        Columns that are not significantly different from the best: see `featstore.report.marks.marks_of`.
    not_comparable : frozenset of int
        Columns that cannot be compared with the best.
    ranks : mapping
        Column -> first and last rank that the tests allow.
    one_seed : bool
        Whether a head was trained with one seed, so that the variance over seeds is unknown.
    manifests : int
        Number of different manifests of the row's scores; above 1, they are not comparable.
    resolution : Resolution or None
        What its test clips can resolve; None if no two encoders can be compared.
    """

    task: str
    title: str
    metric: str
    eval_weight: float
    private: bool
    cells: tuple[Cell | None, ...]
    best: frozenset[int]
    inside_noise: frozenset[int]
    manifests: int
    not_comparable: frozenset[int] = frozenset()
    ranks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    one_seed: bool = False
    resolution: Resolution | None = None

    def cell(self, column: int) -> Cell | None:
        """The score of a column."""
        return self.cells[column]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Mean over tasks, weighted by ``eval_weight``.

    Attributes
    ----------
    over : str
        ``"public"`` or ``"all"``.
    lower_is_better : bool
        Whether the tasks have one error as their metric, as the measure ``pairs`` has.
    values : tuple of float or None
        One per column; None without a score.
    n_scored : tuple of int
        Number of tasks in the mean of each column.
    n_tasks : int
        Number of tasks of a complete column.
    best : frozenset of int
        The best complete columns, without published ones; empty if fewer than two are complete.
    intervals : tuple of (float, float) or None
        95 % interval of each complete column whose tasks all have one; tasks are independent.
    inside_noise, not_comparable, ranks, resolution
        See `Row`: the tasks are fixed, and their test clips are resampled.
    over_tasks : Resolution or None
        The same for other tasks of the same kind: tasks are resampled with their clips. None if their effective number
        is below 5.
    """

    over: str
    values: tuple[float | None, ...]
    n_scored: tuple[int, ...]
    n_tasks: int
    best: frozenset[int]
    intervals: tuple[tuple[float, float] | None, ...]
    inside_noise: frozenset[int]
    not_comparable: frozenset[int] = frozenset()
    ranks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    lower_is_better: bool = False
    resolution: Resolution | None = None
    over_tasks: Resolution | None = None

    def cell(self, column: int) -> Cell | None:
        """The average of a column with its interval; None without a score."""
        value, interval = self.values[column], self.intervals[column]
        if value is None or interval is None:
            return None if value is None else Cell(value=value, half_width=None)
        low, high = interval
        return Cell(value=value, half_width=(high - low) / 2, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One protocol, track and measure: rows by task, columns by encoder, then the averages.

    Records inside it name a column by its number, from 0. ``protocol_version`` is that of all its scores;
    ``superseded`` are scores of older versions, not comparable.
    """

    track: Track
    protocol: Protocol
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    averages: tuple[Average, ...]
    """Over public tasks, if some are private, and over all tasks."""
    protocol_version: int = 1
    superseded: tuple[ScoreRecord, ...] = ()
    warnings: tuple[WarningLine, ...] = ()
    """Warnings of its scores, one for each task and kind."""
    measure: str = ""
    """Measure of Track B; empty for Track A."""

    def __post_init__(self) -> None:
        labels = [column.label for column in self.columns]
        if len(set(labels)) < len(labels):
            raise UsageError(f"the labels of columns must be unique, got {', '.join(labels)}")
        for line in (*(row.cells for row in self.rows), *(average.values for average in self.averages)):
            if len(line) != len(self.columns):
                raise UsageError(f"a row must have one entry per column ({len(self.columns)}), got {len(line)}")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, without `superseded`."""
        return {name: each for name, each in _plain(self).items() if name != "superseded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """The tables of some scores: strict before other protocols, track A before B, ``knn`` before other measures."""

    tables: tuple[Table, ...]


def _plain(value: Any) -> Any:
    """Records as JSON: their fields, with sets as sorted lists and numbers of columns as text in keys."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, Set):
        return sorted(value)
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def natural(label: str) -> tuple[tuple[str, int, str], ...]:
    """Natural sort key of labels: ``layer10`` follows ``layer9``, and ``09`` equals ``9``.

    >>> sorted(["b.layer10", "b.layer9", "a"], key=natural)
    ['a', 'b.layer9', 'b.layer10']
    """
    parts = ((text, number.lstrip("0")) for text, number in re.findall(r"([^0-9]*)([0-9]*)", label))
    return tuple((text, len(number), number) for text, number in parts)


def ranked(table: Table) -> tuple[int, ...]:
    """Columns of a table by their average over all tasks, the best first.

    Encoders that lack a task follow those that have all, and published columns are last. Without an average the order
    is that of the table.
    """
    average = table.averages[-1]
    sign = 1.0 if average.lower_is_better else -1.0

    def order(column: int) -> tuple[bool, bool, float, int]:
        value = average.values[column]
        incomplete = average.n_scored[column] < average.n_tasks
        return table.columns[column].published, incomplete, 0.0 if value is None else sign * value, column

    return tuple(sorted(range(len(table.columns)), key=order))
