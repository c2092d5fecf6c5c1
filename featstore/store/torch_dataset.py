"""Feature sets as map-style torch datasets. No other module of the store imports torch.

A dataset contains the locations of the files, so that all workers, forked or spawned, map the same files and no array
is sent to them. Tensors are copies, because the maps are read-only and torch has no read-only tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from featstore.store.clip_fields import Labels
from featstore.store.frames import Frames
from featstore.store.part_reader import WindowRows

__all__ = [
    "FrameBatch",
    "FrameDataset",
    "Sample",
    "Samples",
    "UtteranceBatch",
    "UtteranceDataset",
    "WindowDataset",
]

_B_co = TypeVar("_B_co", covariant=True)


class Sample(NamedTuple):
    """One window: ``x`` (dim,) or (T, dim), ``y`` a scalar: int64 code or number, or float32."""

    x: Tensor
    y: Tensor


class UtteranceBatch(NamedTuple):
    """``x`` float32 (n, dim), ``y`` (n,)."""

    x: Tensor
    y: Tensor


class FrameBatch(NamedTuple):
    """``x`` (n, T_max, dim) of the stored type, zero-padded; ``lengths`` int64 (n,); ``y`` (n,)."""

    x: Tensor
    lengths: Tensor
    y: Tensor


class Samples(Sequence[Sample]):
    """The samples of one batch, read on access; `collate` uses only their positions."""

    def __init__(self, dataset: WindowDataset[Any], positions: list[int]) -> None:
        self.dataset = dataset
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return Samples(self.dataset, self.positions[index])
        return self.dataset[self.positions[index]]


class WindowDataset(Dataset[Sample], Generic[_B_co]):
    """Windows and their labels.

    Attributes
    ----------
    labels : Tensor (windows,) or (windows, n_classes)
        int64 class codes or integers; float32 if any number is not an integer, and for multi-hot label sets.
    classes : tuple or None
        Classes of the codes or columns; None if the labels are numbers.
    """

    def __init__(self, windows: WindowRows | Frames, labels: Labels) -> None:
        as_float = labels.values.dtype.kind == "f" or labels.values.ndim == 2
        values = labels.values.astype(np.float32) if as_float else labels.values
        self._n_windows = len(windows)
        self.labels = torch.from_numpy(values)
        self.classes = labels.classes

    def __len__(self) -> int:
        return self._n_windows

    def __getitem__(self, index: int) -> Sample:
        at = range(len(self))[index]  # handles negative and out-of-range indices as a list does
        return Sample(torch.from_numpy(self._one(at)), self.labels[at])

    def __getitems__(self, indices: list[int]) -> Samples:
        """Return the samples of a batch; DataLoader calls this method."""
        return Samples(self, [range(len(self))[index] for index in indices])

    def collate(self, samples: Sequence[Sample]) -> _B_co:
        """Make one batch of samples: ``DataLoader(dataset, batch_size=32, collate_fn=dataset.collate)``.

        A `Samples` object from DataLoader is read from the map directly into the batch.
        """
        if isinstance(samples, Samples) and samples.dataset is self:
            return self._batch(samples.positions, self.labels[samples.positions])
        return self._joined([sample.x for sample in samples], torch.stack([sample.y for sample in samples]))

    @abstractmethod
    def _one(self, at: int) -> NDArray[Any]:
        """Return a copy of one window's embedding."""

    @abstractmethod
    def _batch(self, positions: Sequence[int], y: Tensor) -> _B_co:
        """Read several windows into one batch."""

    @abstractmethod
    def _joined(self, xs: Sequence[Tensor], y: Tensor) -> _B_co:
        """Make a batch of windows that `_one` has returned."""


class UtteranceDataset(WindowDataset[UtteranceBatch]):
    """Utterance vectors: items ``x`` float32 (dim,)."""

    def __init__(self, rows: WindowRows, labels: Labels) -> None:
        super().__init__(rows, labels)
        self._rows = rows

    def _one(self, at: int) -> NDArray[Any]:
        vector: NDArray[np.float32] = self._rows.take([at])[0]
        return vector

    def _batch(self, positions: Sequence[int], y: Tensor) -> UtteranceBatch:
        return UtteranceBatch(torch.from_numpy(self._rows.take(positions)), y)

    def _joined(self, xs: Sequence[Tensor], y: Tensor) -> UtteranceBatch:
        return UtteranceBatch(torch.stack(list(xs)), y)


class FrameDataset(WindowDataset[FrameBatch]):
    """Frames: items ``x`` (T, dim) of the stored type; batches are padded to the longest window."""

    def __init__(self, frames: Frames, labels: Labels) -> None:
        super().__init__(frames, labels)
        self._frames = frames

    def _one(self, at: int) -> NDArray[Any]:
        return self._frames.ragged([at]).values

    def _batch(self, positions: Sequence[int], y: Tensor) -> FrameBatch:
        values, lengths = self._frames.padded(positions)
        return FrameBatch(torch.from_numpy(values), torch.from_numpy(lengths), y)

    def _joined(self, xs: Sequence[Tensor], y: Tensor) -> FrameBatch:
        lengths = torch.tensor([len(x) for x in xs])
        return FrameBatch(torch.nn.utils.rnn.pad_sequence(list(xs), batch_first=True), lengths, y)
