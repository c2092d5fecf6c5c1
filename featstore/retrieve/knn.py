"""Nearest neighbours as arrays: exclusion of own clips, ranking metrics, re-ranking and recall. Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["IndexName", "Neighbours", "evenly", "ranking_scores", "recall_of", "reranked", "without_own"]

IndexName = Literal["flat", "hnsw", "ivf", "ivfpq"]

# 100 candidates each of 1,000 numbers: 26 MB.
QUERIES_RERANKED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest rows of an index, nearest first.

    Attributes
    ----------
    similarities : float32 (queries, k)
    rows : int64 (queries, k)
    """

    similarities: NDArray[np.float32]
    rows: NDArray[np.int64]

    def at(self, places: NDArray[np.int64]) -> Neighbours:
        """Return the neighbours at some places of each query, (queries, k)."""
        return Neighbours(
            similarities=np.take_along_axis(self.similarities, places, axis=1),
            rows=np.take_along_axis(self.rows, places, axis=1),
        )


def without_own(found: Neighbours, *, own: NDArray[np.int64], clip_of_row: NDArray[np.int64], k: int) -> Neighbours:
    """Exclude the windows of each query's own clip, and keep the ``k`` nearest of the rest.

    Parameters
    ----------
    found : Neighbours
        At least ``k`` plus the number of windows of the largest clip.
    own : int64 (queries,)
        Clip of each query.
    clip_of_row : int64 (n,)
        Clip of each row of the index.
    """
    is_own = clip_of_row[found.rows] == own[:, None]
    return found.at(np.argsort(is_own, axis=1, kind="stable")[:, :k])


def ranking_scores(
    relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64], *, ks: tuple[int, ...]
) -> dict[str, Any]:
    """Ranking metrics of neighbours.

    Parameters
    ----------
    relevant : bool (queries, k)
        Whether each neighbour is relevant, nearest first.
    n_relevant : int64 (queries,)
        Number of relevant rows in the index; queries without any are skipped.

    Returns
    -------
    mapping
        ``recall``: by k, the fraction of queries with a relevant row among the first k. ``map``: mean average
        precision at the largest k, with min(n_relevant, k) as the number of possible hits.
    """
    some = n_relevant > 0
    if not some.any():
        return {"queries": 0, "k": relevant.shape[1], "map": None, "recall": {}}
    relevant, n_relevant = relevant[some], n_relevant[some]
    ranks = np.arange(1, relevant.shape[1] + 1)
    precision = np.cumsum(relevant, axis=1) / ranks
    average = (precision * relevant).sum(axis=1) / np.minimum(n_relevant, relevant.shape[1])
    return {
        "queries": int(some.sum()),
        "k": relevant.shape[1],
        "map": float(average.mean()),
        "recall": {str(k): float(relevant[:, :k].any(axis=1).mean()) for k in ks},
    }


def reranked(
    rows: NDArray[np.int64],
    queries: NDArray[np.float32],
    *,
    k: int,
    vectors_of: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> Neighbours:
    """Compare candidates with the exact vectors, and keep the ``k`` nearest.

    Parameters
    ----------
    rows : int64 (queries, n)
        At least ``k`` candidates each; -1 for none.
    queries : float32 (queries, dim)
    vectors_of : callable
        Maps ascending rows (m,) to their vectors, float32 (m, dim).
    """
    similarities = np.full(rows.shape, -np.inf, np.float32)
    for start in range(0, len(rows), QUERIES_RERANKED_AT_ONCE):
        some = slice(start, start + QUERIES_RERANKED_AT_ONCE)
        distinct, place = np.unique(rows[some], return_inverse=True)
        vectors = vectors_of(np.maximum(distinct, 0))
        for at, places in enumerate(place.reshape(rows[some].shape), start=start):
            similarities[at] = vectors[places] @ queries[at]
    similarities[rows < 0] = -np.inf
    return Neighbours(similarities=similarities, rows=rows).at(np.lexsort((rows, -similarities), axis=1)[:, :k])


def evenly(n: int, *, wanted: int) -> NDArray[np.int64]:
    """``wanted`` of ``n`` row numbers, or all if there are fewer, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.int64))


def recall_of(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Recall: fraction of the wanted rows (queries, k) that were found for their query; 1 if none is wanted."""
    if not wanted.size:
        return 1.0
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(wanted, found, strict=True)]))
