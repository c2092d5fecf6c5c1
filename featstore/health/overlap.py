"""Clips of one split that all but stand in another: leakage, found with FAISS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAR_COSINE", "NearDuplicate", "Overlap", "find_overlap"]

NEAR_COSINE = 0.98
"""From this cosine on, of whitened vectors, two windows count as of one recording.

Measured on the demo's 2,696 clips by two encoders: the closest two different clips are at 0.975 (without whitening at
0.9999, which tells nothing); the same clip half as loud is at 0.982 to 0.996 in the median of 100, with noise at 40 dB
at 0.983 to 0.9999. An encoder that hears less of such changes, or more, wants another figure.
"""

SHRINKAGE = 1e-3
MAX_PAIRS_NAMED = 100
# Queries x rows x dim: some ten seconds of two cores.
MAX_WORK = 3 * 10**11


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """A clip and the one that it is closest to elsewhere."""

    clip: str
    other: str
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What a split shares with others.

    Attributes
    ----------
    clips : int
        Clips of the split with a near-duplicate among the others.
    searched, total : int
        Windows that were looked up, of how many: of very many a draw.
    cosine : float
        From where on two windows count as near-duplicates.
    pairs : tuple of NearDuplicate
        One for each such clip, the closest first, of many the first hundred.
    """

    clips: int
    searched: int
    total: int
    cosine: float
    pairs: tuple[NearDuplicate, ...]


def find_overlap(
    X: NDArray[np.float32],
    others: NDArray[np.float32],
    *,
    keys: Sequence[str],
    other_keys: Sequence[str],
    cosine: float = NEAR_COSINE,
) -> Overlap:
    """Find rows of `X` that have a near-duplicate among `others`.

    The cosine is of whitened vectors: an offset that all embeddings share, and the few directions that most encoders
    spend nearly all variance on (loudness, for one), would make any two alike. Directions of next to no variance are
    held back by a ridge of a thousandth of the mean variance.

    Parameters
    ----------
    X, others : float32 (n, dim), (m, dim)
        Finite.
    keys, other_keys : sequence of str
        Clip of each row.
    cosine : float
        From where on two rows count.
    """
    from featstore.retrieve.index import Searcher
    from featstore.retrieve.scaling import unit_rows

    if not len(X) or not len(others):
        return Overlap(clips=0, searched=len(X), total=len(X), cosine=cosine, pairs=())
    most = max(1, MAX_WORK // max(1, others.size))
    rows = np.arange(len(X))
    if len(X) > most:
        rows = np.sort(np.random.default_rng(0).choice(len(X), most, replace=False))
    mean, whiten = _whitening(X[rows], others)
    queries, references = (unit_rows(np.asarray((each - mean) @ whiten, np.float32)) for each in (X[rows], others))
    found = Searcher(references, "flat").search(queries, k=1)
    similarities, nearest = found.similarities[:, 0], found.rows[:, 0]
    closest: dict[str, NearDuplicate] = {}
    for at in np.flatnonzero(similarities >= cosine)[np.argsort(-similarities[similarities >= cosine], kind="stable")]:
        key = keys[rows[at]]
        pair = NearDuplicate(clip=key, other=other_keys[nearest[at]], cosine=min(1.0, float(similarities[at])))
        closest.setdefault(key, pair)
    return Overlap(
        clips=len(closest),
        searched=len(rows),
        total=len(X),
        cosine=cosine,
        pairs=tuple(closest.values())[:MAX_PAIRS_NAMED],
    )


def _whitening(X: NDArray[np.float32], others: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean row of both, and the matrix (dim, dim) that gives their directions about equal variance."""
    n = len(X) + len(others)
    mean = (X.sum(axis=0, dtype=np.float64) + others.sum(axis=0, dtype=np.float64)) / n
    covariance = np.zeros((X.shape[1], X.shape[1]))
    for each in (X, others):
        centred = each - mean.astype(np.float32)
        covariance += (centred.T @ centred) / n
    variances, directions = np.linalg.eigh(covariance)
    ridge = SHRINKAGE * max(float(np.mean(variances)), float(np.finfo(np.float32).tiny))
    scaled = directions / np.sqrt(np.clip(variances, 0.0, None) + ridge)
    return mean.astype(np.float32), scaled.astype(np.float32)
