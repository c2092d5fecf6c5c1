"""Labelled arrays as a task and a store in memory, which both tracks score like any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featstore.errors import DataError, UnknownFeatureSet, UsageError
from featstore.records import Recipe, SkippedClip

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Labelled", "array_task"]

Labelled = (
    tuple[ArrayLike, ArrayLike | Sequence[Any]] | tuple[ArrayLike, ArrayLike | Sequence[Any], Sequence[Any] | None]
)
"""Embeddings (n, dim), their labels, and optionally their groups."""

_METRICS = {"clip": "accuracy", "multilabel": "mAP", "regression": "pearson"}


def array_task(
    X: ArrayLike,
    y: ArrayLike | Sequence[Any],
    *,
    groups: Sequence[Any] | None,
    test: Labelled | None,
    valid: Labelled | None = None,
    metric: str | None = None,
) -> tuple[Store, Manifest]:
    """Build the store and the manifest of labelled arrays, for `probe_task` and `retrieve_task`.

    Parameters
    ----------
    X, y, groups
        Embeddings, labels and groups of the training clips.
    test, valid : Labelled, optional
        Without `test` the task has one set of clips. Without `valid` the protocol chooses validation clips.
    metric : str, optional
        By default that of the kind of the labels.

    Raises
    ------
    UsageError, DataError
        See `featstore.api.probe_arrays`.
    """
    from featstore.tasks import Manifest
    from featstore.tasks.rules import METRICS_BY_KIND

    parts = {"train": _Part(X, y, groups)}
    for name, each in (("valid", valid), ("test", test)):
        if each is not None:
            if len(each) not in (2, 3):
                raise UsageError(
                    f"{name} must be (embeddings, labels) or (embeddings, labels, groups): got {len(each)}"
                )
            parts[name] = _Part(*each)
    kind = _kind_of(y)
    metric = metric or _METRICS[kind]
    if metric not in METRICS_BY_KIND[kind]:
        raise UsageError(f"labels of kind {kind} take {', '.join(METRICS_BY_KIND[kind])}: got metric {metric!r}")
    if kind == "multilabel":
        widths = {name: None if _is_label_sets(each.y) else np.shape(each.y)[1:] for name, each in parts.items()}
        if len(set(widths.values())) > 1:
            raise DataError(
                "label sets of all parts are lists of text, or multi-hot arrays with one column for each class: "
                f"got {widths}"
            )
    if without := [name for name, each in parts.items() if (each.groups is None) != (groups is None)]:
        raise UsageError(
            f"groups are given for all parts or for none, `groups` and a third item of valid and test: {without[0]} "
            f"has {'no groups' if groups is not None else 'groups, and train has none'}"
        )
    sets = {name: _ArraySet.of(name, each, kind=kind) for name, each in parts.items()}
    dims = {name: each.utterance.shape[1] for name, each in sets.items()}
    if len(set(dims.values())) > 1:
        raise DataError(f"embeddings of all parts must have the same dim, got {dims}")
    patterns = {name: f"{name if name in sets else 'train'}.tar" for name in ("train", "valid", "test")}
    manifest = Manifest.model_validate(
        {
            "name": "arrays",
            "title": "Arrays",
            "kind": kind,
            "metric": metric,
            "eval_weight": 1.0,
            "data": {"dataset": "arrays"},
            "splits": {**patterns, **({} if groups is None else {"group": "group"})},
            "label": {"field": "label"},
            "retrieve": {"enabled": kind != "regression"},
        }
    )
    return cast("Store", _ArrayStore(sets=sets, recipe=_recipe(dims["train"]))), manifest


class _Part(NamedTuple):
    X: ArrayLike
    y: ArrayLike | Sequence[Any]
    groups: Sequence[Any] | None = None


def _kind_of(y: ArrayLike | Sequence[Any]) -> str:
    """Kind of the task by its labels: lists or multi-hot rows, floats (regression), or classes."""
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
            f"labels must be (n,), lists of str or a multi-hot array (n, n_classes) of 0 and 1, got {values.shape}"
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
    """One part in memory, with the attributes of a feature set that scoring reads: one window per clip, one shard."""

    name: str
    utterance: NDArray[np.float32]
    meta_json: NDArray[np.object_]
    skipped: tuple[SkippedClip, ...] = ()

    @classmethod
    def of(cls, name: str, part: _Part, *, kind: str) -> _ArraySet:
        utterance = np.asarray(part.X, dtype=np.float32)
        metas = [{"label": each} for each in _labels_of(part.y, kind)]
        if utterance.ndim != 2 or len(utterance) != len(metas):
            raise DataError(
                f"{name}: embeddings must be (n, dim), one label each: got {utterance.shape} and {len(metas)} labels"
            )
        if part.groups is not None:
            groups = np.asarray(part.groups)
            if groups.shape != (len(metas),):
                raise DataError(f"{name}: groups must be ({len(metas)},), one for each clip: got {groups.shape}")
            metas = [{**meta, "group": group} for meta, group in zip(metas, groups.tolist(), strict=True)]
        texts = np.array([json.dumps(meta, default=str) for meta in metas], dtype=object)
        return cls(name=name, utterance=utterance, meta_json=texts)

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
    """The part of `featstore.store.Store` that scoring uses."""

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
    """Recipe of embeddings of unknown origin."""
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
