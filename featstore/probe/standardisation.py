"""Standardise features to mean 0 and variance 1 per dimension of a training set, as ``StandardScaler``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Standardisation", "Standardise"]

CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardisation:
    """``(X - mean) / scale``, float64 (dim,) each; the scale of a constant dimension is 1."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray[np.float32]) -> Standardisation:
        """Compute the statistics of the rows (n, dim) of an array."""
        return cls.of_chunks(X[start : start + CHUNK_ROWS] for start in range(0, len(X), CHUNK_ROWS))

    @classmethod
    def of_chunks(cls, chunks: Iterable[NDArray[np.floating]]) -> Standardisation:
        """Compute the statistics of chunks of rows, merged pairwise (Chan, Golub and LeVeque 1983)."""
        n, mean, squares = 0, np.zeros(1), np.zeros(1)
        for chunk in chunks:
            rows = np.asarray(chunk, np.float64)
            if not len(rows):
                continue
            its_mean = rows.mean(axis=0)
            offset = its_mean - mean
            total = n + len(rows)
            squares = squares + np.square(rows - its_mean).sum(axis=0) + np.square(offset) * n * len(rows) / total
            mean = mean + offset * len(rows) / total
            n = total
        variance = squares / max(n, 1)
        # A constant column has a variance within this bound by rounding (the bound of StandardScaler).
        eps = np.finfo(np.float64).eps
        constant = variance <= n * eps * variance + np.square(n * mean * eps)
        return cls(mean=mean, scale=np.where(constant, 1.0, np.sqrt(variance)))

    def __call__(self, X: NDArray[np.floating]) -> Tensor:
        """Standardised rows, float32 (n, dim)."""
        rows = torch.empty(X.shape, dtype=torch.float32)
        for start in range(0, len(X), CHUNK_ROWS):
            chunk = np.asarray(X[start : start + CHUNK_ROWS], np.float64)
            rows[start : start + len(chunk)] = torch.from_numpy((chunk - self.mean) / self.scale)
        return rows


class Standardise(nn.Module):
    """`Standardisation` as the first layer of a model, where X-ARES has LayerNorm."""

    mean: Tensor
    scale: Tensor

    def __init__(self, by: Standardisation) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(by.mean.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(by.scale.astype(np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise rows (..., dim)."""
        return (features - self.mean) / self.scale
