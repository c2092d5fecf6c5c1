"""`featstore probe`: Track A."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featstore.cli.options import (
    encoder_names,
    json_option,
    protocol_option,
    results_option,
    store_option,
    tasks_argument,
)
from featstore.cli.scoring import score_tasks, tell_scores

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.records import Protocol, ScoreRecord
    from featstore.store import Store

__all__ = ["probe"]


@click.command()
@tasks_argument
@store_option
@encoder_names
@protocol_option
@click.option("--head", type=click.Choice(["linear"]), default="linear", show_default=True, help="What is trained.")
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N - 1.  [default: 3; under xares one, 42]"
)
@results_option
@json_option
def probe(
    *,
    tasks: tuple[str, ...],
    store_url: str,
    encoders: tuple[str, ...],
    protocol: Protocol,
    head: str,
    seeds: int | None,
    results_dir: Path | None,
    as_json: bool,
) -> None:
    """Track A: train a linear layer on the cached embeddings of each task, and score it."""

    def score(store: Store, manifest: Manifest, encoder: str | None) -> ScoreRecord:
        from featstore.probe import probe_task

        chosen = tuple(range(seeds)) if seeds is not None else None
        return probe_task(store, manifest, encoder=encoder, protocol=protocol, seeds=chosen, head=head)

    scores = score_tasks(tasks, store_url=store_url, encoders=encoders, score=score, results_dir=results_dir)
    tell_scores(scores, as_json=as_json)
