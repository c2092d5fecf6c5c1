"""Splits of a task: training, validation and test clips of each round, computed from clip names and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featstore.records import Protocol

__all__ = [
    "Round",
    "SplitBy",
    "draw_splits",
    "draw_support",
    "grouped_folds",
    "grouped_tenth",
    "plan_rounds",
    "stratified_folds",
    "stratified_tenth",
]


def stratified_tenth(clips: NDArray[np.int64], *, ids: Sequence[str], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose a tenth of the clips, at least one if possible; every stratum keeps at least one clip.

    Parameters
    ----------
    clips : int64 (n,)
        Indices into ``ids`` and ``strata``.
    ids : sequence of str (n_clips,)
        Unique names. Their hashes decide the order.
    strata : int64 (n_clips,)
        Stratum of each clip, such as its class. Strata keep their proportions.

    Returns
    -------
    int64 (about n / 10,)
        Sorted indices. Empty if every stratum has a single clip.
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
    """Assign clips to folds of equal size, to within one clip in total and within each stratum.

    The parameters are those of `stratified_tenth`. Each fold is sorted; folds are empty if there are fewer clips than
    folds.
    """
    ranked = _by_stratum_then_hash(clips, ids=ids, strata=strata)
    return tuple(np.sort(ranked[fold::n_folds]) for fold in range(n_folds))


def grouped_tenth(clips: NDArray[np.int64], *, groups: Sequence[str], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose complete groups with about a tenth of the clips; every stratum keeps a clip outside of them.

    Groups are visited in hash order and taken at an even stride of clips, so that a large group is chosen as often as
    its share. The first group that can be taken is taken, even if it is larger than a tenth.

    Parameters
    ----------
    clips : int64 (n,)
        Indices into ``groups`` and ``strata``.
    groups : sequence of str (n_clips,)
    strata : int64 (n_clips,)

    Returns
    -------
    int64
        Sorted indices. Empty if no group can be taken.
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
    """Assign complete groups to folds, largest first, each to the fold with the fewest clips of its strata.

    The number of folds is at most the number of groups. Each fold is sorted.
    """
    members = sorted(_members(clips, groups=groups, strata=strata), key=len, reverse=True)
    n_folds = min(n_folds, len(members))
    n_strata = int(strata[clips].max(initial=0)) + 1
    counts = np.zeros((n_folds, n_strata))
    folds: list[list[NDArray[np.int64]]] = [[] for _ in range(n_folds)]
    for mine in members:
        own = np.bincount(strata[mine], minlength=n_strata)
        crowded = counts @ own + counts.sum(axis=1) * own.sum() / n_strata
        fold = int(np.lexsort((counts.sum(axis=1), crowded))[0])
        folds[fold].append(mine)
        counts[fold] += own
    return tuple(np.sort(np.concatenate(mine)) for mine in folds)


def draw_splits(
    *, ids: Sequence[str], strata: NDArray[np.int64], groups: Sequence[str] | None, n_folds: int | None
) -> list[str]:
    """Name a split for each clip: about 70 % train, 10 % valid and 20 % test, or ``fold1`` to ``foldN`` of equal size.

    Clips are stratified and their order is that of hashes, so that the same clips have the same splits everywhere. A
    group is never divided. Where there are fewer than ten groups, shares are rounded to groups, and two groups make
    a training and a test set.

    Parameters
    ----------
    ids : sequence of str (n_clips,)
        Unique names.
    strata : int64 (n_clips,)
    groups : sequence of str (n_clips,), optional
    n_folds : int, optional
        Number of folds; None draws train, valid and test.

    Raises
    ------
    ValueError
        There are fewer groups (or clips) than parts.
    """
    clips = np.arange(len(ids))
    n_units = len(ids if groups is None else set(groups))
    n_parts = n_folds or min(10, n_units)
    if n_units < max(2, n_parts):
        raise ValueError(
            f"{max(2, n_parts)} parts need as many {'clips' if groups is None else 'groups'}, got {n_units}"
        )
    if groups is None:
        parts = stratified_folds(clips, ids=ids, strata=strata, n_folds=n_parts)
    else:
        parts = grouped_folds(clips, groups=groups, strata=strata, n_folds=n_parts)
    if n_folds:
        names = [f"fold{number}" for number in range(1, n_folds + 1)]
    else:
        parts = tuple(sorted(parts, key=len, reverse=True))
        n_test, n_valid = max(1, round(n_parts * 0.2)), min(1, n_parts - 2)
        names = ["train"] * (n_parts - n_test - n_valid) + ["test"] * n_test + ["valid"] * n_valid
    split_of = np.empty(len(ids), dtype=object)
    for name, members in zip(names, parts, strict=True):
        split_of[members] = name
    return [str(name) for name in split_of]


def _members(clips: NDArray[np.int64], *, groups: Sequence[str], strata: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the clips of each group, sorted by the group's most frequent stratum, then by the hash of its name."""
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


N_HASH_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBy:
    """Folds of all clips of a task, in place of its declared splits.

    Attributes
    ----------
    field : str
        Field of a clip's JSON that holds its group.
    is_grouped : bool
        Whether folds consist of complete groups. If not, clips are assigned to as many folds at random (by hash);
        intervals resample groups in both cases.
    """

    field: str
    is_grouped: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One training and test round.

    Attributes
    ----------
    name : str
        The fold that is tested, or ``"test"``.
    train, valid, test : int64 (n,)
        Clips. Under ``strict`` they are disjoint, and ``valid`` is empty only if every class has a single training
        clip; then there is no model selection, and the last epoch is used.
    reference : int64 (n,)
        Clips that a method without model selection can use: ``train``, and the validation clips that ``strict`` drew
        from it.
    leave_one_out : bool
        Every clip is tested against all others: ``train`` equals ``test``, and the windows of a clip and of its group
        are excluded from its own search.
    """

    name: str
    protocol: Protocol
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    reference: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        if not len(self.reference):
            object.__setattr__(self, "reference", self.train)
        if self.protocol == "xares":
            return
        if self.leave_one_out:
            if len(self.valid) or not np.array_equal(self.train, self.test):
                raise ValueError(f"round {self.name!r}: leave-one-out needs train equal to test and an empty valid")
            return
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            shared = np.intersect1d(parts[one], parts[other])
            if len(shared):
                raise ValueError(f"round {self.name!r}: {len(shared)} clips are in both {one} and {other}")
        if len(np.intersect1d(self.reference, self.test)):
            raise ValueError(f"round {self.name!r}: reference clips are in test")


def plan_rounds(
    *,
    protocol: Protocol,
    members: Mapping[str, NDArray[np.int64]],
    roles: Mapping[str, str] | None,
    ids: Sequence[str],
    stratify: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    groups: Sequence[str] | None = None,
    leave_one_out: bool = False,
    n_folds: int = N_HASH_FOLDS,
) -> tuple[Round, ...]:
    """Plan the rounds of a task.

    ``xares`` uses the declared splits; with folds, each fold is both validation and test set, and the other folds are
    the training set. ``strict`` tests every clip once with a head that was selected without it:

    - with folds, or if the validation set equals the test set or the training set, the validation set is a stratified
      tenth of the round's training clips, chosen by hash;
    - if the training set equals the test set, there are five stratified hash folds, or one leave-one-out round for a
      method that supports it.

    Parameters
    ----------
    protocol : "strict" or "xares"
    members : mapping
        Name of a feature set to its clips, int64 (n,).
    roles : mapping or None
        ``train``, ``valid`` and ``test`` to the name of a feature set; None if every member is a fold.
    ids : sequence of str (n_clips,)
        Unique names of all clips.
    stratify : callable
        Takes the clips to split, int64 (n,), and returns the stratum of every clip, int64 (n_clips,).
    groups : sequence of str (n_clips,), optional
        Group of each clip. The validation tenth and the hash folds consist of complete groups.
    leave_one_out : bool
        Whether the method can exclude one clip at no cost, as a neighbour search can.
    n_folds : int
        Number of hash folds; fewer if there are fewer groups.
    """

    def strict_round(
        name: str, rest: NDArray[np.int64], test: NDArray[np.int64], valid: NDArray[np.int64] | None
    ) -> Round:
        if valid is not None:
            return Round(name=name, protocol=protocol, train=rest, valid=valid, test=test)
        if groups is None:
            aside = stratified_tenth(rest, ids=ids, strata=stratify(rest))
        else:
            aside = grouped_tenth(rest, groups=groups, strata=stratify(rest))
        train = np.setdiff1d(rest, aside)
        return Round(name=name, protocol=protocol, train=train, valid=aside, test=test, reference=np.sort(rest))

    if roles is None:
        tested = {name: (_all_but(members, name), fold) for name, fold in members.items()}
        if protocol == "xares":
            return tuple(
                Round(name=name, protocol=protocol, train=rest, valid=fold, test=fold)
                for name, (rest, fold) in tested.items()
            )
        return tuple(strict_round(name, rest, fold, None) for name, (rest, fold) in tested.items())

    train, valid, test = (members[roles[role]] for role in ("train", "valid", "test"))
    if protocol == "xares":
        return (Round(name="test", protocol=protocol, train=train, valid=valid, test=test),)
    declared = None if roles["valid"] in (roles["train"], roles["test"]) else valid
    if roles["train"] != roles["test"]:
        return (strict_round("test", train, test, declared),)
    if leave_one_out:
        return (
            Round(
                name="leave-one-out",
                protocol=protocol,
                train=train,
                valid=np.zeros(0, np.int64),
                test=train,
                leave_one_out=True,
            ),
        )
    if groups is None:
        folds = stratified_folds(train, ids=ids, strata=stratify(train), n_folds=n_folds)
    else:
        folds = grouped_folds(train, groups=groups, strata=stratify(train), n_folds=n_folds)
    return tuple(
        strict_round(f"hash-{number}", np.setdiff1d(train, fold), fold, declared)
        for number, fold in enumerate(folds, start=1)
    )


def _all_but(members: Mapping[str, NDArray[np.int64]], name: str) -> NDArray[np.int64]:
    others = [clips for other, clips in members.items() if other != name]
    return np.concatenate(others) if others else np.zeros(0, np.int64)


def draw_support(
    clips: NDArray[np.int64], targets: NDArray[np.number], *, shots: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a support set: ``shots`` clips of each class without replacement, or all clips of a smaller class.

    Parameters
    ----------
    clips : int64 (n,)
        Clips to draw from.
    targets : int64 (n_clips,) or (n_clips, n_classes)
        Class indices, or label sets of 0 and 1, of all clips. A clip with several labels can be drawn for any of them.
    shots : int
    rng : numpy.random.Generator

    Returns
    -------
    int64 (about shots x n_classes,)
        Sorted indices without duplicates.
    """
    values = targets[clips]
    members = (
        [np.flatnonzero(values == label) for label in np.unique(values)]
        if values.ndim == 1
        else [np.flatnonzero(column) for column in values.T]
    )
    drawn = [rng.permutation(of_class)[:shots] for of_class in members]
    return np.unique(clips[np.concatenate(drawn)]) if drawn else np.zeros(0, np.int64)
