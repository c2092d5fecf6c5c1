"""Manifest format 1 as frozen pydantic models, and the loading of a manifest file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from featstore.errors import ManifestError
from featstore.records import dataset_group, sha256_of
from featstore.shard_patterns import PatternError, expand_braces
from featstore.tasks.rules import SPLIT_NAMES, broken_rules, place_of, reworded, shown

__all__ = ["Data", "Kind", "Label", "Manifest", "MetricArgs", "Probe", "Retrieve", "Splits", "load_manifest"]


Kind = Literal["clip", "multilabel", "frame", "regression", "contrastive", "ctc", "asr"]
Domain = Literal["speech", "environment", "music"]


def _check_name(text: str) -> str:
    """Refuse a name that cannot be part of file names and of store paths."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        msg = f"must be letters, digits, '_', '-' and '.', and begin with a letter or digit, got {shown(text)}"
        raise ValueError(msg)
    return text


def _check_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        msg = f"must be one line of text, got {shown(text)}"
        raise ValueError(msg)
    return text


def _check_pattern(pattern: str) -> str:
    """Refuse a shard pattern that leaves its dataset's folder or is no plain glob."""
    if pattern.startswith(("/", "~")) or "\\" in pattern or ":" in pattern or ".." in pattern.split("/"):
        msg = f"must be a path inside the dataset's folder, with '/', got {shown(pattern)}"
        raise ValueError(msg)
    try:
        expand_braces(pattern)
    except PatternError as error:
        msg = f"{error}; got {shown(pattern)}"
        raise ValueError(msg) from None
    if not pattern.endswith(".tar") or not pattern.isprintable():
        msg = f"must name tar files, such as 'train*.tar', got {shown(pattern)}"
        raise ValueError(msg)
    return pattern


def _check_field_path(path: str) -> str:
    if not all(path.split(".")):
        msg = f"must be a key, or keys joined by dots, such as 'speaker.gender', got {shown(path)}"
        raise ValueError(msg)
    return path


def _check_zenodo(record: str) -> str:
    if not re.fullmatch(r"[0-9]+", record):
        msg = f"must be the digits of a Zenodo record, such as '14614287', got {shown(record)}"
        raise ValueError(msg)
    return record


def _check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) < len(classes):
        twice = next(name for index, name in enumerate(classes) if name in classes[:index])
        msg = f"every class once, but {shown(twice)} is there twice"
        raise ValueError(msg)
    return classes


def _check_captions(captions: object) -> object:
    if captions == "*":
        return captions
    fields = tuple(captions) if isinstance(captions, list | tuple) else ()
    if not fields or not all(isinstance(field, str) and all(field.split(".")) for field in fields):
        msg = f"must be '*' (every value of the object) or a list of its fields, got {shown(captions)}"
        raise ValueError(msg)
    return fields


Name = Annotated[str, AfterValidator(_check_name)]
Line = Annotated[str, AfterValidator(_check_line)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
FieldPath = Annotated[str, AfterValidator(_check_field_path)]
NonEmpty = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Table):
    """Where the shards are.

    Attributes
    ----------
    dataset : str
        Folder under ``--data``.
    crop_seconds : float, optional
        Clips are cut into windows of this length before they are encoded.
    zenodo : str, optional
        Record that holds the shards.
    """

    dataset: Name
    crop_seconds: Positive | None = None
    zenodo: Annotated[str, AfterValidator(_check_zenodo)] | None = None


class Splits(_Table):
    """A shard pattern for each split. Two splits may have the same: the protocol then says who selects.

    Attributes
    ----------
    train : str
        Shards that are trained on, or among which neighbours are looked for: a glob such as ``"train-*.tar"``, or
        ``"train-{000..009}.tar"``.
    valid : str
        Shards that select a model.
    test : str
        Shards that are scored.
    group : str, optional
        Field of a clip's JSON, such as ``"speaker"``: clips of one group are not independent. Intervals and comparisons
        resample groups, and no part of a split that featstore draws itself divides one. With ``[folds]`` it is the one
        key of this table; without, the three patterns are required.
    """

    train: Pattern | None = None
    valid: Pattern | None = None
    test: Pattern | None = None
    group: FieldPath | None = None


class Label(_Table):
    """How a label is read from a sample's JSON; which keys apply is a matter of the task's kind.

    Attributes
    ----------
    field : str, optional
        Dotted path of the value; of an event's class, for frame tasks.
    events : str, optional
        Dotted path of the list of events. Without it the JSON itself is that list.
    onset : str
        Key of an event's begin, in seconds.
    offset : str
        Key of its end.
    separator : str, optional
        Parts several classes that stand in one string.
    mapping : dict, optional
        Raw value to class; ``"*"`` catches every value that is not named.
    captions : "*" or tuple of str, optional
        Every value of the object is a caption, or the values of these fields are.
    classes : tuple of str, optional
        In order. Without it: the sorted union of what is observed.
    """

    field: FieldPath | None = None
    events: FieldPath | None = None
    onset: FieldPath = "onset"
    offset: FieldPath = "offset"
    separator: NonEmpty | None = None
    mapping: Annotated[dict[str, NonEmpty], Field(min_length=1)] | None = None
    captions: Annotated[Literal["*"] | tuple[str, ...], BeforeValidator(_check_captions)] | None = None
    classes: Annotated[tuple[NonEmpty, ...], Field(min_length=1), AfterValidator(_check_classes)] | None = None


class MetricArgs(_Table):
    """What a metric needs beside targets and scores.

    Attributes
    ----------
    segment_seconds : float
        Segment length of segment F1.
    """

    segment_seconds: Positive = 1.0


class Probe(_Table):
    """Track A: how the linear model is trained.

    Attributes
    ----------
    head : str, optional
        Of the ``strict`` protocol, where it is not the default of the task's kind: ``"logistic"`` for kinds ``clip``
        and ``multilabel``, ``"ridge"`` for ``regression``, else ``"sweep"``. ``"linear"`` is X-ARES's schedule, to
        which ``epochs`` and ``learning_rate`` belong.
    epochs : int
        Passes over the training clips.
    learning_rate : float
        Of the first epoch; it falls along a cosine.
    batch_size : int
        Clips in a step.
    pos_weight : float, optional
        Weighs the positives of a binary cross-entropy.
    tokenizer : str, optional
        Of a contrastive task: folder or hub name of a transformers tokenizer. Without it words are the tokens.
    language_model : str, optional
        Of a task of speech recognition: folder or hub name of a causal language model of transformers.
    """

    head: Literal["logistic", "ridge", "linear", "sweep", "logreg"] | None = None
    epochs: Count = 10
    learning_rate: Positive = 1e-3
    batch_size: Count = 32
    pos_weight: Positive | None = None
    tokenizer: Line | None = None
    language_model: Line | None = None


class Retrieve(_Table):
    """Track B: k nearest neighbours vote.

    Attributes
    ----------
    enabled : bool
        Whether the task has this track. Without a table ``[retrieve]`` only tasks of kind ``clip`` do.
    k : int
        Neighbours that vote.
    temperature : float
        Of the softmax over similarities that weighs a neighbour.
    """

    enabled: Flag = True
    k: Count = 10
    temperature: Positive = 0.07


class Manifest(_Table):
    """One task: where its shards are, what its labels are, how it is probed and scored.

    Built from a file by `featstore.tasks.load_manifest`. Built directly, a wrong one raises
    ``pydantic.ValidationError`` with the same problems.

    Attributes
    ----------
    name : str
        As the task is called in scores: letters, digits, ``_``, ``-`` and ``.``.
    title : str
        As tables and pages call it.
    domain : str, optional
        What `featstore tasks` sorts by.
    kind : str
        What is learned and scored.
    metric : str
        The score: which there are depends on the kind, see below.
    eval_weight : float
        Weight in a leaderboard's averages. 0: shown, and part of no average.
    private : bool
        Left out of the average over public tasks.
    data : Data
        Where the shards are.
    splits : Splits, optional
        Shard patterns of train, valid and test, and the field of independent groups.
    folds : dict, optional
        Fold name to shard pattern; given in place of the patterns of ``splits``.
    label : Label
        How a label is read.
    metric_args : MetricArgs
        What the metric needs.
    probe : Probe
        Hyper-parameters of Track A.
    retrieve : Retrieve
        Hyper-parameters of Track B.
    """

    name: Name
    title: Line
    domain: Domain | None = None
    kind: Kind
    metric: str
    eval_weight: NotNegative
    private: Flag = False
    data: Data
    splits: Splits | None = None
    folds: dict[Name, Pattern] | None = None
    label: Label
    metric_args: MetricArgs = MetricArgs()
    probe: Probe = Probe()
    retrieve: Retrieve = Retrieve()

    @model_validator(mode="wrap")
    @classmethod
    def _report_everything_at_once(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(raw, Mapping):
            return handler(raw)
        given = {key: _as_written(value) for key, value in raw.items() if value is not None}
        if "retrieve" not in given and given.get("kind") != "clip":
            raw = {**raw, "retrieve": {"enabled": False}}
        manifest: Self | None = None
        problems: list[InitErrorDetails] = []
        try:
            manifest = handler(raw)
        except ValidationError as error:
            problems += [_detail(each["loc"], reworded(each, root=cls)) for each in error.errors()]
        told = {each["loc"] for each in problems}
        broken = [rule for rule in broken_rules(given) if told.isdisjoint((rule.place, rule.place[:1]))]
        problems += [_detail(each.place, each.says) for each in broken]
        if manifest is None or problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return manifest

    @property
    def sha256(self) -> str:
        """Hash of what the manifest says: comments, order and defaults that are written out do not change it."""
        return sha256_of(self.model_dump(mode="json", exclude_none=True))

    @property
    def feature_dataset(self) -> str:
        """Name of the dataset in a store, to which a crop belongs: ``librispeech``, ``librispeech+crop5s``."""
        return dataset_group(self.data.dataset, self.data.crop_seconds)

    @property
    def patterns(self) -> dict[str, str]:
        """Split or fold name to shard pattern: train, valid, test, or the folds in the order of the file."""
        if self.folds is not None:
            return dict(self.folds)
        return {name: getattr(self.splits, name) for name in SPLIT_NAMES}

    @property
    def group(self) -> str | None:
        """Field of a clip's JSON that names its group."""
        return None if self.splits is None else self.splits.group

    @property
    def feature_sets(self) -> dict[str, str]:
        """Split or fold name to the name of the feature set that holds it.

        Splits with one pattern share one feature set, named after the last of them, so nothing is encoded twice.
        """
        last_of_pattern = {pattern: name for name, pattern in self.patterns.items()}
        return {name: last_of_pattern[pattern] for name, pattern in self.patterns.items()}

    @property
    def wants_frames(self) -> bool:
        """Whether the task is scored on frames, and not on one vector per window."""
        return self.kind in ("frame", "ctc", "asr")


def _as_written(value: object) -> object:
    """Give a table as a file would, from a model or a mapping: without what was not said."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True, exclude_none=True)
    if isinstance(value, Mapping):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value


def _detail(place: tuple[int | str, ...], says: str) -> InitErrorDetails:
    # The message is passed as it is: without a context, pydantic does not look for placeholders in it.
    return InitErrorDetails(type=PydanticCustomError("manifest", says), loc=place, input=None)


def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a task's manifest.

    Raises
    ------
    featstore.errors.ManifestError
        The file cannot be read, is not TOML, or breaks manifest format 1: all of its problems, each with its place.
    """
    raw = _read_toml(Path(path))
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = tuple(f"{place_of(each['loc'])}: {each['msg']}" for each in error.errors())
        raise ManifestError(str(path), problems) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Windows editors put a byte-order mark before the text; it is no part of it.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problem = f"cannot be read: {(error.strerror or type(error).__name__).lower()}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not TOML: {error}"
    except RecursionError:
        problem = "is not a manifest: it is nested too deeply"
    raise ManifestError(str(path), (problem,))
