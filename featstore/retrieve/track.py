"""One task's nearest-neighbour score, from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.metrics import find_metric
from featstore.records import Protocol, ScoreRecord
from featstore.retrieve.scaling import unit_columns, unit_rows
from featstore.retrieve.vote import neighbour_vote
from featstore.splits import Round
from featstore.taskdata import (
    Outcome,
    Stopwatch,
    TaskData,
    load_task,
    score_outcomes,
    score_record,
)

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.store import Store

__all__ = ["retrieve_task"]

KINDS = ("clip", "multilabel")
INDEXES = ("flat",)

Scaling = Callable[[NDArray[np.float32]], NDArray[np.float32]]
SCALING_OF_TRAIN: Mapping[Protocol, Scaling] = {"strict": unit_rows, "xares": unit_columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How neighbours are looked for: ``k`` as asked for, a round of fewer windows takes them all."""

    k: int
    temperature: float
    index: str


def retrieve_task(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None = None,
    protocol: Protocol = "strict",
    k: int | None = None,
    index: str = "flat",
) -> ScoreRecord:
    """Score a task's cached embeddings by the vote of their nearest neighbours in the training clips.

    ``strict`` compares by cosine, and the windows of a clip vote together. ``xares`` scales the training embeddings per
    feature over all samples, and the queries per sample.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; not needed where the store holds one encoder.
    protocol : "strict" or "xares"
    k : int, optional
        Neighbours; the manifest's number by default. Clamped to the training windows; the record's settings tell.
    index : "flat"
        Exact search.

    Raises
    ------
    UsageError
        The task has no nearest-neighbour track, or ``k``, the index or the metric is not one there is.
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The labels or the embeddings cannot be learned from.
    """
    search = Search(k=manifest.retrieve.k if k is None else k, temperature=manifest.retrieve.temperature, index=index)
    _check(manifest, search)
    find_metric(manifest.metric, protocol)

    watch = Stopwatch()
    with watch("read"):
        task = load_task(store, manifest, encoder=encoder, protocol=protocol)
    outcomes = [_outcome(task, each, search, watch) for each in task.rounds]
    with watch("score"):
        scores = score_outcomes(task, outcomes)
    smallest = min(len(task.windows_of(each.reference)) for each in task.rounds)
    return score_record(
        task,
        outcomes,
        scores,
        track="B",
        seeds=(),
        settings={"k": min(search.k, smallest), "temperature": search.temperature, "index": search.index},
        seconds=watch.seconds,
        libraries=("faiss",),
        details={"k_asked": search.k},
    )


def _check(manifest: Manifest, search: Search) -> None:
    if manifest.kind not in KINDS:
        raise UsageError(f"task {manifest.name} is of kind {manifest.kind!r}, which has no nearest-neighbour track")
    if not manifest.retrieve.enabled:
        raise UsageError(
            f"task {manifest.name} has no nearest-neighbour track: its manifest says retrieve.enabled = false"
        )
    if search.k < 1:
        raise UsageError(f"k must be at least 1, got {search.k}")
    if search.index not in INDEXES:
        raise UsageError(f"there is no index {search.index!r}; there are {', '.join(INDEXES)}")


def _outcome(task: TaskData, each: Round, search: Search, watch: Stopwatch) -> Outcome:
    with watch("index"):
        from featstore.retrieve.index import build_index
        from featstore.retrieve.index import search as nearest

        reference = task.windows_of(each.reference)
        built = build_index(SCALING_OF_TRAIN[task.protocol](task.X[reference]))
    with watch("search"):
        samples = task.samples(each.test)
        found = nearest(built, unit_rows(task.X[samples.windows]), k=min(search.k, len(reference)))
    with watch("score"):
        votes = neighbour_vote(
            found.similarities,
            task.targets.values[task.clip[reference[found.rows]]],
            n_classes=len(task.classes),
            temperature=search.temperature,
        )
        y_scores = samples.vote(votes)
    return Outcome(n_train=len(each.reference), n_valid=0, samples=samples, y_scores=(y_scores,))
