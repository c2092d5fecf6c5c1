"""Retrieval of clips by clips: metrics of ranked lists, and what each clip contributes as a query and as a document.

A clip is a query, and a document of all other queries. The delete-one jackknife (Efron and Stein 1981) removes it from
both: the effect on each list is computed exactly, without ranking again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.system import cores

__all__ = ["RETRIEVAL_METRICS", "Comparisons", "RetrievalScores", "score_ranked_clips"]

RETRIEVAL_METRICS = ("mAP", "recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_10")

_MAX_CELLS = 2**17
"""Number of similarities that are ranked at a time: a few arrays of 1 MiB, which stay in a core's cache."""

_CUTOFF = 10
_KS = (1, 5, _CUTOFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """A block of queries, compared with all clips.

    Attributes
    ----------
    rows : slice
        Clips that are the queries.
    similarities : float32 (queries, clips)
    comparable : bool (queries, clips)
        Whether a clip is a document of the query; its own clip is not.
    same : bool (queries, clips)
        Whether a clip has the class of the query, or a label in common.
    """

    rows: slice
    similarities: NDArray[np.float32]
    comparable: NDArray[np.bool_]
    same: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalScores:
    """Scores of ranked lists, by name of `RETRIEVAL_METRICS`.

    Attributes
    ----------
    values : mapping
        Means over the queries that have a relevant document.
    deviations : mapping
        float64 (clips,): score - score without the clip, as a query and as a document.
    n_queries : int
    """

    values: Mapping[str, float]
    deviations: Mapping[str, NDArray[np.float64]]
    n_queries: int


def score_ranked_clips(blocks: Iterable[Comparisons], *, n_clips: int) -> RetrievalScores:
    """Rank the documents of each query by similarity, and score the lists.

    Average precision is over the complete list, with the number of relevant documents as the divisor. Recall at k is
    the share of queries with a relevant document among the first k. nDCG has gains of 0 and 1 and the discount
    log2(1 + rank) (Järvelin and Kekäläinen 2002). Of documents with equal similarity, irrelevant ones are first:
    constant vectors retrieve nothing.

    Raises
    ------
    DataError
        No query has a relevant document.
    """
    n_metrics = len(RETRIEVAL_METRICS)
    scores, n_relevant = np.zeros((n_metrics, n_clips)), np.zeros(n_clips, np.int64)
    effects = np.zeros((n_metrics, n_clips))  # of each document, summed over the queries
    only = np.zeros((n_metrics, n_clips))  # scores of the queries of which a clip is the only relevant document
    n_only = np.zeros(n_clips)
    with ThreadPoolExecutor(cores()) as pool:
        for block in blocks:
            for scored in pool.map(partial(_score_lists, block), _parts(block)):  # in order: sums do not vary
                scores[:, scored.queries], n_relevant[scored.queries] = scored.scores, scored.n_relevant
                effects += scored.effects
                single = np.flatnonzero(scored.n_relevant == 1)
                documents = scored.first_relevant[single]
                n_only += np.bincount(documents, minlength=n_clips)
                for metric in range(n_metrics):
                    only[metric] += np.bincount(documents, scored.scores[metric, single], minlength=n_clips)
    is_query = n_relevant > 0
    n_queries = int(is_query.sum())
    if not n_queries:
        raise DataError("no clip has another clip with its class to find")
    values = scores[:, is_query].mean(axis=1)
    own = np.where(is_query, scores - values[:, None], 0.0)
    lost = only - n_only * values[:, None]  # without its only relevant document, a query is none
    deviations = (own + effects + lost) / max(n_queries - 1, 1)
    return RetrievalScores(
        values=dict(zip(RETRIEVAL_METRICS, values.tolist(), strict=True)),
        deviations=dict(zip(RETRIEVAL_METRICS, deviations, strict=True)),
        n_queries=n_queries,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """Scores (metrics, queries), and the effect of each document (metrics, clips), summed over the queries.

    An effect is the score of a query - its score without the document; 0 for the only relevant document. Queries
    without a relevant document are not in it.
    """

    queries: NDArray[np.int64]
    n_relevant: NDArray[np.int64]
    first_relevant: NDArray[np.int64]
    scores: NDArray[np.float64]
    effects: NDArray[np.float64]


def _parts(block: Comparisons) -> list[NDArray[np.int64]]:
    """Rows of a block that are ranked at a time."""
    n_queries, n_clips = block.similarities.shape
    step = max(1, _MAX_CELLS // n_clips)
    return [np.arange(start, min(start + step, n_queries)) for start in range(0, n_queries, step)]


def _score_lists(block: Comparisons, rows: NDArray[np.int64]) -> _Lists:
    relevant = block.same[rows] & block.comparable[rows]
    n_relevant = relevant.sum(axis=1)
    asked = np.flatnonzero(n_relevant)
    rows, relevant, n_relevant = rows[asked], relevant[asked], n_relevant[asked]
    n_clips = relevant.shape[1]
    order = _ranked(np.where(block.comparable[rows], -block.similarities[rows], np.inf), relevant)
    hit = np.take_along_axis(relevant, order, axis=1)
    m = n_relevant[:, None].astype(np.float64)
    average, effect = _average_precision(hit, m)
    top = min(_CUTOFF + 1, n_clips)
    scores, of_top, of_relevant = _first_ranks(hit[:, :top], m)
    effects = np.empty((1 + len(scores), n_clips))
    effects[0] = np.bincount(order.ravel(), effect.ravel(), minlength=n_clips)
    first = order[:, :top].ravel()
    for at, (exact, later) in enumerate(zip(of_top, of_relevant, strict=True), start=1):
        effects[at] = np.bincount(first, exact.ravel(), minlength=n_clips)
        if later.any():  # of relevant documents behind the first ranks
            effects[at] += later @ relevant
            effects[at] -= np.bincount(first, (hit[:, :top] * later[:, None]).ravel(), minlength=n_clips)
    return _Lists(
        queries=rows + block.rows.start,
        n_relevant=n_relevant,
        first_relevant=relevant.argmax(axis=1),
        scores=np.concatenate([average[None], scores]),
        effects=effects,
    )


def _ranked(distances: NDArray[np.float32], relevant: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Columns by distance; of equal ones, irrelevant ones first."""
    order = np.argsort(distances, axis=1)
    ranked = np.take_along_axis(distances, order, axis=1)
    tied = np.flatnonzero(((ranked[:, 1:] == ranked[:, :-1]) & np.isfinite(ranked[:, 1:])).any(axis=1))
    if len(tied):
        order[tied] = np.lexsort((relevant[tied], distances[tied]), axis=1)
    return order


def _average_precision(
    hit: NDArray[np.bool_], m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision (queries,) of hits by rank (queries, clips), and the effect of removing each rank."""
    rank = np.arange(1.0, hit.shape[1] + 1)
    nth = np.cumsum(hit, axis=1, dtype=np.float64)
    nth *= hit
    precision = nth / rank
    before = np.cumsum(precision, axis=1)
    total = before[:, -1:]
    average = total / m
    ahead = np.maximum(rank - 1.0, 1.0)  # the rank of a document after one ahead of it is removed
    raised = np.cumsum(precision / ahead, axis=1)  # nth / (rank - 1) - nth / rank
    effect = (raised - raised[:, -1:]) / m
    kept = np.cumsum((nth - hit) / ahead, axis=1)  # (nth - 1) / (rank - 1)
    without = (before - precision + kept[:, -1:] - kept) / np.maximum(m - 1.0, 1.0)
    np.copyto(effect, np.where(m > 1, average - without, 0.0), where=hit)
    return average[:, 0], effect


def _first_ranks(
    hit: NDArray[np.bool_], m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Recall at each k and nDCG: scores (metrics, queries), effects of the first ranks, and of later relevant ones."""
    n_queries, top = hit.shape
    rank = np.arange(1, top + 1)
    nth = np.cumsum(hit, axis=1)
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, top + 1)
    second = np.where((nth == 2).any(axis=1), (nth == 2).argmax(axis=1) + 1, top + 2)
    some = m[:, 0] > 1
    scores, effects, later = [], [], []
    for k in _KS:
        found = first <= k
        effect = np.zeros((n_queries, top))
        effect[(first == k + 1)[:, None] & (rank <= k)] = -1.0
        lost = (found & (second - 1 > k) & some).astype(np.float64)
        effect += lost[:, None] * (rank == first[:, None])
        scores.append(found.astype(np.float64))
        effects.append(effect)
        later.append(np.zeros(n_queries))
    discount = np.where(rank <= _CUTOFF, 1.0 / np.log2(rank + 1.0), 0.0)
    ideal = np.r_[0.0, np.cumsum(1.0 / np.log2(np.arange(1, _CUTOFF + 1) + 1.0))]
    best = ideal[np.minimum(m[:, 0], _CUTOFF).astype(int)]
    best_without = ideal[np.clip(m[:, 0] - 1, 1, _CUTOFF).astype(int)]
    gain = (hit * discount).sum(axis=1)
    risen = np.cumsum(hit * np.diff(-discount, prepend=0.0), axis=1)  # by one rank; the first is never behind another
    risen = risen[:, -1:] - risen
    score = gain / best
    effect = -risen / best[:, None]
    without = (gain[:, None] - discount + risen) / best_without[:, None]
    effect = np.where(hit, np.where(some[:, None], score[:, None] - without, 0.0), effect)
    scores.append(score)
    effects.append(effect)
    later.append(np.where(some, score - gain / best_without, 0.0))
    return np.stack(scores), np.stack(effects), np.stack(later)
