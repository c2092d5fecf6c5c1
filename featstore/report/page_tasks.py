"""Tasks, classes and recipes as the page shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.records import ScoreRecord
from featstore.report.grids import table_title
from featstore.report.page_boards import Entry, entry_of, recipe_anchor, task_anchor
from featstore.report.page_charts import Chart, charts_of
from featstore.report.tables import LOWER_IS_BETTER, Leaderboard, Row, Table

__all__ = [
    "ClassRow",
    "ClassTable",
    "Confusion",
    "RecipeView",
    "ScoreRow",
    "TaskBlock",
    "TaskView",
    "class_table",
    "confusions_of",
    "recipes_of",
    "task_views",
]


MAX_CLASS_ROWS = 60
MAX_TABLE_CLASSES = 12
MAX_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class, the number of its test clips, and its score by each encoder."""

    name: str
    support: int | None
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Classes by encoder; of many classes, the hardest on average."""

    labels: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    n_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """The confusion matrix of one encoder.

    Attributes
    ----------
    counts : tuple of tuple of int
        True classes by predicted classes; empty for a task with too many classes.
    pairs : tuple of (str, str, int, int)
        The most confused pairs: true class, predicted class, count, and clips of the true class (0 if unknown).
    """

    label: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str, int, int], ...]

    @property
    def is_small(self) -> bool:
        """Whether the matrix is small enough for a table."""
        return 0 < len(self.counts) <= MAX_TABLE_CLASSES

    @property
    def in_words(self) -> str:
        """Text alternative of the matrix as a picture."""
        most = "; ".join(f"{true} predicted as {other} {n} of {of} times" for true, other, n, of in self.pairs[:3])
        return f"Confusion matrix of {self.label}, {len(self.classes)} classes. Most confused: {most or 'no classes'}."


def class_table(scored: Sequence[tuple[str, ScoreRecord]]) -> ClassTable:
    """Lay out the classes of labelled scores; no rows if no score has its classes."""
    known = [(label, record) for label, record in scored if _has_classes(record)]
    if not known:
        return ClassTable(labels=(), rows=(), n_classes=0)
    names = known[0][1].details["classes"]
    known = [(label, record) for label, record in known if record.details["classes"] == names]
    support = known[0][1].details.get("support")
    table = np.array([record.details["by_class"] for _, record in known], np.float64)
    seen = ~np.isnan(table)
    mean = np.where(seen, table, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    shown = np.arange(len(names))
    if len(names) > MAX_CLASS_ROWS:
        hardest = np.argsort(np.where(seen.any(axis=0), mean, np.inf), kind="stable")
        shown = np.sort(hardest[:MAX_CLASS_ROWS])
    rows = tuple(
        ClassRow(
            name=str(names[at]),
            support=int(support[at]) if isinstance(support, list) and len(support) == len(names) else None,
            scores=tuple(float(value) if not np.isnan(value) else None for value in table[:, at]),
        )
        for at in shown
    )
    return ClassTable(labels=tuple(label for label, _ in known), rows=rows, n_classes=len(names))


def _has_classes(record: ScoreRecord) -> bool:
    classes, scores = record.details.get("classes"), record.details.get("by_class")
    return isinstance(classes, list) and isinstance(scores, list) and len(classes) == len(scores) > 0


def confusions_of(scored: Sequence[tuple[str, ScoreRecord]]) -> tuple[Confusion, ...]:
    """Confusion matrices of the encoders with the same classes as the best."""
    found = [each for label, record in scored if (each := _confusion(label, record)) is not None]
    return tuple(each for each in found if each.classes == found[0].classes)


def _confusion(label: str, record: ScoreRecord) -> Confusion | None:
    classes = record.details.get("classes")
    counts, confused = record.details.get("confusion"), record.details.get("confused")
    if not isinstance(classes, list):
        return None
    names = tuple(map(str, classes))
    if isinstance(counts, list) and len(counts) == len(names):
        matrix = np.array(counts, np.int64)
        off = matrix.copy()
        np.fill_diagonal(off, 0)
        most = [divmod(int(at), len(names)) for at in np.argsort(-off, axis=None, kind="stable")[:MAX_PAIRS]]
        pairs = [(names[a], names[b], int(off[a, b]), int(matrix[a].sum())) for a, b in most if off[a, b]]
        rows = tuple(tuple(int(count) for count in line) for line in matrix.tolist())
        return Confusion(label=label, classes=names, counts=rows, pairs=tuple(pairs))
    if isinstance(confused, list):
        support = record.details.get("support")
        pairs = [
            (names[a], names[b], n, int(support[a]) if isinstance(support, list) else 0)
            for a, b, n in confused[:MAX_PAIRS]
        ]
        return Confusion(label=label, classes=names, counts=(), pairs=tuple(pairs))
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One score with its provenance.

    Attributes
    ----------
    duplicates : int or None
        Test clips with an equal or nearly equal embedding in training; None in older records.
    """

    label: str
    style: int
    entry: Entry
    record: ScoreRecord
    recipe: str
    skipped: tuple[tuple[str, str, str], ...]
    details: tuple[tuple[str, str], ...]
    duplicates: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBlock:
    """One task under one protocol, track and measure; Track A and ``knn`` are main."""

    title: str
    is_main: bool
    metric: str
    scores: tuple[ScoreRow, ...]
    charts: tuple[Chart, ...]
    classes: ClassTable
    confusions: tuple[Confusion, ...]

    @property
    def has_seeds(self) -> bool:
        """Whether a head was trained with several seeds."""
        return any(len(score.record.seeds) > 1 for score in self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """One task."""

    name: str
    title: str
    anchor: str
    private: bool
    eval_weight: float
    n_test: int
    blocks: tuple[TaskBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeView:
    """A recipe as lines of text. ``anchor`` is its place in the page."""

    anchor: str
    name: str
    lines: tuple[tuple[str, str], ...]


def task_views(
    board: Leaderboard, records: Iterable[ScoreRecord], *, styles: Mapping[str, int]
) -> tuple[TaskView, ...]:
    """Everything about each task, sorted by title."""
    by_task: dict[str, list[tuple[Table, Row]]] = {}
    for table in board.tables:
        for row in table.rows:
            by_task.setdefault(row.task, []).append((table, row))
    everything = tuple(records)
    views = []
    for task, places in by_task.items():
        blocks = tuple(_block(table, row, _records_of(everything, table, row), styles=styles) for table, row in places)
        row = places[0][1]
        views.append(
            TaskView(
                name=task,
                title=row.title,
                anchor=task_anchor(task),
                private=row.private,
                eval_weight=row.eval_weight,
                n_test=max(score.record.n_test for block in blocks for score in block.scores),
                blocks=blocks,
            )
        )
    return tuple(sorted(views, key=lambda view: (view.title, view.name)))


def _records_of(records: Sequence[ScoreRecord], table: Table, row: Row) -> dict[int, ScoreRecord]:
    found = {}
    for record in records:
        place = (record.task, record.metric, record.track, record.measure, record.protocol, record.protocol_version)
        of_row = (row.task, row.metric, table.track, table.measure, table.protocol, table.protocol_version)
        if place != of_row:
            continue
        for at, column in enumerate(table.columns):
            same = (column.encoder, column.fingerprint) == (record.encoder, record.fingerprint)
            if same and not column.published and all(record.settings.get(n) == v for n, v in column.settings):
                found[at] = record
    return found


def _block(table: Table, row: Row, scored: Mapping[int, ScoreRecord], *, styles: Mapping[str, int]) -> TaskBlock:
    less_is_better = row.metric in LOWER_IS_BETTER
    ranked = sorted(scored, key=lambda at: scored[at].value if less_is_better else -scored[at].value)
    labels = {at: table.columns[at].label for at in ranked}
    scores = tuple(
        ScoreRow(
            label=labels[at],
            style=styles.get(labels[at], 0),
            entry=entry_of(row, at),
            record=scored[at],
            recipe=recipe_anchor(scored[at].encoder, scored[at].fingerprint),
            skipped=_skipped(scored[at]),
            details=_provenance(scored[at]),
            duplicates=_duplicates(scored[at]),
        )
        for at in ranked
    )
    return TaskBlock(
        title=table_title(table.measure, table.protocol),
        is_main=table.measure in ("", "knn"),
        metric=row.metric,
        scores=scores,
        charts=charts_of([(each.label, each.style, each.record) for each in scores]),
        classes=class_table([(each.label, each.record) for each in scores]),
        confusions=confusions_of([(each.label, each.record) for each in scores]),
    )


def _provenance(record: ScoreRecord) -> tuple[tuple[str, str], ...]:
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in record.settings.items())
    features = ", ".join(f"{name} {content}" for name, content in record.features.items())
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in record.seconds.items())
    return (
        ("encoder", f"{record.encoder}@{record.fingerprint}"),
        ("clips", f"{record.n_train:,} train, {record.n_valid:,} validation, {record.n_test:,} test"),
        ("seeds", ", ".join(map(str, record.seeds)) or "none (deterministic)"),
        ("settings", settings),
        ("feature sets", features),
        ("manifest", record.manifest_sha256),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("seconds", seconds),
        ("key", record.key),
    )


def _duplicates(record: ScoreRecord) -> int | None:
    raw = record.details.get("near_duplicates")
    counts = [raw.get("exact"), raw.get("near")] if isinstance(raw, Mapping) else []
    numbers = [count for count in counts if isinstance(count, int)]
    return sum(numbers) if len(numbers) == 2 else None


def _skipped(record: ScoreRecord) -> tuple[tuple[str, str, str], ...]:
    raw = record.details.get("left_out")
    if not isinstance(raw, list):
        return ()
    return tuple(
        (str(each[0]), str(each[1]), str(each[2])) for each in raw if isinstance(each, list) and len(each) == 3
    )


def recipes_of(records: Iterable[ScoreRecord]) -> tuple[RecipeView, ...]:
    """Recipe of every encoder, if its scores have it."""
    kept: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        raw, place = record.details.get("recipe"), (record.encoder, record.fingerprint)
        if not kept.get(place):
            kept[place] = raw if isinstance(raw, Mapping) else {}
    return tuple(
        RecipeView(anchor=recipe_anchor(*place), name="@".join(place), lines=_recipe_lines(raw))
        for place, raw in sorted(kept.items(), key=lambda item: item[0])
    )


def _recipe_lines(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    lines: list[tuple[str, str]] = []
    for name, value in raw.items():
        if isinstance(value, Mapping):
            lines += [(f"{name} {inner}".replace("_", " "), _plain(of)) for inner, of in value.items()]
        else:
            lines.append((name.replace("_", " "), _plain(value)))
    return tuple(lines)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
