"""Retrieval across modalities: ranks of the relevant documents of each query.

Queries and documents are vectors, and each belongs to a clip: a document is relevant to the queries of its clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError

__all__ = ["RecallAt", "average_precision_at", "relevant_ranks"]

# Similarities of a block of queries are in memory at once: 16 MiB of float32, and masks of the same size.
MAX_BLOCK_CELLS = 2**22


def relevant_ranks(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    *,
    query_clip: NDArray[np.int64],
    document_clip: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Rank every query's relevant documents among all documents by dot product.

    Ties count against the relevant document: documents with the same similarity rank before it, so that constant
    vectors retrieve nothing. NaN similarities rank last.

    Parameters
    ----------
    queries : float32 (queries, dim)
    documents : float32 (documents, dim)
    query_clip : int64 (queries,)
    document_clip : int64 (documents,)

    Returns
    -------
    int64 (queries, most)
        Ascending ranks from 1. ``most`` is the largest number of documents of one clip; the rows of other queries are
        padded with ``documents + 1``.
    """
    relevant, n_relevant = _relevant_documents(query_clip, document_clip)
    ranks = np.full(relevant.shape, len(documents) + 1, dtype=np.int64)
    block = max(1, MAX_BLOCK_CELLS // max(1, len(documents)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        similarity = queries[rows] @ documents.T
        similarity[np.isnan(similarity)] = -np.inf
        ranks[rows] = _block_ranks(similarity, relevant[rows], n_relevant[rows], nowhere=len(documents) + 1)
    return ranks


def average_precision_at(ranks: NDArray[np.int64], *, k: int, n_relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average precision of the first ``k`` documents, for each query.

    The sum of the precision at every relevant document among them, divided by the largest possible number of relevant
    documents: the lower of ``k`` and ``n_relevant``. For one relevant document it is 1 / rank, or 0.

    Parameters
    ----------
    ranks : int64 (queries, most)
        From `relevant_ranks`.
    k : int
    n_relevant : int64 (queries,)
    """
    place = np.arange(1, ranks.shape[1] + 1)
    precision = np.where((ranks <= k) & (place <= n_relevant[:, None]), place / ranks, 0.0)
    return np.asarray(precision.sum(axis=1) / np.minimum(k, n_relevant), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallAt:
    """Share of queries with a relevant document among the first ``k``, averaged over the directions of retrieval.

    See `featstore.metrics.Metric`. ``y_true`` int64 (queries,) is the direction of each query, ``y_score`` float
    (queries,) the rank of its first relevant document. Directions have equal weight, whatever their numbers of queries.
    """

    k: int
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``recall_at_1``."""
        return f"recall_at_{self.k}"

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Mean over directions. Raises DataError if there is no query."""
        if not len(y_true):
            raise DataError(f"{self.name} needs at least one query")
        return float(np.mean(self.per_class(y_true, y_score)[np.unique(y_true)]))

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Mean over directions of the share of found weight, for each column of ``weights``."""
        found = y_score <= self.k
        shares = []
        for direction in np.unique(y_true):
            mine = weights[y_true == direction].astype(np.float64)
            hits, total = found[y_true == direction] @ mine, mine.sum(axis=0)
            shares.append(np.divide(hits, total, out=np.full(len(total), np.nan), where=total > 0))
        return np.asarray(np.mean(shares, axis=0), dtype=np.float64)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Recall of each direction."""
        found, queries = np.bincount(y_true, weights=y_score <= self.k), np.bincount(y_true)
        return np.asarray(np.divide(found, queries, out=np.full(len(queries), np.nan), where=queries > 0))


def _relevant_documents(
    query_clip: NDArray[np.int64], document_clip: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents of each query's clip, int64 (queries, most), padded with 0, and their number."""
    order = np.argsort(document_clip, kind="stable")
    ordered = document_clip[order]
    first = np.searchsorted(ordered, query_clip, side="left")
    n_relevant = np.searchsorted(ordered, query_clip, side="right") - first
    at = first[:, None] + np.arange(n_relevant.max(initial=0))
    within = np.arange(at.shape[1]) < n_relevant[:, None]
    return np.where(within, order[np.where(within, at, 0)], 0), n_relevant


def _block_ranks(
    similarity: NDArray[np.float32], relevant: NDArray[np.int64], n_relevant: NDArray[np.int64], *, nowhere: int
) -> NDArray[np.int64]:
    exists = np.arange(relevant.shape[1]) < n_relevant[:, None]
    near = np.where(exists, np.take_along_axis(similarity, relevant, axis=1), -np.inf)
    near = -np.sort(-near, axis=1)
    ranks = np.full(relevant.shape, nowhere, dtype=np.int64)
    for place in range(relevant.shape[1]):
        threshold = near[:, place : place + 1]
        others = (similarity >= threshold).sum(axis=1) - ((near >= threshold) & exists).sum(axis=1)
        ranks[:, place] = np.where(exists[:, place], others + place + 1, nowhere)
    return ranks
