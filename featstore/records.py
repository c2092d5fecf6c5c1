"""Frozen records that pass between stages, and their JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from featstore.formatting import html_table

Track = Literal["A", "B"]
Protocol = Literal["strict", "xares"]
NamedBy = Literal["class", "place"]

PROTOCOL_VERSION = 2
"""Of the rules that scores are made by now: how heads are fitted, clips resampled and encoders compared."""

__all__ = [
    "PROTOCOL_VERSION",
    "BrokenShard",
    "ExtractFailure",
    "ExtractRecord",
    "NamedBy",
    "Protocol",
    "Recipe",
    "ScoreRecord",
    "SkippedClip",
    "Track",
    "canonical_json",
    "dataset_group",
    "sha256_of",
]


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN.

    >>> canonical_json({"b": 1, "a": [1.0, None]})
    '{"a":[1.0,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_of(value: object) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def dataset_group(dataset: str, crop_seconds: float | None) -> str:
    """Name of a dataset in a store; a crop is part of it.

    >>> dataset_group("librispeech", 5.0), dataset_group("words", None)
    ('librispeech+crop5s', 'words')
    """
    return dataset if crop_seconds is None else f"{dataset}+crop{repr(float(crop_seconds)).removesuffix('.0')}s"


@dataclass(frozen=True, kw_only=True)  # no slots: the fingerprint is computed once and kept
class Recipe:
    """Everything that decides the numbers of an embedding, the crop of its windows apart.

    The crop belongs to the dataset's name (``librispeech+crop5s``), so that one encoder under one recipe is one group
    of a store whatever its tasks crop to.

    Attributes
    ----------
    encoder : str
        Short name: ``"logmel"``, the class name of an encoder that a user wrote, or the last part of the path or hub
        name that a model was found at.
    encoder_identity : mapping
        What the encoder is: ``class``, ``code_sha256`` (``distribution`` of a class that is installed,
        ``source_sha256`` of featstore's own), ``state_sha256``, ``arguments``, and ``layer`` where it is a hidden
        state. An argument that names a file is ``{"file": path, "file_sha256": hash of its content}``, one that names
        a folder ``{"folder": path, "folder_sha256": hash}``; the path is no part of the fingerprint.
    sample_rate_hz : int
        What the waveforms are resampled to before they are encoded.
    dim : int
        Width of a frame and of an utterance vector.
    hop_seconds : float
        Time from one frame to the next.
    padding : str
        ``"0.25"`` (a quantum in seconds), ``"exact"`` or ``"xares"``.
    precision : str
        Arithmetic of the forward pass: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    frame_dtype : str
        What frames are stored as.
    resampler : str
        Library and quality.
    format_version : int
        Of the store.
    pool : str
        How frames become an utterance vector: ``"mean"``, ``"max"`` or ``"std"``.
    max_window_seconds : float or None
        Longer clips are cut into windows of at most this.
    named_by : str
        ``"class"``: the name says what the encoder is, and is part of the fingerprint. ``"place"``: it says where the
        encoder was found, and is not.
    """

    encoder: str
    encoder_identity: Mapping[str, Any]
    sample_rate_hz: int
    dim: int
    hop_seconds: float
    padding: str
    precision: str
    frame_dtype: str
    resampler: str
    format_version: int
    pool: str = "mean"
    max_window_seconds: float | None = None
    named_by: NamedBy = "class"

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON, the form that is hashed and stored; what came later is left out at its default."""
        raw = asdict(self)
        for name, default in (("pool", "mean"), ("max_window_seconds", None), ("named_by", "class")):
            if raw[name] == default:
                del raw[name]
        return raw

    @cached_property
    def fingerprint(self) -> str:
        """First eight hexadecimal digits of the SHA-256 of the recipe's canonical JSON, places and paths left out."""
        return sha256_of(self.as_decided())[:8]

    def as_decided(self) -> dict[str, Any]:
        """What of `as_json` decides the numbers: a place's name and the paths of arguments' files are left out."""
        decisive: dict[str, Any] = _without_paths(self.as_json())
        if self.named_by == "place":
            del decisive["encoder"]
        return decisive

    @property
    def group_name(self) -> str:
        """Name of the recipe's group in a store: ``logmel@3f9c2a71``."""
        return f"{self.encoder}@{self.fingerprint}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments as they were given."""
        stored = self.encoder_identity.get("arguments") or {}
        return {name: _as_given(value) for name, value in stored.items()}

    def named_as(self, group_name: str) -> Recipe | None:
        """Return this recipe under the name that a group of a store has; None where that group is of another recipe.

        Before there was `named_by`, the name of a place was part of the fingerprint: a group of that time is known too.
        """
        if self.named_by == "class":
            return self if self.group_name == group_name else None
        name = group_name.rpartition("@")[0]
        both = (replace(self, encoder=name), replace(self, encoder=name, named_by="class"))
        return next((recipe for recipe in both if recipe.group_name == group_name), None)


def _as_given(value: Any) -> Any:
    """An argument as it was given: the path of a file or folder."""
    if isinstance(value, Mapping):
        for kind in ("file", "folder"):
            if value.keys() == {kind, f"{kind}_sha256"}:
                return value[kind]
        return {name: _as_given(each) for name, each in value.items()}
    return [_as_given(each) for each in value] if isinstance(value, (list, tuple)) else value


def _without_paths(value: Any) -> Any:
    """JSON in which files and folders count by their content alone."""
    if isinstance(value, Mapping):
        for kind in ("file", "folder"):
            if value.keys() == {kind, f"{kind}_sha256"}:
                return {f"{kind}_sha256": value[f"{kind}_sha256"]}
        return {name: _without_paths(each) for name, each in value.items()}
    return [_without_paths(each) for each in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedClip:
    """A clip that was skipped, and why. ``seconds`` is the length it claims, where it was skipped for that."""

    shard: str
    key: str
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenShard:
    """A shard that could not be read to its end, so that nothing of it was stored, and why."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractFailure:
    """A task that was not extracted, or not to its end. ``error`` is the class of the error, empty if it was not run.

    ``exit_code`` is that of the command if there is no other failure.
    """

    task: str
    error: str
    message: str
    exit_code: int = 1

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRecord:
    """What one extraction of one dataset split did.

    ``clips``, ``windows``, ``frames``, ``audio_seconds`` and ``skipped`` are of the split as it stands afterwards,
    reused shards included. ``gone`` names shards whose embeddings are in the store and whose files are no longer in the
    data folder; ``unnamed`` those whose files are there and which this manifest's pattern does not name: another task
    may. ``changed`` names shards that were encoded again because their files changed.
    ``settings`` are those in force: device, precision, batch_seconds and workers, the decoding threads, and batch_fill,
    the share of ``batch_seconds`` that a batch held in the mean; None where nothing was encoded. ``seconds`` are of the
    pass that made it, and with it the other layers and pools of the same encoder and split: those of all ``workers``
    added up, the total apart. ``deaths`` tells of workers that died on the way, and whose shards others encoded.
    ``asked_as`` is what the encoder was asked for by, where the store has it under another name; else it is empty.
    ``notes`` are lines about why it was encoded anew, about another encoder of the same output, and about a drift that
    was allowed.
    ``broken`` lists the shards of this run that could not be read: ``shards_done`` and ``shards_reused`` count none of
    them, and what the store had of one before counts as before.
    """

    task: str
    dataset: str
    split: str
    encoder: str
    fingerprint: str
    shards_total: int
    shards_done: int
    shards_reused: int
    clips: int
    windows: int
    frames: int
    skipped: tuple[SkippedClip, ...]
    gone: tuple[str, ...]
    audio_seconds: float
    bytes_written: int
    seconds: Mapping[str, float]
    bottleneck: str
    settings: Mapping[str, Any]
    workers: int = 1
    deaths: tuple[str, ...] = ()
    asked_as: str = ""
    notes: tuple[str, ...] = ()
    broken: tuple[BrokenShard, ...] = ()
    unnamed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord:
    """One score of one encoder on one task, with everything that made it.

    Attributes
    ----------
    task, title : str
        Name and title of the manifest.
    track : str
        ``"A"``: a probe is trained; ``"B"``: nearest neighbours.
    protocol : str
        The rules that the score was made under.
    encoder, fingerprint : str
        As the store has them.
    metric : str
        As the manifest names it.
    value : float
        Mean over seeds.
    std : float or None
        Standard deviation over seeds; None for fewer than two. Of protocol version 1: 0 there.
    ci_low, ci_high : float or None
        95 % interval for other test clips and seeds; None where there is none: ``details["interval"]`` has the reason.
    seeds : tuple of int
        Empty where nothing is random.
    n_train, n_valid, n_test, n_skipped : int
        Clips; of a task with folds, ``n_test`` counts every clip once and the others are means over folds.
    eval_weight : float
        Weight of the task in averages.
    private : bool
        Whether the task is left out of the average over public ones.
    seconds : mapping
        Wall time by stage.
    manifest_sha256 : str
        Of what the manifest says.
    versions : mapping
        Of the software that computed the score.
    settings : mapping
        Hyper-parameters in force: head, epochs, k, temperature, index...
    features : mapping
        Feature set -> content hash of the parts that were read.
    details : mapping
        What the report draws beside the value: scores per fold and per seed, per-class scores...
    protocol_version : int
        Of the rules behind both protocols, 1 in records that do not have it. Scores of two versions do not compare.
    """

    task: str
    title: str
    track: Track
    protocol: Protocol
    encoder: str
    fingerprint: str
    metric: str
    value: float
    std: float | None
    ci_low: float | None
    ci_high: float | None
    seeds: tuple[int, ...]
    n_train: int
    n_valid: int
    n_test: int
    n_skipped: int
    eval_weight: float
    private: bool
    seconds: Mapping[str, float]
    manifest_sha256: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    protocol_version: int = 1

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ScoreRecord:
        """The inverse of `as_json`. Raises TypeError where a field is missing or unknown."""
        return cls(**{**raw, "seeds": tuple(raw["seeds"])})

    def _repr_html_(self) -> str:
        """A table for notebooks: the value with its interval, and what it was made of."""
        interval = "" if self.ci_low is None or self.ci_high is None else f" [{self.ci_low:.4f}, {self.ci_high:.4f}]"
        warnings = [str(each["message"]) for each in self.details.get("warnings", [])]
        rows = [
            ("encoder", f"{self.encoder}@{self.fingerprint}"),
            ("track, protocol", f"{self.track}, {self.protocol}"),
            (self.metric, f"{self.value:.4f}{interval}"),
            ("clips", f"{self.n_train:,} train, {self.n_valid:,} valid, {self.n_test:,} test"),
            *(("warning", each) for each in warnings),
        ]
        return html_table(("score", self.task), rows, caption=self.title)

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits of everything that made the score: two scores of one key are one score."""
        made_by: dict[str, Any] = {
            "task": self.task,
            "track": self.track,
            "protocol": self.protocol,
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "metric": self.metric,
            "seeds": self.seeds,
            "manifest_sha256": self.manifest_sha256,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "features": dict(self.features),
        }
        if self.protocol_version > 1:  # keys of version 1 were made without it
            made_by["protocol_version"] = self.protocol_version
        return sha256_of(made_by)[:16]
