"""A task as mteb sees it: one vector per clip, and the clips that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError
from featstore.evaluation.data import SHORTEST_SECONDS, TaskWindows, check_parts, read_targets
from featstore.evaluation.pool import Pool, read_pool
from featstore.metrics import Units, plan_units
from featstore.retrieve.maeb import definitions
from featstore.retrieve.maeb.lists import draw_others
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["NO_CLIPS", "MtebData", "read_data"]

NO_CLIPS = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class MtebData:
    """A task as mteb sees it.

    Attributes
    ----------
    task : TaskWindows
        With the rounds of classification.
    X : float32 (clips, dim)
        One vector per clip.
    clips : int64 (n,)
        Clips that are compared with one another: those that are tested.
    units : Units
        Independent units of ``clips``.
    unit : int64 (clips,)
        Unit of each clip; -1 for all others.
    """

    task: TaskWindows
    X: NDArray[np.float32]
    clips: NDArray[np.int64]
    units: Units
    unit: NDArray[np.int64]

    @property
    def values(self) -> NDArray[Any]:
        """Targets of all clips."""
        return self.task.targets.values

    @property
    def names(self) -> list[str]:
        """Names of the clips that are compared."""
        return [self.task.clip_id[clip] for clip in self.clips.tolist()]

    @cached_property
    def drawn(self) -> NDArray[np.int64]:
        """Clips that are drawn for pairs and candidate lists: see `draw_others`."""
        return draw_others(self.values[self.clips], self.names)


def read_data(store: Store, manifest: Manifest, *, encoder: str | None) -> MtebData:
    """Read a task's embeddings and labels, and plan the rounds of classification: of folds, mteb's own five.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection, LabelError, DataError
        As `featstore.evaluation.load_task`.
    """
    pool = read_pool(store, manifest, encoder=encoder)
    targets = read_targets(manifest, pool)
    roles = manifest.feature_sets
    if manifest.folds is not None or roles["train"] == roles["test"]:
        members = pool.members.values() if manifest.folds is not None else [pool.members[roles["test"]]]
        clips = np.sort(np.concatenate(list(members)))
        rounds = tuple(
            Round(name=f"fold {number}", protocol="maeb", train=clips[train], valid=NO_CLIPS, test=clips[test])
            for number, (train, test) in enumerate(_folds(clips, manifest), start=1)
        )
    else:
        clips = pool.members[roles["test"]]
        rounds = (Round(name="test", protocol="maeb", train=pool.members[roles["train"]], valid=NO_CLIPS, test=clips),)
    for each in rounds:
        check_parts(each, task=manifest.name)
    task = TaskWindows.of(pool, manifest=manifest, protocol="maeb", targets=targets, rounds=rounds)
    units = plan_units([clips], names=pool.clip_id, groups=pool.groups)
    unit = np.full(len(pool.clip_id), -1, np.int64)
    unit[clips] = units.of_sample[0]
    return MtebData(task=task, X=_clip_vectors(pool), clips=clips, units=units, unit=unit)


def _folds(clips: NDArray[np.int64], manifest: Manifest) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    if len(clips) < definitions.N_FOLDS:
        raise LabelError(f"task {manifest.name} has {len(clips)} clips, fewer than mteb's {definitions.N_FOLDS} folds")
    return definitions.folds(len(clips))


def _clip_vectors(pool: Pool) -> NDArray[np.float32]:
    """Mean vector of each clip's windows, weighted by seconds."""
    starts = np.flatnonzero(np.diff(pool.clip, prepend=-1))
    if len(starts) == len(pool.clip):
        return pool.X
    weights = np.maximum(pool.seconds, SHORTEST_SECONDS)[:, None]
    sums = np.add.reduceat(pool.X * weights, starts, axis=0)
    return np.asarray(sums / np.add.reduceat(weights, starts, axis=0), np.float32)
