"""Brings what was made on a device to the host, in one transfer that nobody waits for before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HostCopy", "host_memory", "pack", "to_host", "unpack"]

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
