"""Gathers windows into batches. Pure: what is batched with what depends on a shard's windows and their order alone.

A batch never reaches past its shard. So a part is the same, bit for bit, whatever was encoded before it, whichever
worker took the shard and however often a run was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PENDING_BATCHES", "Batch", "Batcher", "FileOrderBatcher", "LengthBatcher", "PendingWindow", "stack"]


PENDING_BATCHES = 32
"""Budgets that may wait in all lengths together: for clips of 1 to 10 s in quarters, fewer leave batches half full."""


@dataclass(frozen=True, slots=True)
class PendingWindow:
    """A window on its way to the encoder: its place in the shard, its samples, its padded length."""

    index: int
    samples: NDArray[np.float32]
    padded: int


Batch = tuple[PendingWindow, ...]


class Batcher(Protocol):
    """Takes windows in order of the shard and hands out batches."""

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Take one window; yield the batches that are ready now."""

    def flush(self) -> Iterator[Batch]:
        """The shard has ended: yield what is left."""


class LengthBatcher:
    """Batches of one padded length each, up to a budget of samples.

    Parameters
    ----------
    budget_samples : int
        Padded samples in a batch; a longer window is a batch of its own.
    pending_samples : int
        Samples that may wait in all lengths together; beyond it the length that holds most is handed out.
    """

    def __init__(self, *, budget_samples: int, pending_samples: int) -> None:
        self._budget = budget_samples
        self._most = pending_samples
        self._waiting: dict[int, list[PendingWindow]] = {}
        self._pending = 0

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Take one window."""
        waiting = self._waiting.setdefault(window.padded, [])
        waiting.append(window)
        self._pending += window.padded
        if (len(waiting) + 1) * window.padded > self._budget:
            yield self._take(window.padded)
        elif self._pending > self._most:
            yield self._take(max(self._waiting, key=lambda padded: (padded * len(self._waiting[padded]), padded)))

    def flush(self) -> Iterator[Batch]:
        """Hand out every length, the longest first."""
        for padded in sorted(self._waiting, reverse=True):
            yield self._take(padded)

    def _take(self, padded: int) -> Batch:
        batch = tuple(self._waiting.pop(padded))
        self._pending -= padded * len(batch)
        return batch


class FileOrderBatcher:
    """Batches of `size` windows in file order, each padded to its longest: what X-ARES does."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._waiting: list[PendingWindow] = []

    def add(self, window: PendingWindow) -> Iterator[Batch]:
        """Take one window."""
        self._waiting.append(window)
        if len(self._waiting) == self._size:
            yield from self.flush()

    def flush(self) -> Iterator[Batch]:
        """Hand out what is left."""
        if self._waiting:
            batch, self._waiting = tuple(self._waiting), []
            yield batch


def stack(
    batch: Batch, *, blank: Callable[[tuple[int, int]], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pad a batch with zeros: float32 (batch, samples), and int64 (batch,) the samples of each that are real.

    ``blank`` gives zeros of a shape, in memory of the encoder's choice.
    """
    audio = blank((len(batch), max(window.padded for window in batch)))
    for row, window in enumerate(batch):
        audio[row, : len(window.samples)] = window.samples
    return audio, np.array([len(window.samples) for window in batch], np.int64)
