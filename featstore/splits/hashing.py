"""Choosing clips by the hash of their names, so that a choice is the same in every order, process and version.

Both choices walk the clips class by class, in hash order within a class, and take them at an even stride ("systematic
sampling"): every class gives its share, to within one clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["grouped_folds", "grouped_tenth", "stratified_folds", "stratified_tenth"]


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


def grouped_tenth(clips: NDArray[np.int64], *, groups: Sequence[str], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose complete groups that hold about a tenth of some clips; every stratum keeps a clip outside of them.

    Groups are walked in the order of their hashes and taken at an even stride of clips, so that large ones are taken as
    often as their share. The first group that may be taken is, even if it is larger than a tenth.

    Parameters
    ----------
    clips : int64 (n,)
        Indices into ``groups`` and ``strata``.
    groups : sequence of str (n_clips,)
    strata : int64 (n_clips,)

    Returns
    -------
    int64
        Sorted. Empty where no group can be spared.
    """
    members = _members(clips, groups=groups, strata=strata)
    left = np.bincount(strata[clips]) if len(clips) else np.zeros(0, np.int64)
    chosen: list[NDArray[np.int64]] = []
    n_chosen = n_seen = 0
    for mine in members:
        n_seen += len(mine)
        own = np.bincount(strata[mine], minlength=len(left))
        wanted = n_seen / 10 >= n_chosen + len(mine) / 2 or (not chosen and n_seen * 2 >= len(clips))
        if wanted and ((left > own) | (own == 0)).all():
            chosen.append(mine)
            n_chosen += len(mine)
            left = left - own
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def grouped_folds(
    clips: NDArray[np.int64], *, groups: Sequence[str], strata: NDArray[np.int64], n_folds: int
) -> tuple[NDArray[np.int64], ...]:
    """Deal complete groups into folds, the largest first, each to the fold that has the fewest clips of its strata.

    There are no more folds than groups. Each fold comes sorted.
    """
    members = sorted(_members(clips, groups=groups, strata=strata), key=len, reverse=True)
    n_folds = min(n_folds, len(members))
    n_strata = int(strata[clips].max(initial=0)) + 1
    held = np.zeros((n_folds, n_strata))
    folds: list[list[NDArray[np.int64]]] = [[] for _ in range(n_folds)]
    for mine in members:
        own = np.bincount(strata[mine], minlength=n_strata)
        crowded = held @ own + held.sum(axis=1) * own.sum() / n_strata
        fold = int(np.lexsort((held.sum(axis=1), crowded))[0])
        folds[fold].append(mine)
        held[fold] += own
    return tuple(np.sort(np.concatenate(mine)) for mine in folds)


def _members(clips: NDArray[np.int64], *, groups: Sequence[str], strata: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Clips of each group, by the group's most frequent stratum and then by the hash of its name."""
    of_group: dict[str, list[int]] = {}
    for clip in clips.tolist():
        of_group.setdefault(groups[clip], []).append(clip)
    found = {group: np.array(mine, np.int64) for group, mine in of_group.items()}
    ranked = sorted(
        found, key=lambda group: (np.bincount(strata[found[group]]).argmax(), hashlib.sha256(group.encode()).digest())
    )
    return [found[group] for group in ranked]


def _by_stratum_then_hash(
    clips: NDArray[np.int64], *, ids: Sequence[str], strata: NDArray[np.int64]
) -> NDArray[np.int64]:
    ranked = sorted(clips.tolist(), key=lambda clip: (strata[clip], hashlib.sha256(ids[clip].encode()).digest()))
    return np.array(ranked, dtype=np.int64)
