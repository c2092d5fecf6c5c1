"""A task and a store in memory, small enough to compute by hand: what the tests of scoring stand on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from featstore.errors import UnknownFeatureSet
from featstore.records import Recipe, SkippedClip
from featstore.tasks import Manifest


@dataclass(frozen=True)
class Clip:
    """A clip of one or more windows."""

    key: str
    label: Any
    vectors: np.ndarray
    seconds: Sequence[float] = (1.0,)


@dataclass(frozen=True)
class TinySet:
    clips: Sequence[Clip]
    skipped: Sequence[SkippedClip] = ()
    shard: str = ""

    def __len__(self) -> int:
        return sum(len(clip.seconds) for clip in self.clips)

    @cached_property
    def utterance(self) -> np.ndarray:
        X = np.concatenate([np.atleast_2d(clip.vectors) for clip in self.clips]).astype(np.float32)
        X.flags.writeable = False  # as the views of a real store
        return X

    @cached_property
    def clip(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.clips)), [len(clip.seconds) for clip in self.clips])

    @property
    def clip_key(self) -> np.ndarray:
        return np.array([clip.key for clip in self.clips], dtype=object)

    @property
    def meta_json(self) -> np.ndarray:
        return np.array([json.dumps({"label": self.clips[at].label}) for at in self.clip], dtype=object)

    @property
    def seconds(self) -> np.ndarray:
        return np.array([seconds for clip in self.clips for seconds in clip.seconds])

    @property
    def segments(self) -> Sequence[Any]:
        """All clips are of one shard."""
        member = SimpleNamespace(
            shard=SimpleNamespace(name=self.shard), windows=len(self), clips=len(self.clips), skipped=self.skipped
        )
        return (SimpleNamespace(member=member),)

    @property
    def utterance_rows(self) -> SimpleNamespace:
        return SimpleNamespace(slice=lambda start, stop: self.utterance[start:stop])

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(self.utterance.tobytes() + "".join(self.meta_json).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TinyStore:
    """Answers what scoring asks of a `featstore.store.Store`, and notes which sets were read."""

    sets: Mapping[str, Sequence[Clip] | TinySet]
    url: str = "tiny.zarr"
    spec: str = "./my encoder.py"
    read: list[str] = field(default_factory=list)
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Texts of the task `tiny`."""

    def resolve_encoder(self, name: str | None) -> Recipe:
        return recipe(dim=next(np.shape(clip.vectors)[-1] for clips in self.sets.values() for clip in _clips(clips)))

    def feature_sets(self, *, encoder: str) -> Sequence[SimpleNamespace]:
        """As far as it is asked for: how the encoder was named on the command line."""
        return [SimpleNamespace(address=SimpleNamespace(spec=self.spec))]

    def texts(self, encoder: str, *, task: str | None = None) -> Mapping[str, np.ndarray]:
        """The stored texts of a task."""
        return self.vectors if task == "tiny" else {}

    def view(self, *, encoder: str, dataset: str, split: str, pattern: str) -> TinySet:
        """What a split's pattern names: all that is said to be in it."""
        if split not in self.sets:
            raise UnknownFeatureSet(f"no {encoder} {dataset} {split}")
        self.read.append(split)
        found = self.sets[split]
        tiny_set = found if isinstance(found, TinySet) else TinySet(found)
        return replace(tiny_set, shard=pattern.replace("*", "0"))


def _clips(clips: Sequence[Clip] | TinySet) -> Sequence[Clip]:
    return clips.clips if isinstance(clips, TinySet) else clips


def recipe(*, dim: int) -> Recipe:
    return Recipe(
        encoder="tiny",
        encoder_identity={"class": "tiny"},
        sample_rate_hz=16000,
        dim=dim,
        hop_seconds=0.02,
        padding="0.25",
        precision="float32",
        frame_dtype="float16",
        resampler="none",
        format_version=1,
    )


def task(**changes: Any) -> Manifest:
    """A manifest of declared splits and class labels; a change to None removes a key."""
    raw = {
        "name": "tiny",
        "title": "Tiny",
        "kind": "clip",
        "metric": "accuracy",
        "eval_weight": 1.0,
        "data": {"dataset": "tiny"},
        "splits": {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"},
        "label": {"field": "label"},
        **changes,
    }
    return Manifest.model_validate({key: value for key, value in raw.items() if value is not None})


def folds(*names: str) -> dict[str, Any]:
    """Changes that make a task one of folds."""
    return {"splits": None, "folds": {name: f"fold-{name}-*.tar" for name in names}}


def clips(
    name: str, n: int, *, dim: int = 8, n_classes: int = 3, spread: float = 1.0, windows: int = 1, seed: int = 0
) -> list[Clip]:
    """Clips of balanced classes around class centres that are the same for every name."""
    centres = np.random.default_rng(99).standard_normal((n_classes, dim))
    rng = np.random.default_rng([seed, *name.encode()])
    return [
        Clip(
            key=f"{name}-{number}",
            label=f"class-{number % n_classes}",
            vectors=centres[number % n_classes] + spread * rng.standard_normal((windows, dim)),
            seconds=tuple(rng.uniform(0.3, 2.0, windows)),
        )
        for number in range(n)
    ]
