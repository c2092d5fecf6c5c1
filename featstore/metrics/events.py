"""Sound event detection: segments of fixed length, and event onsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SegmentPlan", "count_matches", "onsets_of", "plan_segments", "segments_of_events"]


# Tolerance of segment boundaries, as a share of a segment: times are decimal fractions and sums of samples.
SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlan:
    """The frames that score each segment of a clip.

    Attributes
    ----------
    starts : int64 (segments,)
        First frame of each segment. A segment ends where the next one starts, the last one at the end of the clip.
    lone : bool (segments,)
        Segments that contain no frame centre: ``starts`` is the nearest frame, the only one that scores the segment.
    """

    starts: NDArray[np.int64]
    lone: NDArray[np.bool_]

    def pooled(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Return the highest score in each segment, (segments, n_classes), from (frames, n_classes)."""
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
        Centre of each frame in seconds of the clip; ascending, at least one.
    seconds : float
        Duration of the clip without padding. The last segment is shorter if necessary, and is dropped if it is too
        short to contain the centre of a frame.
    segment_seconds, hop_seconds : float
        Length of a segment, and time from one frame to the next.
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
    """Return the segments in which each class is active, bool (n_segments, n_classes).

    An event is active from its onset to its offset. An event of duration 0 is active in one segment; an event that
    starts after the last segment is ignored.
    """
    first = np.floor(onsets / segment_seconds + SLACK).astype(np.int64)
    last = np.maximum(np.ceil(offsets / segment_seconds - SLACK).astype(np.int64) - 1, first)
    return covered(first, last + 1, labels, n=n_segments, n_classes=n_classes)


def covered(
    first: NDArray[np.int64], stop: NDArray[np.int64], labels: NDArray[np.int64], *, n: int, n_classes: int
) -> NDArray[np.bool_]:
    """Return the steps that a range [first, stop) of each class covers, bool (n, n_classes); ranges are clipped."""
    found = np.zeros((n, n_classes), bool)
    inside = np.flatnonzero((stop > 0) & (first < n))
    for begin, end, label in zip(*(each[inside].tolist() for each in (first, stop, labels)), strict=True):
        found[max(begin, 0) : end, label] = True
    return found


# Tolerance in seconds: times are sums and products of decimal fractions.
SLACK_SECONDS = 1e-9


def onsets_of(
    active: NDArray[np.bool_], *, first_of_clip: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts of runs of active frames: frame and class of each, sorted by class and then by frame.

    Parameters
    ----------
    active : bool (frames, n_classes)
        Activity of one or more clips, concatenated.
    first_of_clip : bool (frames,)
        First frame of each clip: runs do not continue across clips.
    """
    begins = active.copy()
    begins[1:] &= ~active[:-1] | first_of_clip[1:, None]
    label, frame = np.nonzero(begins.T)
    return frame, label


def count_matches(true: Sequence[float], found: Sequence[float], *, tolerance_seconds: float) -> int:
    """Count the largest set of pairs of true and found onsets within a tolerance, each onset in at most one pair.

    Both sequences are ascending. Matching each onset with the earliest remaining partner is optimal: since all
    tolerances are equal, two crossing pairs can be uncrossed and stay within the tolerance.

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
