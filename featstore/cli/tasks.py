"""`featstore tasks`."""

from __future__ import annotations

import json

import click

from featstore.cli.options import json_option

__all__ = ["tasks"]


@click.command()
@click.argument("name", metavar="[TASK]", required=False)
@json_option
def tasks(*, name: str | None, as_json: bool) -> None:
    """List the tasks that come with featstore, or show one."""
    from featstore.cli.console import plain_table, show
    from featstore.manifest import builtin_tasks, find_task

    found = [find_task(name)] if name else list(builtin_tasks())
    if as_json:
        click.echo(json.dumps([task.model_dump(mode="json", exclude_none=True) for task in found], indent=1))
        return
    if name:
        [task] = found
        rows = [(key, value) for key, value in _flat(task.model_dump(mode="json", exclude_none=True))]
        show(plain_table(["field", "value"], rows, title=task.title))
        return
    header = ["task", "title", "domain", "kind", "metric", "splits", "weight", "private"]
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
        ]
        for task in ordered
    ]
    show(plain_table(header, table))


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(prefix, text if len(text) <= 200 else f"{text[:200]}... ({text.count(',') + 1} in all)")]
