"""The probe on arrays: a task and a store in memory, scored by `featstore.probe.probe_task` like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featstore.errors import DataError, UnknownFeatureSet, UsageError
from featstore.probe.api import SEEDS, probe_task
from featstore.records import Recipe, ScoreRecord, SkippedClip

if TYPE_CHECKING:
    from featstore.store import Store

__all__ = ["Labelled", "probe_arrays"]

Labelled = tuple[ArrayLike, ArrayLike | Sequence[Any]]
"""Embeddings (n, dim) and their labels."""

_METRICS = {"clip": "accuracy", "multilabel": "mAP", "regression": "pearson"}


def probe_arrays(
    X: ArrayLike,
    y: ArrayLike | Sequence[Any],
    *,
    test: Labelled,
    valid: Labelled | None,
    metric: str | None,
    head: str | None,
    seeds: tuple[int, ...] | None,
) -> ScoreRecord:
    """Train and score a probe on arrays: see `featstore.api.probe_arrays`."""
    from featstore.tasks import Manifest
    from featstore.tasks.rules import METRICS_BY_KIND

    parts = {"train": (X, y), **({} if valid is None else {"valid": valid}), "test": test}
    kind = _kind_of(y)
    metric = metric or _METRICS[kind]
    if metric not in METRICS_BY_KIND[kind]:
        raise UsageError(f"labels of kind {kind} take {', '.join(METRICS_BY_KIND[kind])}: got metric {metric!r}")
    if kind == "multilabel":
        widths = {name: None if _is_label_sets(labels) else np.shape(labels)[1:] for name, (_, labels) in parts.items()}
        if len(set(widths.values())) > 1:
            raise DataError(
                "label sets of all parts are lists of text, or multi-hot arrays with one column for each class: "
                f"got {widths}"
            )
    sets = {name: _ArraySet.of(name, *arrays, kind=kind) for name, arrays in parts.items()}
    dims = {name: each.utterance.shape[1] for name, each in sets.items()}
    if len(set(dims.values())) > 1:
        raise DataError(f"embeddings of all parts have one width: got {dims}")
    patterns = {"train": "train.tar", "valid": "train.tar" if valid is None else "valid.tar", "test": "test.tar"}
    manifest = Manifest.model_validate(
        {
            "name": "arrays",
            "title": "Arrays",
            "kind": kind,
            "metric": metric,
            "eval_weight": 1.0,
            "data": {"dataset": "arrays"},
            "splits": patterns,
            "label": {"field": "label"},
        }
    )
    store = _ArrayStore(sets=sets, recipe=_recipe(dims["train"]))
    return probe_task(cast("Store", store), manifest, encoder="arrays", head=head, seeds=seeds or SEEDS["strict"])


def _kind_of(y: ArrayLike | Sequence[Any]) -> str:
    """Kind of the task that labels make up: a fraction among them is a number to regress."""
    if not len(cast("Sequence[Any]", y)):
        raise DataError("train: there is no label")
    if _is_label_sets(y):
        return "multilabel"
    try:
        values = np.asarray(y)
    except ValueError as error:
        raise UsageError("labels are (n,), or lists of text for every clip: got lists beside other values") from error
    if values.ndim == 2 and values.dtype.kind in "biuf" and np.isin(values, (0, 1)).all():
        return "multilabel"
    if values.ndim != 1:
        raise UsageError(
            f"labels are (n,), lists of text or a multi-hot array (n, n_classes) of 0 and 1: got shape {values.shape}"
        )
    return "regression" if values.dtype.kind == "f" else "clip"


def _is_label_sets(y: ArrayLike | Sequence[Any]) -> bool:
    return not isinstance(y, np.ndarray) and all(
        isinstance(each, list | tuple | set | frozenset) and all(isinstance(label, str) for label in each)
        for each in cast("Sequence[Any]", y)
    )


def _labels_of(y: ArrayLike | Sequence[Any], kind: str) -> list[Any]:
    """Labels as in the JSON of a clip, by whose rules 3 and 3.0 are one class, and None is not a class."""
    if kind == "regression":
        return [float(each) for each in np.asarray(y)]
    if kind == "clip":
        return list(np.asarray(y).tolist())
    if _is_label_sets(y):
        return [sorted(each) for each in cast("Sequence[Any]", y)]
    values = np.asarray(y)
    width = len(str(values.shape[1] - 1))  # so that names sort as the columns do
    return [[f"{column:0{width}d}" for column in np.flatnonzero(row).tolist()] for row in values]


@dataclass(frozen=True, kw_only=True)
class _ArraySet:
    """One part in memory, with what `featstore.evaluation` reads of a feature set: a window and a shard for a clip."""

    name: str
    utterance: NDArray[np.float32]
    meta_json: NDArray[np.object_]
    skipped: tuple[SkippedClip, ...] = ()

    @classmethod
    def of(cls, name: str, X: ArrayLike, y: ArrayLike | Sequence[Any], *, kind: str) -> _ArraySet:
        utterance = np.asarray(X, dtype=np.float32)
        labels = _labels_of(y, kind)
        if utterance.ndim != 2 or len(utterance) != len(labels):
            raise DataError(
                f"{name}: embeddings are (n, dim) with one label each: got {utterance.shape} and {len(labels)} labels"
            )
        metas = np.array([json.dumps({"label": each}, default=str) for each in labels], dtype=object)
        return cls(name=name, utterance=utterance, meta_json=metas)

    def __len__(self) -> int:
        return len(self.utterance)

    @property
    def clip(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    @property
    def clip_key(self) -> NDArray[np.object_]:
        return np.array([f"{self.name}-{number}" for number in range(len(self))], dtype=object)

    @property
    def seconds(self) -> NDArray[np.float64]:
        return np.ones(len(self))

    @property
    def segments(self) -> tuple[Any, ...]:
        shard = SimpleNamespace(name=f"{self.name}.tar")
        return (SimpleNamespace(member=SimpleNamespace(shard=shard, windows=len(self), skipped=())),)

    @property
    def utterance_rows(self) -> Any:
        return SimpleNamespace(slice=lambda start, stop: self.utterance[start:stop])

    @cached_property
    def content_hash(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.utterance).tobytes())
        digest.update("\n".join(self.meta_json).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _ArrayStore:
    """What scoring asks of a store."""

    sets: Mapping[str, _ArraySet]
    recipe: Recipe
    url: str = "arrays"

    def resolve_encoder(self, _: str | None) -> Recipe:
        return self.recipe

    def view(self, *, split: str, pattern: str, **_: str) -> _ArraySet:
        name = pattern.removesuffix(".tar")
        if name not in self.sets:
            raise UnknownFeatureSet(f"there is no part {split!r}")
        return self.sets[name]


def _recipe(dim: int) -> Recipe:
    """Of embeddings whose origin is not known."""
    return Recipe(
        encoder="arrays",
        encoder_identity={},
        sample_rate_hz=1,
        dim=dim,
        hop_seconds=1.0,
        padding="exact",
        precision="float32",
        frame_dtype="float32",
        resampler="none",
        format_version=1,
    )
