"""A task's embeddings, targets and rounds in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, LabelError, UsageError
from featstore.evaluation.leakage import check_sides
from featstore.evaluation.pool import Windows, read_pool, without_overwritten
from featstore.metrics import TestSet
from featstore.records import Protocol
from featstore.tasks.splits import N_HASH_FOLDS, Round, SplitBy, plan_rounds

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = [
    "SHORTEST_SECONDS",
    "PlannedTask",
    "Samples",
    "Targets",
    "TaskData",
    "TaskWindows",
    "check_parts",
    "group_windows",
    "load_task",
    "plan_task",
    "rarest_label",
    "read_targets",
]


SHORTEST_SECONDS = 1e-6
"""Lower bound of a window's weight: a clip whose windows all have duration 0 still has a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples that are scored, and the windows of each.

    Attributes
    ----------
    windows : int64 (windows,)
        Rows of the pool; the windows of a sample are consecutive.
    weights : float32 (windows,)
        Duration of each window in seconds, without padding.
    starts : int64 (samples,)
        Index of the first window of each sample.
    clip : int64 (samples,)
        Clip of each sample.
    y_true : (samples, ...)
        Target of each sample.
    """

    windows: NDArray[np.int64]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]
    clip: NDArray[np.int64]
    y_true: NDArray[Any]

    def vote(self, window_scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Average the scores (windows, n_classes) over each sample's windows, by duration: (samples, n_classes)."""
        if len(self.starts) == len(self.windows):
            return window_scores
        weights = self.weights[:, None]
        voted = np.add.reduceat(window_scores * weights, self.starts, axis=0)
        return np.asarray(voted / np.add.reduceat(weights, self.starts, axis=0))

    def tested(self, y_scores: Iterable[NDArray[np.floating[Any]]]) -> TestSet:
        """Return the samples with the predictions of each seed."""
        return TestSet(y_true=self.y_true, y_scores=tuple(y_scores), clip=self.clip)


def group_windows(
    clips: NDArray[np.int64],
    *,
    clip: NDArray[np.int64],
    seconds: NDArray[np.float64],
    values: NDArray[Any],
    protocol: Protocol,
) -> Samples:
    """Group the windows of some clips into samples: one per clip under ``strict``, one per window under ``xares``.

    Parameters
    ----------
    clips : int64 (n,)
    clip, seconds : (windows,)
        Clip of each window, ascending, and its duration without padding.
    values : (n_clips, ...)
        Targets by clip.
    protocol : "strict" or "xares"
    """
    wanted = np.zeros(len(values), bool)
    wanted[clips] = True
    windows = np.flatnonzero(wanted[clip])
    mine = clip[windows]
    starts = np.arange(len(windows)) if protocol == "xares" else np.flatnonzero(np.diff(mine, prepend=-1))
    return Samples(
        windows=windows,
        weights=np.maximum(seconds[windows], SHORTEST_SECONDS).astype(np.float32),
        starts=starts,
        clip=mine[starts],
        y_true=values[mine[starts]],
    )


Stratify = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets of all clips.

    Attributes
    ----------
    values : (n_clips, ...)
        ``clip``: int64 class indices (n_clips,). ``multilabel``: float32 label sets of 0 and 1 (n_clips, n_classes).
        ``frame``: the same, for the classes of the clip's events. ``regression``: float64 numbers (n_clips,).
    classes : tuple of str
        Empty for numbers.
    stratify : callable
        Takes the clips to split, int64 (n,), and returns the stratum of every clip, int64 (n_clips,). The strata depend
        on these clips only: labels of the test set do not affect the choice of validation clips.
    """

    values: NDArray[Any]
    classes: tuple[str, ...]
    stratify: Stratify

    def present(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sorted classes that occur in some clips; for numbers, the distinct values."""
        values = self.values[clips]
        return np.unique(values) if values.ndim == 1 else np.flatnonzero(values.any(axis=0))


def read_targets(manifest: Manifest, pool: Windows) -> Targets:
    """Read the labels of a pool.

    Raises
    ------
    LabelError
        A clip's JSON has no usable label.
    UsageError
        Tasks of this kind are not read here.
    """
    if manifest.kind not in READERS:
        raise UsageError(
            f"task {manifest.name} is of kind {manifest.kind!r}; supported here: {', '.join(map(repr, READERS))}"
        )
    return READERS[manifest.kind](manifest, pool)


def _one_class(manifest: Manifest, pool: Windows) -> Targets:
    from featstore.tasks import labels

    observed = labels.field_values(manifest, pool.keys, pool.metas)
    classes = labels.class_names(manifest, observed)
    index = {name: number for number, name in enumerate(classes)}
    values = np.array([index[name] for name in observed], dtype=np.int64)
    return Targets(values=values, classes=classes, stratify=lambda _: values)


def _label_sets(manifest: Manifest, pool: Windows) -> Targets:
    from featstore.tasks import labels

    observed = labels.field_sets(manifest, pool.keys, pool.metas)
    classes = labels.class_names(manifest, (name for names in observed for name in names))
    index = {name: number for number, name in enumerate(classes)}
    values = np.zeros((len(observed), len(classes)), dtype=np.float32)
    for clip, names in enumerate(observed):
        values[clip, [index[name] for name in names]] = 1.0
    return Targets(values=values, classes=classes, stratify=lambda clips: rarest_label(values, clips))


def _numbers(manifest: Manifest, pool: Windows) -> Targets:
    from featstore.tasks import labels

    values = np.array(labels.field_numbers(manifest, pool.keys, pool.metas), dtype=np.float64)

    def tenths(clips: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(np.quantile(values[clips], np.arange(1, 10) / 10), values).astype(np.int64)

    return Targets(values=values, classes=(), stratify=tenths)


def rarest_label(values: NDArray[np.float32], clips: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each clip's label that is rarest among `clips`; clips without a label are a stratum of their own."""
    if not values.shape[1]:
        return np.zeros(len(values), np.int64)
    clips_of_label = values[clips].sum(axis=0)
    rarity = np.where(values > 0, clips_of_label, np.inf)
    return np.asarray(np.where(values.any(axis=1), rarity.argmin(axis=1), values.shape[1]), dtype=np.int64)


READERS: Mapping[str, Callable[[Manifest, Windows], Targets]] = {
    "clip": _one_class,
    "multilabel": _label_sets,
    "regression": _numbers,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTask(Windows):
    """Windows of a task, with its manifest, the protocol and the rounds that it is scored in."""

    manifest: Manifest
    protocol: Protocol
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWindows(PlannedTask):
    """A planned task whose clips have targets."""

    targets: Targets

    def samples(self, clips: NDArray[np.int64]) -> Samples:
        """Group the windows of some clips: one sample per clip under ``strict``, one per window under ``xares``."""
        return group_windows(
            clips, clip=self.clip, seconds=self.seconds, values=self.targets.values, protocol=self.protocol
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData(TaskWindows):
    """A task's utterance vectors, with their labels and rounds; see `TaskWindows`.

    Attributes
    ----------
    X : float32 (windows, dim)
        Utterance vectors, shared by all rounds; a writable copy.
    """

    X: NDArray[np.float32]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return self.targets.classes


def plan_task(
    manifest: Manifest,
    windows: Windows,
    *,
    protocol: Protocol,
    targets: Targets | None = None,
    least_classes: int = 1,
    leave_one_out: bool = False,
    split_by: SplitBy | None = None,
) -> tuple[Round, ...]:
    """Plan and check the rounds of a task, stratified by its targets if it has any.

    Raises
    ------
    DataError
        All clips are of one group, and the rounds are to be split by it.
        A round has no training clip or no test clip, or a ``strict`` round has a shard or a clip on both sides.
    LabelError
        The training clips of a round have fewer than ``least_classes`` classes (or distinct values, for numbers).
    """
    stratify = (lambda _: np.zeros(len(windows.clip_id), np.int64)) if targets is None else targets.stratify
    if split_by is None:
        rounds = plan_rounds(
            protocol=protocol,
            members=windows.members,
            roles=None if manifest.folds is not None else manifest.feature_sets,
            ids=windows.clip_id,
            stratify=stratify,
            groups=windows.groups,
            leave_one_out=leave_one_out,
        )
    else:
        rounds = _folds_of_all(windows, stratify, split_by, protocol=protocol, task=manifest.name)
    check_sides(windows, rounds, protocol=protocol, task=manifest.name)
    for each in rounds:
        check_parts(each, task=manifest.name)
        if targets is not None:
            _check_classes(each, targets, task=manifest.name, least=least_classes)
    return rounds


def _folds_of_all(
    windows: Windows, stratify: Stratify, split_by: SplitBy, *, protocol: Protocol, task: str
) -> tuple[Round, ...]:
    """Plan rounds of all clips, by group or at random, whatever the declared splits are."""
    n_groups = len(set(windows.groups or ()))
    if n_groups < 2:
        raise DataError(
            f"task {task}: folds by {split_by.field!r} take two or more groups, and all clips are of one: split by "
            "another field"
        )
    return plan_rounds(
        protocol=protocol,
        members={"all": np.arange(len(windows.clip_id))},
        roles=dict.fromkeys(("train", "valid", "test"), "all"),
        ids=windows.clip_id,
        stratify=stratify,
        groups=windows.groups if split_by.is_grouped else None,
        n_folds=min(N_HASH_FOLDS, n_groups),
    )


def load_task(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    leave_one_out: bool = False,
    split_by: SplitBy | None = None,
) -> TaskData:
    """Read a task's embeddings and labels and plan its rounds.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str or None
        ``"logmel"``, ``"logmel@3f9c2a71"``, or None if the store has one encoder.
    protocol : "strict" or "xares"
    leave_one_out : bool
        See `featstore.tasks.splits.plan_rounds`.
    split_by : SplitBy, optional
        Folds of all clips, in place of the declared splits.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks a feature set of the task; the message has the command to run.
    LabelError
        A clip has no usable label, or the training clips of a round have fewer than two classes.
    DataError
        A split has no clip, or an embedding is not finite.
    UsageError
        Tasks of this kind cannot be scored.
    """
    pool = read_pool(store, manifest, encoder=encoder, group=None if split_by is None else split_by.field)
    if protocol == "xares" and pool.recipe.padding == "xares":
        pool = without_overwritten(pool)
    targets = read_targets(manifest, pool)
    rounds = plan_task(
        manifest,
        pool,
        protocol=protocol,
        targets=targets,
        least_classes=2,
        leave_one_out=leave_one_out,
        split_by=split_by,
    )
    return TaskData.of(pool, manifest=manifest, protocol=protocol, targets=targets, rounds=rounds)


def check_parts(each: Round, *, task: str) -> None:
    """Raise DataError unless a round has training clips and test clips."""
    for part, clips in (("training", each.train), ("test", each.test)):
        if not len(clips):
            raise DataError(f"task {task}, round {each.name!r}: no {part} clip is left; use more clips or fewer folds")


def _check_classes(each: Round, targets: Targets, *, task: str, least: int) -> None:
    present = targets.present(each.train)
    if len(present) < least:
        names = [targets.classes[label] for label in present] if targets.classes else present.tolist()
        what = "class" if targets.classes else "value"
        raise LabelError(
            f"task {task}, round {each.name!r}: {len(each.train)} training clips show {len(present)} {what} "
            f"({names[0] if names else 'none'}); a score takes {'two' if least == 2 else 'one'} or more"
        )
