"""Leakage between the training side and the test side of a round: shared shards, shared keys and nearly equal rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation.pool import Windows, shard_names
from featstore.evaluation.warnings import ScoreWarning
from featstore.formatting import counted
from featstore.records import Protocol

if TYPE_CHECKING:
    from featstore.tasks.splits import Round

__all__ = [
    "NEAR_COSINE",
    "NearDuplicate",
    "Overlap",
    "check_sides",
    "find_overlap",
    "nearest_rows",
    "row_hashes",
    "shared_names",
    "training_side",
    "whitened",
]


NEAR_COSINE = 0.98
"""Minimum cosine of whitened vectors at which two windows count as near-duplicates.

Measured on the demo's 2,696 clips with two encoders. The closest two different clips have cosine 0.975 (0.9999 without
whitening, which separates nothing). A clip at half amplitude has a median cosine of 0.982 to 0.996 with the original,
over 100 clips; with noise at 40 dB SNR, 0.983 to 0.9999. Encoders that are more or less sensitive to such changes need
another threshold.
"""

SHRINKAGE = 1e-3
MAX_COVARIANCE_ROWS = 20_000
MAX_PAIRS_NAMED = 100
# Queries x rows x dim: about 10 s on two cores.
MAX_WORK = 3 * 10**11
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """A clip and its closest match in another split."""

    clip: str
    other: str
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Near-duplicates that a split shares with other splits.

    Attributes
    ----------
    clips : int
        Number of clips of the split with a near-duplicate in the others.
    searched, total : int
        Number of windows that were searched, and of all windows; a large split is subsampled.
    cosine : float
        Minimum cosine of near-duplicates.
    pairs : tuple of NearDuplicate
        The closest match of each such clip, closest first; at most 100.
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
    """Find rows of `X` that have a near-duplicate among `others`, by cosine of whitened vectors; see `whitened`.

    Parameters
    ----------
    X, others : float32 (n, dim), (m, dim)
        Finite.
    keys, other_keys : sequence of str
        Clip of each row.
    cosine : float
        Minimum cosine of near-duplicates.
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
    """Whiten several sets of rows (n, dim) jointly, and scale each row to unit length.

    Without whitening, the offset that all embeddings share and the few directions with most of the variance (loudness,
    for example) dominate every cosine. A ridge of 1e-3 times the mean variance limits the gain of directions with
    almost no variance. The covariance is estimated from at most 20,000 evenly spaced rows.
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
    """Find the row with the largest inner product for each query: similarities (n,) and row numbers (n,).

    With `group` (n,) and `reference_group` (m,), rows of the query's own group are excluded; the similarity is -inf if
    no other row exists.
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
    """Hash the bits of each row, uint64 (n,): equal rows have equal hashes, different rows collide with chance 2^-64.

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


def check_sides(windows: Windows, rounds: Sequence[Round], *, protocol: Protocol, task: str) -> None:
    """Raise DataError if a ``strict`` round has a shard or a clip on both the training and the test side."""
    if protocol == "strict":
        for each in shared_names(windows, rounds):
            raise DataError(
                f"task {task}: {each.message}: name each shard in one split, give different clips different keys, and "
                "run `featstore extract --prune` where shards were renamed or moved"
            )


def shared_names(windows: Windows, rounds: Sequence[Round]) -> Iterator[ScoreWarning]:
    """Find shards, and keys of clips, that are on both sides of a round.

    Clips of one feature set have different keys. Its shards can be on both sides, since the round separates clips.
    """
    of_set = np.zeros(len(windows.clip_id), np.int64)
    for number, clips in enumerate(windows.members.values()):
        of_set[clips] = number
    shards_of = [frozenset(shard_names(each)) for each in windows.sets]
    code_of: dict[str, int] = {}
    codes = np.array([code_of.setdefault(name.partition("/")[2], len(code_of)) for name in windows.clip_id], np.int64)
    shards: set[str] = set()
    shared: list[NDArray[np.int64]] = []
    for each in rounds:
        training = training_side(each)
        shared.append(np.intersect1d(codes[training], codes[each.test]))
        for one in np.unique(of_set[training]):
            for other in np.unique(of_set[each.test]):
                if one != other:
                    shards |= shards_of[one] & shards_of[other]
    if shards:
        n = counted(len(shards), "shard")
        yield ScoreWarning(
            kind="shards_on_both_sides",
            message=f"{n} in training and in test, {min(shards)} among them",
            count=len(shards),
            figures={"example": min(shards)},
        )
    both = np.unique(np.concatenate(shared)) if shared else np.zeros(0, np.int64)
    if len(both):
        first = list(code_of)[int(both[0])]
        yield ScoreWarning(
            kind="keys_on_both_sides",
            message=f"{counted(len(both), 'key')} of clips in training and in test, {first!r} among them",
            count=len(both),
            figures={"example": first},
        )


def training_side(each: Round) -> NDArray[np.int64]:
    """Return clips for training or validation that are not test clips; xares declares the overlap of the others."""
    return np.setdiff1d(np.union1d(each.reference, each.valid), each.test)
