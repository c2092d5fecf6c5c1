"""Event-based F1 by onset: events that were found, each matched with one that is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_matches", "onsets_of"]

# Times are sums and products of decimal fractions: a tolerance is kept to a billionth of a second.
SLACK_SECONDS = 1e-9


def onsets_of(
    active: NDArray[np.bool_], *, first_of_clip: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of active frames begin: frame and class of each, in order of class and then of frame.

    Parameters
    ----------
    active : bool (frames, n_classes)
        Of one or more clips behind one another.
    first_of_clip : bool (frames,)
        No run goes on from the clip before.
    """
    begins = active.copy()
    begins[1:] &= ~active[:-1] | first_of_clip[1:, None]
    label, frame = np.nonzero(begins.T)
    return frame, label


def count_matches(true: Sequence[float], found: Sequence[float], *, tolerance_seconds: float) -> int:
    """How many pairs of true and found onsets there can be that lie within a tolerance, each in one pair at most.

    Both come rising. Taking the earliest partner that is left is the most there can be, since all tolerances are equal:
    where two pairs cross, uncrossing them keeps both within it.

    >>> count_matches([0.0, 0.3], [0.2, 0.4], tolerance_seconds=0.2)
    2
    """
    at = pairs = 0
    for onset in true:
        while at < len(found) and found[at] < onset - tolerance_seconds - SLACK_SECONDS:
            at += 1
        if at < len(found) and found[at] <= onset + tolerance_seconds + SLACK_SECONDS:
            pairs += 1
            at += 1
    return pairs
