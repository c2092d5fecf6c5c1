"""Outputs of one batch: on the device, in the transfer to the host, and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.encoders.contract import check_counts

__all__ = [
    "DeviceOutput",
    "Encoded",
    "HostCopy",
    "Layer",
    "TransferLayout",
    "concatenated",
    "host_memory",
    "pack",
    "to_host",
    "unpack",
]


ALIGNMENT = 16
"""Each tensor of a pack starts at a multiple of this number of bytes, so that it can be viewed in its own dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    start: int
    n_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """Tensors that are being copied to the host; `arrays` waits for the copy."""

    packed: Tensor
    segments: tuple[_Segment, ...]
    arrived: torch.cuda.Event | None

    def arrays(self) -> list[NDArray[Any]]:
        """Wait for the copy, and return the tensors as NumPy arrays, in order."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return unpack(self.packed, self.segments)


def to_host(tensors: Sequence[Tensor]) -> HostCopy:
    """Start one transfer of all tensors, which must be on the same device."""
    packed, segments = pack(tensors)
    if packed.device.type != "cuda":
        return HostCopy(packed=packed, segments=segments, arrived=None)
    host = host_memory(len(packed))
    host.copy_(packed, non_blocking=True)
    # blocking: the waiting thread sleeps; a spinning wait would take a core from decoding
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(packed.device))
    return HostCopy(packed=host, segments=segments, arrived=arrived)


def host_memory(n_bytes: int) -> Tensor:
    """Allocate pinned memory for asynchronous copies, uint8 (bytes,), or pageable memory if no more can be pinned.

    Copies to and from pageable memory are synchronous.
    """
    try:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # also raised by an earlier device failure, which the next call reports
        return torch.empty(n_bytes, dtype=torch.uint8)


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[_Segment, ...]]:
    """Concatenate the bytes of tensors: uint8 (bytes,), and the segment of each tensor."""
    pieces, segments, at = [], [], 0
    for tensor in tensors:
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        segments.append(_Segment(start=at, n_bytes=len(raw), dtype=tensor.dtype, shape=tuple(tensor.shape)))
        padding = raw.new_zeros(-len(raw) % ALIGNMENT)
        pieces += [raw, padding]
        at += len(raw) + len(padding)
    return torch.cat(pieces), tuple(segments)


def unpack(packed: Tensor, segments: Sequence[_Segment]) -> list[NDArray[Any]]:
    """Return views of the tensors of a pack, which must be on the host."""
    return [
        packed[each.start : each.start + each.n_bytes].view(each.dtype).reshape(each.shape).numpy() for each in segments
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One output of the encoder for one batch, on the host.

    Attributes
    ----------
    utterance : float32 (batch, dim)
    frames : tuple of (n_frames, dim) in the stored dtype, or None
        None if the frames of this output are not kept.
    """

    utterance: NDArray[np.float32]
    frames: tuple[NDArray[Any], ...] | None


def concatenated(first: Encoded, second: Encoded) -> Encoded:
    """Concatenate two halves of a batch."""
    frames = None if first.frames is None or second.frames is None else first.frames + second.frames
    return Encoded(utterance=np.concatenate([first.utterance, second.utterance]), frames=frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of one batch, on the device.

    Attributes
    ----------
    frames : Tensor
        float32 (batch, frames, dim)
    utterance : Tensor or None
        Utterance vectors that the encoder returned.
    n_frames : int64 (batch,) or None
        Number of frames of each row without padding; None if no row has padding. A Tensor if the counts are known on
        the device only.
    n_frames_on_device : Tensor or None
        The same, on the device.
    """

    frames: Tensor
    utterance: Tensor | None
    n_frames: NDArray[np.int64] | Tensor | None
    n_frames_on_device: Tensor | None

    def counts(self) -> NDArray[np.int64]:
        """Return the number of frames of each row without padding; waits if only the device knows it."""
        if self.n_frames is None:
            return np.full(len(self.frames), self.frames.shape[1], np.int64)
        return self.n_frames.cpu().numpy() if isinstance(self.n_frames, Tensor) else self.n_frames


class DeviceOutput:
    """What is kept of one output of a batch, on the device: vectors, and frames in the stored dtype or None."""

    def __init__(self, *, layer: Layer, vectors: Tensor, frames: Tensor | None) -> None:
        self.layer, self.vectors, self.frames = layer, vectors, frames

    def is_finite(self) -> Tensor:
        """Return a bool scalar. A sum is finite only if all terms are, and needs a single pass."""
        finite = torch.isfinite(self.vectors.sum())
        return finite if self.frames is None else finite & torch.isfinite(self.frames.sum(dtype=torch.float32))

    def to_transfer(self) -> list[Tensor]:
        """Return the tensors to transfer. Frames are sent without padding if the host knows their counts.

        Counts that only the device knows are sent as well, since they have not been checked.
        """
        tensors = [self.vectors]
        if isinstance(self.layer.n_frames, Tensor):
            tensors.append(self.layer.n_frames)
        if self.frames is None:
            return tensors
        return [
            *tensors,
            self.frames if isinstance(self.layer.n_frames, Tensor) else torch.cat(self._real(self.frames)),
        ]

    def layout(self, *, name: str) -> TransferLayout:
        """Return the layout of the tensors of `to_transfer`."""
        return TransferLayout(
            name=name,
            frames_sent=self.frames is not None,
            available=self.layer.frames.shape[1],
            counts=None if isinstance(self.layer.n_frames, Tensor) else self.layer.counts(),
        )

    def encoded(self, *, name: str) -> Encoded:
        """Copy to the host and wait for the device. Raises EncoderContractError for invalid frame counts."""
        return self.layout(name=name).encoded([each.cpu().numpy() for each in self.to_transfer()])

    def _real(self, frames: Tensor) -> list[Tensor]:
        return [row[:count] for row, count in zip(frames, self.layer.counts().tolist(), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLayout:
    """Layout of the transfer of one output; if ``counts`` is None, they are transferred, and frames have padding."""

    name: str
    frames_sent: bool
    available: int
    counts: NDArray[np.int64] | None

    def encoded(self, arrays: list[NDArray[Any]]) -> Encoded:
        """Take the tensors of this output from the front of `arrays`.

        They are copied: results are kept until their part is written, and must not keep scarce pinned memory alive.
        """
        vectors = arrays.pop(0).copy()
        counts = self.counts if self.counts is not None else arrays.pop(0)
        if self.counts is None:
            check_counts(counts, available=self.available, name=self.name)
        if not self.frames_sent:
            return Encoded(utterance=vectors, frames=None)
        frames = arrays.pop(0).copy()
        if self.counts is not None:
            return Encoded(utterance=vectors, frames=tuple(np.split(frames, np.cumsum(counts)[:-1])))
        rows = tuple(row[:count] for row, count in zip(frames, counts.tolist(), strict=True))
        return Encoded(utterance=vectors, frames=rows)
