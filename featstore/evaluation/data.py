"""The embeddings, targets and rounds of a task in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, LabelError, UsageError
from featstore.evaluation.leakage import check_sides
from featstore.evaluation.pool import read_pool, without_overwritten
from featstore.records import Protocol, Recipe, SkippedClip
from featstore.tasks.splits import Round, plan_rounds

if TYPE_CHECKING:
    from featstore.evaluation.pool import Windows
    from featstore.store import FeatureSet, Store
    from featstore.tasks import Manifest

__all__ = [
    "SHORTEST_SECONDS",
    "Samples",
    "Targets",
    "TaskData",
    "check_parts",
    "check_round",
    "group_windows",
    "load_task",
    "rarest_label",
    "read_targets",
]


# A window without duration still has a say, or a clip of nothing else would have no score.
SHORTEST_SECONDS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What is scored, and the windows that it is scored from.

    Attributes
    ----------
    windows : int64 (windows,)
        Rows of the pool; windows of one sample are neighbours.
    weights : float32 (windows,)
        True seconds.
    starts : int64 (samples,)
        First window of each sample.
    clip : int64 (samples,)
        Clip of each sample.
    y_true : (samples, ...)
        Its target.
    """

    windows: NDArray[np.int64]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]
    clip: NDArray[np.int64]
    y_true: NDArray[Any]

    def vote(self, window_scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Average the scores (windows, n_classes) of each sample's windows by their seconds: (samples, n_classes)."""
        if len(self.starts) == len(self.windows):
            return window_scores
        weights = self.weights[:, None]
        voted = np.add.reduceat(window_scores * weights, self.starts, axis=0)
        return np.asarray(voted / np.add.reduceat(weights, self.starts, axis=0))


def group_windows(
    clips: NDArray[np.int64],
    *,
    clip: NDArray[np.int64],
    seconds: NDArray[np.float64],
    values: NDArray[Any],
    protocol: Protocol,
) -> Samples:
    """Group the windows of some clips: by clip under ``strict``, each by itself under ``xares``.

    Parameters
    ----------
    clips : int64 (n,)
    clip, seconds : (windows,)
        Clip of each window, rising, and its true duration.
    values : (n_clips, ...)
        Targets by clip.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets of all clips.

    Attributes
    ----------
    values : (n_clips, ...)
        ``clip``: int64 class indices (n_clips,). ``multilabel``: float32 label sets of 0 and 1 (n_clips, n_classes);
        ``frame``: likewise, of the classes that some event is of. ``regression``: float64 numbers (n_clips,).
    classes : tuple of str
        None for numbers.
    stratify : callable
        From the clips that are to be split, to what their parts keep in proportion, int64 (n_clips,). It depends on
        these clips alone: labels of a test set do not decide who selects.
    """

    values: NDArray[Any]
    classes: tuple[str, ...]
    stratify: Callable[[NDArray[np.int64]], NDArray[np.int64]]

    def present(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes that some clips show, sorted; of numbers, those that they are."""
        values = self.values[clips]
        return np.unique(values) if values.ndim == 1 else np.flatnonzero(values.any(axis=0))


def read_targets(manifest: Manifest, pool: Windows) -> Targets:
    """Read the labels of a pool.

    Raises
    ------
    LabelError
        A clip's JSON has no usable label.
    UsageError
        The kind of the task has no reader yet.
    """
    if manifest.kind not in READERS:
        raise UsageError(
            f"task {manifest.name} is of kind {manifest.kind!r}; scoring knows {', '.join(map(repr, READERS))}"
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
    """Find the label of each clip that the fewest of some clips have; without a label it is a stratum of its own."""
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
class TaskData:
    """A task's windows, their labels, and who trains, selects and is tested.

    Attributes
    ----------
    X : float32 (windows, dim)
        Utterance vectors of one pool that all rounds share; owned, and writable.
    seconds : float64 (windows,)
        True durations.
    clip : int64 (windows,)
        Clip of each window; rising.
    clip_id : tuple of str (n_clips,)
        ``set/key``.
    targets : Targets
        By clip.
    rounds : tuple of Round
        Of clips.
    features : mapping
        Name of a feature set -> content hash of what was read.
    sets : tuple of FeatureSet
        Those whose windows follow one another in ``X``.
    members : mapping
        Name of a feature set -> int64 (n,), its clips; in the order of ``sets``.
    left_out : tuple of SkippedClip
        Clips that are not in the store, each with its reason.
    groups : tuple of str (n_clips,), optional
        Group of each clip, where the manifest names a field for it.
    """

    manifest: Manifest
    protocol: Protocol
    recipe: Recipe
    X: NDArray[np.float32]
    seconds: NDArray[np.float64]
    clip: NDArray[np.int64]
    clip_id: tuple[str, ...]
    targets: Targets
    rounds: tuple[Round, ...]
    features: Mapping[str, str]
    sets: tuple[FeatureSet, ...]
    members: Mapping[str, NDArray[np.int64]]
    left_out: tuple[SkippedClip, ...]
    groups: tuple[str, ...] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        return self.targets.classes

    def windows_of(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``X`` that belong to some clips, clip after clip in rising order."""
        wanted = np.zeros(len(self.clip_id), bool)
        wanted[clips] = True
        return np.flatnonzero(wanted[self.clip])

    def samples(self, clips: NDArray[np.int64]) -> Samples:
        """Group the windows of some clips: by clip under ``strict``, each by itself under ``xares``."""
        return group_windows(
            clips, clip=self.clip, seconds=self.seconds, values=self.targets.values, protocol=self.protocol
        )


def load_task(
    store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol, leave_one_out: bool = False
) -> TaskData:
    """Read a task's embeddings and labels and plan its rounds.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str or None
        ``"logmel"``, ``"logmel@3f9c2a71"``, or None where the store holds one encoder.
    protocol : "strict" or "xares"
    leave_one_out : bool
        See `featstore.tasks.splits.plan_rounds`.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError
        A clip has no usable label, or the training clips of a round show fewer than two classes.
    DataError
        A split has no clip, or an embedding is not finite.
    UsageError
        The kind of the task is not one that can be scored.
    """
    pool = read_pool(store, manifest, encoder=encoder)
    if protocol == "xares" and pool.recipe.padding == "xares":
        pool = without_overwritten(pool)
    targets = read_targets(manifest, pool)
    roles = manifest.feature_sets
    rounds = plan_rounds(
        protocol=protocol,
        members=pool.members,
        roles=None if manifest.folds is not None else roles,
        ids=pool.ids,
        stratify=targets.stratify,
        groups=pool.groups,
        leave_one_out=leave_one_out,
    )
    check_sides(pool, rounds, protocol=protocol, task=manifest.name)
    for each in rounds:
        check_round(each, targets, task=manifest.name, least=2)
    return TaskData(
        manifest=manifest,
        protocol=protocol,
        recipe=pool.recipe,
        X=pool.X,
        seconds=pool.seconds,
        clip=pool.clip,
        clip_id=pool.ids,
        targets=targets,
        rounds=rounds,
        features=pool.features,
        sets=pool.sets,
        members=pool.members,
        left_out=pool.left_out,
        groups=pool.groups,
    )


def check_parts(each: Round, *, task: str) -> None:
    """Raise DataError unless a round has clips to train on and to test."""
    for part, clips in (("training", each.train), ("test", each.test)):
        if not len(clips):
            raise DataError(
                f"task {task}, round {each.name!r}: no {part} clip is left; it takes more clips or fewer folds"
            )


def check_round(each: Round, targets: Targets, *, task: str, least: int) -> None:
    """Refuse a round that nothing can be learned from or tested on.

    Raises
    ------
    DataError
        No clip is left to train on or to test.
    LabelError
        The training clips show fewer than ``least`` classes (or values, of numbers).
    """
    check_parts(each, task=task)
    present = targets.present(each.train)
    if len(present) < least:
        shown = [targets.classes[label] for label in present] if targets.classes else present.tolist()
        what = "class" if targets.classes else "value"
        raise LabelError(
            f"task {task}, round {each.name!r}: {len(each.train)} training clips show {len(present)} {what} "
            f"({shown[0] if shown else 'none'}); a score takes {'two' if least == 2 else 'one'} or more"
        )
