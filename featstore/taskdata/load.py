"""Everything that a probe or a search needs of a task, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, LabelError
from featstore.records import Protocol, Recipe, SkippedClip
from featstore.splits import Round, plan_rounds
from featstore.taskdata.pool import read_pool, without_overwritten
from featstore.taskdata.samples import SHORTEST_SECONDS, Samples, group_windows
from featstore.taskdata.sides import check_sides
from featstore.taskdata.targets import Targets, read_targets

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.store import FeatureSet, Store

__all__ = ["SHORTEST_SECONDS", "TaskData", "check_parts", "check_round", "load_task"]


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
        See `featstore.splits.plan_rounds`.

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
