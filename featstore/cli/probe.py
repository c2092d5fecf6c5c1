"""`featstore probe`: Track A."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featstore.cli.evaluate import score_tasks, tell_scores
from featstore.cli.options import (
    encoder_names,
    jobs_option,
    json_option,
    protocol_option,
    results_option,
    shots_option,
    store_option,
    tasks_argument,
)

if TYPE_CHECKING:
    from featstore.records import Protocol, ScoreRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScorer:
    """`featstore.probe.probe_task` with its options."""

    protocol: Protocol
    seeds: tuple[int, ...] | None
    head: str | None
    shots: tuple[int, ...]

    def __call__(self, store: Store, manifest: Manifest, encoder: str | None) -> ScoreRecord:
        """Score one task by one encoder."""
        from featstore.probe import probe_task

        return probe_task(
            store,
            manifest,
            encoder=encoder,
            protocol=self.protocol,
            seeds=self.seeds,
            head=self.head,
            shots=self.shots,
        )


@click.command()
@tasks_argument
@store_option
@encoder_names
@protocol_option
@click.option(
    "--head",
    type=click.Choice(["logistic", "ridge", "linear", "sweep", "logreg"]),
    help="logistic, ridge: converged linear models, their strength chosen by validation. sweep: minibatches at a "
    "learning rate that validation chooses. linear: X-ARES's schedule, as the manifest says. logreg: logistic.  "
    "[default: the manifest's, else by kind; under xares linear]",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N - 1.  [default: 3; under xares one, 42]"
)
@shots_option
@jobs_option
@results_option
@json_option
def probe(
    *,
    tasks: tuple[str, ...],
    store_url: str,
    encoders: tuple[str, ...],
    protocol: Protocol,
    head: str | None,
    seeds: int | None,
    shots: tuple[int, ...],
    jobs: int,
    results_dir: Path | None,
    as_json: bool,
) -> None:
    """Track A: train a linear model on the cached embeddings of each task, and score it."""
    score = ProbeScorer(
        protocol=protocol, seeds=tuple(range(seeds)) if seeds is not None else None, head=head, shots=shots
    )
    scored = score_tasks(tasks, store_url=store_url, encoders=encoders, score=score, results_dir=results_dir, jobs=jobs)
    tell_scores(scored, as_json=as_json)
