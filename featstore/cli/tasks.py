"""`featstore tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from featstore.cli.completion import complete_tasks
from featstore.cli.options import json_option, say_json, store_option

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["tasks"]

_MAX_LETTERS = 200


@click.command()
@click.argument("name", metavar="[TASK]", required=False, shell_complete=complete_tasks)
@store_option("Also list the encoders that have each task in this store.", required=False, from_environment=False)
@json_option
def tasks(*, name: str | None, store: str | None, as_json: bool) -> None:
    """List the built-in tasks by domain, or show one task."""
    from featstore.cli.tables import plain_table, show
    from featstore.tasks import builtin_tasks, find_task

    found = [find_task(name)] if name else list(builtin_tasks())
    cached = _cached(store, found) if store else {}
    if as_json:
        records = [
            {**task.model_dump(mode="json", exclude_none=True), **({"cached": cached[task.name]} if cached else {})}
            for task in found
        ]
        say_json(records)
        return
    if name:
        [task] = found
        rows = [(key, value) for key, value in _flat(task.model_dump(mode="json", exclude_none=True))]
        if cached:
            rows.append(("cached", ", ".join(cached[task.name]) or "no encoder"))
        show(plain_table(["field", "value"], rows, title=task.title))
        return
    header = ["task", "title", "domain", "kind", "metric", "splits", "weight", "private"]
    if cached:
        header.append("cached")
    ordered = sorted(found, key=lambda task: (task.domain or "", task.name))
    table = [
        [
            task.name,
            task.title,
            task.domain or "",
            task.kind,
            task.metric,
            f"{len(task.folds)} folds" if task.folds else "train/valid/test",
            f"{task.eval_weight:g}",
            "private" if task.private else "",
            *([", ".join(cached[task.name])] if cached else []),
        ]
        for task in ordered
    ]
    show(plain_table(header, table))


def _cached(store_url: str, tasks: Sequence[Manifest]) -> dict[str, list[str]]:
    """Task -> the encoders that have all of its feature sets."""
    from featstore.evaluation.runner import encoders_with
    from featstore.store import open_store

    store = open_store(store_url)
    return {task.name: encoders_with(store, task) for task in tasks}


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        text, how_many = ", ".join(map(str, value)), f" ({len(value):,} values)"
    else:
        text, how_many = str(value), ""
    return [(prefix, text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]}...{how_many}")]
