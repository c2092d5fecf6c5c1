"""The clips of a map: which of a feature set, their vectors, and which are nearest to which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.retrieve.scaling import unit_rows

if TYPE_CHECKING:
    from featstore.retrieve.neighbours import Neighbours
    from featstore.store import FeatureSet

__all__ = ["MAX_POINTS", "Points", "nearest_points", "take_points"]

MAX_POINTS = 50_000
"""Clips of a map; of more, a draw that repeats."""

ROWS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Clips of one feature set, in its order.

    Attributes
    ----------
    numbers : int64 (n,)
        Of each clip in the feature set.
    windows : int64 (n,)
        First window of each clip.
    vectors : float32 (n, dim)
        At unit length; of a clip of several windows, the mean of them at unit length.
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
        return [str(meta) for meta in self.fs.meta[self.windows]]

    @property
    def shards(self) -> list[str]:
        """Name of the shard that each clip was in."""
        firsts = np.cumsum([0, *(segment.member.windows for segment in self.fs.segments)])
        places = np.searchsorted(firsts, self.windows, side="right") - 1
        return [self.fs.segments[place].member.shard.name for place in places]


def take_points(fs: FeatureSet, *, max_points: int) -> Points:
    """Read the clips of a feature set, of very many a draw. Memory is that of their vectors and a block.

    Raises
    ------
    UsageError
        There are fewer than two.
    """
    firsts = np.flatnonzero(fs.start_seconds == 0.0)
    if len(firsts) < 2:
        raise UsageError(f"a map takes at least two clips, and {fs.path} has {len(firsts)}")
    numbers = np.arange(len(firsts))
    if len(firsts) > max_points:
        numbers = np.sort(np.random.default_rng(0).choice(len(firsts), max_points, replace=False))
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
    """Mean of the unit vectors of each clip's windows, at unit length; what is not finite counts for nothing."""
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
    """The ``k`` nearest of each row among the others by cosine, exactly; fewer where there are no more."""
    from featstore.retrieve.index import Searcher
    from featstore.retrieve.neighbours import without_own

    k = min(k, len(vectors) - 1)
    own = np.arange(len(vectors))
    return without_own(Searcher(vectors, "flat").search(vectors, k=k + 1), own=own, clip_of_row=own, k=k)
