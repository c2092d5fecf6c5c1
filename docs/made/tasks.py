"""Generate the page of the built-in tasks from their manifests."""

from __future__ import annotations

from collections.abc import Iterable

from docs.made.markdown import code, table
from featstore.tasks import Manifest


def task_page(tasks: Iterable[Manifest]) -> str:
    """Build the page: the built-in tasks by domain."""
    header = ("task", "title", "kind", "metric", "splits", "crop", "weight", "shards")
    by_domain: dict[str, list[tuple[str, ...]]] = {}
    for task in tasks:
        by_domain.setdefault(task.domain or "other", []).append(_task_row(task))
    sections = [f"## {domain.capitalize()}\n\n{table(header, rows)}" for domain, rows in sorted(by_domain.items())]
    return "\n".join(
        [
            "# Built-in tasks\n",
            "Commands take the name of a task, as in `featstore probe esc50`. `featstore fetch esc50 --data data` "
            "downloads the shards of a task that has a record on Zenodo. *weight* is the weight of the task in the "
            "averages of a leaderboard. [Rules by kind of task](manifest.md#what-depends-on-the-kind) lists the keys "
            "that each kind and metric requires.\n",
            *sections,
        ]
    )


def _task_row(task: Manifest) -> tuple[str, ...]:
    record = task.data.zenodo
    return (
        code(task.name),
        task.title,
        task.kind,
        task.metric,
        f"{len(task.folds)} folds" if task.folds else "train, valid, test",
        "" if task.data.crop_seconds is None else f"{task.data.crop_seconds:g} s",
        f"{task.eval_weight:g}",
        f"[Zenodo {record}](https://zenodo.org/records/{record})" if record else "private" if task.private else "",
    )
