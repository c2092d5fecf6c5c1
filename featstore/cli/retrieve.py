"""`featstore retrieve`: Track B."""

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
    parse_numbers,
    protocol_option,
    results_option,
    say,
    shots_option,
    store_option,
    tasks_argument,
)
from featstore.errors import UsageError

if TYPE_CHECKING:
    from featstore.records import Protocol, ScoreRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["retrieve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveScorer:
    """`featstore.retrieve.retrieve_task` with its options."""

    protocol: Protocol
    ks: tuple[int, ...] | None
    index: str
    shots: tuple[int, ...]

    def __call__(self, store: Store, manifest: Manifest, encoder: str | None) -> ScoreRecord:
        """Score one task by one encoder."""
        from featstore.retrieve import retrieve_task

        return retrieve_task(
            store,
            manifest,
            encoder=encoder,
            protocol=self.protocol,
            k=self.ks,
            index=self.index,
            shots=self.shots,
            tell=lambda line: say(f"featstore: {line}", err=True),
        )


@click.command()
@tasks_argument
@store_option
@encoder_names
@protocol_option
@click.option(
    "--k",
    "ks",
    callback=parse_numbers,
    metavar="N,N",
    help="Neighbours that vote; one search answers several. The score is that of the task's own number where it is "
    "among them, else of the first.  [default: the task's, 10]",
)
@click.option(
    "--index",
    type=click.Choice(["flat", "hnsw", "ivf", "ivfpq"]),
    default="flat",
    show_default=True,
    help="FAISS index: flat is exact; of the others the recall against it is measured and printed. ivf and ivfpq of "
    "100,000 windows or more are made once and kept beside the store, in STORE.index.",
)
@shots_option
@jobs_option
@results_option
@json_option
def retrieve(
    *,
    tasks: tuple[str, ...],
    store_url: str,
    encoders: tuple[str, ...],
    protocol: Protocol,
    ks: tuple[int, ...],
    index: str,
    shots: tuple[int, ...],
    jobs: int,
    results_dir: Path | None,
    as_json: bool,
) -> None:
    """Track B: let the nearest cached neighbours of each test clip vote on its label. Nothing is trained."""
    scored = score_tasks(
        _with_neighbours(tasks),
        store_url=store_url,
        encoders=encoders,
        score=RetrieveScorer(protocol=protocol, ks=ks or None, index=index, shots=shots),
        results_dir=results_dir,
        jobs=jobs,
    )
    tell_scores(scored, as_json=as_json)


def _with_neighbours(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out, and tell, tasks without Track B among several; one alone is left to say so itself."""
    from featstore.tasks import find_task

    if len(tasks) == 1:
        return tasks
    without = [task for task in tasks if not find_task(task).retrieve.enabled]
    for task in without:
        say(f"featstore: {task} has no nearest-neighbour track: left out", err=True)
    if len(without) == len(tasks):
        raise UsageError("none of these tasks has a nearest-neighbour track: `featstore probe` scores them")
    return tuple(task for task in tasks if task not in without)
