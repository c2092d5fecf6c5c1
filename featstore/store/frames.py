"""Frames of a feature set by window: one window as a view, several windows as one batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UnknownFeatureSet, UsageError
from featstore.store.arrays import Rows
from featstore.store.part_reader import Run, fetch_ahead

__all__ = ["Frames", "PaddedFrames", "RaggedFrames", "WindowIndices"]

WindowIndices = Sequence[int] | Sequence[bool] | NDArray[np.integer[Any]] | NDArray[np.bool_]


class PaddedFrames(NamedTuple):
    """A batch of windows of different lengths.

    ``values`` (n, T_max, dim) is zero-padded; ``lengths`` int64 (n,) are the numbers of frames.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int64]


class RaggedFrames(NamedTuple):
    """A batch without padding: ``values`` (sum of lengths, dim) are concatenated; ``lengths`` int64 (n,)."""

    values: NDArray[Any]
    lengths: NDArray[np.int64]


class _Source(NamedTuple):
    """Frames of a run's part, and the offset of each window of the run in them: int64 (windows + 1,)."""

    rows: Rows
    offsets: NDArray[np.int64]


class _Span(NamedTuple):
    """The frames of one window: rows [start, stop)."""

    rows: Rows
    start: int
    stop: int


class Frames(Sequence[NDArray[Any]]):
    """Frames by window, of the stored type.

    ``frames[7]``
        The frames of window 7, (T, dim): a read-only view of the file, or a copy if they cross a block boundary.
    ``frames["clip"]``, ``frames["clip#2"]``
        The frames of the window with that key.
    ``frames[10:20]``
        A list with the frames of each window.
    ``frames[[3, 1, 2]]``, ``frames[mask]``
        Several windows as one padded batch: `PaddedFrames`, a tuple of ``values, lengths``.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = tuple(runs)
        self._firsts = [0, *accumulate(len(run) for run in self._runs)]
        self._sources: list[_Source | None] = [None] * len(self._runs)

    def __reduce__(self) -> tuple[type[Frames], tuple[tuple[Run, ...]]]:
        return Frames, (self._runs,)

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int | str) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    @overload
    def __getitem__(self, index: WindowIndices) -> PaddedFrames: ...
    def __getitem__(self, index: int | str | slice | WindowIndices) -> NDArray[Any] | list[NDArray[Any]] | PaddedFrames:
        if isinstance(index, str):
            return self[self._window_of(index)]
        if isinstance(index, (int, np.integer)):
            rows, start, stop = self._span(int(index))
            return rows.slice(start, stop)
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.padded(index)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def _window_of(self, key: str) -> int:
        if key not in self._windows_by_key:
            raise UnknownFeatureSet(f"no window has the key {key!r}: the second window of a clip has the key 'clip#2'")
        return self._windows_by_key[key]

    @cached_property
    def _windows_by_key(self) -> dict[str, int]:
        fetch_ahead(self._runs, "key")
        keys = (key for run in self._runs for key in run.part.strings("key")[run.start : run.stop].tolist())
        return {key: window for window, key in reversed(list(enumerate(keys)))}  # the first of equal keys wins

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of frames of each window, int64 (windows,)."""
        pieces = [np.diff(self._source(number).offsets) for number in range(len(self._runs))]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def padded(self, index: WindowIndices, *, out: NDArray[Any] | None = None) -> PaddedFrames:
        """Return several windows as one padded batch.

        Parameters
        ----------
        index : sequence or array of int, or of bool
            Windows, or a mask over all windows.
        out : array, optional
            C-contiguous buffer of the stored type, at least as large as the batch. The batch is written to its start,
            and the result is a view. Reusing a buffer avoids the allocation of new memory for each batch.

        Raises
        ------
        IndexError
            A window is out of range, or the length of the mask is not the number of windows.
        UsageError
            `out` has the wrong type or layout, or is too small.
        """
        spans, lengths = self._spans(index)
        longest = int(lengths.max(initial=0))
        values = self._output_buffer((len(spans), longest, self._dim), out)
        for row, (rows, start, stop) in zip(values, spans, strict=True):
            n = stop - start
            rows.read_into(row[:n], start=start)
            row[n:] = 0
        return PaddedFrames(values, lengths)

    def ragged(self, index: WindowIndices, *, out: NDArray[Any] | None = None) -> RaggedFrames:
        """Return several windows concatenated, without padding. Parameters and errors are those of `padded`."""
        spans, lengths = self._spans(index)
        values = self._output_buffer((int(lengths.sum()), self._dim), out)
        at = 0
        for rows, start, stop in spans:
            rows.read_into(values[at : at + stop - start], start=start)
            at += stop - start
        return RaggedFrames(values, lengths)

    def _source(self, number: int) -> _Source:
        source = self._sources[number]
        if source is None:
            run = self._runs[number]
            offsets = run.part.rows("frame_offsets").slice(run.start, run.stop + 1)
            rows = run.part.rows("frames")
            if offsets[0] < 0 or offsets[-1] > rows.shape[0] or (offsets[1:] < offsets[:-1]).any():
                raise run.part.damaged("frame_offsets", "its offsets exceed the number of frames")
            rows.require(int(offsets[0]), int(offsets[-1]))
            source = self._sources[number] = _Source(rows, offsets)
        return source

    def _span(self, at: int) -> _Span:
        if at < 0:
            at += self._firsts[-1]
        if not 0 <= at < self._firsts[-1]:
            requested = at if at >= 0 else at - self._firsts[-1]
            raise IndexError(f"there are {len(self)} windows: got index {requested}")
        number = bisect_right(self._firsts, at) - 1
        rows, offsets = self._sources[number] or self._source(number)
        at -= self._firsts[number]
        return _Span(rows, offsets.item(at), offsets.item(at + 1))

    def _spans(self, index: WindowIndices) -> tuple[list[_Span], NDArray[np.int64]]:
        spans = [self._span(at) for at in self._positions(index)]
        together: dict[int, tuple[Rows, list[tuple[int, int]]]] = {}
        for rows, start, stop in spans:
            together.setdefault(id(rows), (rows, []))[1].append((start, stop))
        for rows, wanted in together.values():
            rows.fetch(wanted)
        return spans, np.fromiter((stop - start for _, start, stop in spans), np.int64, len(spans))

    def _positions(self, index: WindowIndices) -> list[int]:
        wanted = np.asarray(index)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iub"):
            raise IndexError(
                f"frames need one index, a slice, a list of indices or a mask: got {wanted.dtype} {wanted.shape}"
            )
        if wanted.dtype.kind == "b":
            if len(wanted) != len(self):
                raise IndexError(f"a mask must have one entry for each of {len(self)} windows: got {len(wanted)}")
            wanted = np.flatnonzero(wanted)
        positions: list[int] = wanted.tolist()
        return positions

    @property
    def _dim(self) -> int:
        return self._source(0).rows.shape[1]

    def _output_buffer(self, shape: tuple[int, ...], out: NDArray[Any] | None) -> NDArray[Any]:
        dtype = self._source(0).rows.dtype
        if out is None:
            return np.empty(shape, dtype)
        size = int(np.prod(shape))
        if not out.flags.c_contiguous or out.dtype != dtype or out.size < size:
            raise UsageError(
                f"`out` must be C-contiguous {dtype} and at least as large as {shape}: got {out.dtype} {out.shape}"
                f"{'' if out.flags.c_contiguous else ', not contiguous'}"
            )
        return out.reshape(-1)[:size].reshape(shape)

    def __repr__(self) -> str:
        return f"Frames({len(self):,} windows, {int(self.lengths.sum()):,} frames)"
