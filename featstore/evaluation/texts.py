"""The texts of a task: prompts of its classes, or captions of its test clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UnknownFeatureSet, UsageError
from featstore.evaluation.captions import for_test_clips, read_captions
from featstore.evaluation.pool import extract_command
from featstore.records import Recipe
from featstore.store import check_is_space_of_texts
from featstore.tasks import labels

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["KINDS", "check_has_words", "text_vectors", "texts_of_task"]

KINDS = ("clip", "multilabel")


def texts_of_task(manifest: Manifest, store: Store, recipe: Recipe) -> tuple[str, ...]:
    """Return the distinct texts of a task: the prompts of all classes, or the captions of the test clips in the store.

    A task without classes or captions has none, nor has one whose classes are numbers without words. Classes that the
    manifest does not list are those of the clips in the store.

    Raises
    ------
    LabelError
        A clip has no usable label.
    """
    if manifest.kind == "contrastive":
        clips = _clips(for_test_clips(manifest), store, recipe)
        return tuple(dict.fromkeys(text for each in clips for text in read_captions(manifest, *each).texts))
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
    for clips in _clips(manifest, store, recipe):
        if manifest.kind == "clip":
            observed.update(labels.field_values(manifest, *clips))
        else:
            observed.update(*labels.field_sets(manifest, *clips))
    return observed


def _clips(manifest: Manifest, store: Store, recipe: Recipe) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the keys and the JSON of the clips of each split of a task that is in the store."""
    patterns = manifest.patterns
    for name in dict.fromkeys(manifest.feature_sets.values()):
        address = {"encoder": recipe.group_name, "dataset": manifest.feature_dataset, "split": name}
        try:
            clips = store.view(**address, pattern=patterns[name])
        except UnknownFeatureSet:  # a split that was not extracted
            continue
        metas = [str(meta) for meta in clips.meta_json[np.flatnonzero(np.diff(clips.clip, prepend=-1))]]
        yield [str(key) for key in clips.clip_key], metas


def text_vectors(store: Store, manifest: Manifest, recipe: Recipe, texts: Sequence[str]) -> NDArray[np.float32]:
    """Read the stored vectors of some texts of a task, float32 (texts, dim), as the text tower returned them.

    Raises
    ------
    UnknownFeatureSet
        The store lacks them: the encoder has no text tower, or the texts were changed since the extraction; the message
        has the command to run.
    UsageError
        The embeddings are of a hidden state or another pooling than the mean.
    """
    check_is_space_of_texts(recipe)
    stored = store.texts(recipe.group_name, task=manifest.name)
    missing = [text for text in dict.fromkeys(texts) if text not in stored]
    if missing:
        # captions are those of the test clips, the classes those of all
        options = "" if for_test_clips(manifest) is manifest else f" --split {manifest.feature_sets['test']}"
        command = f"run `{extract_command(manifest, recipe, store, options=options)}`, which encodes only the texts"
        if recipe.imported_from is not None:
            command = "imported embeddings have no text tower"
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} lacks {len(missing)} of {len(set(texts))} texts by "
            f"{recipe.group_name}: if the encoder has a text tower, {command}"
        )
    return np.stack([stored[text] for text in texts])


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
