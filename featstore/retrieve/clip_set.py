"""The test clips of a task as one set of vectors, which the measures without training compare with each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation import TaskData
from featstore.evaluation.data import rarest_label
from featstore.metrics import Units, plan_units
from featstore.metrics.jackknife import name_order
from featstore.metrics.ranked_clips import Comparisons
from featstore.retrieve.scan import unit_rows

__all__ = ["MAX_CLIPS", "MAX_STORED_CLIPS", "ClipSet", "clip_set"]

MAX_CLIPS = 20_000
"""Number of test clips above which a sample of them is compared: those whose names have the lowest hashes."""

MAX_STORED_CLIPS = 5_000
"""Number of clips up to which all similarities are computed once and stored (100 MB); above it, block by block."""

MAX_BLOCK_CELLS = 2**22
"""Number of similarities that are computed at a time: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """Test clips of all rounds, in the order of the hashes of their names.

    Two clips are comparable if they are different clips, of different groups and of different folds: folds separate
    what is alike in a data set, such as the cuts of one recording.

    Attributes
    ----------
    X : float32 (clips, dim)
        Mean of the utterance vectors of a clip's windows, weighted by their seconds, scaled to unit length.
    targets : int64 (clips,) or float32 (clips, n_classes)
        Class indices, or label sets of 0 and 1.
    group, fold : int64 (clips,)
        Clips with the same number are not comparable; without groups, a clip is its own group.
    names : tuple of str (clips,)
        ``set/key`` of each clip.
    group_names : tuple of str (clips,) or None
    n_test : int
        Number of test clips of the task, of which these are all or a sample.
    """

    task: str
    X: NDArray[np.float32]
    targets: NDArray[Any]
    group: NDArray[np.int64]
    fold: NDArray[np.int64]
    names: tuple[str, ...]
    group_names: tuple[str, ...] | None
    n_test: int

    def __len__(self) -> int:
        return len(self.X)

    @cached_property
    def units(self) -> Units:
        """Independent units of the intervals: clips or groups, or blocks of them."""
        return plan_units([np.arange(len(self))], names=self.names, groups=self.group_names)

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Class of each clip, int64 (clips,); of several labels the rarest, and -1 for a clip without a label."""
        if self.targets.ndim == 1:
            return np.asarray(self.targets)
        rarest = rarest_label(self.targets, np.arange(len(self)))
        return np.where(self.targets.any(axis=1), rarest, -1)

    @cached_property
    def stored_similarities(self) -> NDArray[np.float32]:
        """Cosines of all clips, float32 (clips, clips)."""
        return np.asarray(self.X @ self.X.T)

    def blocks(self) -> Iterator[slice]:
        """Blocks of clips that are compared with all clips at a time."""
        step = max(1, MAX_BLOCK_CELLS // len(self))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def same(self, rows: slice) -> NDArray[np.bool_]:
        """Whether clips have the class of a query, or a label in common: bool (queries, clips)."""
        if self.targets.ndim == 1:
            return np.asarray(self.targets[rows, None] == self.targets)
        return np.asarray(self.targets[rows] @ self.targets.T > 0)

    def comparisons(self) -> Iterator[Comparisons]:
        """Compare every clip with all clips, in blocks of queries."""
        for rows in self.blocks():
            stored = len(self) <= MAX_STORED_CLIPS
            comparable = self.group[rows, None] != self.group
            if self.fold.any():
                comparable &= self.fold[rows, None] != self.fold
            yield Comparisons(
                rows=rows,
                similarities=self.stored_similarities[rows] if stored else self.X[rows] @ self.X.T,
                comparable=comparable,
                same=self.same(rows),
            )

    def subset(self, clips: NDArray[np.int64]) -> ClipSet:
        """Some of the clips."""
        names = self.group_names
        return replace(
            self,
            X=self.X[clips],
            targets=self.targets[clips],
            group=self.group[clips],
            fold=self.fold[clips],
            names=tuple(self.names[clip] for clip in clips.tolist()),
            group_names=None if names is None else tuple(names[clip] for clip in clips.tolist()),
        )


def clip_set(task: TaskData, *, max_clips: int | None = MAX_CLIPS) -> ClipSet:
    """Collect the test clips of all rounds; of more than ``max_clips``, a sample.

    Raises
    ------
    DataError
        There are fewer than three test clips.
    """
    clips = np.concatenate([each.test for each in task.rounds])
    fold = np.repeat(np.arange(len(task.rounds)), [len(each.test) for each in task.rounds])
    n_test = len(clips)
    if n_test < 3:
        raise DataError(f"task {task.manifest.name}: {n_test} test clips are too few to compare with each other")
    # in the order of hashes, so that neither a sample nor a clustering depends on the order of shards
    kept = name_order([task.clip_id[clip] for clip in clips.tolist()])[:max_clips]
    samples = task.samples(np.sort(clips[kept]))  # windows are grouped in the order of the store
    place = np.searchsorted(samples.clip, clips[kept])
    clips, fold = clips[kept], fold[kept]
    groups = None if task.groups is None else tuple(task.groups[clip] for clip in clips.tolist())
    group = (
        np.arange(len(clips))
        if groups is None
        else np.unique(np.array(groups, object).astype(str), return_inverse=True)[1]
    )
    return ClipSet(
        task=task.manifest.name,
        X=unit_rows(np.asarray(samples.vote(task.X[samples.windows]), np.float32)[place]),
        targets=task.targets.values[clips],
        group=group,
        fold=fold,
        names=tuple(task.clip_id[clip] for clip in clips.tolist()),
        group_names=groups,
        n_test=n_test,
    )
