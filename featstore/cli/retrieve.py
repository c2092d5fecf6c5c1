"""`featstore retrieve`: Track B."""

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

__all__ = ["retrieve"]


@click.command()
@tasks_argument
@store_option
@encoder_names
@protocol_option
@click.option("--k", type=click.IntRange(min=1), metavar="N", help="Neighbours that vote.  [default: the task's, 10]")
@click.option(
    "--index", type=click.Choice(["flat"]), default="flat", show_default=True, help="FAISS index: flat is exact."
)
@results_option
@json_option
def retrieve(
    *,
    tasks: tuple[str, ...],
    store_url: str,
    encoders: tuple[str, ...],
    protocol: Protocol,
    k: int | None,
    index: str,
    results_dir: Path | None,
    as_json: bool,
) -> None:
    """Track B: let the nearest cached neighbours of each test clip vote on its label. Nothing is trained."""

    def score(store: Store, manifest: Manifest, encoder: str | None) -> ScoreRecord:
        from featstore.retrieve import retrieve_task

        return retrieve_task(store, manifest, encoder=encoder, protocol=protocol, k=k, index=index)

    scores = score_tasks(tasks, store_url=store_url, encoders=encoders, score=score, results_dir=results_dir)
    tell_scores(scores, as_json=as_json)
