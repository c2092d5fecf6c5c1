"""The layers of one encoder that a store has for a task, as one encoder and one task."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, DataError, UnknownFeatureSet, UsageError
from featstore.evaluation.data import TaskData, load_task
from featstore.evaluation.pool import read_pool, task_argument
from featstore.evaluation.runner import encoders_with
from featstore.records import Protocol, Recipe, ScoreRecord, output_suffix, sha256_of

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest
    from featstore.tasks.splits import SplitBy

__all__ = ["LayerFamily", "LayeredTask", "families_with", "load_layered_task", "record_of_family"]


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
    layers = []
    features: dict[str, str] = {}
    for layer, recipe in zip(family.layers, others, strict=False):
        pool = read_pool(store, manifest, encoder=recipe.group_name)
        if pool.ids != task.clip_id or not np.array_equal(pool.clip, task.clip) or pool.X.shape != task.X.shape:
            raise DataError(
                f"task {manifest.name}: {recipe.group_name} and {last.group_name} have different clips or widths: "
                "extract all layers of the task again in one run"
            )
        layers.append(pool.X)
        features |= {f"{name}.layer{layer}": content for name, content in pool.features.items()}
    features |= {f"{name}.layer{family.layers[-1]}": content for name, content in task.features.items()}
    return LayeredTask(
        **{field.name: getattr(task, field.name) for field in fields(TaskData) if field.name != "features"},
        features=features,
        family=family,
        X_of_layer=(*layers, task.X),
    )


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
