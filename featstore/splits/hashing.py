"""Choosing clips by the hash of their names, so that a choice is the same in every order, process and version.

Both choices walk the clips class by class, in hash order within a class, and take them at an even stride ("systematic
sampling"): every class gives its share, to within one clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["stratified_folds", "stratified_tenth"]


def stratified_tenth(clips: NDArray[np.int64], *, ids: Sequence[str], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose a tenth of some clips, at least one where it can, and leave every stratum at least one clip.

    Parameters
    ----------
    clips : int64 (n,)
        Indices into ``ids`` and ``strata``.
    ids : sequence of str (n_clips,)
        Unique names, which are hashed.
    strata : int64 (n_clips,)
        What is kept in proportion: the class of each clip, for example.

    Returns
    -------
    int64 (about n / 10,)
        Sorted. Empty where every stratum has a single clip.
    """
    ranked = _by_stratum_then_hash(clips, ids=ids, strata=strata)
    stratum = strata[ranked]
    first_of_stratum = np.r_[True, stratum[1:] != stratum[:-1]] if len(ranked) else np.zeros(0, bool)
    spare = ranked[~first_of_stratum]
    n_chosen = min(max(1, round(len(ranked) / 10)), len(spare))
    if not n_chosen:
        return np.zeros(0, np.int64)
    stride = len(spare) / n_chosen
    return np.sort(spare[((np.arange(n_chosen) + 0.5) * stride).astype(np.int64)])


def stratified_folds(
    clips: NDArray[np.int64], *, ids: Sequence[str], strata: NDArray[np.int64], n_folds: int
) -> tuple[NDArray[np.int64], ...]:
    """Deal clips into folds of equal size, to within one clip over all and within each stratum.

    Parameters are those of `stratified_tenth`. Each fold comes sorted; some are empty where clips are fewer than folds.
    """
    ranked = _by_stratum_then_hash(clips, ids=ids, strata=strata)
    return tuple(np.sort(ranked[fold::n_folds]) for fold in range(n_folds))


def _by_stratum_then_hash(
    clips: NDArray[np.int64], *, ids: Sequence[str], strata: NDArray[np.int64]
) -> NDArray[np.int64]:
    ranked = sorted(clips.tolist(), key=lambda clip: (strata[clip], hashlib.sha256(ids[clip].encode()).digest()))
    return np.array(ranked, dtype=np.int64)
