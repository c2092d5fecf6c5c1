"""`featstore probe`: Track A."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli.evaluate import print_scores
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

__all__ = ["probe"]


@click.command()
@tasks_argument
@store_option()
@encoder_names
@protocol_option("strict", "xares")
@click.option(
    "--head",
    type=click.Choice(["logistic", "ridge", "linear", "sweep", "layer-mix", "logreg"]),
    help="logistic, ridge: converged linear models, regularisation chosen on validation data. sweep: minibatches, "
    "learning rate chosen on validation data. linear: the schedule of X-ARES. layer-mix: the strict "
    "head on a learned weighted sum of all stored layers of an encoder. logreg: same as logistic.  "
    "[default: the manifest's, else by kind; under xares linear]",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N - 1.  [default: 3; under xares one, 42]"
)
@shots_option
@click.option(
    "--split-by",
    metavar="FIELD",
    help="Score five folds of all clips that keep each group together, and five random folds, and print the "
    "difference. FIELD of the clip's JSON holds the group; `group`: that of the manifest.",
)
@jobs_option
@results_option
@json_option
def probe(*, tasks: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Track A: train and score linear models.

    Reads the cached embeddings of each task and encoder; no audio, encoder or GPU is needed.
    """
    from featstore import api
    from featstore.cli.progress import scoring

    with scoring() as progress:
        scores = api.probe(tasks, progress=progress, **settings)
    print_scores(scores, as_json=as_json)
