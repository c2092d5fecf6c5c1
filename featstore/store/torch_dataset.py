"""The one door of torch in the store: feature sets as map-style datasets. Imported by `FeatureSet.as_dataset` only.

What a dataset holds is where the numbers lie, so that any number of workers, forked or spawned, read through maps of
the same files and no array is copied to them. Tensors are copies: a map cannot be written, and torch knows no tensor
that cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from featstore.store.clip_fields import Labels
from featstore.store.frames import Frames
from featstore.store.part_reader import WindowRows

__all__ = ["FrameBatch", "Sample", "Samples", "UtteranceBatch", "WindowDataset", "frame_dataset", "utterance_dataset"]

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
    """``x`` (n, T_max, dim) of the stored type, zero beyond a window's frames; ``lengths`` int64 (n,); ``y`` (n,)."""

    x: Tensor
    lengths: Tensor
    y: Tensor


class Windows(Protocol[_B_co]):
    """Where a dataset reads its windows."""

    def __len__(self) -> int:
        """How many there are."""

    def one(self, at: int) -> NDArray[Any]:
        """A copy of one window's numbers."""

    def batch(self, positions: Sequence[int], y: Tensor) -> _B_co:
        """Several windows, read straight into one batch."""

    def joined(self, xs: Sequence[Tensor], y: Tensor) -> _B_co:
        """The same from windows that `one` has read."""


class UtteranceWindows:
    """Utterance vectors."""

    def __init__(self, rows: WindowRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def one(self, at: int) -> NDArray[Any]:
        """One vector, float32 (dim,)."""
        vector: NDArray[np.float32] = self._rows.take([at])[0]
        return vector

    def batch(self, positions: Sequence[int], y: Tensor) -> UtteranceBatch:
        """Vectors one below another."""
        return UtteranceBatch(torch.from_numpy(self._rows.take(positions)), y)

    def joined(self, xs: Sequence[Tensor], y: Tensor) -> UtteranceBatch:
        """Stack vectors."""
        return UtteranceBatch(torch.stack(list(xs)), y)


class FrameWindows:
    """Frames."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def one(self, at: int) -> NDArray[Any]:
        """Frames of one window, (T, dim)."""
        return self._frames.ragged([at]).values

    def batch(self, positions: Sequence[int], y: Tensor) -> FrameBatch:
        """Frames padded to the longest window."""
        values, lengths = self._frames.padded(positions)
        return FrameBatch(torch.from_numpy(values), torch.from_numpy(lengths), y)

    def joined(self, xs: Sequence[Tensor], y: Tensor) -> FrameBatch:
        """Pad to the longest window."""
        lengths = torch.tensor([len(x) for x in xs])
        return FrameBatch(torch.nn.utils.rnn.pad_sequence(list(xs), batch_first=True), lengths, y)


class Samples(Sequence[Sample]):
    """The samples of one batch, each made when it is asked for; `collate` needs only which they are."""

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
        int64 codes of classes or whole numbers; float32 where any number is not whole, and of multi-hot label sets.
    classes : tuple or None
        What the codes or columns stand for; None where the labels are numbers.
    """

    def __init__(self, windows: Windows[_B_co], labels: Labels) -> None:
        as_float = labels.values.dtype.kind == "f" or labels.values.ndim == 2
        values = labels.values.astype(np.float32) if as_float else labels.values
        self._windows = windows
        self.labels = torch.from_numpy(values)
        self.classes = labels.classes

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Sample:
        at = range(len(self))[index]  # an index below zero or out of range is treated as a list treats it
        return Sample(torch.from_numpy(self._windows.one(at)), self.labels[at])

    def __getitems__(self, indices: list[int]) -> Samples:
        """A batch's samples; DataLoader looks for this method."""
        return Samples(self, [range(len(self))[index] for index in indices])

    def collate(self, samples: Sequence[Sample]) -> _B_co:
        """Make one batch of samples: ``DataLoader(dataset, batch_size=32, collate_fn=dataset.collate)``.

        What DataLoader hands over is read from the map straight into the batch.
        """
        if isinstance(samples, Samples) and samples.dataset is self:
            return self._windows.batch(samples.positions, self.labels[samples.positions])
        return self._windows.joined([sample.x for sample in samples], torch.stack([sample.y for sample in samples]))


def utterance_dataset(rows: WindowRows, labels: Labels) -> WindowDataset[UtteranceBatch]:
    """Utterance vectors and labels: items ``x`` float32 (dim,)."""
    return WindowDataset(UtteranceWindows(rows), labels)


def frame_dataset(frames: Frames, labels: Labels) -> WindowDataset[FrameBatch]:
    """Frames and labels: items ``x`` (T, dim) of the stored type."""
    return WindowDataset(FrameWindows(frames), labels)
