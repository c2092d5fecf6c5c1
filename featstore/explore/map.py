"""The points of a map of a feature set: its clips, their neighbours, a projection to two dimensions, its frame."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.diagnostics.measures import sampled_rows
from featstore.errors import UsageError, missing_extra
from featstore.retrieve.scan import unit_rows

if TYPE_CHECKING:
    from featstore.retrieve.knn import Neighbours
    from featstore.store import FeatureSet

__all__ = [
    "Points",
    "Projection",
    "frame",
    "nearest_points",
    "pca",
    "take_common_points",
    "take_points",
    "umap",
]


ROWS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Clips of one feature set, in its order.

    Attributes
    ----------
    numbers : int64 (n,)
        Number of each clip in the feature set.
    windows : int64 (n,)
        First window of each clip.
    vectors : float32 (n, dim)
        Unit vectors; for a clip of several windows, their normalised mean.
    seconds : float64 (n,)
        Duration of each clip.
    """

    fs: FeatureSet
    numbers: NDArray[np.int64]
    windows: NDArray[np.int64]
    vectors: NDArray[np.float32]
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def keys(self) -> list[str]:
        """Key of each clip."""
        return [str(key) for key in self.fs.key[self.windows]]

    @property
    def metas(self) -> list[str]:
        """JSON of each clip."""
        return [str(meta) for meta in self.fs.meta_json[self.windows]]

    @property
    def shards(self) -> list[str]:
        """Name of the shard that each clip was in."""
        firsts = np.cumsum([0, *(segment.member.windows for segment in self.fs.segments)])
        places = np.searchsorted(firsts, self.windows, side="right") - 1
        return [self.fs.segments[place].member.shard.name for place in places]


def take_points(fs: FeatureSet, *, max_points: int) -> Points:
    """Read the clips of a feature set, or a sample of `max_points`. Memory is that of their vectors and a block.

    Raises
    ------
    UsageError
        There are fewer than two clips.
    """
    n = fs.n_clips
    if n < 2:
        raise UsageError(f"a map needs at least two clips, and {fs.path} has {n}")
    return _points(fs, sampled_rows(n, max_points))


def take_common_points(a: FeatureSet, b: FeatureSet, *, max_points: int) -> tuple[Points, Points]:
    """Read the clips that two feature sets have in common, matched by key, or a sample of `max_points`.

    Both results have the same clips in the order of `a`.

    Raises
    ------
    UsageError
        The feature sets are the same one, or have fewer than two clips in common.
    """
    if a.path == b.path:
        raise UsageError(f"both encoders are {a.recipe.group_name}: name two")
    _, in_a, in_b = np.intersect1d(a.clip_key, b.clip_key, return_indices=True)
    if len(in_a) < 2:
        raise UsageError(f"a map needs at least two clips, and {a.path} and {b.path} have {len(in_a)} in common")
    order = np.argsort(in_a)[sampled_rows(len(in_a), max_points)]
    return _points(a, in_a[order]), _points(b, in_b[order])


def _points(fs: FeatureSet, numbers: NDArray[np.int64]) -> Points:
    firsts = np.flatnonzero(fs.start_seconds == 0.0)
    place = np.full(len(firsts), -1)
    place[numbers] = np.arange(len(numbers))
    return Points(
        fs=fs,
        numbers=numbers,
        windows=firsts[numbers],
        vectors=_vectors(fs, place, n=len(numbers)),
        seconds=np.add.reduceat(fs.seconds, firsts)[numbers],
    )


def _vectors(fs: FeatureSet, place: NDArray[np.int64], *, n: int) -> NDArray[np.float32]:
    """Normalised mean of the unit vectors of each clip's windows; vectors that are not finite count as zero."""
    out = np.zeros((n, fs.recipe.dim), np.float32)
    one_window_each = len(place) == len(fs)
    for start in range(0, len(fs), ROWS_PER_BLOCK):
        stop = min(start + ROWS_PER_BLOCK, len(fs))
        at = place[fs.clip[start:stop]]
        block = fs.utterance_rows.slice(start, stop)[at >= 0]
        finite = np.isfinite(block).all(axis=1)
        unit = unit_rows(np.where(finite[:, None], block, np.float32(0)))
        if one_window_each:
            out[at[at >= 0]] = unit
        else:
            np.add.at(out, at[at >= 0], unit)
    return out if one_window_each else unit_rows(out)


def nearest_points(vectors: NDArray[np.float32], *, k: int) -> Neighbours:
    """The exact ``k`` nearest other rows of each row by cosine; fewer if there are fewer rows."""
    from featstore.retrieve.index import Searcher
    from featstore.retrieve.knn import without_own

    k = min(k, len(vectors) - 1)
    own = np.arange(len(vectors))
    return without_own(Searcher(vectors, "flat").search(vectors, k=k + 1), own=own, clip_of_row=own, k=k)


MAX_FITTED = 20_000
"""Rows that principal components are fitted to; of more, a reproducible sample. All rows are projected."""

UMAP_NEIGHBOURS = 15
MIN_UMAP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Position of each vector on the map, float32 (n, 2), and the names of the axes."""

    name: str
    xy: NDArray[np.float32]
    axes: tuple[str, str]


def pca(vectors: NDArray[np.float32]) -> Projection:
    """Principal components 1 and 2, deterministic: the largest weight of each component is positive.

    Memory is that of a block and of the covariance, independent of the number of rows.
    """
    rows = sampled_rows(len(vectors), MAX_FITTED)
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
    """UMAP by cosine (McInnes, Healy and Melville 2018) with a fixed seed.

    Raises
    ------
    UsageError
        umap-learn is not installed, or there are too few rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise missing_extra("--map umap (unlike --map pca)", error, "umap") from error
    if len(vectors) < MIN_UMAP:
        raise UsageError(f"--map umap needs at least {MIN_UMAP} clips, got {len(vectors)}: use --map pca")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = UMAP(n_components=2, n_neighbors=UMAP_NEIGHBOURS, metric="cosine", random_state=0)
        xy = reducer.fit_transform(vectors)
    return Projection(name="UMAP", xy=np.nan_to_num(np.asarray(xy, np.float32)), axes=("", ""))


FRAME_SHARE = 0.01
"""Share of the points at each end of an axis that may be outliers; at least one point."""


def frame(xy: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Limits of the axes that outliers do not widen, each float32 (2,).

    The range of an axis without 1 % of the points at each end is extended by half of its width at both ends, and cut
    to the range of all points. An axis on which all other points coincide has the range of all points.
    """
    in_order = np.sort(xy, axis=0)
    cut = max(1, int(FRAME_SHARE * len(xy)))
    least, most = in_order[0], in_order[-1]
    low, high = (in_order[cut], in_order[-1 - cut]) if len(xy) > 2 * cut else (least, most)
    margin = (high - low) / 2
    spread = high > low
    return np.where(spread, np.maximum(least, low - margin), least), np.where(
        spread, np.minimum(most, high + margin), most
    )
