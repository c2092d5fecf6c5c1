"""What the frames of a task are to say: rows of samples, and the ranges of rows in which each class sounds. Pure.

A sample is a clip under ``strict``, the frames of its windows behind one another; under ``xares`` it is a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.segments import covered
from featstore.taskdata import FrameTask, Samples

__all__ = ["Excerpts", "Span", "excerpts_of", "spans_of"]

# Seconds are decimal fractions: a frame's centre is met within a millionth of a hop.
SLACK = 1e-6

# X-ARES makes the targets of this task ten seconds long, whatever the clip, and drops what sounds later.
XARES_TARGET_SECONDS = {"desed": 10.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpts:
    """Samples as rows of frames, with the ranges of rows in which a class sounds.

    Attributes
    ----------
    windows : int64 (windows,)
        Of the task; those of a sample are neighbours.
    lengths : int64 (windows,)
        How many rows each has.
    bounds : int64 (samples + 1,)
        The windows of sample ``i`` are ``bounds[i]`` to ``bounds[i + 1]``.
    n_rows : int64 (samples,)
    first, stop, label : int64 (ranges,)
        Rows of a sample in which a class sounds, from first up to stop. Under ``xares`` a range may go on past the
        sample's last row, where it is padded.
    range_bounds : int64 (samples + 1,)
        As ``bounds``, of ranges.
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
        """Where the ranges of a sample are."""
        return slice(int(self.range_bounds[sample]), int(self.range_bounds[sample + 1]))

    def targets(self, sample: int, *, start: int, stop: int) -> NDArray[np.bool_]:
        """Which classes sound in rows [start, stop) of a sample, bool (rows, n_classes)."""
        at = self.ranges(sample)
        return covered(
            self.first[at] - start, self.stop[at] - start, self.label[at], n=stop - start, n_classes=self.n_classes
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Frames [start, stop) of a window: rows of a sample from ``row`` on."""

    sample: int
    window: int
    start: int
    stop: int
    row: int

    def __len__(self) -> int:
        return self.stop - self.start


def spans_of(excerpts: Excerpts, samples: Sequence[int], *, max_rows: int) -> Iterator[list[Span]]:
    """Cut samples into chunks of at most so many rows, in order: short samples share one, long ones take several."""
    chunk: list[Span] = []
    room = max_rows
    for sample in samples:
        row = 0
        for at in range(int(excerpts.bounds[sample]), int(excerpts.bounds[sample + 1])):
            window, length = int(excerpts.windows[at]), int(excerpts.lengths[at])
            if length > room and chunk and length <= max_rows:  # a window that would fit by itself is not torn
                yield chunk
                chunk, room = [], max_rows
            start = 0
            while start < length:
                stop = min(length, start + room)
                chunk.append(Span(sample, window, start, stop, row + start))
                room -= stop - start
                start = stop
                if not room:
                    yield chunk
                    chunk, room = [], max_rows
            row += length
    if chunk:
        yield chunk


def excerpts_of(task: FrameTask, samples: Samples) -> Excerpts:
    """Lay samples out as rows, and their events as ranges of rows.

    ``strict``: a frame hears what sounds at its centre; what is too short for any centre is heard by the frame that its
    own middle lies in. ``xares``, as X-ARES: from row ceil(onset / hop) up to row ceil(offset / hop).
    """
    lengths = task.frames.lengths[samples.windows]
    bounds = np.append(samples.starts, len(samples.windows))
    n_rows = np.add.reduceat(lengths, samples.starts) if len(lengths) else np.zeros(0, np.int64)
    row_of_window = np.cumsum(lengths) - lengths
    row_of_window -= np.repeat(row_of_window[samples.starts], np.diff(bounds))

    # Every window meets every event of its clip; most miss.
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
    heard = np.flatnonzero(first < stop)
    sample_of_window = np.repeat(np.arange(len(samples.starts)), np.diff(bounds))
    ranges_of_sample = np.bincount(sample_of_window[window[heard]], minlength=len(samples.starts))
    row = row_of_window[window[heard]]
    return Excerpts(
        windows=samples.windows,
        lengths=lengths,
        bounds=bounds,
        n_rows=n_rows,
        first=first[heard].astype(np.int64) + row,
        stop=stop[heard].astype(np.int64) + row,
        label=task.events.label[event[heard]],
        range_bounds=np.append(0, np.cumsum(ranges_of_sample)),
        n_classes=len(task.targets.classes),
    )
