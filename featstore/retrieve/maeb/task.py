"""Score one task by mteb's definitions: `maeb_task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from featstore.errors import UsageError
from featstore.evaluation import Stopwatch, score_record
from featstore.evaluation.runner import ScoreFailure, attempt
from featstore.records import ScoreRecord
from featstore.retrieve.maeb.data import MtebData, read_data
from featstore.retrieve.maeb.measures import MEASURE_FUNCTIONS

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["MEASURES", "maeb_task"]

MEASURES: Mapping[str, tuple[str, ...]] = {
    "clip": ("classification", "clustering", "pairs", "reranking", "retrieval"),
    "multilabel": ("multilabel", "pairs", "reranking", "retrieval"),
}
"""Types of mteb tasks that the labels of a kind of task admit, in the order of their records."""

METRICS: Mapping[str, str] = {
    "classification": "accuracy",
    "multilabel": "lrap",
    "clustering": "v_measure",
    "pairs": "max_ap",
    "reranking": "map_at_1000",
    "retrieval": "ndcg_at_10",
}
"""Main score of each type in MAEB, by mteb's name."""


def maeb_task(
    store: Store, manifest: Manifest, *, encoder: str | None = None, measures: Sequence[str] | None = None
) -> tuple[ScoreRecord | ScoreFailure, ...]:
    """Score a task's stored embeddings by the definitions of mteb's audio benchmark (MAEB), without mteb.

    A clip has one vector, the mean of its windows weighted by their seconds. Its vector is used as it is; only cosine
    similarities scale it. Nothing is selected, and validation clips are not used.

    Parameters
    ----------
    store : Store
    manifest : Manifest
        Of kind ``clip`` or ``multilabel``.
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; optional where the store has one encoder.
    measures : sequence of str, optional
        Types of mteb tasks; by default all that the labels admit, see `MEASURES`.

    Returns
    -------
    tuple of ScoreRecord or ScoreFailure
        One for each type; one that fails does not stop the others. A record is of protocol ``maeb`` and track B;
        ``settings["measure"]`` is the type, ``metric`` mteb's main
        score, and ``seeds`` the numbers of the random draws whose mean is the value.

    Raises
    ------
    UsageError
        The kind of the task, or its labels, do not admit a type.
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid, or do not admit the only type.
    """
    chosen = _plan(manifest, measures)
    watch = Stopwatch()
    with watch("read"):
        data = read_data(store, manifest, encoder=encoder)
    if len(chosen) == 1:
        return (_record_of(chosen[0], data, watch.seconds),)
    return tuple(
        attempt(
            partial(_record_of, measure, data, watch.seconds if measure == chosen[0] else {}),
            task=manifest.name,
            encoder=encoder,
            measure=measure,
        )
        for measure in chosen
    )


def _record_of(measure: str, data: MtebData, seconds: Mapping[str, float]) -> ScoreRecord:
    own = Stopwatch()
    with own("score"):
        found = MEASURE_FUNCTIONS[measure](data)
    return score_record(
        found.task,
        found.scores,
        track="B",
        seeds=found.seeds,
        settings={"measure": measure, **found.settings},
        seconds={**seconds, **own.seconds},
        libraries=("sklearn",),
        details=found.details,
        n_train=found.n_train,
        n_valid=[0] * len(found.n_train),
        metric=METRICS[measure],
    )


def _plan(manifest: Manifest, measures: Sequence[str] | None) -> tuple[str, ...]:
    if manifest.kind not in MEASURES:
        raise UsageError(
            f"task {manifest.name} is of kind {manifest.kind!r}; protocol maeb scores {' and '.join(MEASURES)}"
        )
    admitted = MEASURES[manifest.kind]
    chosen = admitted if measures is None else tuple(measures)
    for measure in chosen:
        if measure not in admitted:
            raise UsageError(
                f"task {manifest.name} of kind {manifest.kind!r} has no mteb task {measure!r}; there are "
                f"{', '.join(admitted)}"
            )
    return chosen
