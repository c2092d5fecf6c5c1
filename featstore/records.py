"""Frozen records that the stages exchange, and their JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from featstore.errors import UsageError
from featstore.formatting import html_table

Track = Literal["A", "B"]
Protocol = Literal["strict", "xares", "maeb"]
NamedBy = Literal["class", "place"]

PROTOCOL_VERSION = 2
"""Version of the scoring rules: how heads are fitted, how clips are resampled and how encoders are compared."""

__all__ = [
    "PROTOCOL_VERSION",
    "BrokenShard",
    "ExtractFailure",
    "ExtractRecord",
    "JsonRecord",
    "NamedBy",
    "Protocol",
    "Recipe",
    "ScoreRecord",
    "SkippedClip",
    "Track",
    "Window",
    "canonical_json",
    "check_encoder_name",
    "dataset_group",
    "output_suffix",
    "sha256_of",
]


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, no NaN.

    >>> canonical_json({"b": 1, "a": [1.0, None]})
    '{"a":[1.0,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_of(value: object) -> str:
    """Return the hexadecimal SHA-256 of a value's canonical JSON, in which lone surrogates are escaped."""
    return hashlib.sha256(canonical_json(value).encode(errors="backslashreplace")).hexdigest()


def dataset_group(dataset: str, crop_seconds: float | None) -> str:
    """Return the name of a dataset's group in a store; the name includes the crop.

    >>> dataset_group("librispeech", 5.0), dataset_group("words", None)
    ('librispeech+crop5s', 'words')
    """
    return dataset if crop_seconds is None else f"{dataset}+crop{repr(float(crop_seconds)).removesuffix('.0')}s"


def output_suffix(layer: int | None, pool: str) -> str:
    """Return the suffix of the encoder's name in the names of the feature sets of a layer and pool.

    >>> output_suffix(6, "mean"), output_suffix(6, "std"), output_suffix(None, "mean")
    ('.layer6', '.layer6.std', '')
    """
    suffix = "" if layer is None else f".layer{layer}"
    return suffix if pool == "mean" else f"{suffix}.{pool}"


_ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
_ENDS_AS_OUTPUT = re.compile(r"\.(layer[0-9]+|max|std)$")


def check_encoder_name(name: str) -> None:
    """Check a name that a user chooses for an encoder.

    Raises
    ------
    UsageError
        The name cannot be the name of a group, or ends as the name of a layer or pool of another encoder does.
    """
    if not isinstance(name, str) or not _ENCODER_NAME.fullmatch(name):
        raise UsageError(
            "the name of an encoder has letters, digits and . _ + = -, starts with a letter or digit, and has at most "
            f"200 characters: got {name!r}"
        )
    if found := _ENDS_AS_OUTPUT.search(name):
        raise UsageError(
            f"the name of an encoder must not end in {found[0]}, which names a layer or pool of it: got {name!r}"
        )


@dataclass(frozen=True, kw_only=True)  # no slots: the fingerprint is a cached property
class Recipe:
    """All settings that determine an embedding, except the crop of its windows.

    The crop is part of the dataset's name (``librispeech+crop5s``), so that an encoder with one recipe has one group in
    a store, whatever its tasks crop to.

    Attributes
    ----------
    encoder : str
        Name that the encoder is shown by. By default ``"logmel"``, the class name of a user-defined encoder, or the
        last component of the path or hub name of a model; the user can choose another.
    encoder_identity : mapping
        Identity of the encoder: ``class``, ``code_sha256`` (``distribution`` for an installed class, ``source_sha256``
        for a class of featstore), ``state_sha256``, ``arguments``, and ``layer`` if it is a hidden state. An argument
        that names a file is ``{"file": path, "file_sha256": hash of its content}``, one that names a folder
        ``{"folder": path, "folder_sha256": hash}``; the path is not part of the fingerprint. Of imported embeddings:
        ``imported``, words about their origin.
    sample_rate_hz : int
        Sample rate of the waveforms that are encoded.
    dim : int
        Width of a frame and of an utterance vector.
    hop_seconds : float
        Time from one frame to the next.
    padding : str
        ``"0.25"`` (a quantum in seconds), ``"exact"`` or ``"xares"``.
    precision : str
        Arithmetic of the forward pass: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    frame_dtype : str
        Type of the stored frames.
    resampler : str
        Library and quality of the resampler.
    format_version : int
        Version of the store format.
    pool : str
        How frames are pooled to an utterance vector: ``"mean"``, ``"max"`` or ``"std"``.
    max_window_seconds : float or None
        Longest window; longer clips are cut into several windows.
    named_by : str
        ``"class"``: the default name identifies the encoder and is part of the fingerprint. ``"place"``: the default
        name is where the encoder was loaded from, and is not part of the fingerprint.
    fingerprint_name : str or None
        Default name of the encoder if it is part of the fingerprint and ``encoder`` is another name.
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
    fingerprint_name: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON, as it is stored. Fields of later versions are omitted at their default.

        ``encoder`` is the name that the fingerprint includes; a store has the chosen name in the name of the group.
        """
        raw = asdict(self)
        raw["encoder"] = raw.pop("fingerprint_name") or self.encoder
        for name, default in (("pool", "mean"), ("max_window_seconds", None), ("named_by", "class")):
            if raw[name] == default:
                del raw[name]
        return raw

    @cached_property
    def fingerprint(self) -> str:
        """First eight hexadecimal digits of the SHA-256 of the canonical JSON of `as_decided`."""
        return sha256_of(self.as_decided())[:8]

    def as_decided(self) -> dict[str, Any]:
        """The fields of `as_json` that determine the embeddings, without the name of a place and the paths of files."""
        decisive: dict[str, Any] = _without_paths(self.as_json())
        if self.named_by == "place":
            del decisive["encoder"]
        return decisive

    @property
    def group_name(self) -> str:
        """Name of the recipe's group in a store: ``logmel@3f9c2a71``."""
        return f"{self.encoder}@{self.fingerprint}"

    @property
    def output_suffix(self) -> str:
        """End of the names of the feature sets of this layer and pool: ``.layer6.std``, or an empty text."""
        return output_suffix(self.encoder_identity.get("layer"), self.pool)

    @property
    def encoder_name(self) -> str:
        """Name of the encoder without the suffix of a layer and pool."""
        return self.encoder.removesuffix(self.output_suffix)

    @property
    def encoder_key(self) -> str:
        """What the outputs of one encoder under one set of options have in common: its layers and pools."""
        shared = self.as_decided()
        identity = {name: value for name, value in shared["encoder_identity"].items() if name != "layer"}
        of_output = ("encoder", "dim", "hop_seconds", "pool")
        shared = {name: value for name, value in shared.items() if name not in of_output}
        return canonical_json({**shared, "encoder_identity": identity})

    @property
    def imported_from(self) -> str | None:
        """Words about the origin of imported embeddings, which may be empty; None if an encoder was run."""
        words = self.encoder_identity.get("imported")
        return words if isinstance(words, str) else None

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments as the caller gave them."""
        stored = self.encoder_identity.get("arguments") or {}
        return {name: _as_given(value) for name, value in stored.items()}

    def renamed(self, name: str) -> Recipe:
        """Return the recipe of the same embeddings, with the same fingerprint, shown by another name."""
        if self.named_by == "place":
            return replace(self, encoder=name)
        own = self.fingerprint_name or self.encoder
        return replace(self, encoder=name, fingerprint_name=None if name == own else own)

    def named_as(self, group_name: str) -> Recipe | None:
        """Return this recipe under the name of a store's group; None if the group belongs to another recipe.

        Groups of versions without `named_by`, whose fingerprint includes the name of a place, are recognised too.
        """
        name = group_name.rpartition("@")[0]
        found = [self.renamed(name)]
        if self.named_by == "place":
            found += [replace(self, encoder=name, named_by="class"), replace(self, named_by="class").renamed(name)]
        return next((recipe for recipe in found if recipe.group_name == group_name), None)


def _as_given(value: Any) -> Any:
    """Replace the stored form of a file or folder by its path."""
    if isinstance(value, Mapping):
        for kind in ("file", "folder"):
            if value.keys() == {kind, f"{kind}_sha256"}:
                return value[kind]
        return {name: _as_given(each) for name, each in value.items()}
    return [_as_given(each) for each in value] if isinstance(value, (list, tuple)) else value


def _without_paths(value: Any) -> Any:
    """Replace the stored form of a file or folder by the hash of its content."""
    if isinstance(value, Mapping):
        for kind in ("file", "folder"):
            if value.keys() == {kind, f"{kind}_sha256"}:
                return {f"{kind}_sha256": value[f"{kind}_sha256"]}
        return {name: _without_paths(each) for name, each in value.items()}
    return [_without_paths(each) for each in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True)
class Window:
    """Samples [start, stop) of a clip, padded to `padded` samples for encoding."""

    start: int
    stop: int
    padded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonRecord:
    """A record that commands print with ``--json``."""

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedClip:
    """A skipped clip and the reason. ``seconds`` is the stated duration of a clip that is too long, else None."""

    shard: str
    key: str
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenShard:
    """A shard that could not be read to its end, and the reason. Nothing of it was stored."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractFailure(JsonRecord):
    """A task that was not completely extracted. ``error`` is the class of the error, empty if the task was not run.

    ``exit_code`` is the exit code of the command if there is no other failure.
    """

    task: str
    error: str
    message: str
    exit_code: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRecord(JsonRecord):
    """Result of extracting one dataset split.

    Attributes
    ----------
    task, dataset, split, encoder, fingerprint : str
        Names, as the store has them.
    shards_total, shards_done, shards_reused : int
        Shards of the split, shards encoded by this run, and shards whose embeddings were cached.
    clips, windows, frames, audio_seconds, skipped
        Totals of the split after this run, reused shards included.
    gone : tuple of str
        Shards with embeddings in the store whose files are no longer in the data folder.
    bytes_written : int
    seconds : mapping
        Seconds by stage, summed over all workers, and the total. They are those of the pass that also made the other
        layers and pools of the same encoder and split.
    bottleneck : str
    settings : mapping
        Settings in effect: device, precision, batch_seconds, workers, decoding threads, and batch_fill, the mean
        fraction of ``batch_seconds`` that a batch contains; None if nothing was encoded.
    workers : int
    deaths : tuple of str
        Workers that died; other workers encoded their shards.
    asked_as : str
        Name that the encoder was requested by, if the store has it under another name; else empty.
    notes : tuple of str
        Why it was encoded again, another encoder with the same output, an allowed drift, prompts that were encoded.
    broken : tuple of BrokenShard
        Shards that this run could not read. ``shards_done`` and ``shards_reused`` do not include them; embeddings of
        them that the store had before are kept.
    unnamed : tuple of str
        Shards whose files are present and not matched by the manifest's pattern; another task may use them.
    changed : tuple of str
        Shards that were encoded again because their files changed.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord:
    """One score of one encoder on one task, with its provenance.

    Attributes
    ----------
    task, title : str
        Name and title of the manifest.
    track : str
        ``"A"``: a probe is trained; ``"B"``: nothing is trained; see `measure`.
    protocol : str
        Scoring rules: ``"strict"``, ``"xares"``, or for track B ``"maeb"``.
    encoder, fingerprint : str
        Names, as the store has them.
    metric : str
        Name of the metric, as in the manifest; of a measure other than ``knn``, its own.
    value : float
        Mean over seeds.
    std : float or None
        Standard deviation over seeds; None for fewer than two seeds (0 in protocol version 1).
    ci_low, ci_high : float or None
        95 % confidence interval over test clips and seeds; None if there is none, and ``details["interval"]`` has the
        reason.
    seeds : tuple of int
        Empty if nothing is random.
    n_train, n_valid, n_test, n_skipped : int
        Numbers of clips. With folds, ``n_test`` counts every clip once and the others are means over folds.
    eval_weight : float
        Weight of the task in averages.
    private : bool
        Whether the task is excluded from the average over public tasks.
    seconds : mapping
        Wall time by stage.
    manifest_sha256 : str
        Hash of the manifest's content.
    versions : mapping
        Versions of the software that computed the score.
    settings : mapping
        Hyper-parameters in effect: head, epochs, k, temperature, index...
    features : mapping
        Feature set -> content hash of the parts that were read.
    details : mapping
        Further values that the report shows: scores per fold and per seed, per-class scores...
    protocol_version : int
        Version of the rules behind both protocols; 1 in records without it. Scores of different versions are not
        comparable.
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
        """Inverse of `as_json`. Raises TypeError if a field is missing or unknown."""
        return cls(**{**raw, "seeds": tuple(raw["seeds"])})

    def _repr_html_(self) -> str:
        """Table for notebooks: the value, its interval and its provenance."""
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
    def measure(self) -> str:
        """Measure of Track B: ``settings["measure"]``, or ``"knn"`` without one. Empty for Track A."""
        return str(self.settings.get("measure", "knn")) if self.track == "B" else ""

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits of a hash of the score's provenance. Scores with equal keys are the same score."""
        provenance: dict[str, Any] = {
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
        if self.protocol_version > 1:  # keys of version 1 do not include it
            provenance["protocol_version"] = self.protocol_version
        return sha256_of(provenance)[:16]
