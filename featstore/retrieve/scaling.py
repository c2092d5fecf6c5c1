"""How embeddings are scaled before they are compared: pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["unit_columns", "unit_rows"]

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
