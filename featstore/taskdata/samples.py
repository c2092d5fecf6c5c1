"""From windows to samples: under ``strict`` the windows of a clip vote together, under ``xares`` each is a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.records import Protocol

__all__ = ["Samples", "group_windows"]

# A window without duration still has a say, or a clip of nothing else would have no score.
SHORTEST_SECONDS = 1e-6


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


def group_windows(
    clips: NDArray[np.int64],
    *,
    clip: NDArray[np.int64],
    seconds: NDArray[np.float64],
    values: NDArray[Any],
    protocol: Protocol,
) -> Samples:
    """Group the windows of some clips: by clip under ``strict``, each by itself under ``xares``.

    Parameters
    ----------
    clips : int64 (n,)
    clip, seconds : (windows,)
        Clip of each window, rising, and its true duration.
    values : (n_clips, ...)
        Targets by clip.
    """
    wanted = np.zeros(len(values), bool)
    wanted[clips] = True
    windows = np.flatnonzero(wanted[clip])
    mine = clip[windows]
    starts = np.arange(len(windows)) if protocol == "xares" else np.flatnonzero(np.diff(mine, prepend=-1))
    return Samples(
        windows=windows,
        weights=np.maximum(seconds[windows], SHORTEST_SECONDS).astype(np.float32),
        starts=starts,
        clip=mine[starts],
        y_true=values[mine[starts]],
    )
