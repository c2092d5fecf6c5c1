"""The texts of a task's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featstore.errors import UnknownFeatureSet, UsageError
from featstore.records import Recipe
from featstore.tasks import labels

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["KINDS", "check_has_words", "prompts_of_task"]

KINDS = ("clip", "multilabel")


def prompts_of_task(manifest: Manifest, store: Store, recipe: Recipe) -> tuple[str, ...]:
    """Return the distinct prompts of all classes of a task; none if it has no classes, or their words are unknown.

    Classes that the manifest does not list are those of the clips in the store.

    Raises
    ------
    LabelError
        A clip has no usable label.
    """
    if manifest.kind not in KINDS:
        return ()
    classes = manifest.label.classes
    if classes is None:
        classes = labels.class_names(manifest, _observed(manifest, store, recipe))
    if not _has_words(manifest, classes):
        return ()
    return tuple(dict.fromkeys(text for name in classes for text in manifest.zero_shot.texts(name)))


def _observed(manifest: Manifest, store: Store, recipe: Recipe) -> set[str]:
    """Return the classes of a task's clips in the store."""
    observed: set[str] = set()
    for name, pattern in manifest.patterns.items():
        address = {"encoder": recipe.group_name, "dataset": manifest.feature_dataset, "split": name}
        try:
            clips = store.view(**address, pattern=pattern)
        except UnknownFeatureSet:  # a split that was not extracted
            continue
        metas = [str(meta) for meta in clips.meta_json[np.flatnonzero(np.diff(clips.clip, prepend=-1))]]
        keys = [str(key) for key in clips.clip_key]
        if manifest.kind == "clip":
            observed.update(labels.field_values(manifest, keys, metas))
        else:
            observed.update(*labels.field_sets(manifest, keys, metas))
    return observed


def _has_words(manifest: Manifest, classes: Sequence[str]) -> bool:
    """Whether the classes are more than numbers: a text about class 7 has no meaning."""
    unnamed = [name for name in classes if name not in manifest.zero_shot.labels]
    return not unnamed or not all(name.removeprefix("-").isdigit() for name in unnamed)


def check_has_words(manifest: Manifest, classes: Sequence[str]) -> None:
    """Raise UsageError if the classes of a task are numbers, and the manifest has no words for them."""
    if not _has_words(manifest, classes):
        raise UsageError(
            f"the classes of task {manifest.name} are numbers: name them in [zero_shot.labels] of its manifest, "
            "and run `featstore extract` again"
        )
