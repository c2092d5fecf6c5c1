"""Frame targets, and scoring by segments (both protocols) and by events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation import FrameTask, Samples
from featstore.metrics.events import SegmentPlan, count_matches, covered, onsets_of, plan_segments, segments_of_events

__all__ = [
    "Excerpts",
    "Group",
    "Rows",
    "SegmentGroups",
    "Span",
    "count_events",
    "count_segments",
    "excerpts_of",
    "segment_groups",
    "spans_of",
]


# Tolerance in hops: times are decimal fractions, so a frame centre may be off by rounding.
SLACK = 1e-6

# X-ARES cuts the targets of this task at ten seconds.
XARES_TARGET_SECONDS = {"desed": 10.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpts:
    """Samples as sequences of frames (rows), with the row ranges of their events.

    Attributes
    ----------
    windows : int64 (windows,)
        Rows of the task's frames; the windows of a sample are consecutive.
    lengths : int64 (windows,)
        Number of frames of each window.
    bounds : int64 (samples + 1,)
        The windows of sample ``i`` are ``bounds[i]`` to ``bounds[i + 1]``.
    n_rows : int64 (samples,)
    first, stop, label : int64 (ranges,)
        An event of class ``label`` covers rows [first, stop) of its sample. Under ``xares`` a range may exceed the
        sample's last row and cover padding.
    range_bounds : int64 (samples + 1,)
        Like ``bounds``, for ranges.
    """

    windows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    bounds: NDArray[np.int64]
    n_rows: NDArray[np.int64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    label: NDArray[np.int64]
    range_bounds: NDArray[np.int64]
    n_classes: int

    def __len__(self) -> int:
        return len(self.n_rows)

    def ranges(self, sample: int) -> slice:
        """Slice of the ranges of a sample."""
        return slice(int(self.range_bounds[sample]), int(self.range_bounds[sample + 1]))

    def targets(self, sample: int, *, start: int, stop: int) -> NDArray[np.bool_]:
        """Multi-hot targets of rows [start, stop) of a sample, bool (rows, n_classes)."""
        at = self.ranges(sample)
        return covered(
            self.first[at] - start, self.stop[at] - start, self.label[at], n=stop - start, n_classes=self.n_classes
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Frames [start, stop) of a window, which are rows of a sample starting at ``row``."""

    sample: int
    window: int
    start: int
    stop: int
    row: int

    def __len__(self) -> int:
        return self.stop - self.start


def spans_of(excerpts: Excerpts, samples: Sequence[int], *, max_rows: int) -> Iterator[list[Span]]:
    """Split samples into chunks of at most ``max_rows`` rows, in order; a chunk may hold several samples or a part."""
    chunk: list[Span] = []
    free_rows = max_rows
    for sample in samples:
        row = 0
        for at in range(int(excerpts.bounds[sample]), int(excerpts.bounds[sample + 1])):
            window, length = int(excerpts.windows[at]), int(excerpts.lengths[at])
            if length > free_rows and chunk and length <= max_rows:  # keep a window that fits in a chunk together
                yield chunk
                chunk, free_rows = [], max_rows
            start = 0
            while start < length:
                stop = min(length, start + free_rows)
                chunk.append(Span(sample, window, start, stop, row + start))
                free_rows -= stop - start
                start = stop
                if not free_rows:
                    yield chunk
                    chunk, free_rows = [], max_rows
            row += length
    if chunk:
        yield chunk


def excerpts_of(task: FrameTask, samples: Samples) -> Excerpts:
    """Arrange samples as rows, and their events as ranges of rows.

    ``strict``: an event covers the frames whose centres it contains; an event that contains no centre covers the frame
    of its midpoint. ``xares``, as X-ARES: from row ceil(onset / hop) up to row ceil(offset / hop).
    """
    lengths = task.frames.lengths[samples.windows]
    bounds = np.append(samples.starts, len(samples.windows))
    n_rows = np.add.reduceat(lengths, samples.starts) if len(lengths) else np.zeros(0, np.int64)
    row_of_window = np.cumsum(lengths) - lengths
    row_of_window -= np.repeat(row_of_window[samples.starts], np.diff(bounds))

    # All pairs of a window and an event of its clip; most do not overlap.
    clip = task.clip[samples.windows]
    n_events = np.diff(task.events.bounds)[clip]
    window = np.repeat(np.arange(len(clip)), n_events)
    event = np.arange(len(window)) + np.repeat(task.events.bounds[clip] - (np.cumsum(n_events) - n_events), n_events)
    start_seconds = task.start_seconds[samples.windows][window]
    onset = (task.events.onset[event] - start_seconds) / task.hop_seconds
    offset = (task.events.offset[event] - start_seconds) / task.hop_seconds
    if task.protocol == "xares":
        seconds = XARES_TARGET_SECONDS.get(task.manifest.name, np.inf)
        first = np.maximum(np.ceil(onset), 0.0)
        stop = np.minimum(np.ceil(offset), np.ceil(seconds / task.hop_seconds))
    else:
        first = np.ceil(onset - 0.5 - SLACK)
        stop = np.ceil(offset - 0.5 - SLACK)
        short = stop <= first
        first[short] = np.floor((onset[short] + offset[short]) / 2.0)
        stop[short] = first[short] + 1.0
        first, stop = np.maximum(first, 0.0), np.minimum(stop, lengths[window])
    active = np.flatnonzero(first < stop)
    sample_of_window = np.repeat(np.arange(len(samples.starts)), np.diff(bounds))
    ranges_of_sample = np.bincount(sample_of_window[window[active]], minlength=len(samples.starts))
    row = row_of_window[window[active]]
    return Excerpts(
        windows=samples.windows,
        lengths=lengths,
        bounds=bounds,
        n_rows=n_rows,
        first=first[active].astype(np.int64) + row,
        stop=stop[active].astype(np.int64) + row,
        label=task.events.label[event[active]],
        range_bounds=np.append(0, np.cumsum(ranges_of_sample)),
        n_classes=len(task.targets.classes),
    )


GROUP_ROWS = 2**13

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Concatenated logits of a group's samples, float32 (rows, n_classes), and the logits of a padding frame."""

    logits: NDArray[np.float32]
    padding: NDArray[np.float32]


class Group(Protocol):
    """Samples that are scored together."""

    @property
    def samples(self) -> range:
        """Which."""

    @property
    def truth(self) -> NDArray[np.bool_]:
        """Segments in which each class is active, bool (segments, n_classes)."""

    @property
    def segment_bounds(self) -> NDArray[np.int64]:
        """Offset of each sample's first segment, plus the end: (samples + 1,)."""

    def pooled(self, rows: Rows) -> NDArray[np.float32]:
        """Maximum logits of each segment, (segments, n_classes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondsGroup:
    """Segments of a fixed number of seconds, up to the end of each sample."""

    samples: range
    truth: NDArray[np.bool_]
    segment_bounds: NDArray[np.int64]
    plan: SegmentPlan

    def pooled(self, rows: Rows) -> NDArray[np.float32]:
        """Maximum logits of each segment over its frames."""
        return self.plan.pooled(rows.logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedGroup:
    """One batch of X-ARES, padded to its longest sample; each sample has as many complete segments as fit the padding.

    Attributes
    ----------
    starts : int64 (pieces,)
        First row of each run of a sample's rows within one segment.
    slots : int64 (pieces,)
        Segment of each run, -1 if it is dropped.
    mixed : bool (pieces,)
        Whether the segment contains padding as well.
    """

    samples: range
    truth: NDArray[np.bool_]
    segment_bounds: NDArray[np.int64]
    starts: NDArray[np.int64]
    slots: NDArray[np.int64]
    mixed: NDArray[np.bool_]

    def pooled(self, rows: Rows) -> NDArray[np.float32]:
        """Maximum logits of each segment, padding included."""
        found = np.broadcast_to(rows.padding, self.truth.shape).copy()
        pieces = np.maximum.reduceat(rows.logits, self.starts, axis=0)
        pieces[self.mixed] = np.maximum(pieces[self.mixed], rows.padding)
        kept = self.slots >= 0
        found[self.slots[kept]] = pieces[kept]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentGroups:
    """Segments of a set, in groups of samples."""

    excerpts: Excerpts
    groups: tuple[Group, ...]

    def true_counts(self) -> NDArray[np.int64]:
        """Number of segments in which each class is active, (samples, n_classes)."""
        return np.concatenate([_by_sample(group.truth, group.segment_bounds) for group in self.groups])

    def predicted_counts(self, rows_of: Callable[[range], Rows], *, each: Map = map) -> NDArray[np.float64]:
        """Predicted segments, and correctly predicted segments, of each class: (samples, n_classes, 2).

        ``each`` applies a function to the groups: `map`, or a parallel equivalent.
        """
        return np.concatenate(list(each(lambda group: count_segments(group, rows_of(group.samples)), self.groups)))


def count_segments(group: Group, rows: Rows) -> NDArray[np.float64]:
    """Predicted segments, and correctly predicted segments, of one group: (samples, n_classes, 2)."""
    found = predicted(group.pooled(rows))
    counts = [_by_sample(each, group.segment_bounds) for each in (found, found & group.truth)]
    return np.stack(counts, axis=-1).astype(np.float64)


def predicted(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the sigmoid exceeds 0.5 in float32; the smallest positive logits give exactly 0.5."""
    with np.errstate(over="ignore"):
        return np.asarray(np.float32(1.0) / (np.float32(1.0) + np.exp(-logits)) > np.float32(0.5))


def segment_groups(task: FrameTask, samples: Samples, excerpts: Excerpts) -> SegmentGroups:
    """Divide the samples of a set into segments by the task's protocol.

    ``strict``: by seconds of the clip; the last segment may be shorter. ``xares``: by ceil(segment / hop) frames, in
    batches of the task's batch size in store order; an incomplete segment is dropped.
    """
    if task.protocol == "xares":
        size = task.manifest.probe.batch_size
        batches = (range(start, min(start + size, len(excerpts))) for start in range(0, len(excerpts), size))
        n_frames = ceil(task.manifest.metric_args.segment_seconds / task.hop_seconds)
        groups: tuple[Group, ...] = tuple(_padded(excerpts, batch, n_frames=n_frames) for batch in batches)
    else:
        groups = tuple(_in_seconds(task, samples, excerpts, each) for each in _few_rows(excerpts))
    return SegmentGroups(excerpts=excerpts, groups=groups)


def count_events(
    task: FrameTask,
    samples: Samples,
    excerpts: Excerpts,
    group: range,
    *,
    logits: NDArray[np.float32],
    tolerance_seconds: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Onset-based event counts: true events (samples, n_classes), and predicted and matched ones (..., 2).

    A predicted event is a run of frames with positive predictions of a class; its onset is its first frame.
    """
    true = np.zeros((len(group), excerpts.n_classes), np.int64)
    found = np.zeros((len(group), excerpts.n_classes, 2))
    times = np.concatenate([frame_starts(task, excerpts, sample) for sample in group])
    sample_of_row = np.repeat(np.arange(len(group)), excerpts.n_rows[group.start : group.stop])
    frame, label = onsets_of(predicted(logits), first_of_clip=np.diff(sample_of_row, prepend=-1) > 0)
    found_at: dict[tuple[int, int], list[float]] = {}
    for sample, each, time in zip(sample_of_row[frame].tolist(), label.tolist(), times[frame].tolist(), strict=True):
        found_at.setdefault((sample, each), []).append(time)
    for (sample, each), onsets in found_at.items():
        found[sample, each, 0] = len(onsets)
    for number, sample in enumerate(group):
        at = task.events.of(int(samples.clip[sample]))
        begins, ends = _extent(task, excerpts, sample)
        onset, name = task.events.onset[at], task.events.label[at]
        inside = (onset >= begins) & (onset < ends)
        for each in np.unique(name[inside]).tolist():
            onsets = np.sort(onset[inside & (name == each)]).tolist()
            true[number, each] = len(onsets)
            there = found_at.get((number, each), [])
            found[number, each, 1] = count_matches(onsets, there, tolerance_seconds=tolerance_seconds)
    return true, found


def frame_starts(task: FrameTask, excerpts: Excerpts, sample: int) -> NDArray[np.float64]:
    """Start of each row of a sample, in seconds of its clip."""
    at = slice(int(excerpts.bounds[sample]), int(excerpts.bounds[sample + 1]))
    windows, lengths = excerpts.windows[at], excerpts.lengths[at]
    frame = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(task.start_seconds[windows], lengths) + frame * task.hop_seconds


def _extent(task: FrameTask, excerpts: Excerpts, sample: int) -> tuple[float, float]:
    """Start and end of a sample in seconds of its clip."""
    first, last = excerpts.windows[excerpts.bounds[sample]], excerpts.windows[excerpts.bounds[sample + 1] - 1]
    return float(task.start_seconds[first]), float(task.start_seconds[last] + task.seconds[last])


def _few_rows(excerpts: Excerpts) -> Iterator[range]:
    start = rows = 0
    for sample, n_rows in enumerate(excerpts.n_rows.tolist()):
        if rows and rows + n_rows > GROUP_ROWS:
            yield range(start, sample)
            start, rows = sample, 0
        rows += n_rows
    if rows:
        yield range(start, len(excerpts))


def _in_seconds(task: FrameTask, samples: Samples, excerpts: Excerpts, group: range) -> SecondsGroup:
    segment_seconds = task.manifest.metric_args.segment_seconds
    plans, truths = [], []
    row = 0
    for sample in group:
        begins, ends = _extent(task, excerpts, sample)
        centres = frame_starts(task, excerpts, sample) + task.hop_seconds / 2.0
        plan = plan_segments(
            centres - begins,
            seconds=ends - begins,
            segment_seconds=segment_seconds,
            hop_seconds=task.hop_seconds,
        )
        at = task.events.of(int(samples.clip[sample]))
        truths.append(
            segments_of_events(
                task.events.onset[at] - begins,
                np.minimum(task.events.offset[at], ends) - begins,
                task.events.label[at],
                n_segments=len(plan.starts),
                n_classes=excerpts.n_classes,
                segment_seconds=segment_seconds,
            )
        )
        plans.append(SegmentPlan(starts=plan.starts + row, lone=plan.lone))
        row += int(excerpts.n_rows[sample])
    return SecondsGroup(
        samples=group,
        truth=np.concatenate(truths),
        segment_bounds=np.cumsum([0, *(len(plan.starts) for plan in plans)]),
        plan=SegmentPlan(
            starts=np.concatenate([plan.starts for plan in plans]), lone=np.concatenate([plan.lone for plan in plans])
        ),
    )


def _padded(excerpts: Excerpts, batch: range, *, n_frames: int) -> PaddedGroup:
    n_rows = excerpts.n_rows[batch.start : batch.stop]
    n_segments = int(n_rows.max()) // n_frames
    starts, slots, mixed, truths = [], [], [], []
    row = 0
    for number, (sample, rows) in enumerate(zip(batch, n_rows.tolist(), strict=True)):
        piece = np.arange(ceil(rows / n_frames))
        starts.append(row + piece * n_frames)
        slots.append(np.where(piece < n_segments, number * n_segments + piece, -1))
        mixed.append((piece + 1) * n_frames > rows)
        at = excerpts.ranges(sample)
        truths.append(
            covered(
                excerpts.first[at] // n_frames,
                -(-excerpts.stop[at] // n_frames),
                excerpts.label[at],
                n=n_segments,
                n_classes=excerpts.n_classes,
            )
        )
        row += rows
    return PaddedGroup(
        samples=batch,
        truth=np.concatenate(truths),
        segment_bounds=np.arange(len(batch) + 1) * n_segments,
        starts=np.concatenate(starts),
        slots=np.concatenate(slots),
        mixed=np.concatenate(mixed),
    )


def _by_sample(segments: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros((len(segments) + 1, segments.shape[1]), np.int64)
    np.cumsum(segments, axis=0, out=total[1:])
    return np.asarray(np.diff(total[bounds], axis=0))
