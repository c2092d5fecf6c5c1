"""What the page shows, decided before anything is drawn. Pure: records and tables in, frozen views out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from featstore.records import ScoreRecord, sha256_of
from featstore.report.leaderboard import LOWER_IS_BETTER, Cell, Column, Leaderboard, Row, Table
from featstore.report.render import TRACK_TITLES

__all__ = [
    "Bar",
    "BoardView",
    "ClassRow",
    "Confusion",
    "CurveView",
    "Entry",
    "PointView",
    "RankRow",
    "RecipeView",
    "ScoreRow",
    "TaskBlock",
    "TaskView",
    "board_view",
    "recipes_of",
    "task_views",
]

MAX_CURVES = 12
MAX_CLASS_ROWS = 60
MAX_TABLE_CLASSES = 12
MAX_PAIRS = 8
LAYER = re.compile(r"(?P<name>.+)\.layer(?P<layer>[0-9]+)(\.(?P<pool>max|std))?")
"""How one layer of an encoder is called, and one layer pooled otherwise than by its mean."""

CurveKind = Literal["k", "shots", "layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An interval on an axis, in per cent of its length."""

    left: float
    width: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One score of a table: as text, as what it is sorted by, and as a bar."""

    text: str
    plus_minus: str
    says: str
    value: float | None
    best: bool
    inside_noise: bool
    bar: Bar | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """One encoder of a ranking, with its averages in the order of `BoardView.spans`."""

    label: str
    anchor: str
    colour: int
    averages: tuple[Entry, ...]
    n_scored: int
    n_tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardView:
    """One protocol and track: encoders ranked by their averages, and every task by every encoder.

    ``axis`` is what the bars of the ranking stand on.
    """

    anchor: str
    title: str
    spans: tuple[str, ...]
    axis: tuple[float, float]
    ranking: tuple[RankRow, ...]
    published: tuple[RankRow, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Row, str, tuple[Entry, ...]], ...]
    averages: tuple[tuple[str, tuple[Entry, ...]], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointView:
    """One point of a curve."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveView:
    """A chart: curves by label, with the colour of each. ``left_out`` curves were too many to tell apart."""

    kind: CurveKind
    title: str
    x_label: str
    curves: tuple[tuple[str, int, tuple[PointView, ...]], ...]
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class, its test clips, and its score by each encoder."""

    name: str
    support: int | None
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """What one encoder takes for what.

    Attributes
    ----------
    counts : tuple of tuple of int
        True classes by predicted ones; empty where a task has too many classes to show all.
    pairs : tuple of (str, str, int, int)
        Most confused: true class, predicted class, how often, and of how many (0 where that is not known).
    """

    label: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str, int, int], ...]

    @property
    def is_small(self) -> bool:
        """Whether every count can be read in a table."""
        return 0 < len(self.counts) <= MAX_TABLE_CLASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One score with everything that made it."""

    label: str
    colour: int
    entry: Entry
    record: ScoreRecord
    recipe: str
    left_out: tuple[tuple[str, str, str], ...]
    details: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBlock:
    """One task under one protocol and track."""

    title: str
    metric: str
    scores: tuple[ScoreRow, ...]
    charts: tuple[CurveView, ...]
    class_labels: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    n_classes: int
    confusions: tuple[Confusion, ...]


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
    """A recipe as lines of text. ``anchor`` is where the page has it."""

    anchor: str
    name: str
    lines: tuple[tuple[str, str], ...]


def board_view(table: Table, *, notes: Sequence[str], colours: Mapping[str, int]) -> BoardView:
    """Lay out a table.

    Parameters
    ----------
    notes : sequence of str
        What its marks mean.
    colours : mapping
        Label of an encoder -> number of its colour.
    """
    place = f"{table.protocol}-{table.track}"
    axis = _axis(table)
    rank = {
        at: RankRow(
            label=column.label,
            anchor=recipe_anchor(column.fingerprint),
            colour=colours.get(column.label, -1),
            averages=tuple(_average_entry(table, span, at, axis=axis) for span in range(len(table.averages))),
            n_scored=table.averages[-1].n_scored[at],
            n_tasks=table.averages[-1].n_tasks,
        )
        for at, column in enumerate(table.columns)
    }

    def order(at: int) -> tuple[bool, float, str]:
        average = table.averages[-1]
        value = average.values[at]
        return average.n_scored[at] < average.n_tasks, -(value or 0.0), table.columns[at].label

    ranked = [at for at in sorted(rank, key=order) if table.averages[-1].values[at] is not None]
    return BoardView(
        anchor=f"board-{place}",
        title=f"{TRACK_TITLES[table.track]} ({table.protocol} protocol)",
        spans=tuple(_span_name(average.over, average.n_tasks) for average in table.averages),
        axis=axis,
        ranking=tuple(rank[at] for at in ranked if not table.columns[at].published),
        published=tuple(rank[at] for at in ranked if table.columns[at].published),
        columns=table.columns,
        rows=tuple(
            (row, task_anchor(row.task), tuple(_entry(row, at) for at in range(len(row.cells)))) for row in table.rows
        ),
        averages=tuple(
            (
                _span_name(average.over, average.n_tasks),
                tuple(_average_entry(table, span, at, axis=(0.0, 1.0)) for at in range(len(table.columns))),
            )
            for span, average in enumerate(table.averages)
        ),
        notes=tuple(notes),
    )


def _span_name(over: str, n_tasks: int) -> str:
    tasks = f"{n_tasks} task" if n_tasks == 1 else f"{n_tasks} tasks"
    return f"public, {tasks}" if over == "public" else f"all, {tasks}"


def _axis(table: Table) -> tuple[float, float]:
    """From the least to the greatest end of an average's interval, in steps of a twentieth."""
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


def _entry(row: Row, at: int) -> Entry:
    # Scores are shares: one axis from 0 to 1 for all of them, and a longer one for errors and the like beyond it.
    there = [each for each in row.cells if each is not None]
    ends = [end for each in there for end in (each.value, each.low, each.high) if end is not None]
    axis = min(0.0, *ends), max(1.0, *ends)
    return _entry_of(row.cells[at], axis=axis, best=at in row.best, inside_noise=at in row.inside_noise)


def _average_entry(table: Table, span: int, at: int, *, axis: tuple[float, float]) -> Entry:
    average = table.averages[span]
    value, interval = average.values[at], average.intervals[at]
    cell = None
    if value is not None:
        low, high = interval or (None, None)
        half_width = None if low is None or high is None else (high - low) / 2
        cell = Cell(value=value, half_width=half_width, low=low, high=high)
    entry = _entry_of(cell, axis=axis, best=at in average.best, inside_noise=at in average.inside_noise)
    if value is None or average.n_scored[at] == average.n_tasks:
        return entry
    partly = f"{average.n_scored[at]} of {average.n_tasks} tasks"
    return replace(entry, plus_minus=partly, says=f"{entry.says}, over {partly} only")


def _entry_of(cell: Cell | None, *, axis: tuple[float, float], best: bool, inside_noise: bool) -> Entry:
    if cell is None:
        return Entry(text="–", plus_minus="", says="no score", value=None, best=False, inside_noise=False, bar=None)
    lowest, highest = axis

    def place(value: float) -> float:
        return round(min(100.0, max(0.0, 100 * (value - lowest) / (highest - lowest))), 1)

    low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
    has_interval = cell.low is not None
    return Entry(
        text=f"{cell.value:.3f}",
        plus_minus="" if cell.half_width is None else f"±{cell.half_width:.3f}",
        says=f"{cell.value:.4f}" + (f", {low:.4f} to {high:.4f}" if has_interval else ""),
        value=cell.value,
        best=best,
        inside_noise=inside_noise,
        bar=Bar(left=place(low), width=round(place(high) - place(low), 1), at=place(cell.value)),
    )


# --- tasks ------------------------------------------------------------------------------------------------------------


def task_views(
    board: Leaderboard, records: Iterable[ScoreRecord], *, colours: Mapping[str, int]
) -> tuple[TaskView, ...]:
    """Everything about each task, sorted by title."""
    by_task: dict[str, list[tuple[Table, Row]]] = {}
    for table in board.tables:
        for row in table.rows:
            by_task.setdefault(row.task, []).append((table, row))
    everything = tuple(records)
    views = []
    for task, places in by_task.items():
        blocks = tuple(
            _block(table, row, _records_of(everything, table, row), colours=colours) for table, row in places
        )
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


def task_anchor(task: str) -> str:
    """Where the page has a task: made of its hash, as a name may hold anything."""
    return f"task-{sha256_of(task)[:12]}"


def recipe_anchor(fingerprint: str) -> str:
    """Where the page has a recipe."""
    return f"recipe-{sha256_of(fingerprint)[:12]}"


def _records_of(records: Sequence[ScoreRecord], table: Table, row: Row) -> dict[int, ScoreRecord]:
    found = {}
    for record in records:
        if (record.task, record.metric, record.track, record.protocol) != (
            row.task,
            row.metric,
            table.track,
            table.protocol,
        ):
            continue
        for at, column in enumerate(table.columns):
            same = (column.encoder, column.fingerprint) == (record.encoder, record.fingerprint)
            if same and not column.published and all(record.settings.get(n) == v for n, v in column.settings):
                found[at] = record
    return found


def _block(table: Table, row: Row, scored: Mapping[int, ScoreRecord], *, colours: Mapping[str, int]) -> TaskBlock:
    less_is_better = row.metric in LOWER_IS_BETTER
    ranked = sorted(scored, key=lambda at: scored[at].value if less_is_better else -scored[at].value)
    labels = {at: table.columns[at].label for at in ranked}
    scores = tuple(
        ScoreRow(
            label=labels[at],
            colour=colours.get(labels[at], 0),
            entry=_entry(row, at),
            record=scored[at],
            recipe=recipe_anchor(scored[at].fingerprint),
            left_out=_left_out(scored[at]),
            details=_provenance(scored[at]),
        )
        for at in ranked
    )
    charts = [
        _k_curve([(labels[at], colours.get(labels[at], 0), scored[at]) for at in ranked]),
        _shots_curve([(labels[at], colours.get(labels[at], 0), scored[at]) for at in ranked]),
        _layer_curve([scored[at] for at in ranked]),
    ]
    class_labels, classes, n_classes = _classes([(labels[at], scored[at]) for at in ranked])
    return TaskBlock(
        title=f"{TRACK_TITLES[table.track]} ({table.protocol} protocol)",
        metric=row.metric,
        scores=scores,
        charts=tuple(chart for chart in charts if chart is not None),
        class_labels=class_labels,
        classes=classes,
        n_classes=n_classes,
        confusions=_confusions([(labels[at], scored[at]) for at in ranked]),
    )


def _provenance(record: ScoreRecord) -> tuple[tuple[str, str], ...]:
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in record.settings.items())
    features = ", ".join(f"{name} {content}" for name, content in record.features.items())
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in record.seconds.items())
    return (
        ("encoder", f"{record.encoder}@{record.fingerprint}"),
        ("clips", f"{record.n_train:,} trained on, {record.n_valid:,} selected on, {record.n_test:,} tested"),
        ("seeds", ", ".join(map(str, record.seeds)) or "none: nothing is random"),
        ("settings", settings),
        ("feature sets", features),
        ("manifest", record.manifest_sha256),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("seconds", seconds),
        ("key", record.key),
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _left_out(record: ScoreRecord) -> tuple[tuple[str, str, str], ...]:
    raw = record.details.get("left_out")
    if not isinstance(raw, list):
        return ()
    return tuple(
        (str(each[0]), str(each[1]), str(each[2])) for each in raw if isinstance(each, list) and len(each) == 3
    )


def recipes_of(records: Iterable[ScoreRecord]) -> tuple[RecipeView, ...]:
    """Recipe of every encoder, as far as scores keep it."""
    kept: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for record in records:
        raw = record.details.get("recipe")
        name = f"{record.encoder}@{record.fingerprint}"
        if record.fingerprint not in kept or not kept[record.fingerprint][1]:
            kept[record.fingerprint] = (name, raw if isinstance(raw, Mapping) else {})
    return tuple(
        RecipeView(anchor=recipe_anchor(fingerprint), name=name, lines=_recipe_lines(raw))
        for fingerprint, (name, raw) in sorted(kept.items(), key=lambda item: item[1][0])
    )


def _recipe_lines(raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    lines: list[tuple[str, str]] = []
    for name, value in raw.items():
        if isinstance(value, Mapping):
            lines += [(f"{name} {inner}".replace("_", " "), _plain(of)) for inner, of in value.items()]
        else:
            lines.append((name.replace("_", " "), _plain(value)))
    return tuple(lines)


# --- curves -----------------------------------------------------------------------------------------------------------


def _k_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> CurveView | None:
    curves = []
    for label, colour, record in scored:
        points = [PointView(x=x, y=y) for x, y in _numbered(record.details.get("k_curve"))]
        curves.append((label, colour, tuple(points)))
    return _chart("k", curves, title="Score by number of neighbours", x_label="k, neighbours that vote")


def _shots_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> CurveView | None:
    curves = []
    for label, colour, record in scored:
        raw = record.details.get("shots")
        points = []
        for shots, found in sorted(raw.items(), key=lambda item: int(item[0])) if isinstance(raw, Mapping) else ():
            points.append(PointView(x=int(shots), y=found["mean"], low=found["low"], high=found["high"]))
        curves.append((label, colour, tuple(points)))
    return _chart("shots", curves, title="Score by number of training clips", x_label="training clips of each class")


def _layer_curve(scored: Sequence[ScoreRecord]) -> CurveView | None:
    by_name: dict[str, dict[int, ScoreRecord]] = {}
    for record in scored:
        found = LAYER.fullmatch(record.encoder)
        if found is not None:
            name = f"{found['name']} ({found['pool']})" if found["pool"] else found["name"]
            by_name.setdefault(name, {}).setdefault(int(found["layer"]), record)
    curves = [
        (
            name,
            colour,
            tuple(
                PointView(
                    x=layer,
                    y=record.value,
                    low=record.ci_low if record.ci_high > record.ci_low else None,
                    high=record.ci_high if record.ci_high > record.ci_low else None,
                )
                for layer, record in sorted(layers.items())
            ),
        )
        for colour, (name, layers) in enumerate(sorted(by_name.items()))
    ]
    return _chart("layer", curves, title="Score by layer", x_label="layer of the encoder")


def _chart(
    kind: CurveKind,
    curves: Sequence[tuple[str, int, tuple[PointView, ...]]],
    *,
    title: str,
    x_label: str,
) -> CurveView | None:
    """A chart of the curves that have two points or more; None where there is none."""
    drawn = [curve for curve in curves if len(curve[2]) > 1]
    if not drawn:
        return None
    return CurveView(
        kind=kind,
        title=title,
        x_label=x_label,
        curves=tuple(drawn[:MAX_CURVES]),
        left_out=max(0, len(drawn) - MAX_CURVES),
    )


def _numbered(raw: object) -> list[tuple[int, float]]:
    if not isinstance(raw, Mapping):
        return []
    return sorted((int(name), float(value)) for name, value in raw.items())


# --- classes ----------------------------------------------------------------------------------------------------------


def _classes(scored: Sequence[tuple[str, ScoreRecord]]) -> tuple[tuple[str, ...], tuple[ClassRow, ...], int]:
    """Encoders, rows and number of classes; of very many classes, those that are hardest on average."""
    known = [(label, record) for label, record in scored if _has_classes(record)]
    if not known:
        return (), (), 0
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
    return tuple(label for label, _ in known), rows, len(names)


def _has_classes(record: ScoreRecord) -> bool:
    classes, scores = record.details.get("classes"), record.details.get("by_class")
    return isinstance(classes, list) and isinstance(scores, list) and len(classes) == len(scores) > 0


def _confusions(scored: Sequence[tuple[str, ScoreRecord]]) -> tuple[Confusion, ...]:
    """Matrices of the encoders that were scored on the same classes as the best."""
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
