"""Groups windows into batches. Pure: batches depend only on the windows and their order.

If every window is encoded before its shard ends, a part is bit-identical whatever was encoded before it, whichever
worker encoded the shard and however often the run was killed. If windows wait for windows of later shards, batches are
full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Batcher", "FileOrderBatcher", "LengthBatcher", "PendingWindow", "stack"]

_PENDING_BATCHES = 32
_SPAN_BATCHES = 64


@dataclass(frozen=True, slots=True)
class PendingWindow:
    """A window to encode: shard number, index in the shard, samples, padded length."""

    shard: int
    index: int
    samples: NDArray[np.float32]
    padded: int


Batch = tuple[PendingWindow, ...]


class Batcher(Protocol):
    """Takes windows, shard after shard, and yields batches."""

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Add a window; yield the batches that are ready."""

    def end_shard(self, shard: int) -> Iterator[Batch]:
        """End a shard: yield the batches that must not wait longer."""

    def forget(self, shard: int) -> None:
        """Drop the windows of a shard that cannot be read completely."""

    def oldest(self) -> Iterator[Batch]:
        """Yield the batches of the windows that have waited longest, to free embeddings that wait for them."""

    def flush(self) -> Iterator[Batch]:
        """Yield all remaining batches: no further window is available for now."""


class LengthBatcher:
    """Batches of equal padded length, up to a budget of samples.

    Windows wait for others of their length. A batch is yielded before it is full in two cases: the pending windows of
    all lengths exceed 32 budgets (the length with the most samples is yielded), or 64 budgets were added since the
    first pending window of a length (whose later embeddings wait for it). For clips of 1 to 10 s in quarters of a
    second, batches fill over 90 % of their budgets.

    Parameters
    ----------
    budget_samples : int
        Maximum padded samples of a batch; a longer window is a batch by itself.
    shards_ahead : int
        When a shard ends, windows of shards that ended at least this many shards earlier are yielded.
    """

    def __init__(self, *, budget_samples: int, shards_ahead: int) -> None:
        self._budget = budget_samples
        self._shards_ahead = shards_ahead
        self._waiting: dict[int, list[PendingWindow]] = {}  # by length, in order of arrival
        self._since: dict[int, int] = {}
        self._pending = 0
        self._taken = 0

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Add a window."""
        waiting = self._waiting.setdefault(window.padded, [])
        self._since.setdefault(window.padded, self._taken)
        waiting.append(window)
        self._pending += window.padded
        self._taken += window.padded
        if (len(waiting) + 1) * window.padded > self._budget:
            yield self._take(window.padded)
        elif self._pending > _PENDING_BATCHES * self._budget:
            yield self._take(max(self._waiting, key=lambda padded: (padded * len(self._waiting[padded]), padded)))
        while self._waiting and self._taken - self._since[next(iter(self._waiting))] > _SPAN_BATCHES * self._budget:
            yield self._take(next(iter(self._waiting)))

    def end_shard(self, shard: int) -> Iterator[Batch]:
        """Yield every length with windows of a shard that ended too long ago, longest length first."""
        for padded in sorted(self._waiting, reverse=True):
            if self._waiting[padded][0].shard + self._shards_ahead <= shard:
                yield self._take(padded)

    def forget(self, shard: int) -> None:
        """Drop the windows of a shard."""
        for padded, windows in list(self._waiting.items()):
            kept = [window for window in windows if window.shard != shard]
            self._pending -= padded * (len(windows) - len(kept))
            if kept:
                self._waiting[padded] = kept
            else:
                del self._waiting[padded], self._since[padded]

    def oldest(self) -> Iterator[Batch]:
        """Yield the length whose first window has waited longest."""
        if self._waiting:
            yield self._take(next(iter(self._waiting)))

    def flush(self) -> Iterator[Batch]:
        """Yield every length, longest first."""
        for padded in sorted(self._waiting, reverse=True):
            yield self._take(padded)

    def _take(self, padded: int) -> Batch:
        batch = tuple(self._waiting.pop(padded))
        del self._since[padded]
        self._pending -= padded * len(batch)
        return batch


class FileOrderBatcher:
    """Batches of `size` windows in file order, each padded to its longest window, as in X-ARES."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._waiting: list[PendingWindow] = []

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Add a window."""
        self._waiting.append(window)
        if len(self._waiting) == self._size:
            yield from self.flush()

    def end_shard(self, shard: int) -> Iterator[Batch]:
        """Yield the remaining windows."""
        if self._waiting and self._waiting[-1].shard == shard:
            yield from self.flush()

    def forget(self, shard: int) -> None:
        """Drop the windows of a shard."""
        self._waiting = [window for window in self._waiting if window.shard != shard]

    def oldest(self) -> Iterator[Batch]:
        """Yield the remaining windows."""
        yield from self.flush()

    def flush(self) -> Iterator[Batch]:
        """Yield the remaining windows."""
        if self._waiting:
            batch, self._waiting = tuple(self._waiting), []
            yield batch


def stack(
    batch: Batch, *, blank: Callable[[tuple[int, int]], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pad a batch with zeros. Returns float32 (batch, samples), and the original lengths, int64 (batch,).

    ``blank`` returns zeros of a given shape in memory that the encoder allocates.
    """
    audio = blank((len(batch), max(window.padded for window in batch)))
    for row, window in enumerate(batch):
        audio[row, : len(window.samples)] = window.samples
    return audio, np.array([len(window.samples) for window in batch], np.int64)
