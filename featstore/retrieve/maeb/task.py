"""Score one type of mteb task by mteb's definitions: `score_maeb`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from featstore.evaluation import Stopwatch, score_record
from featstore.records import ScoreRecord
from featstore.retrieve.maeb.data import MtebData
from featstore.retrieve.maeb.measures import MEASURE_FUNCTIONS

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["METRICS", "score_maeb", "why_no_type"]

METRICS: Mapping[str, str] = {
    "classification": "accuracy",
    "multilabel": "lrap",
    "clustering": "v_measure",
    "pairs": "max_ap",
    "reranking": "map_at_1000",
    "retrieval": "ndcg_at_10",
}
"""Types of mteb tasks, and the main score of each in MAEB by mteb's name."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "classification": ("clip",),
    "multilabel": ("multilabel",),
    "clustering": ("clip",),
    "pairs": ("clip", "multilabel"),
    "reranking": ("clip", "multilabel"),
    "retrieval": ("clip", "multilabel"),
}


def why_no_type(measure: str, manifest: Manifest) -> str:
    """Return why a task does not admit a type of mteb task, or an empty text."""
    kinds = KINDS[measure]
    if manifest.kind in kinds:
        return ""
    return f"is of kind {manifest.kind!r}, and mteb's {measure} needs {' or '.join(map(repr, kinds))}"


def score_maeb(data: MtebData, measure: str) -> ScoreRecord:
    """Score a task's stored embeddings by the definitions of mteb's audio benchmark (MAEB), without mteb.

    A clip has one vector, the mean of its windows weighted by their seconds. Its vector is used as it is; only cosine
    similarities scale it. Nothing is selected, and validation clips are not used.

    Parameters
    ----------
    data : MtebData
        From `featstore.retrieve.maeb.data.read_data`.
    measure : str
        Type of mteb task; one of `METRICS`.

    Returns
    -------
    ScoreRecord
        Of protocol ``maeb`` and track B; ``settings["measure"]`` is the type, ``metric`` mteb's main score, and
        ``seeds`` the numbers of the random draws whose mean is the value.

    Raises
    ------
    LabelError, DataError
        The labels or the embeddings do not admit the type.
    """
    watch = Stopwatch()
    with watch("score"):
        found = MEASURE_FUNCTIONS[measure](data)
    return score_record(
        found.task,
        found.scores,
        track="B",
        metric=METRICS[measure],
        seeds=found.seeds,
        settings={"measure": measure, **found.settings},
        seconds=watch.seconds,
        libraries=("sklearn",),
        details=found.details,
        n_train=found.n_train,
        n_valid=[0] * len(found.n_train),
    )
