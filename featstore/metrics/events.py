"""Sound event detection: segments of a fixed length, and events by onset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SegmentPlan", "count_matches", "onsets_of", "plan_segments", "segments_of_events"]


# Seconds are decimal fractions and sums of samples: a boundary is met within a millionth of a segment.
SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlan:
    """Which frames of a clip tell each of its segments.

    Attributes
    ----------
    starts : int64 (segments,)
        First frame of each segment; it ends where the next one starts, the last with the clip.
    lone : bool (segments,)
        Segments without a frame's centre: ``starts`` is the one frame that tells.
    """

    starts: NDArray[np.int64]
    lone: NDArray[np.bool_]

    def pooled(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Highest score in each segment, (segments, n_classes) of (frames, n_classes)."""
        found = np.empty((len(self.starts), frames.shape[1]), frames.dtype)
        filled = np.flatnonzero(~self.lone)
        if len(filled):
            found[filled] = np.maximum.reduceat(frames, self.starts[filled], axis=0)
        found[self.lone] = frames[self.starts[self.lone]]
        return found


def plan_segments(
    centres: NDArray[np.float64], *, seconds: float, segment_seconds: float, hop_seconds: float
) -> SegmentPlan:
    """Plan the segments of one clip.

    Parameters
    ----------
    centres : float64 (frames,)
        Middle of each frame in seconds of the clip; rising, at least one.
    seconds : float
        The clip's true duration: the last segment is as short as that makes it, and there at all if the centre of a
        frame could lie in it.
    """
    shortest = min(hop_seconds, segment_seconds) / 2.0
    n_segments = max(1, int(np.floor((seconds - shortest) / segment_seconds + SLACK)) + 1)
    edges = np.arange(n_segments) * segment_seconds
    starts = np.searchsorted(centres, edges - SLACK * segment_seconds)
    starts[0] = 0
    stops = np.append(starts[1:], len(centres))
    lone = starts >= stops
    if lone.any():
        middles = edges[lone] + segment_seconds / 2.0
        after = np.clip(np.searchsorted(centres, middles), 0, len(centres) - 1)
        before = np.maximum(after - 1, 0)
        starts[lone] = np.where(middles - centres[before] <= np.abs(centres[after] - middles), before, after)
    return SegmentPlan(starts=starts, lone=lone)


def segments_of_events(
    onsets: NDArray[np.float64],
    offsets: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    n_segments: int,
    n_classes: int,
    segment_seconds: float,
) -> NDArray[np.bool_]:
    """Segments in which each class sounds, bool (n_segments, n_classes).

    An event is on from its onset up to its offset; one that ends as it begins is on in one segment, and one that begins
    past the last segment in none.
    """
    first = np.floor(onsets / segment_seconds + SLACK).astype(np.int64)
    last = np.maximum(np.ceil(offsets / segment_seconds - SLACK).astype(np.int64) - 1, first)
    return covered(first, last + 1, labels, n=n_segments, n_classes=n_classes)


def covered(
    first: NDArray[np.int64], stop: NDArray[np.int64], labels: NDArray[np.int64], *, n: int, n_classes: int
) -> NDArray[np.bool_]:
    """Steps that some range [first, stop) of a class covers, bool (n, n_classes); ranges may lie outside of them."""
    found = np.zeros((n, n_classes), bool)
    inside = np.flatnonzero((stop > 0) & (first < n))
    for begin, end, label in zip(*(each[inside].tolist() for each in (first, stop, labels)), strict=True):
        found[max(begin, 0) : end, label] = True
    return found


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
