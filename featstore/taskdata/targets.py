"""What a head learns, by the kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.taskdata.pool import Windows

__all__ = ["Targets", "rarest_label", "read_targets"]


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
    from featstore.manifest import labels

    observed = labels.field_values(manifest, pool.keys, pool.metas)
    classes = labels.class_names(manifest, observed)
    index = {name: number for number, name in enumerate(classes)}
    values = np.array([index[name] for name in observed], dtype=np.int64)
    return Targets(values=values, classes=classes, stratify=lambda _: values)


def _label_sets(manifest: Manifest, pool: Windows) -> Targets:
    from featstore.manifest import labels

    observed = labels.field_sets(manifest, pool.keys, pool.metas)
    classes = labels.class_names(manifest, (name for names in observed for name in names))
    index = {name: number for number, name in enumerate(classes)}
    values = np.zeros((len(observed), len(classes)), dtype=np.float32)
    for clip, names in enumerate(observed):
        values[clip, [index[name] for name in names]] = 1.0
    return Targets(values=values, classes=classes, stratify=lambda clips: rarest_label(values, clips))


def _numbers(manifest: Manifest, pool: Windows) -> Targets:
    from featstore.manifest import labels

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
