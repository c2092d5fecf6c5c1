"""Outputs of one batch: on the device, in transfer, and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.encoders.contract import check_counts

__all__ = ["Encoded", "HostCopy", "Layer", "Made", "Receipt", "host_memory", "joined", "pack", "to_host", "unpack"]


ALIGNMENT = 16
"""Bytes: each tensor of a pack begins at a multiple, so that it can be viewed in its own type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    start: int
    n_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """Tensors on their way. `arrays` waits for them."""

    packed: Tensor
    segments: tuple[_Segment, ...]
    arrived: torch.cuda.Event | None

    def arrays(self) -> list[NDArray[Any]]:
        """The tensors as NumPy arrays, in their order."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return unpack(self.packed, self.segments)


def to_host(tensors: Sequence[Tensor]) -> HostCopy:
    """Begin one transfer of all tensors, which are on one device."""
    packed, segments = pack(tensors)
    if packed.device.type != "cuda":
        return HostCopy(packed=packed, segments=segments, arrived=None)
    host = host_memory(len(packed))
    host.copy_(packed, non_blocking=True)
    # blocking: whoever waits sleeps, where a spinning wait would keep a core from decoding
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(packed.device))
    return HostCopy(packed=host, segments=segments, arrived=arrived)


def host_memory(n_bytes: int) -> Tensor:
    """Memory that a GPU copies to and from by itself, uint8 (bytes,); plain where the system lets no more be pinned.

    To or from plain memory a copy is waited for as it is made.
    """
    try:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # one that the device is in, too: the next call tells it
        return torch.empty(n_bytes, dtype=torch.uint8)


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[_Segment, ...]]:
    """Lay the bytes of tensors one behind another: uint8 (bytes,), and what lies where."""
    pieces, segments, at = [], [], 0
    for tensor in tensors:
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        segments.append(_Segment(start=at, n_bytes=len(raw), dtype=tensor.dtype, shape=tuple(tensor.shape)))
        filling = raw.new_zeros(-len(raw) % ALIGNMENT)
        pieces += [raw, filling]
        at += len(raw) + len(filling)
    return torch.cat(pieces), tuple(segments)


def unpack(packed: Tensor, segments: Sequence[_Segment]) -> list[NDArray[Any]]:
    """Views of the tensors of a pack, which is on the host."""
    return [
        packed[each.start : each.start + each.n_bytes].view(each.dtype).reshape(each.shape).numpy() for each in segments
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What one batch came to, of one output of the encoder.

    Attributes
    ----------
    utterance : float32 (batch, dim)
    frames : tuple of (n_frames, dim) in the stored type, or None where frames are not wanted of this output
    """

    utterance: NDArray[np.float32]
    frames: tuple[NDArray[Any], ...] | None


def joined(first: Encoded, second: Encoded) -> Encoded:
    """Two halves of a batch as one."""
    frames = None if first.frames is None or second.frames is None else first.frames + second.frames
    return Encoded(utterance=np.concatenate([first.utterance, second.utterance]), frames=frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of one batch.

    Attributes
    ----------
    frames : Tensor
        float32 (batch, frames, dim)
    own : Tensor or None
        The encoder's own utterance vectors.
    kept : int64 (batch,) or None
        Frames of each row that count; None where all do. A Tensor where only the device knows.
    kept_there : Tensor or None
        The same on the device.
    """

    frames: Tensor
    own: Tensor | None
    kept: NDArray[np.int64] | Tensor | None
    kept_there: Tensor | None

    def counts(self) -> NDArray[np.int64]:
        """Frames of each row that count; waits where only the device knows."""
        if self.kept is None:
            return np.full(len(self.frames), self.frames.shape[1], np.int64)
        return self.kept.cpu().numpy() if isinstance(self.kept, Tensor) else self.kept


class Made:
    """What is kept of one output of a batch, still on its device: vectors, and frames in the stored type or None."""

    def __init__(self, *, layer: Layer, vectors: Tensor, frames: Tensor | None) -> None:
        self.layer, self.vectors, self.frames = layer, vectors, frames

    def is_finite(self) -> Tensor:
        """One truth value. A sum is finite only if no term is NaN or infinite, and costs one pass."""
        finite = torch.isfinite(self.vectors.sum())
        return finite if self.frames is None else finite & torch.isfinite(self.frames.sum(dtype=torch.float32))

    def to_transfer(self) -> list[Tensor]:
        """What the host is to have: frames that it can tell from padding without asking are sent without padding.

        Counts that only the device knows are sent in any case, for nobody has looked at them yet.
        """
        tensors = [self.vectors]
        if isinstance(self.layer.kept, Tensor):
            tensors.append(self.layer.kept)
        if self.frames is None:
            return tensors
        return [*tensors, self.frames if isinstance(self.layer.kept, Tensor) else torch.cat(self._real(self.frames))]

    def receipt(self, *, name: str) -> Receipt:
        """How the host is to read what `to_transfer` sends."""
        return Receipt(
            name=name,
            frames_sent=self.frames is not None,
            available=self.layer.frames.shape[1],
            counts=None if isinstance(self.layer.kept, Tensor) else self.layer.counts(),
        )

    def encoded(self, *, name: str) -> Encoded:
        """All of it on the host, waiting for the device. EncoderContractError where the encoder's counts cannot be."""
        if isinstance(self.layer.kept, Tensor):
            check_counts(self.layer.counts(), available=self.layer.frames.shape[1], name=name)
        frames = None if self.frames is None else tuple(each.numpy() for each in self._real(self.frames.cpu()))
        return Encoded(utterance=self.vectors.cpu().numpy(), frames=frames)

    def _real(self, frames: Tensor) -> list[Tensor]:
        return [row[:count] for row, count in zip(frames, self.layer.counts().tolist(), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """How one output of a batch was sent; ``counts`` is None where they are sent too, and frames with their padding."""

    name: str
    frames_sent: bool
    available: int
    counts: NDArray[np.int64] | None

    def encoded(self, arrays: list[NDArray[Any]]) -> Encoded:
        """Take what was sent from the front of the arrays.

        Copies: what is kept until its part is written would else hold pinned memory, of which there should be little.
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
