"""Outputs that are kept of a forward pass: the layer, and the pooling of its frames to an utterance vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from featstore.records import output_suffix

__all__ = ["Output", "Pool", "pooled"]

Pool = Literal["mean", "max", "std"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output that is kept of a forward pass.

    Attributes
    ----------
    layer : int or None
        Hidden state; 0 is the input of the first block. None is the output of ``forward``.
    pool : str
        How frames become an utterance vector. ``mean`` is the encoder's own vector if it returns one.
    """

    layer: int | None = None
    pool: Pool = "mean"

    @property
    def suffix(self) -> str:
        """Suffix of the encoder's name in the names of feature sets."""
        return output_suffix(self.layer, self.pool)


def pooled(frames: Tensor, kept: Tensor | None, pool: Pool) -> Tensor:
    """Pool the first `kept` frames of each row by mean, maximum or population standard deviation.

    Parameters
    ----------
    frames : Tensor
        float32 (batch, frames, dim)
    kept : Tensor or None
        int64 (batch,), at least 1, on the device of the frames; None keeps all frames.
    pool : "mean", "max" or "std"

    Returns
    -------
    Tensor
        float32 (batch, dim)
    """
    if pool == "max":
        return (frames if kept is None else frames.masked_fill(_padding(frames, kept), -torch.inf)).amax(dim=1)
    mean = _mean(frames, kept)
    return mean if pool == "mean" else _mean((frames - mean[:, None]).square(), kept).sqrt()


def _mean(values: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None:
        return values.mean(dim=1)
    return values.masked_fill(_padding(values, kept), 0.0).sum(dim=1) / kept[:, None]


def _padding(frames: Tensor, kept: Tensor) -> Tensor:
    at = torch.arange(frames.shape[1], device=frames.device)
    return (at[None, :] >= kept[:, None])[:, :, None]
