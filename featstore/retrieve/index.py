"""Inner-product search of rows in memory, through an index. With `featstore.retrieve.ivf` the door to FAISS."""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from featstore.retrieve.index_plan import IvfPlan, plan_ivf
from featstore.retrieve.ivf import train_index
from featstore.retrieve.knn import IndexName, Neighbours, reranked
from featstore.retrieve.unit_vectors import padded

__all__ = ["Searcher"]

HNSW_LINKS = 32
HNSW_BUILD_BEAM = 80
HNSW_SEARCH_BEAM = 64
IVF_ROWS_PER_LIST = 64
IVF_SHARE_SEARCHED = 1 / 16

# Queries x rows x dim: below it FAISS is done before torch is imported.
MIN_WORK_TO_ROUND = 10**11


class Searcher:
    """Rows to search, by one kind of index.

    ``flat`` is exact. ``hnsw`` is a graph (Malkov and Yashunin 2018); its links depend on the order in which threads
    come, so its last neighbours may differ between runs. ``ivf`` searches a sixteenth of the lists of a k-means;
    ``ivfpq`` has short codes in its lists, and compares the best ten for each neighbour (at least a hundred) again.

    Parameters
    ----------
    X : float32 (n, dim)
    """

    def __init__(self, X: NDArray[np.float32], name: IndexName) -> None:
        self.X = X
        self._name = name
        self._index: Any = None if name == "flat" else _approximate(X, name)

    def search(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        """Find the ``k`` rows of largest inner product with each query (queries, dim), as the index finds them.

        There are at least ``k`` rows. A query for which an index finds fewer is compared with all of them.
        """
        if self._index is None:
            return self.search_exactly(queries, k=k)
        if self._name == "hnsw":
            self._index.hnsw.efSearch = max(HNSW_SEARCH_BEAM, 2 * k)
        if self._name == "ivfpq":
            found = self._search_codes(queries, k=k)
        else:
            similarities, rows = self._index.search(queries, k)
            found = Neighbours(similarities=similarities, rows=rows)
        sure = np.asarray(found.rows >= 0).all(axis=1)
        return self._completed(found, np.asarray(sure), queries)

    def search_exactly(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        """Search whatever the index; large products are rounded first where that is faster and provably the same."""
        if len(queries) * self.X.size >= MIN_WORK_TO_ROUND:
            from featstore.retrieve import exact_search as exact

            if exact.bfloat16_is_faster(self.X.shape[1]):
                found = exact.search_rounded(exact.round_rows(self.X), queries, k=k)
                return self._completed(found.neighbours, found.proved, queries)
        return self._compare_all(queries, k=k)

    def _search_codes(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        plan = _plan_of_codes(self.X)
        _, candidates = self._index.search(padded(queries, plan), plan.n_candidates(k))
        return reranked(candidates, queries, k=k, vectors_of=lambda rows: self.X[rows])

    def _compare_all(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        """What FAISS's flat index does, without its copy of the rows."""
        similarities, rows = faiss.knn(queries, self.X, k, metric=faiss.METRIC_INNER_PRODUCT)
        return Neighbours(similarities=similarities, rows=rows)

    def _completed(self, found: Neighbours, sure: NDArray[np.bool_], queries: NDArray[np.float32]) -> Neighbours:
        """Search again, exactly, for the queries whose neighbours are not sure."""
        unsure = np.flatnonzero(~sure)
        if len(unsure):
            k = found.rows.shape[1]
            exact = self._compare_all(queries[unsure], k=k)
            found.similarities[unsure], found.rows[unsure] = exact.similarities, exact.rows
        return found


def _plan_of_codes(X: NDArray[np.float32]) -> IvfPlan:
    return plan_ivf(len(X), X.shape[1], "ivfpq")


def _approximate(X: NDArray[np.float32], name: IndexName) -> faiss.Index:
    n_rows, dim = X.shape
    index: faiss.Index
    if name == "ivfpq":
        plan = _plan_of_codes(X)
        wide = padded(X, plan)
        index = train_index(plan, wide)
        index.nprobe = max(1, math.ceil(index.nlist * IVF_SHARE_SEARCHED))
        index.add(wide)
        return index
    if name == "hnsw":
        index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD_BEAM
    else:
        n_lists = max(1, n_rows // IVF_ROWS_PER_LIST if n_rows < 2**18 else 4 * math.isqrt(n_rows))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, math.ceil(n_lists * IVF_SHARE_SEARCHED))
        index.cp.min_points_per_centroid = 1  # a small set is no reason to write to stderr
        index.train(X)
    index.add(X)
    return index
