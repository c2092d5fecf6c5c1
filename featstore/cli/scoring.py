"""What `probe` and `retrieve` have in common: every task with every encoder of the store, written and printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.cli.options import emit_json

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.records import ScoreRecord
    from featstore.store import Store

__all__ = ["encoders_with", "score_tasks", "tell_scores"]


def score_tasks(
    tasks: Sequence[str],
    *,
    store_url: str,
    encoders: Sequence[str],
    score: Callable[[Store, Manifest, str | None], ScoreRecord],
    results_dir: Path | None,
) -> tuple[ScoreRecord, ...]:
    """Score every task with every encoder asked for; each score is written as soon as it is known."""
    from featstore.manifest import find_task
    from featstore.report import write_score
    from featstore.store import open_store

    manifests = [find_task(task) for task in tasks]
    store = open_store(store_url)
    scores = []
    for manifest in manifests:
        for encoder in encoders or encoders_with(store, manifest) or [None]:
            record = score(store, manifest, encoder)
            if results_dir is not None:
                write_score(record, results_dir)
            scores.append(record)
    return tuple(scores)


def encoders_with(store: Store, manifest: Manifest) -> list[str | None]:
    """Group names of the encoders that have every feature set of a task."""
    needed = set(manifest.feature_sets.values())
    held: dict[str, set[str]] = {}
    for feature_set in store.feature_sets():
        if feature_set.dataset == manifest.feature_dataset:
            held.setdefault(feature_set.recipe.group_name, set()).add(feature_set.split)
    return [encoder for encoder, splits in sorted(held.items()) if needed <= splits]


def tell_scores(scores: Sequence[ScoreRecord], *, as_json: bool) -> None:
    """Print scores as JSON, or as leaderboards and where the time went."""
    if as_json:
        emit_json(scores)
        return
    from featstore.cli.console import leaderboard_tables, show
    from featstore.report import build

    show(leaderboard_tables(build(scores)))
    stages: dict[str, float] = {}
    for record in scores:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    show("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
