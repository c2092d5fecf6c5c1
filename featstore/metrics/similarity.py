"""Similarity of two representations of the same clips: CKA, Procrustes, neighbours, ranks of similarities.

The rows of X (n, dim_x) and Y (n, dim_y) are the same clips; the dimensions may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.intervals import student

__all__ = [
    "Estimate",
    "Moments",
    "aligned",
    "cosines_of_pairs",
    "linear_cka",
    "nearest",
    "overlap_by_row",
    "procrustes_residual",
    "spearman",
    "with_interval",
]

_MAX_CELLS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Number of rows, sums and products of two spaces: from them CKA and Procrustes follow. They can be subtracted."""

    n: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]]) -> Moments:
        """Moments of X (n, dim_x) and Y (n, dim_y); subtract a common row from each first, if they are far from 0."""
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        return cls(n=len(X), x=X.sum(axis=0), y=Y.sum(axis=0), xx=X.T @ X, xy=X.T @ Y, yy=Y.T @ Y)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            n=self.n - other.n,
            x=self.x - other.x,
            y=self.y - other.y,
            xx=self.xx - other.xx,
            xy=self.xy - other.xy,
            yy=self.yy - other.yy,
        )

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """X'X, X'Y and Y'Y of centred columns."""
        n = max(1, self.n)
        return (
            self.xx - np.outer(self.x, self.x) / n,
            self.xy - np.outer(self.x, self.y) / n,
            self.yy - np.outer(self.y, self.y) / n,
        )


def linear_cka(of: Moments) -> float:
    """Linear centred kernel alignment, 0 to 1: ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F) of centred columns.

    Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited", ICML 2019. It does not
    change if a space is rotated, scaled or moved. Unrelated spaces have a value above 0 that falls with the number of
    rows: about dim / n for Gaussian spaces of one width. NaN if a space does not vary.
    """
    xx, xy, yy = of.centred()
    norms = float(np.linalg.norm(xx) * np.linalg.norm(yy))
    return float(np.linalg.norm(xy) ** 2 / norms) if norms > 0 else float("nan")


def procrustes_residual(of: Moments) -> float:
    """Share of the variance of one space, 0 to 1, that no rotation, scale and offset of the other explains.

    Orthogonal Procrustes analysis (Schoenemann 1966; Gower 1975) of centred spaces of unit norm: 1 - s^2, where s is
    the sum of the singular values of X'Y. The narrower space is padded with zeros, which adds no singular value.
    `scipy.spatial.procrustes` calls it disparity. It is symmetric. NaN if a space does not vary.
    """
    xx, xy, yy = of.centred()
    norms = float(np.sqrt(max(0.0, np.trace(xx)) * max(0.0, np.trace(yy))))
    if not norms > 0:
        return float("nan")
    s = float(np.linalg.svd(xy, compute_uv=False).sum()) / norms
    return max(0.0, 1.0 - s * s)


def aligned(
    X: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre both spaces, and rotate X onto Y: two arrays (n, dim_y)."""
    X, Y = _centred(X), _centred(Y)
    left, _, right = np.linalg.svd(X.T @ Y, full_matrices=False)
    return np.asarray(X @ (left @ right)), Y


def nearest(queries: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]], *, k: int) -> NDArray[np.int64]:
    """Indices of the `k` rows of `reference` nearest to each query by cosine, without the row of its own number.

    Shape (n, k), in no order. Zero rows have the cosine 0 with every row.
    """
    Q, R = _unit(queries), _unit(reference)
    found = np.empty((len(Q), k), np.int64)
    block = max(1, _MAX_CELLS // len(R))
    for start in range(0, len(Q), block):
        cosines = Q[start : start + block] @ R.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -np.inf
        found[start : start + block] = np.argpartition(cosines, -k, axis=1)[:, -k:]
    return found


def overlap_by_row(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the entries of each row (n, k) that the same row of `other` has too, float64 (n,)."""
    return np.asarray((one[:, :, None] == other[:, None, :]).any(axis=2).mean(axis=1))


def cosines_of_pairs(X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosines of all pairs of rows i < j, in the order of `numpy.triu_indices`: (n (n - 1) / 2,)."""
    unit = _unit(X)
    return (unit @ unit.T)[np.triu_indices(len(unit), k=1)].astype(np.float64)


def spearman(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Spearman's rank correlation, with average ranks for ties; NaN if a side does not vary."""
    from scipy.stats import rankdata

    a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    norms = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b / norms) if norms else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval over clips; None where the value is undefined or there are too few clips."""

    value: float | None
    low: float | None
    high: float | None


def with_interval(value: float, without: Sequence[float], *, least: float, most: float) -> Estimate:
    """Build the estimate of a measure from a jackknife that leaves out one group of clips at a time.

    Shao and Wu, "A general theory for jackknife variance estimation", 1989; Student's t has a degree of freedom less
    than there are groups.

    Parameters
    ----------
    value : float
        The measure of all clips.
    without : sequence of float
        The measure without each of some random groups of equal size; the interval is None for fewer than two.
    least, most : float
        Bounds of the measure; the interval is cut to them.
    """
    if np.isnan(value):
        return Estimate(value=None, low=None, high=None)
    n, found = len(without), np.array(without)
    if n < 2 or np.isnan(found).any():
        return Estimate(value=value, low=None, high=None)
    half = student(n - 1) * float(np.sqrt((n - 1) / n * np.square(found - found.mean()).sum()))
    return Estimate(value=value, low=max(least, value - half), high=min(most, value + half))


def _centred(X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    X = np.asarray(X, np.float64)
    return np.asarray(X - X.mean(axis=0))


def _unit(X: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    X = np.asarray(X, np.float32)
    return np.asarray(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float32).tiny))
