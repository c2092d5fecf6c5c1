"""Leaderboards: one table per protocol, track and measure, with weighted averages, intervals and significance marks.

A pure function of score records. A row of a table is a task and a column is an encoder; `featstore.report.text` shows
encoders as rows. A missing score is None, never zero, and an average has the number of its tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featstore.diagnostics.certificate import hash_of_score
from featstore.errors import UsageError
from featstore.records import Protocol, ScoreRecord, Track
from featstore.report.marks import NO_MARKS, Marks, marks_of
from featstore.report.pairing import Evidence, average_interval, average_pair, evidence_of, pair, pair_over_tasks
from featstore.report.plain import plain
from featstore.report.published import PublishedScores
from featstore.report.resolution import Resolution, resolution_of
from featstore.report.results import CHOSEN_SETTINGS
from featstore.report.warnings import WarningLine, warning_lines

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
    "build",
    "is_averaged",
    "natural",
    "newest_versions",
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


def place_order(place: Place) -> tuple[str, str, bool, str]:
    """Sort key of tables: strict before xares, track A before track B, ``knn`` before other measures."""
    protocol, track, measure = place
    return protocol, track, measure not in ("", "knn"), measure


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
        return {name: each for name, each in plain(self).items() if name != "superseded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """The tables of some scores: strict before xares, track A before track B, ``knn`` before other measures."""

    tables: tuple[Table, ...]


def build(
    records: Iterable[ScoreRecord],
    *,
    published: PublishedScores | None = None,
    certified: Collection[str] = frozenset(),
) -> Leaderboard:
    """Build the tables of some scores.

    Parameters
    ----------
    published : PublishedScores, optional
        Added as reference columns to the tables of its protocol; scores of other protocols are not comparable.
    certified : collection of str
        Hashes of certified scores, from `featstore.diagnostics.certificate.certified_scores`.

    Raises
    ------
    UsageError
        Two scores have the same task, encoder and settings; `featstore.report.read_scores` keeps the newest.
    """
    of_table: dict[Place, list[ScoreRecord]] = {}
    for record in records:
        of_table.setdefault(place_of(record), []).append(record)
    return Leaderboard(
        tables=tuple(
            replace(
                _table(of_table[place], place=place, published=published, certified=certified),
                warnings=warning_lines(of_table[place]),
            )
            for place in sorted(of_table, key=place_order)
        )
    )


def newest_versions(records: Iterable[ScoreRecord]) -> tuple[tuple[ScoreRecord, ...], tuple[ScoreRecord, ...]]:
    """Split scores into those of the newest protocol version of their table, and older ones."""
    everything = tuple(records)
    newest: dict[Place, int] = {}
    for each in everything:
        newest[place_of(each)] = max(each.protocol_version, newest.get(place_of(each), 0))
    current = [each.protocol_version == newest[place_of(each)] for each in everything]
    return (
        tuple(each for each, is_current in zip(everything, current, strict=True) if is_current),
        tuple(each for each, is_current in zip(everything, current, strict=True) if not is_current),
    )


def _table(
    everything: Sequence[ScoreRecord],
    *,
    place: Place,
    published: PublishedScores | None,
    certified: Collection[str],
) -> Table:
    protocol, track, measure = place
    records, superseded = newest_versions(everything)
    columns, column_of = _columns(records)
    placed: dict[tuple[str, str], dict[int, ScoreRecord]] = {}
    for record, column in zip(records, column_of, strict=True):
        row = placed.setdefault((record.task, record.metric), {})
        if column in row:
            where = f"{record.task} by {columns[column].label} (track {track}, {protocol})"
            raise UsageError(f"a table has one score for each task and encoder, got two for {where}: keep the newest")
        row[column] = record
    scored = [placed[of_task] for of_task in sorted(placed)]
    evidence = [{column: evidence_of(record) for column, record in of_task.items()} for of_task in scored]
    references = []
    if published is not None and published.protocol == protocol and measure in ("", "knn"):
        references = _references([task for task, _ in sorted(placed)], published.of_track(track))
    n_ours, columns = len(columns), (*columns, *(column for column, _ in references))
    marks = [_marks(of_task, known, n_columns=len(columns)) for of_task, known in zip(scored, evidence, strict=True)]
    rows = tuple(
        _row(of_task, known, marked, n_columns=len(columns), certified=certified)
        for of_task, known, marked in zip(scored, evidence, marks, strict=True)
    )
    rows = tuple(
        replace(row, cells=(*row.cells[:n_ours], *(cells[at] for _, cells in references)))
        for at, row in enumerate(rows)
    )
    ours = frozenset(at for at, column in enumerate(columns) if not column.published)
    spans = ("public", "all") if any(row.private for row in rows) else ("all",)
    # the metrics of Track A and knn are those of the tasks; every other measure has one of its own
    own = "" if measure in ("", "knn") or len({row.metric for row in rows}) > 1 else rows[0].metric
    averages = tuple(
        _average(rows, evidence, marks, over=span, n_columns=len(columns), ours=ours, own=own) for span in spans
    )
    return Table(
        track=track,
        protocol=protocol,
        columns=columns,
        rows=rows,
        averages=averages,
        protocol_version=records[0].protocol_version,
        superseded=superseded,
        measure=measure,
    )


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


# --- columns ----------------------------------------------------------------------------------------------------------


def _columns(records: Sequence[ScoreRecord]) -> tuple[tuple[Column, ...], tuple[int, ...]]:
    """Columns of a table, sorted by label and layer, and the index of each record's column."""
    varying = _varying_settings(records)
    places = [
        (record.encoder, record.fingerprint, tuple((name, record.settings.get(name)) for name in varying))
        for record in records
    ]
    fingerprints: dict[str, set[str]] = {}
    for record in records:
        fingerprints.setdefault(record.encoder, set()).add(record.fingerprint)
    columns = {
        place: Column(
            encoder=place[0],
            fingerprint=place[1],
            settings=place[2],
            label=_label(*place, alone=len(fingerprints[place[0]]) == 1),
        )
        for place in places
    }
    ordered = sorted(columns.values(), key=lambda column: natural(column.label))
    return tuple(ordered), tuple(ordered.index(columns[place]) for place in places)


def _varying_settings(records: Sequence[ScoreRecord]) -> tuple[str, ...]:
    """The settings that labels must include: one encoder has several values for one task, or scores would be confused.

    Scores of folds by group always name the group, and heads are named where some scores mix layers and others do not.
    """
    values: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        for name in CHOSEN_SETTINGS:
            place = (name, record.task, record.metric, record.encoder, record.fingerprint)
            values.setdefault(place, set()).add(json.dumps(record.settings.get(name)))
    varying = {place[0] for place, seen in values.items() if len(seen) > 1}
    varying |= {"split_by" for record in records if record.settings.get("split_by") is not None}
    if len({record.settings.get("head") == "layer-mix" for record in records}) > 1:
        varying.add("head")
    return tuple(name for name in CHOSEN_SETTINGS if name in varying)


def _label(encoder: str, fingerprint: str, settings: tuple[tuple[str, Any], ...], *, alone: bool) -> str:
    name = encoder if alone else f"{encoder}@{fingerprint}"
    shown = ", ".join(f"{setting}={value}" for setting, value in settings if value is not None)
    return f"{name} ({shown})" if shown else name


def _references(
    tasks: Sequence[str], by_task: Mapping[str, Mapping[str, float]]
) -> list[tuple[Column, tuple[Cell | None, ...]]]:
    """Published columns with a score of at least one task, and their cells."""
    encoders = sorted({encoder for task in tasks for encoder in by_task.get(task, {})})
    found = []
    for encoder in encoders:
        column = Column(encoder=encoder, fingerprint="", settings=(), label=f"{encoder} (published)", published=True)
        values = [by_task.get(task, {}).get(encoder) for task in tasks]
        found.append((column, tuple(None if value is None else Cell(value=value, half_width=None) for value in values)))
    return found


# --- rows and averages ------------------------------------------------------------------------------------------------


def _marks(scored: Mapping[int, ScoreRecord], known: Mapping[int, Evidence], *, n_columns: int) -> Marks:
    return marks_of(
        [scored[column].value if column in scored else None for column in range(n_columns)],
        lower_is_better=scored[min(scored)].metric in LOWER_IS_BETTER,
        pair=lambda a, b: pair(known[a], known[b]),
    )


def _row(
    scored: Mapping[int, ScoreRecord],
    known: Mapping[int, Evidence],
    marks: Marks,
    *,
    n_columns: int,
    certified: Collection[str],
) -> Row:
    first = scored[min(scored)]
    values = [scored[column].value if column in scored else None for column in range(n_columns)]
    return Row(
        task=first.task,
        title=first.title,
        metric=first.metric,
        eval_weight=first.eval_weight,
        private=first.private,
        cells=tuple(
            replace(_cell(scored[column]), certified=bool(certified) and hash_of_score(scored[column]) in certified)
            if column in scored
            else None
            for column in range(n_columns)
        ),
        best=marks.best,
        inside_noise=marks.inside_noise,
        not_comparable=marks.not_comparable,
        ranks=marks.ranks,
        one_seed=any(len(record.seeds) == 1 for record in scored.values()),
        manifests=len({record.manifest_sha256 for record in scored.values()}),
        resolution=resolution_of(
            marks,
            values,
            over="groups" if any(each.grouped for each in known.values()) else "clips",
            n=max(record.n_test for record in scored.values()),
        ),
    )


def _cell(record: ScoreRecord) -> Cell:
    if record.ci_low is not None and record.ci_high is not None and record.ci_high > record.ci_low:
        half_width = (record.ci_high - record.ci_low) / 2
        return Cell(value=record.value, half_width=half_width, low=record.ci_low, high=record.ci_high)
    if record.std:
        low, high = record.value - record.std, record.value + record.std
        return Cell(value=record.value, half_width=record.std, low=low, high=high)
    return Cell(value=record.value, half_width=None)


def _average(
    rows: Sequence[Row],
    evidence: Sequence[Mapping[int, Evidence]],
    tested: Sequence[Marks],
    *,
    over: str,
    n_columns: int,
    ours: frozenset[int],
    own: str,
) -> Average:
    """Average of a table, whose rows may all have the metric ``own``."""
    at = [
        index
        for index, row in enumerate(rows)
        if row.eval_weight > 0 and is_averaged(row.metric, own=own) and (over == "all" or not row.private)
    ]
    counted, known = [rows[index] for index in at], [evidence[index] for index in at]
    pairs = [tested[index].pairs for index in at]
    values: list[float | None] = []
    n_scored: list[int] = []
    for column in range(n_columns):
        found = [(row.eval_weight, cell.value) for row in counted if (cell := row.cells[column]) is not None]
        weight = sum(weight for weight, _ in found)
        values.append(sum(weight * value for weight, value in found) / weight if found else None)
        n_scored.append(len(found))
    complete = [
        value if n == len(counted) and column in ours else None
        for column, (value, n) in enumerate(zip(values, n_scored, strict=True))
    ]
    weights = [row.eval_weight for row in counted]
    marks: Marks = NO_MARKS
    over_tasks: Marks = NO_MARKS
    if counted:
        marks = marks_of(
            complete,
            lower_is_better=own in LOWER_IS_BETTER,
            pair=lambda a, b: average_pair([of.get((a, b)) for of in pairs], weights),
        )
        over_tasks = marks_of(
            complete,
            lower_is_better=own in LOWER_IS_BETTER,
            pair=lambda a, b: (
                pair_over_tasks([of[a].value - of[b].value for of in known], weights) if (a, b) in marks.pairs else None
            ),
        )
    is_grouped = any(each.grouped for of in known for each in of.values())
    return Average(
        over=over,
        values=tuple(values),
        n_scored=tuple(n_scored),
        n_tasks=len(counted),
        best=marks.best,
        intervals=tuple(
            None if value is None else average_interval([of[column] for of in known], weights, value=value)
            for column, value in enumerate(complete)
        ),
        inside_noise=marks.inside_noise,
        not_comparable=marks.not_comparable,
        ranks=marks.ranks,
        lower_is_better=own in LOWER_IS_BETTER,
        resolution=resolution_of(
            marks,
            complete,
            over="groups" if is_grouped else "clips",
            n=sum(row.resolution.n for row in counted if row.resolution is not None),
        ),
        over_tasks=resolution_of(over_tasks, complete, over="tasks", n=len(counted)),
    )
