"""The layers of one encoder that a store has for a task, as one encoder and one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, DataError, UnknownFeatureSet, UsageError
from featstore.evaluation.data import TaskData, load_task
from featstore.evaluation.frames import FrameReader, FrameTask, load_frame_task, read_frames
from featstore.evaluation.pool import Windows, read_pool, read_windows, task_argument
from featstore.evaluation.runner import encoders_with
from featstore.records import Protocol, Recipe, ScoreRecord, output_suffix, sha256_of

if TYPE_CHECKING:
    from featstore.store import Frames, Store
    from featstore.tasks import Manifest
    from featstore.tasks.splits import SplitBy

__all__ = [
    "LayerFamily",
    "LayeredFrameTask",
    "LayeredTask",
    "families_with",
    "find_family",
    "frames_of_layers",
    "load_layered_frame_task",
    "load_layered_task",
    "record_of_family",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFamily:
    """Hidden states of one encoder under one set of options and one pooling.

    Attributes
    ----------
    name : str
        Name of the encoder without the layer: ``wav2vec2-base``, or ``wav2vec2-base.std``.
    layers : tuple of int
        Ascending.
    recipes : tuple of Recipe
        One per layer.
    """

    name: str
    layers: tuple[int, ...]
    recipes: tuple[Recipe, ...]

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of the SHA-256 of the fingerprints of the layers."""
        return sha256_of([each.fingerprint for each in self.recipes])[:8]

    @property
    def group_name(self) -> str:
        """Name with fingerprint, as of an encoder; no group of a store has it."""
        return f"{self.name}@{self.fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredTask(TaskData):
    """A task's utterance vectors of several layers; ``X`` and the other fields are those of the last layer.

    Attributes
    ----------
    family : LayerFamily
    X_of_layer : tuple of float32 (windows, dim)
        In the order of ``family.layers``.
    features : mapping
        Of all layers: ``train.layer0`` to the content hash.
    """

    family: LayerFamily
    X_of_layer: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredFrameTask(FrameTask):
    """A task's frames of several layers, concatenated along their dimensions; the other fields as of `LayeredTask`."""

    family: LayerFamily


def families_with(store: Store, manifest: Manifest) -> list[str]:
    """Names of the encoders of which the store has two or more layers with every split of a task.

    Names are unique: where several families have one name, with their fingerprints.
    """
    found = [each for each in _families(store, manifest) if len(each.layers) > 1]
    names = [each.name for each in found]
    return [each.name if names.count(each.name) == 1 else each.group_name for each in found]


def _families(store: Store, manifest: Manifest) -> tuple[LayerFamily, ...]:
    with_task = set(encoders_with(store, manifest))
    found: dict[tuple[str, str], dict[int, Recipe]] = {}
    for recipe in store.encoders():
        layer = recipe.encoder_identity.get("layer")
        if recipe.group_name in with_task and isinstance(layer, int):
            name = recipe.encoder_name + output_suffix(None, recipe.pool)
            found.setdefault((name, recipe.encoder_key), {})[layer] = recipe
    return tuple(
        LayerFamily(
            name=name, layers=tuple(sorted(by_layer)), recipes=tuple(by_layer[layer] for layer in sorted(by_layer))
        )
        for (name, _), by_layer in sorted(found.items(), key=lambda item: item[0])
    )


def find_family(store: Store, manifest: Manifest, encoder: str | None) -> LayerFamily:
    """Find a family by its name, with or without its fingerprint; None selects the only one.

    Raises
    ------
    UnknownFeatureSet
        The store has no such layers of the task's shards.
    AmbiguousSelection
        Several families match.
    UsageError
        The name is that of one layer, or the store has one layer only.
    """
    families = _families(store, manifest)
    for each in families:
        if encoder in {name for of in each.recipes for name in (of.encoder, of.group_name)}:
            raise UsageError(f"{encoder} is one layer: --head layer-mix takes the name of its encoder, {each.name}")
    found = [each for each in families if encoder in (None, each.name, each.group_name)]
    if encoder is None and any(len(each.layers) > 1 for each in found):
        found = [each for each in found if len(each.layers) > 1]
    if len(found) > 1:
        listed = ", ".join(each.group_name for each in found)
        raise AmbiguousSelection(f"{store.url} has the layers of several encoders: select one of {listed}")
    command = f"featstore extract {task_argument(manifest)} --encoder SPEC --layers all --data DIR --store {store.url}"
    if not found:
        of = "any encoder" if encoder is None else encoder
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} has no layers of {of} with its shards: run `{command}`"
        )
    (family,) = found
    if len(family.layers) == 1:
        raise UsageError(
            f"task {manifest.name}: {store.url} has one layer of {family.name}, {family.layers[0]}, and a layer mix "
            f"takes two or more: run `{command}`"
        )
    return family


def load_layered_task(
    store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol, split_by: SplitBy | None = None
) -> LayeredTask:
    """Read the embeddings of every layer of an encoder, and the labels, and plan the rounds: see `load_task`.

    All layers are in memory: layers x windows x dim float32.

    Raises
    ------
    DataError
        The layers have different clips or widths.
    """
    family = find_family(store, manifest, encoder)
    *others, last = family.recipes
    task = load_task(store, manifest, encoder=last.group_name, protocol=protocol, split_by=split_by)
    layers, features = [], []
    for recipe in others:
        pool = read_pool(store, manifest, encoder=recipe.group_name)
        _check_same_clips(pool, task, manifest)
        layers.append(pool.X)
        features.append(pool.features)
    features_of_layers = _features_of(family, [*features, task.features])
    return LayeredTask.of(task, features=features_of_layers, family=family, X_of_layer=(*layers, task.X))


def load_layered_frame_task(
    store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol, split_by: SplitBy | None = None
) -> LayeredFrameTask:
    """Find the frames of every layer of an encoder, read the events and plan the rounds: see `load_frame_task`.

    Raises
    ------
    DataError
        The layers have different clips, frames or widths.
    """
    family = find_family(store, manifest, encoder)
    task = load_frame_task(store, manifest, encoder=family.recipes[-1].group_name, protocol=protocol, split_by=split_by)
    frames, features = frames_of_layers(store, manifest, family, task, task.frames, protocol=protocol)
    return LayeredFrameTask.of(task, frames=frames, features=features, family=family)


def frames_of_layers(
    store: Store, manifest: Manifest, family: LayerFamily, last: Windows, frames: FrameReader, *, protocol: Protocol
) -> tuple[FrameReader, dict[str, str]]:
    """Return a reader of the frames of all layers, concatenated, and the content hashes of their feature sets.

    Parameters
    ----------
    last, frames
        The windows of the last layer, and their frames.

    Raises
    ------
    UnknownFeatureSet
        The store lacks the frames of a layer; the message has the command to run.
    DataError
        The layers have different clips, frames or widths.
    """
    layers: list[tuple[Frames, ...]] = []
    features = []
    for recipe in family.recipes[:-1]:
        windows = read_windows(store, manifest, encoder=recipe.group_name)
        _check_same_clips(windows, last, manifest)
        found = read_frames(store, manifest, windows, protocol=protocol)
        if not np.array_equal(found.lengths, frames.lengths):
            raise _different(windows, last, manifest)
        layers += found.frames
        features.append(windows.features)
    return replace(frames, frames=(*layers, *frames.frames)), _features_of(family, [*features, last.features])


def _check_same_clips(layer: Windows, last: Windows, manifest: Manifest) -> None:
    """Raise DataError unless a layer has the windows and the width of the last one."""
    same = layer.clip_id == last.clip_id and np.array_equal(layer.clip, last.clip)
    if not same or layer.recipe.dim != last.recipe.dim:
        raise _different(layer, last, manifest)


def _different(layer: Windows, last: Windows, manifest: Manifest) -> DataError:
    return DataError(
        f"task {manifest.name}: {layer.recipe.group_name} and {last.recipe.group_name} have different clips, frames or "
        "widths: extract all layers of the task again in one run"
    )


def _features_of(family: LayerFamily, features: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Content hashes of the feature sets of all layers: ``train.layer0`` to the hash."""
    return {
        f"{name}.layer{layer}": content
        for layer, of_layer in zip(family.layers, features, strict=True)
        for name, content in of_layer.items()
    }


def record_of_family(record: ScoreRecord, family: LayerFamily) -> ScoreRecord:
    """Return the record of a score of all layers, from one that names the last layer."""
    recipe = dict(record.details["recipe"])
    recipe["encoder"] = family.name
    recipe["encoder_identity"] = {**recipe["encoder_identity"], "layer": list(family.layers)}
    return replace(
        record,
        encoder=family.name,
        fingerprint=family.fingerprint,
        details={**record.details, "recipe": recipe},
    )
