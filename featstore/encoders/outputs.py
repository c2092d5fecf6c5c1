"""What is kept of one forward pass: which layer, and how its frames become an utterance vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Output", "Pool", "pooled"]

Pool = Literal["mean", "max", "std"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One thing that is kept of a forward pass.

    Attributes
    ----------
    layer : int or None
        Hidden state, counted from 0, the input of the first block; None is what the encoder's ``forward`` returns.
    pool : str
        How frames become an utterance vector. ``mean`` is the encoder's own vector where it returns one.
    """

    layer: int | None = None
    pool: Pool = "mean"

    @property
    def suffix(self) -> str:
        """What its feature sets are called by, after the encoder's name.

        >>> Output(layer=6).suffix, Output(layer=6, pool="std").suffix, Output().suffix
        ('.layer6', '.layer6.std', '')
        """
        layer = "" if self.layer is None else f".layer{self.layer}"
        return layer if self.pool == "mean" else f"{layer}.{self.pool}"


def pooled(frames: Tensor, kept: NDArray[np.int64], pool: Pool) -> Tensor:
    """One vector of the first `kept` frames of each row: their mean, maximum or population standard deviation.

    Parameters
    ----------
    frames : Tensor
        float32 (batch, frames, dim)
    kept : int64 (batch,)
        At least 1.
    """
    available = frames.shape[1]
    whole = bool((kept == available).all())
    if pool == "max":
        if whole:
            return frames.amax(dim=1)
        return frames.masked_fill(_padding(frames, kept), -torch.inf).amax(dim=1)
    mean = frames.mean(dim=1) if whole else _sum_of_real(frames, kept) / _counts(frames, kept)
    if pool == "mean":
        return mean
    squares = (frames - mean[:, None]).square()
    variance = squares.mean(dim=1) if whole else _sum_of_real(squares, kept) / _counts(frames, kept)
    return variance.sqrt()


def _counts(frames: Tensor, kept: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(kept).to(frames.device)[:, None]


def _padding(frames: Tensor, kept: NDArray[np.int64]) -> Tensor:
    at = torch.arange(frames.shape[1], device=frames.device)
    return (at[None, :] >= _counts(frames, kept))[:, :, None]


def _sum_of_real(values: Tensor, kept: NDArray[np.int64]) -> Tensor:
    return values.masked_fill(_padding(values, kept), 0.0).sum(dim=1)
