"""Leaderboards: one table per protocol, track and measure, with weighted averages, intervals and significance marks.

A pure function of score records. A row of a table is a task and a column is an encoder; `featstore.report.text` shows
encoders as rows. A missing score is None, never zero, and an average has the number of its tasks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from featstore.diagnostics.certificate import hash_of_score
from featstore.errors import UsageError
from featstore.records import ScoreRecord
from featstore.report.marks import NO_MARKS, Marks, marks_of
from featstore.report.pairing import Evidence, average_interval, average_pair, evidence_of, pair, pair_over_tasks
from featstore.report.published import PublishedScores
from featstore.report.resolution import resolution_of
from featstore.report.results import CHOSEN_SETTINGS
from featstore.report.tables import (
    LOWER_IS_BETTER,
    Average,
    Cell,
    Column,
    Leaderboard,
    Place,
    Row,
    Table,
    is_averaged,
    natural,
    place_of,
    place_order,
)
from featstore.report.warnings import warning_lines

__all__ = ["build", "newest_versions"]


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
            _table(of_table[place], place=place, published=published, certified=certified)
            for place in sorted(of_table, key=place_order)
        )
    )


def newest_versions(records: Iterable[ScoreRecord]) -> tuple[tuple[ScoreRecord, ...], tuple[ScoreRecord, ...]]:
    """Split scores into those of the newest protocol version of their table, and older ones."""
    everything = tuple(records)
    newest: dict[Place, int] = {}
    for each in everything:
        newest[place_of(each)] = max(each.protocol_version, newest.get(place_of(each), 0))
    current = tuple(each for each in everything if each.protocol_version == newest[place_of(each)])
    return current, tuple(each for each in everything if each.protocol_version != newest[place_of(each)])


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
    placed: dict[tuple[str, str], dict[int, Evidence]] = {}
    for record, column in zip(records, column_of, strict=True):
        row = placed.setdefault((record.task, record.metric), {})
        if column in row:
            where = f"{record.task} by {columns[column].label} (track {track}, {protocol})"
            raise UsageError(f"a table has one score for each task and encoder, got two for {where}: keep the newest")
        row[column] = evidence_of(record)
    evidence = [placed[of_task] for of_task in sorted(placed)]
    references = []
    if published is not None and published.protocol == protocol and measure in ("", "knn"):
        references = _references([task for task, _ in sorted(placed)], published.scores[track])
    n_ours, columns = len(columns), (*columns, *(column for column, _ in references))
    marks = [_marks(known, n_columns=len(columns)) for known in evidence]
    rows = tuple(
        _row(known, marked, n_ours=n_ours, published=[cells[at] for _, cells in references], certified=certified)
        for at, (known, marked) in enumerate(zip(evidence, marks, strict=True))
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
        warnings=warning_lines(everything),
        measure=measure,
    )


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


def _marks(known: Mapping[int, Evidence], *, n_columns: int) -> Marks:
    return marks_of(
        [known[column].record.value if column in known else None for column in range(n_columns)],
        lower_is_better=known[min(known)].record.metric in LOWER_IS_BETTER,
        pair=lambda a, b: pair(known[a], known[b]),
    )


def _row(
    known: Mapping[int, Evidence],
    marks: Marks,
    *,
    n_ours: int,
    published: Sequence[Cell | None],
    certified: Collection[str],
) -> Row:
    scored = [each.record for each in known.values()]
    first = known[min(known)].record
    ours = [known[column].record if column in known else None for column in range(n_ours)]
    return Row(
        task=first.task,
        title=first.title,
        metric=first.metric,
        eval_weight=first.eval_weight,
        private=first.private,
        cells=(*(None if record is None else _cell(record, certified) for record in ours), *published),
        best=marks.best,
        inside_noise=marks.inside_noise,
        not_comparable=marks.not_comparable,
        ranks=marks.ranks,
        one_seed=any(len(record.seeds) == 1 for record in scored),
        manifests=len({record.manifest_sha256 for record in scored}),
        resolution=resolution_of(
            marks,
            [*(None if record is None else record.value for record in ours), *(None for _ in published)],
            over="groups" if any(each.grouped for each in known.values()) else "clips",
            n=max(record.n_test for record in scored),
        ),
    )


def _cell(record: ScoreRecord, certified: Collection[str]) -> Cell:
    half_width = low = high = None
    if record.ci_low is not None and record.ci_high is not None and record.ci_high > record.ci_low:
        half_width, low, high = (record.ci_high - record.ci_low) / 2, record.ci_low, record.ci_high
    elif record.std:
        half_width, low, high = record.std, record.value - record.std, record.value + record.std
    is_certified = bool(certified) and hash_of_score(record) in certified
    return Cell(value=record.value, half_width=half_width, low=low, high=high, certified=is_certified)


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
                pair_over_tasks([of[a].record.value - of[b].record.value for of in known], weights)
                if (a, b) in marks.pairs
                else None
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
