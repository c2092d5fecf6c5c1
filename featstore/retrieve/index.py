"""Inner-product search. The one door to FAISS."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["Neighbours", "build_index", "search"]


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


def build_index(X: NDArray[np.float32]) -> faiss.Index:
    """Build an exact index of rows (n, dim)."""
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    return index


def search(index: faiss.Index, queries: NDArray[np.float32], *, k: int) -> Neighbours:
    """Find the ``k`` rows of largest inner product with each query (queries, dim); the index holds at least ``k``."""
    similarities, rows = index.search(queries, k)
    return Neighbours(similarities=similarities, rows=rows)
