"""The neighbours' vote: weights are a softmax of similarities (Wu et al. 2018, instance discrimination)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["neighbour_vote"]


def neighbour_vote(
    similarities: NDArray[np.float32], targets: NDArray[Any], *, n_classes: int, temperature: float
) -> NDArray[np.float32]:
    """Share of each class in the neighbours of each query.

    Parameters
    ----------
    similarities : float32 (queries, k)
    targets : (queries, k) or (queries, k, n_classes)
        Class indices, or label sets of 0 and 1, of the neighbours.

    Returns
    -------
    float32 (queries, n_classes)
        Summed in float64 and rounded, so that neighbours who all agree say exactly 1, whatever their weights: average
        precision would rank queries by the rounding.
    """
    scaled = (similarities.astype(np.float64) - similarities.max(axis=1, keepdims=True)) / temperature
    weights = np.exp(scaled)
    weights /= weights.sum(axis=1, keepdims=True)
    if targets.ndim == 3:
        return np.asarray(np.einsum("qk,qkc->qc", weights, targets), dtype=np.float32)
    n_queries = len(targets)
    cells = targets + np.arange(n_queries)[:, None] * n_classes
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=n_queries * n_classes)
    return votes.reshape(n_queries, n_classes).astype(np.float32)
