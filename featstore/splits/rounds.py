"""The rounds of a task: one for declared splits, one per fold for cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featstore.records import Protocol
from featstore.splits.hashing import grouped_folds, grouped_tenth, stratified_folds, stratified_tenth

__all__ = ["Round", "plan_rounds"]

N_HASH_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One training and one test.

    Attributes
    ----------
    name : str
        The fold that is tested, or ``"test"``.
    train, valid, test : int64 (n,)
        Clips. Under ``strict`` no clip is in two of them, and ``valid`` is empty only where training has no clip to
        spare (every class has a single one): then nothing is selected, and the last epoch counts.
    reference : int64 (n,)
        Clips that a method without model selection may use: ``train``, and what ``strict`` set aside from it.
    leave_one_out : bool
        Every clip is tested, on what all others teach: ``train`` is ``test``, and a clip's own windows never count, nor
        do those of its group.
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
                raise ValueError(f"round {self.name!r}: leaving one out tests all of train, and selects nothing")
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
) -> tuple[Round, ...]:
    """Plan the rounds of a task.

    ``xares`` takes splits as they are declared; with folds it trains on the others, and both selects and tests on the
    fold itself. ``strict`` tests every clip once on a head that was chosen without it:

    - with folds, or where the validation set is the test set or the training set, a stratified tenth of the round's
      training clips, chosen by hash, selects;
    - where the training set is the test set, five stratified hash folds take its place, or one round that leaves one
      clip out at a time for a method that can.

    Parameters
    ----------
    protocol : "strict" or "xares"
    members : mapping
        Name of a feature set -> int64 (n,), its clips.
    roles : mapping or None
        ``train``, ``valid`` and ``test`` -> name of a feature set; None where every member is a fold.
    ids : sequence of str (n_clips,)
        Unique names of all clips.
    stratify : callable
        From the clips that are to be split, to what their parts keep in proportion, int64 (n_clips,).
    groups : sequence of str (n_clips,), optional
        Group of each clip: what is drawn here, the tenth and the hash folds, takes complete groups.
    leave_one_out : bool
        Whether the method can do without a clip at no cost, as a search for neighbours can.
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
        folds = stratified_folds(train, ids=ids, strata=stratify(train), n_folds=N_HASH_FOLDS)
    else:
        folds = grouped_folds(train, groups=groups, strata=stratify(train), n_folds=N_HASH_FOLDS)
    return tuple(
        strict_round(f"hash-{number}", np.setdiff1d(train, fold), fold, declared)
        for number, fold in enumerate(folds, start=1)
    )


def _all_but(members: Mapping[str, NDArray[np.int64]], name: str) -> NDArray[np.int64]:
    others = [clips for other, clips in members.items() if other != name]
    return np.concatenate(others) if others else np.zeros(0, np.int64)
