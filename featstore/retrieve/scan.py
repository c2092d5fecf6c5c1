"""How embeddings are scaled, and one query over stored vectors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorRows", "best_cosines", "unit_columns", "unit_rows"]


# A vector of zeros stays one: the smallest norm that is divided by, as in torch.nn.functional.normalize.
MIN_NORM = 1e-12


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row (n, dim) at unit length: inner products become cosines."""
    norms = np.sqrt(np.einsum("nd,nd->n", X, X))
    return np.asarray(X / np.maximum(norms, MIN_NORM)[:, None])


def unit_columns(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each column (n, dim) at unit length: every feature is scaled by its norm over all samples.

    Not a cosine, but what X-ARES publishes: it normalises the transposed training matrix along its sample axis.
    """
    norms = np.sqrt(np.einsum("nd,nd->d", X, X))
    return np.asarray(X / np.maximum(norms, MIN_NORM))


# A block stays in a core's cache while its norms and its products are taken.
BLOCK_BYTES = 1 << 20
MAX_THREADS = 8


class VectorRows(Protocol):
    """Vectors that are read piece by piece."""

    def __len__(self) -> int:
        """How many."""

    def slice(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop), float32 (rows, dim)."""


def best_cosines(rows: VectorRows, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row with whichever query is closest to it.

    Memory is a block of rows beside the result.

    Parameters
    ----------
    queries : float32 (queries, dim)
        At least one.

    Returns
    -------
    float32 (rows,)
        Minus infinity where a row is not finite.
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
