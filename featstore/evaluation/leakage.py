"""Leakage between the training side and the test side of a round: shared shards, keys and embeddings."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation.pool import shard_names
from featstore.evaluation.warnings import ScoreWarning
from featstore.formatting import counted
from featstore.records import Protocol, Recipe

if TYPE_CHECKING:
    from featstore.store import FeatureSet
    from featstore.tasks.splits import Round

__all__ = [
    "NEAR_COSINE",
    "NearDuplicate",
    "Overlap",
    "Sides",
    "check_sides",
    "find_overlap",
    "nearest_rows",
    "row_hashes",
    "shared_embeddings",
    "shared_names",
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


MAX_NEAR_WORK = 3 * 10**10
"""Test windows x training windows x dim of the near-duplicate search, all rounds: about 4 s on one core."""

MAX_NEAR_WINDOWS = 50_000
"""Number of windows that are searched for near-duplicates; larger tasks are subsampled with a fixed seed."""

BLOCK_WINDOWS = 8_192
CACHED_TASKS = 64


class Sides(Interface):
    """Clips and windows of a task, such as `featstore.evaluation.pool.Windows` or `featstore.evaluation.TaskData`."""

    @property
    def recipe(self) -> Recipe:
        """Recipe of the embeddings."""

    @property
    def sets(self) -> tuple[FeatureSet, ...]:
        """Feature sets, in the order of their windows."""

    @property
    def clip_id(self) -> tuple[str, ...]:
        """``set/key`` of every clip."""

    @property
    def members(self) -> Mapping[str, NDArray[np.int64]]:
        """Name of a feature set to its clips, in the order of ``sets``."""

    @property
    def features(self) -> Mapping[str, str]:
        """Name of a feature set to the content hash of its stored embeddings."""


def check_sides(sides: Sides, rounds: Sequence[Round], *, protocol: Protocol, task: str) -> None:
    """Raise DataError if a ``strict`` round has a shard or a clip on both the training and the test side."""
    if protocol == "strict":
        for each in shared_names(sides, rounds):
            raise DataError(
                f"task {task}: {each.message}: name each shard in one split, give different clips different keys, and "
                "run `featstore extract --prune` where shards were renamed or moved"
            )


def shared_names(sides: Sides, rounds: Sequence[Round]) -> Iterator[ScoreWarning]:
    """Find shards, and keys of clips, that are on both sides of a round.

    Clips of one feature set have different keys. Its shards can be on both sides, since the round separates clips.
    """
    of_set = np.zeros(len(sides.clip_id), np.int64)
    for number, clips in enumerate(sides.members.values()):
        of_set[clips] = number
    shards_of = [frozenset(shard_names(each)) for each in sides.sets]
    code_of: dict[str, int] = {}
    codes = np.array([code_of.setdefault(name.partition("/")[2], len(code_of)) for name in sides.clip_id], np.int64)
    shards: set[str] = set()
    shared: list[NDArray[np.int64]] = []
    for each in rounds:
        training = _training_side(each)
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


def _training_side(each: Round) -> NDArray[np.int64]:
    """Return clips for training or validation that are not test clips; xares declares the overlap of the others."""
    return np.setdiff1d(np.union1d(each.reference, each.valid), each.test)


_found: OrderedDict[str, tuple[ScoreWarning, ...]] = OrderedDict()


def shared_embeddings(sides: Sides, rounds: Sequence[Round]) -> tuple[ScoreWarning, ...]:
    """Find test clips whose embedding equals, or nearly equals, that of a training or validation clip.

    Equality is bit for bit, over all windows. Near-duplicates have a cosine of at least `NEAR_COSINE` between whitened
    vectors; the search is limited to 50,000 windows and a fixed amount of work, beyond which it is subsampled. Results
    are cached in the process: another head or another k does not repeat the search.
    """
    key = _cache_key(sides, rounds)
    if key not in _found:
        _found[key] = tuple(_shared_embeddings(sides, rounds))
        while len(_found) > CACHED_TASKS:
            _found.popitem(last=False)
    return _found[key]


def _cache_key(sides: Sides, rounds: Sequence[Round]) -> str:
    digest = hashlib.sha256(repr((sides.recipe.fingerprint, sorted(sides.features.items()))).encode())
    for each in rounds:
        for clips in (_training_side(each), each.test):
            digest.update(b"%d:" % len(clips) + clips.tobytes())
        digest.update(bytes([each.leave_one_out]))
    return digest.hexdigest()


def _shared_embeddings(sides: Sides, rounds: Sequence[Round]) -> Iterator[ScoreWarning]:
    clip = np.concatenate(
        [clips[0] + each.clip for clips, each in zip(sides.members.values(), sides.sets, strict=True)]
    ).astype(np.int64)
    n_tested = sum(len(each.test) for each in rounds)
    equal = _equal_clips(sides, rounds, clip)
    if len(equal):
        yield ScoreWarning(
            kind="exact_duplicates",
            message=f"{len(equal):,} of {n_tested:,} test clips have the same embedding as a training clip",
            count=len(equal),
            figures={"test_clips": n_tested, "example": sides.clip_id[int(equal[0])]},
        )
    rows = np.arange(len(clip))
    if len(rows) > MAX_NEAR_WINDOWS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), MAX_NEAR_WINDOWS, replace=False))
    near, searched = _near_clips(_read(sides, rows), clip[rows], rounds)
    near = {one: other for one, other in near.items() if one not in set(equal.tolist())}
    if near:
        n_windows = sum(int(np.isin(clip, each.test).sum()) for each in rounds)
        drawn = "" if searched == n_windows and len(rows) == len(clip) else f", {searched:,} of {n_windows:,} searched"
        first = min(near)
        yield ScoreWarning(
            kind="near_duplicates",
            message=f"{len(near):,} of {n_tested:,} test clips have a near-duplicate in training "
            f"(cosine {NEAR_COSINE:g} or more{drawn})",
            count=len(near),
            figures={
                "test_clips": n_tested,
                "searched_windows": searched,
                "test_windows": n_windows,
                "cosine": NEAR_COSINE,
                "example": [sides.clip_id[first], sides.clip_id[near[first]]],
            },
        )


def _blocks(sides: Sides) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors of all windows in blocks."""
    for each in sides.sets:
        for start in range(0, len(each), BLOCK_WINDOWS):
            yield each.utterance_rows.slice(start, min(start + BLOCK_WINDOWS, len(each)))


def _read(sides: Sides, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the vectors of some windows, float32 (rows, dim)."""
    X = np.empty((len(rows), sides.recipe.dim), np.float32)
    first = done = 0
    for block in _blocks(sides):
        until = int(np.searchsorted(rows, first + len(block)))
        X[done:until] = block[rows[done:until] - first]
        first, done = first + len(block), until
    return X


def _equal_clips(sides: Sides, rounds: Sequence[Round], clip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return test clips with a window that equals one of the training side bit for bit."""
    hashes = np.concatenate([row_hashes(block) for block in _blocks(sides)])
    _, vector, n_windows = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(n_windows[vector] > 1)
    vector, clip = vector[repeated], clip[repeated]  # empty for most tasks
    found = []
    for each in rounds:
        tested = np.isin(clip, each.test)
        if each.leave_one_out:
            pairs = np.unique(np.stack([vector[tested], clip[tested]]), axis=1)
            vectors, n_clips = np.unique(pairs[0], return_counts=True)
            found.append(clip[tested][np.isin(vector[tested], vectors[n_clips > 1])])
        else:
            trained = vector[np.isin(clip, _training_side(each))]
            found.append(clip[tested][np.isin(vector[tested], trained)])
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _near_clips(X: NDArray[np.float32], clip: NDArray[np.int64], rounds: Sequence[Round]) -> tuple[dict[int, int], int]:
    """Map test clips to their closest near-duplicate on the training side, and count the windows that were searched.

    Rows that are not finite are ignored.
    """
    finite = np.isfinite(X).all(axis=1)
    X, clip = X[finite], clip[finite]
    if len(X) < 2:
        return {}, 0
    [unit] = whitened(X)
    rng = np.random.default_rng(0)
    near: dict[int, int] = {}
    searched = 0
    for each in rounds:
        tested = np.flatnonzero(np.isin(clip, each.test))
        trained = tested if each.leave_one_out else np.flatnonzero(np.isin(clip, _training_side(each)))
        if not len(tested) or not len(trained):
            continue
        most = max(1, MAX_NEAR_WORK // (len(rounds) * len(trained) * X.shape[1]))
        if len(tested) > most:
            tested = np.sort(rng.choice(tested, most, replace=False))
        cosines, nearest = nearest_rows(
            unit[tested],
            unit[trained],
            group=clip[tested],
            reference_group=clip[trained] if each.leave_one_out else None,
        )
        searched += len(tested)
        for at in np.flatnonzero(cosines >= NEAR_COSINE):
            near.setdefault(int(clip[tested[at]]), int(clip[trained[nearest[at]]]))
    return near, searched
