"""Test clips whose embedding equals, or nearly equals, that of a training or validation clip.

Every score has their numbers in ``details["near_duplicates"]``. The search for near-duplicates compares all test
windows with all training windows; where that takes long, its result is cached in the cache folder
(`featstore.store.cache`) by the content of the vectors and the rounds, so that it runs once for a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation.leakage import NEAR_COSINE, nearest_rows, row_hashes, training_side, whitened
from featstore.evaluation.pool import Windows
from featstore.evaluation.warnings import ScoreWarning
from featstore.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.tasks.splits import Round

__all__ = ["SharedEmbeddings", "shared_embeddings"]

MAX_NEAR_WORK = 3 * 10**10
"""Test windows x training windows x dim of the near-duplicate search, all rounds: about 4 s on one core."""

MAX_NEAR_WINDOWS = 50_000
"""Number of windows that are searched for near-duplicates; larger tasks are subsampled with a fixed seed."""

BLOCK_WINDOWS = 8_192
CACHED_TASKS = 64


MIN_CACHED_WORK = 3 * 10**8
"""Smallest work, as of `MAX_NEAR_WORK`, whose result is cached on disk: about 0.05 s."""

SEARCH_VERSION = 1
"""Raised with every change of the search that can change its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedEmbeddings:
    """Test clips of all rounds that share an embedding with the training side of their round.

    Attributes
    ----------
    test_clips : int
    exact, near : int
        Clips with an equal embedding, and further clips with a nearly equal one.
    searched_windows, test_windows : int
        Windows that were searched for near-duplicates, and all windows of test clips.
    is_complete : bool
        Whether every window was searched.
    cosine : float
        Minimum cosine of whitened vectors.
    exact_example : str or None
        ``set/key`` of a test clip.
    near_example : tuple of str or None
        A test clip and its near-duplicate.
    """

    test_clips: int
    exact: int
    near: int
    searched_windows: int
    test_windows: int
    is_complete: bool
    cosine: float = NEAR_COSINE
    exact_example: str | None = None
    near_example: tuple[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON."""
        return {name: value for name, value in asdict(self).items() if not name.endswith("_example")}

    def warnings(self) -> Iterator[ScoreWarning]:
        """Yield a warning for exact duplicates and one for near-duplicates, if there are any."""
        if self.exact:
            yield ScoreWarning(
                kind="exact_duplicates",
                message=f"{self.exact:,} of {self.test_clips:,} test clips have the same embedding as a training clip",
                count=self.exact,
                figures={"test_clips": self.test_clips, "example": self.exact_example},
            )
        if self.near:
            drawn = "" if self.is_complete else f", {self.searched_windows:,} of {self.test_windows:,} searched"
            yield ScoreWarning(
                kind="near_duplicates",
                message=f"{self.near:,} of {self.test_clips:,} test clips have a near-duplicate in training "
                f"(cosine {self.cosine:g} or more{drawn})",
                count=self.near,
                figures={
                    "test_clips": self.test_clips,
                    "searched_windows": self.searched_windows,
                    "test_windows": self.test_windows,
                    "cosine": self.cosine,
                    "example": list(self.near_example or ()),
                },
            )


_found: OrderedDict[str, SharedEmbeddings] = OrderedDict()


def shared_embeddings(windows: Windows, rounds: Sequence[Round]) -> SharedEmbeddings:
    """Count test clips whose embedding equals, or nearly equals, that of a training or validation clip.

    Equality is bit for bit, over all windows. Near-duplicates have a cosine of at least `NEAR_COSINE` between whitened
    vectors; the search is limited to 50,000 windows and a fixed amount of work, beyond which it is subsampled. Results
    are cached in the process: another head or another k does not repeat the search.
    """
    key = _cache_key(windows, rounds)
    if key not in _found:
        _found[key] = _shared_embeddings(windows, rounds)
        while len(_found) > CACHED_TASKS:
            _found.popitem(last=False)
    return _found[key]


def _cache_key(windows: Windows, rounds: Sequence[Round]) -> str:
    digest = hashlib.sha256(repr((windows.recipe.fingerprint, sorted(windows.features.items()))).encode())
    _add_rounds(digest, rounds)
    return digest.hexdigest()


def _add_rounds(digest: hashlib._Hash, rounds: Sequence[Round]) -> None:
    for each in rounds:
        for clips in (training_side(each), each.test):
            digest.update(b"%d:" % len(clips) + clips.tobytes())
        digest.update(bytes([each.leave_one_out]))


def _shared_embeddings(windows: Windows, rounds: Sequence[Round]) -> SharedEmbeddings:
    clip = np.concatenate(
        [clips[0] + each.clip for clips, each in zip(windows.members.values(), windows.sets, strict=True)]
    ).astype(np.int64)
    hashes = np.concatenate([row_hashes(block) for block in _blocks(windows)])
    equal = set(_equal_clips(hashes, rounds, clip).tolist())
    rows = np.arange(len(clip))
    if len(rows) > MAX_NEAR_WINDOWS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), MAX_NEAR_WINDOWS, replace=False))
    near, searched = _cached_near_clips(windows, rows, clip, hashes, rounds)
    near = {one: other for one, other in near.items() if one not in equal}
    n_windows = sum(int(np.isin(clip, each.test).sum()) for each in rounds)
    example = min(near, default=None)
    return SharedEmbeddings(
        test_clips=sum(len(each.test) for each in rounds),
        exact=len(equal),
        near=len(near),
        searched_windows=searched,
        test_windows=n_windows,
        is_complete=searched == n_windows and len(rows) == len(clip),
        exact_example=windows.clip_id[min(equal)] if equal else None,
        near_example=None if example is None else (windows.clip_id[example], windows.clip_id[near[example]]),
    )


def _cached_near_clips(
    windows: Windows,
    rows: NDArray[np.int64],
    clip: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    rounds: Sequence[Round],
) -> tuple[dict[int, int], int]:
    """Result of `_near_clips`, read from the cache folder if these vectors were searched before."""
    is_tested = [np.isin(clip[rows], each.test) for each in rounds]
    is_trained = [np.isin(clip[rows], each.test if each.leave_one_out else training_side(each)) for each in rounds]
    pairs = sum(int(one.sum()) * int(other.sum()) for one, other in zip(is_tested, is_trained, strict=True))
    if pairs * windows.recipe.dim < MIN_CACHED_WORK:
        return _near_clips(_read(windows, rows), clip[rows], rounds)
    rules = (SEARCH_VERSION, NEAR_COSINE, MAX_NEAR_WORK, MAX_NEAR_WINDOWS)
    digest = hashlib.sha256(repr(rules).encode() + hashes.tobytes() + clip.tobytes())
    _add_rounds(digest, rounds)
    path = _cache_file(digest.hexdigest())
    try:
        kept = json.loads(path.read_text())
        return {int(one): int(other) for one, other in kept["near"]}, int(kept["searched"])
    except (OSError, ValueError, TypeError, KeyError):  # not searched yet, or damaged
        near, searched = _near_clips(_read(windows, rows), clip[rows], rounds)
    with contextlib.suppress(OSError):  # without a cache the next run searches again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"near": list(near.items()), "searched": searched}))
    return near, searched


def _cache_file(key: str) -> Path:
    from featstore.store.cache import cache_folder

    return cache_folder() / "near-duplicates" / f"{key[:32]}.json"


def _blocks(windows: Windows) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors of all windows in blocks."""
    for each in windows.sets:
        for start in range(0, len(each), BLOCK_WINDOWS):
            yield each.utterance_rows.slice(start, min(start + BLOCK_WINDOWS, len(each)))


def _read(windows: Windows, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the vectors of some windows, float32 (rows, dim)."""
    X = np.empty((len(rows), windows.recipe.dim), np.float32)
    first = done = 0
    for block in _blocks(windows):
        until = int(np.searchsorted(rows, first + len(block)))
        X[done:until] = block[rows[done:until] - first]
        first, done = first + len(block), until
    return X


def _equal_clips(hashes: NDArray[np.uint64], rounds: Sequence[Round], clip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return test clips with a window that equals one of the training side bit for bit."""
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
            trained = vector[np.isin(clip, training_side(each))]
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
        trained = tested if each.leave_one_out else np.flatnonzero(np.isin(clip, training_side(each)))
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
