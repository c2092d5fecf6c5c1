"""Support sets of few-shot learning: so many clips of each class, drawn again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_support"]


def draw_support(
    clips: NDArray[np.int64], targets: NDArray[np.number], *, shots: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a support set: for each class, ``shots`` of its clips without replacement, or all that there are.

    Parameters
    ----------
    clips : int64 (n,)
        Clips to draw from.
    targets : int64 (n_clips,) or (n_clips, n_classes)
        Class indices, or label sets of 0 and 1, of all clips. A clip of several labels may be drawn for any of them.

    Returns
    -------
    int64 (about shots x n_classes,)
        Sorted, each clip once.
    """
    values = targets[clips]
    members = (
        [np.flatnonzero(values == label) for label in np.unique(values)]
        if values.ndim == 1
        else [np.flatnonzero(column) for column in values.T]
    )
    drawn = [rng.permutation(of_class)[:shots] for of_class in members]
    return np.unique(clips[np.concatenate(drawn)]) if drawn else np.zeros(0, np.int64)
