"""Clips of one split that are in another one too, equal or nearly so: leakage, found by their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAR_COSINE", "NearDuplicate", "Overlap", "find_overlap", "nearest_rows", "row_hashes", "whitened"]

NEAR_COSINE = 0.98
"""From this cosine on, of whitened vectors, two windows count as of one recording.

Measured on the demo's 2,696 clips by two encoders: the closest two different clips are at 0.975 (without whitening at
0.9999, which tells nothing); the same clip half as loud is at 0.982 to 0.996 in the median of 100, with noise at 40 dB
at 0.983 to 0.9999. An encoder that hears less of such changes, or more, wants another figure.
"""

SHRINKAGE = 1e-3
MAX_COVARIANCE_ROWS = 20_000
MAX_PAIRS_NAMED = 100
# Queries x rows x dim: some ten seconds of two cores.
MAX_WORK = 3 * 10**11
_BLOCK_BYTES = 64 << 20


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
    """Find rows of `X` that have a near-duplicate among `others`, by the cosine of whitened vectors: see `whitened`.

    Parameters
    ----------
    X, others : float32 (n, dim), (m, dim)
        Finite.
    keys, other_keys : sequence of str
        Clip of each row.
    cosine : float
        From where on two rows count.
    """
    if not len(X) or not len(others):
        return Overlap(clips=0, searched=len(X), total=len(X), cosine=cosine, pairs=())
    most = max(1, MAX_WORK // max(1, others.size))
    rows = np.arange(len(X))
    if len(X) > most:
        rows = np.sort(np.random.default_rng(0).choice(len(X), most, replace=False))
    queries, references = whitened(X[rows], others)
    similarities, nearest = nearest_rows(queries, references)
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


def whitened(*sets: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Whiten several sets of rows (n, dim) together, and scale each row to unit length.

    An offset that all embeddings share, and the few directions that most encoders spend nearly all variance on
    (loudness, for one), would make any two alike. Directions of next to no variance are held back by a ridge of a
    thousandth of the mean variance. Of more than 20,000 rows an even draw makes the covariance.
    """
    n = sum(map(len, sets))
    step = -(-n // MAX_COVARIANCE_ROWS)
    drawn = [each[::step] for each in sets]
    n_drawn = sum(map(len, drawn))
    mean = sum(each.sum(axis=0, dtype=np.float64) for each in drawn) / n_drawn
    covariance = np.zeros((len(mean), len(mean)))
    for each in drawn:
        centred = each - mean.astype(np.float32)
        covariance += (centred.T @ centred) / n_drawn
    variances, directions = np.linalg.eigh(covariance)
    ridge = SHRINKAGE * max(float(np.mean(variances)), float(np.finfo(np.float32).tiny))
    whiten = (directions / np.sqrt(np.clip(variances, 0.0, None) + ridge)).astype(np.float32)
    return tuple(_unit((each - mean.astype(np.float32)) @ whiten) for each in sets)


def _unit(X: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)


def nearest_rows(
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    *,
    group: NDArray[np.int64] | None = None,
    reference_group: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the row of largest inner product with each query: similarities (n,) and row numbers (n,).

    With `group` (n,) and `reference_group` (m,), rows of a query's own group do not count: -inf where no other is left.
    """
    similarities = np.full(len(queries), -np.inf, np.float32)
    nearest = np.zeros(len(queries), np.int64)
    block = max(1, _BLOCK_BYTES // (4 * max(1, len(references))))
    for start in range(0, len(queries), block):
        some = slice(start, min(start + block, len(queries)))
        products = queries[some] @ references.T
        if group is not None and reference_group is not None:
            products[group[some, None] == reference_group] = -np.inf
        nearest[some] = products.argmax(axis=1)
        similarities[some] = np.take_along_axis(products, nearest[some, None], axis=1)[:, 0]
    return similarities, nearest


def row_hashes(X: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64-bit hash of each row's bits, uint64 (n,): rows of one hash are equal bit for bit, up to chance (2 to the -64).

    >>> row_hashes(np.array([[1, 2], [2, 1], [1, 2]], np.float32)).tolist().count(0)
    0
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 2**63, X.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(X), np.uint64)
    block = max(1, _BLOCK_BYTES // (8 * max(1, X.shape[1])))
    for start in range(0, len(X), block):
        bits = np.ascontiguousarray(X[start : start + block]).view(np.uint32)
        mixed = (bits.astype(np.uint64) + np.uint64(1)) * weights
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        hashes[start : start + block] = mixed.sum(axis=1, dtype=np.uint64)
    return hashes
