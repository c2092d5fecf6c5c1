"""From windows to samples: under ``strict`` the windows of a clip vote together, under ``xares`` each is a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What is scored, and the windows that it is scored from.

    Attributes
    ----------
    windows : int64 (windows,)
        Rows of the pool; windows of one sample are neighbours.
    weights : float32 (windows,)
        True seconds.
    starts : int64 (samples,)
        First window of each sample.
    clip : int64 (samples,)
        Clip of each sample.
    y_true : (samples, ...)
        Its target.
    """

    windows: NDArray[np.int64]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]
    clip: NDArray[np.int64]
    y_true: NDArray[Any]

    def vote(self, window_scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Average the scores (windows, n_classes) of each sample's windows by their seconds: (samples, n_classes)."""
        if len(self.starts) == len(self.windows):
            return window_scores
        weights = self.weights[:, None]
        voted = np.add.reduceat(window_scores * weights, self.starts, axis=0)
        return np.asarray(voted / np.add.reduceat(weights, self.starts, axis=0))
