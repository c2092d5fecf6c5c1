"""What the training side and the test side of a round have in common: shards, keys of clips, embeddings.

Under ``strict`` no shard and no key is on both sides. Equal and nearly equal embeddings are warnings under both
protocols: two clips may sound the same, but a score that counts on them states how many there are.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.records import Protocol, Recipe
from featstore.taskdata.overlap import NEAR_COSINE, nearest_rows, row_hashes, whitened
from featstore.taskdata.pool import shard_names
from featstore.taskdata.warnings import ScoreWarning
from featstore.wording import counted

if TYPE_CHECKING:
    from featstore.splits import Round
    from featstore.store import FeatureSet

__all__ = ["Sides", "check_sides", "shared_embeddings", "shared_names"]

MAX_NEAR_WORK = 3 * 10**10
"""Test windows x training windows x dim of the search for near-duplicates, all rounds: some 4 s of one core."""

MAX_NEAR_WINDOWS = 50_000
"""Windows among which near-duplicates are searched; of a task with more, a draw that is the same each time."""

BLOCK_WINDOWS = 8_192
CACHED_TASKS = 64


class Sides(Interface):
    """Clips and windows of a task: `featstore.taskdata.pool.Windows`, `featstore.taskdata.TaskData`, or another."""

    @property
    def recipe(self) -> Recipe:
        """What made the embeddings."""

    @property
    def sets(self) -> tuple[FeatureSet, ...]:
        """Feature sets, whose windows follow one another."""

    @property
    def clip_id(self) -> tuple[str, ...]:
        """``set/key`` of every clip."""

    @property
    def members(self) -> Mapping[str, NDArray[np.int64]]:
        """Name of a feature set -> its clips, in the order of ``sets``."""

    @property
    def features(self) -> Mapping[str, str]:
        """Name of a feature set -> content hash of what was read."""


def check_sides(sides: Sides, rounds: Sequence[Round], *, protocol: Protocol, task: str) -> None:
    """Raise DataError where ``strict`` would test on a shard or on a clip that it trains on."""
    if protocol == "strict":
        for each in shared_names(sides, rounds):
            raise DataError(
                f"task {task}: {each.message}: name each shard in one split, give different clips different keys, and "
                "run `featstore extract --prune` where shards were renamed or moved"
            )


def shared_names(sides: Sides, rounds: Sequence[Round]) -> Iterator[ScoreWarning]:
    """Find shards, and keys of clips, on both sides of a round.

    Clips of one feature set have different keys, and its shards may be on both sides: the round then separates clips.
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
    """Clips that are trained or selected on and are no test clips: what xares tests itself on is declared."""
    return np.setdiff1d(np.union1d(each.reference, each.valid), each.test)


_found: OrderedDict[str, tuple[ScoreWarning, ...]] = OrderedDict()


def shared_embeddings(sides: Sides, rounds: Sequence[Round]) -> tuple[ScoreWarning, ...]:
    """Find test clips whose embedding equals that of a training or validation clip, or nearly so.

    Equal is bit for bit, of all windows. Near is `NEAR_COSINE` of whitened vectors, searched in up to 50,000 windows
    and with bounded work: of more, in a draw. What was found is cached for the process: another head or number of
    neighbours does not search again.
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
    """Vectors of all windows, block by block."""
    for each in sides.sets:
        for start in range(0, len(each), BLOCK_WINDOWS):
            yield each.utterance_rows.slice(start, min(start + BLOCK_WINDOWS, len(each)))


def _read(sides: Sides, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors of some windows, float32 (rows, dim)."""
    X = np.empty((len(rows), sides.recipe.dim), np.float32)
    first = done = 0
    for block in _blocks(sides):
        until = int(np.searchsorted(rows, first + len(block)))
        X[done:until] = block[rows[done:until] - first]
        first, done = first + len(block), until
    return X


def _equal_clips(sides: Sides, rounds: Sequence[Round], clip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Test clips with a window that is equal to one of the training side, bit for bit."""
    hashes = np.concatenate([row_hashes(block) for block in _blocks(sides)])
    _, vector, n_windows = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(n_windows[vector] > 1)
    vector, clip = vector[repeated], clip[repeated]  # most sets have none
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
    """Test clips with a near-duplicate on the training side, each with the closest; and how many windows were searched.

    Rows that are not finite have none.
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
