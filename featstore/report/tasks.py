"""Every task and every recipe as the page tells of them: records and tables in, frozen views out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featstore.records import ScoreRecord
from featstore.report.boards import Entry, board_title, entry_of, recipe_anchor, task_anchor
from featstore.report.classes import ClassTable, Confusion, class_table, confusions_of
from featstore.report.curves import CurveView, curves_of
from featstore.report.leaderboard import LOWER_IS_BETTER, Leaderboard, Row, Table

__all__ = ["RecipeView", "ScoreRow", "TaskBlock", "TaskView", "recipes_of", "task_views"]


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
    classes: ClassTable
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


def _records_of(records: Sequence[ScoreRecord], table: Table, row: Row) -> dict[int, ScoreRecord]:
    found = {}
    for record in records:
        if (record.task, record.metric, record.track, record.protocol, record.protocol_version) != (
            row.task,
            row.metric,
            table.track,
            table.protocol,
            table.protocol_version,
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
            entry=entry_of(row, at),
            record=scored[at],
            recipe=recipe_anchor(scored[at].encoder, scored[at].fingerprint),
            left_out=_left_out(scored[at]),
            details=_provenance(scored[at]),
        )
        for at in ranked
    )
    return TaskBlock(
        title=board_title(table),
        metric=row.metric,
        scores=scores,
        charts=curves_of([(each.label, each.colour, each.record) for each in scores]),
        classes=class_table([(each.label, each.record) for each in scores]),
        confusions=confusions_of([(each.label, each.record) for each in scores]),
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


def _left_out(record: ScoreRecord) -> tuple[tuple[str, str, str], ...]:
    raw = record.details.get("left_out")
    if not isinstance(raw, list):
        return ()
    return tuple(
        (str(each[0]), str(each[1]), str(each[2])) for each in raw if isinstance(each, list) and len(each) == 3
    )


def recipes_of(records: Iterable[ScoreRecord]) -> tuple[RecipeView, ...]:
    """Recipe of every encoder, as far as scores keep it."""
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
