"""Normalise embeddings, and compute the best cosine of stored vectors with queries."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorRows", "best_cosines", "unit_columns", "unit_rows"]


# Minimum norm to divide by, as in torch.nn.functional.normalize: a zero vector stays zero.
MIN_NORM = 1e-12


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row (n, dim) to unit length, so that inner products are cosines."""
    norms = np.sqrt(np.einsum("nd,nd->n", X, X))
    return np.asarray(X / np.maximum(norms, MIN_NORM)[:, None])


def unit_columns(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each column (n, dim) to unit length: every feature is divided by its norm over all samples.

    Not a cosine, but what X-ARES does: it normalises the transposed training matrix along its sample axis.
    """
    norms = np.sqrt(np.einsum("nd,nd->d", X, X))
    return np.asarray(X / np.maximum(norms, MIN_NORM))


# A block stays in the cache of a core while its norms and products are computed.
BLOCK_BYTES = 1 << 20
MAX_THREADS = 8


class VectorRows(Protocol):
    """Vectors that are read in slices."""

    def __len__(self) -> int:
        """How many."""

    def slice(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop), float32 (rows, dim)."""


def best_cosines(rows: VectorRows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row with its most similar query.

    Uses the memory of one block of rows in addition to the result.

    Parameters
    ----------
    queries : float32 (queries, dim)
        At least one query.

    Returns
    -------
    float32 (rows,)
        Minus infinity for a row that is not finite.
    """
    wanted = unit_rows(queries).T
    step = max(1, BLOCK_BYTES // max(1, 4 * queries.shape[1]))
    best = np.empty(len(rows), np.float32)

    def fill(start: int) -> None:
        block = rows.slice(start, min(start + step, len(rows)))
        with np.errstate(invalid="ignore", over="ignore"):
            norms = np.maximum(np.sqrt(np.einsum("nd,nd->n", block, block)), MIN_NORM)
            cosines = (block @ wanted).max(axis=1) / norms
        best[start : start + len(block)] = np.where(np.isfinite(cosines), np.clip(cosines, -1.0, 1.0), -np.inf)

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(0, len(rows), step)):
            pass
    return best
