"""Compares two embedding spaces on the same clips: two encoders, layers, precisions or versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.diagnostics.measures import sampled_rows
from featstore.errors import DataError, UsageError
from featstore.metrics.similarity import (
    Estimate,
    Moments,
    aligned,
    cosines_of_pairs,
    linear_cka,
    nearest,
    overlap_by_row,
    procrustes_residual,
    spearman,
    with_interval,
)

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = ["MAX_CLIPS", "MEASURES", "MovedClip", "SpaceDiff", "compare_arrays", "compare_spaces"]

MAX_CLIPS = 5_000
"""Number of clips that are compared; more are subsampled with a fixed seed."""
_MAX_PAIRED_CLIPS = 1_000
_MOST_MOVED = 10
_GROUPS = 10
_LEAST_CLIPS = 3

MEASURES = ("cka", "overlap", "index_overlap", "procrustes", "rank_correlation")


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedClip:
    """A clip that moved far.

    Attributes
    ----------
    clip : str
        ``dataset/split/key``.
    moved : float
        1 - the cosine of its two vectors, after A was centred and rotated onto B; 0 to 2.
    overlap : float
        Share of its k nearest neighbours that both spaces have.
    """

    clip: str
    moved: float
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceDiff:
    """Difference of two embedding spaces, A and B. The vector of a clip is the mean over its windows, by duration.

    Attributes
    ----------
    a, b : str
        Recipes, such as ``logmel@3f9c2a71``.
    dim_a, dim_b : int
    feature_sets : tuple of str
        ``dataset/split`` of the compared clips.
    common : int
        Number of clips that both have.
    only_a, only_b : int
        Number of clips of these feature sets that only one has.
    clips : int
        Number of clips that were compared.
    k : int
        Number of neighbours.
    cka : Estimate
        Linear centred kernel alignment: 1 for spaces that are equal up to rotation and scale.
    overlap : Estimate
        Mean share of the k nearest neighbours of a clip, by cosine, that both spaces have.
    index_overlap : Estimate or None
        The same for a query that is encoded by B and searched among the vectors of A, compared with the query encoded
        by A; None if the widths differ. The query's own clip is excluded.
    procrustes : Estimate
        Share of variance that rotation, scale and offset do not explain: 0 for equal spaces.
    rank_correlation : Estimate
        Spearman's correlation of the cosines of all pairs of at most 1,000 clips.
    largest_change : float or None
        Largest change of a vector relative to its norm in A, without alignment; None if the widths differ.
    moved : tuple of MovedClip
        The ten clips that moved most.
    """

    a: str
    b: str
    dim_a: int
    dim_b: int
    feature_sets: tuple[str, ...]
    common: int
    only_a: int
    only_b: int
    clips: int
    k: int
    cka: Estimate
    overlap: Estimate
    index_overlap: Estimate | None
    procrustes: Estimate
    rank_correlation: Estimate
    largest_change: float | None
    moved: tuple[MovedClip, ...]

    def value_of(self, measure: str) -> float | None:
        """Value of a measure of `MEASURES`; None if it is undefined for these spaces."""
        if measure not in MEASURES:
            raise UsageError(f"the measure must be one of {', '.join(MEASURES)}: got {measure!r}")
        found: Estimate | None = getattr(self, measure)
        return None if found is None else found.value

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clips:
    """Clips of one feature set by key: first row and end of each."""

    fs: FeatureSet
    rows: Mapping[str, tuple[int, int]]

    def vector(self, key: str) -> NDArray[np.float64]:
        """Mean over the windows of a clip, weighted by duration."""
        start, stop = self.rows[key]
        windows = self.fs.utterance_rows.slice(start, stop).astype(np.float64)
        if stop - start == 1:
            return np.asarray(windows[0])
        weights = np.maximum(self.fs.seconds[start:stop], 1e-6)
        return np.asarray(weights @ windows / weights.sum())


def compare_spaces(
    a: Iterable[FeatureSet], b: Iterable[FeatureSet], *, k: int = 10, max_clips: int = MAX_CLIPS, seed: int = 0
) -> SpaceDiff:
    """Compare the feature sets of one recipe with those of another, on the clips that both have.

    Time and memory are bounded: of more than `max_clips` common clips, a random sample is read and compared, so that
    neighbours are those in the sample.

    Parameters
    ----------
    a, b : iterable of FeatureSet
        Of one recipe each; clips are matched by dataset, split and key.
    k : int
    max_clips : int
    seed : int
        Seed of the sample, and of the groups of the intervals.

    Raises
    ------
    DataError
        The two have fewer than three clips in common, or a vector is not finite.
    UsageError
        `k` is less than 1.
    """
    sets_a, sets_b = ({(fs.dataset, fs.split): fs for fs in each} for each in (a, b))
    places = [place for place in sets_a if place in sets_b]
    pairs = [(place, _clips_of(sets_a[place]), _clips_of(sets_b[place])) for place in places]
    common = [(at, key) for at, (_, one, other) in enumerate(pairs) for key in one.rows if key in other.rows]
    if len(common) < _LEAST_CLIPS:
        raise DataError(
            f"the two have {len(common)} clips in common, and {_LEAST_CLIPS} are the least: clips are matched by "
            "dataset, split and key"
        )
    chosen = [common[at] for at in sampled_rows(len(common), max_clips, seed=seed).tolist()]
    of_a, of_b = pairs[0][1].fs.recipe, pairs[0][2].fs.recipe
    return compare_arrays(
        np.stack([pairs[at][1].vector(key) for at, key in chosen]),
        np.stack([pairs[at][2].vector(key) for at, key in chosen]),
        names=["/".join((*pairs[at][0], key)) for at, key in chosen],
        k=k,
        seed=seed,
        a=of_a.group_name,
        b=of_b.group_name,
        feature_sets=tuple("/".join(place) for place in places),
        common=len(common),
        only_a=sum(len(one.rows) for _, one, _ in pairs) - len(common),
        only_b=sum(len(other.rows) for _, _, other in pairs) - len(common),
    )


def _clips_of(fs: FeatureSet) -> _Clips:
    firsts = np.flatnonzero(fs.start_seconds == 0.0)
    bounds = np.append(firsts, len(fs)).tolist()
    keys = [str(key) for key in fs.key[firsts]]
    return _Clips(fs=fs, rows={key: (bounds[at], bounds[at + 1]) for at, key in reversed(list(enumerate(keys)))})


def compare_arrays(
    X: NDArray[np.floating[Any]],
    Y: NDArray[np.floating[Any]],
    *,
    names: Sequence[str],
    k: int = 10,
    seed: int = 0,
    **described: Any,
) -> SpaceDiff:
    """Compare two spaces, X (n, dim_a) and Y (n, dim_b), whose rows are the same clips; see `compare_spaces`.

    `described` are the fields of `SpaceDiff` about the origin of the clips.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if not (np.isfinite(X).all() and np.isfinite(Y).all()):
        raise DataError("a vector is not finite: `featstore inspect --health` counts such vectors")
    n, k = len(X), min(k, len(X) - 1)
    groups = _groups(n, seed=seed)
    # CKA and Procrustes do not depend on the offset; without it, products keep more digits
    X0, Y0 = X - X.mean(axis=0), Y - Y.mean(axis=0)
    moments = Moments.of(X0, Y0)

    def of_moments(measure: Callable[[Moments], float]) -> Estimate:
        without = [measure(moments - Moments.of(X0[group], Y0[group])) for group in groups]
        return with_interval(measure(moments), without, least=0.0, most=1.0)

    near_a, near_b = nearest(X, X, k=k), nearest(Y, Y, k=k)
    overlap = overlap_by_row(near_a, near_b)
    same_width = X.shape[1] == Y.shape[1]
    across = overlap_by_row(near_a, nearest(Y, X, k=k)) if same_width else None
    return SpaceDiff(
        dim_a=X.shape[1],
        dim_b=Y.shape[1],
        clips=n,
        k=k,
        cka=of_moments(linear_cka),
        overlap=_mean(overlap, groups),
        index_overlap=None if across is None else _mean(across, groups),
        procrustes=of_moments(procrustes_residual),
        rank_correlation=_rank_correlation(X, Y, seed=seed),
        largest_change=_largest_change(X, Y) if same_width else None,
        moved=_moved(X, Y, overlap, names),
        **described,
    )


def _groups(n: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Random groups of clips of equal size to within one; none if they would have fewer than two clips."""
    if n < 2 * _GROUPS:
        return []
    return np.array_split(np.random.default_rng(seed).permutation(n), _GROUPS)


def _mean(values: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> Estimate:
    """Mean over clips; the neighbours of a clip are those among all clips in each group."""
    without = [float(np.delete(values, group).mean()) for group in groups]
    return with_interval(float(values.mean()), without, least=0.0, most=1.0)


def _rank_correlation(X: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]], *, seed: int) -> Estimate:
    """Spearman's correlation of the cosines of pairs; an interval leaves out the pairs of a group of clips."""
    some = sampled_rows(len(X), _MAX_PAIRED_CLIPS, seed=seed)
    X, Y = X[some], Y[some]
    without = [
        spearman(*(cosines_of_pairs(np.delete(each, group, axis=0)) for each in (X, Y)))
        for group in _groups(len(X), seed=seed)
    ]
    return with_interval(spearman(cosines_of_pairs(X), cosines_of_pairs(Y)), without, least=-1.0, most=1.0)


def _largest_change(X: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]]) -> float:
    norms = np.maximum(np.linalg.norm(X, axis=1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(Y - X, axis=1) / norms).max())


def _moved(
    X: NDArray[np.floating[Any]], Y: NDArray[np.floating[Any]], overlap: NDArray[np.float64], names: Sequence[str]
) -> tuple[MovedClip, ...]:
    """The clips that moved most after A is rotated onto B."""
    rotated, target = aligned(X, Y)
    norms = np.linalg.norm(rotated, axis=1) * np.linalg.norm(target, axis=1)
    cosines = np.divide((rotated * target).sum(axis=1), norms, out=np.ones(len(X)), where=norms > 0)
    moved = np.clip(1.0 - cosines, 0.0, 2.0)
    most = np.argsort(-moved, kind="stable")[:_MOST_MOVED].tolist()
    return tuple(
        MovedClip(clip=names[at], moved=float(moved[at]), overlap=float(overlap[at])) for at in most if moved[at] > 1e-6
    )
