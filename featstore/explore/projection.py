"""A map of vectors in two dimensions. The one door of umap-learn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError

__all__ = ["Projection", "pca", "umap"]

MAX_FITTED = 20_000
"""Rows that principal components are fitted to; of more, a draw that repeats. All rows are projected."""

ROWS_PER_BLOCK = 4096
UMAP_NEIGHBOURS = 15
MIN_UMAP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Where each vector lies on the map, float32 (n, 2), and what its axes are called."""

    name: str
    xy: NDArray[np.float32]
    axes: tuple[str, str]


def pca(vectors: NDArray[np.float32]) -> Projection:
    """Principal components 1 and 2. The same vectors make the same map: each component's largest weight is positive.

    Memory is that of a block and of the covariance, whatever the number of rows.
    """
    rows = np.arange(len(vectors))
    if len(rows) > MAX_FITTED:
        rows = np.sort(np.random.default_rng(0).choice(len(vectors), MAX_FITTED, replace=False))
    blocks = [rows[start : start + ROWS_PER_BLOCK] for start in range(0, len(rows), ROWS_PER_BLOCK)]
    dim = vectors.shape[1]
    mean = sum((vectors[block].sum(axis=0, dtype=np.float64) for block in blocks), np.zeros(dim)) / len(rows)
    centre = mean.astype(np.float32)
    covariance = np.zeros((dim, dim))
    for block in blocks:
        centred = vectors[block] - centre
        covariance += centred.T @ centred
    variances, directions = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1][:2]
    axes = directions[:, order] * np.sign(directions[np.abs(directions[:, order]).argmax(axis=0), order])
    xy = np.zeros((len(vectors), 2), np.float32)
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        block = vectors[start : start + ROWS_PER_BLOCK] - centre
        xy[start : start + len(block), : axes.shape[1]] = block @ axes.astype(np.float32)
    total = max(float(variances.clip(0).sum()), float(np.finfo(np.float64).tiny))
    shares = [max(0.0, float(variances[at])) / total for at in order]
    names = [f"component {n}, {share:.0%} of variance" for n, share in enumerate(shares, start=1)]
    return Projection(name="PCA", xy=xy, axes=(names[0], names[1] if len(names) > 1 else ""))


def umap(vectors: NDArray[np.float32]) -> Projection:
    """UMAP by cosine (McInnes, Healy and Melville 2018), started from one seed.

    Raises
    ------
    UsageError
        umap-learn is not installed, or there are fewer rows than its neighbourhoods take.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise UsageError(
            f"--map umap needs {error.name}, which is not installed: pip install 'featstore[umap]', or take --map pca"
        ) from error
    if len(vectors) < MIN_UMAP:
        raise UsageError(f"--map umap takes at least {MIN_UMAP} clips, and here are {len(vectors)}: take --map pca")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = UMAP(n_components=2, n_neighbors=UMAP_NEIGHBOURS, metric="cosine", random_state=0)
        xy = reducer.fit_transform(vectors)
    return Projection(name="UMAP", xy=np.nan_to_num(np.asarray(xy, np.float32)), axes=("", ""))
