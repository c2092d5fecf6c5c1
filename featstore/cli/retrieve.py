"""`featstore retrieve`: Track B."""

from __future__ import annotations

from typing import Any

import click

from featstore.cli.evaluate import print_scores
from featstore.cli.options import (
    encoder_names,
    is_quiet,
    jobs_option,
    json_option,
    parse_names,
    parse_numbers,
    protocol_option,
    report_problem,
    results_option,
    shots_option,
    store_option,
    tasks_argument,
)

__all__ = ["retrieve"]


def _print_line(line: str) -> None:
    """Print a line about a skipped task or an index; a module-level function, which --jobs can pickle."""
    report_problem(line)


def _ignore(_: str) -> None:
    """Print nothing."""


@click.command()
@tasks_argument
@store_option()
@encoder_names
@protocol_option("strict", "xares", "maeb")
@click.option(
    "--measure",
    callback=parse_names,
    metavar="NAME,NAME",
    help="knn: vote of the nearest neighbours. retrieval: clips find clips of their class. clustering: k-means and "
    "HDBSCAN. pairs: same class or not. zero-shot, text: texts of the classes classify and find clips, or captions and "
    "clips find each other, with a text tower. Several read the embeddings once.  [default: knn; of maeb, all of "
    "mteb's that the task has]",
)
@click.option(
    "--k",
    callback=parse_numbers,
    metavar="N,N",
    help="Number of neighbours; several share one search. The score is for the task's own number if it is among them, "
    "else for the first.  [default: the task's, 10]",
)
@click.option(
    "--index",
    type=click.Choice(["flat", "hnsw", "ivf", "ivfpq"]),
    default="flat",
    show_default=True,
    help="FAISS index. flat is exact; for the others the recall against flat is printed. ivf and ivfpq of 100,000 "
    "windows or more are cached in STORE.index.",
)
@shots_option
@jobs_option
@results_option
@json_option
def retrieve(*, tasks: tuple[str, ...], k: tuple[int, ...], as_json: bool, **settings: Any) -> None:
    """Track B: score k nearest neighbours, and other measures without training.

    Reads the cached embeddings of each task and encoder; nothing is trained.
    """
    from featstore import api
    from featstore.cli.progress import scoring

    with scoring() as progress:
        notify = _ignore if is_quiet() else _print_line
        scores = api.retrieve(tasks, k=k or None, progress=progress, notify=notify, **settings)
    print_scores(scores, as_json=as_json)
