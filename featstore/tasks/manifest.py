"""Manifest format 1 as frozen pydantic models, and loading a manifest from a file."""

from __future__ import annotations

import os
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
    PrivateAttr,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from featstore.errors import ManifestError
from featstore.records import dataset_group, sha256_of
from featstore.shard_patterns import PatternError, expand_braces
from featstore.tasks.rules import LABEL_PLACE, SPLIT_NAMES, broken_rules, message_of, place_of, shown

__all__ = [
    "Data",
    "Kind",
    "Label",
    "Manifest",
    "MetricArgs",
    "Probe",
    "Retrieve",
    "Splits",
    "ZeroShot",
    "load_manifest",
]


Kind = Literal["clip", "multilabel", "frame", "regression", "contrastive", "ctc", "asr"]
Domain = Literal["speech", "environment", "music"]


def _check_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise PydanticCustomError("line", "Input should be one line of text")
    return text


def _check_pattern(pattern: str) -> str:
    """Reject a shard pattern that leaves the dataset's folder or is not a glob of tar files."""
    if pattern.startswith(("/", "~")) or "\\" in pattern or ":" in pattern or ".." in pattern.split("/"):
        raise PydanticCustomError("pattern", "Input should be a path inside the dataset's folder, with '/'")
    try:
        expand_braces(pattern)
    except PatternError as error:
        raise PydanticCustomError("pattern", "{reason}", {"reason": str(error)}) from None
    if not pattern.endswith(".tar") or not pattern.isprintable():
        raise PydanticCustomError("pattern", "Input should match tar files, such as 'train*.tar'")
    return pattern


def _check_file(path: str) -> str:
    """Reject a path that leaves the manifest's folder."""
    if path.startswith(("/", "~")) or "\\" in path or ":" in path or ".." in path.split("/"):
        raise PydanticCustomError("file", "Input should be a path inside the manifest's folder, with '/'")
    return _check_line(path)


def _check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    duplicate = next((name for index, name in enumerate(classes) if name in classes[:index]), None)
    if duplicate is not None:
        raise PydanticCustomError("unique", "Classes should be unique, {name} is not", {"name": shown(duplicate)})
    return classes


def _check_captions(captions: object) -> object:
    if captions == "*":
        return captions
    fields = tuple(captions) if isinstance(captions, list | tuple) else ()
    if not fields or not all(isinstance(field, str) and all(field.split(".")) for field in fields):
        raise PydanticCustomError("captions", "Input should be '*' (all values of the object) or a list of field paths")
    return fields


def _check_prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for prompt in prompts:
        if LABEL_PLACE not in prompt:
            lacking = {"place": LABEL_PLACE, "prompt": shown(prompt)}
            raise PydanticCustomError("prompt", "Every prompt should contain {place}, {prompt} does not", lacking)
    if not prompts:
        raise PydanticCustomError("prompts", "At least one prompt is needed")
    if len(set(prompts)) < len(prompts):
        raise PydanticCustomError("unique", "Prompts should be unique")
    return prompts


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Line = Annotated[str, AfterValidator(_check_line)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
FileName = Annotated[str, AfterValidator(_check_file)]
FieldPath = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$")]
NonEmpty = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Table):
    """Location of the shards.

    Attributes
    ----------
    dataset : str
        Folder under ``--data``.
    crop_seconds : float, optional
        Clips are cut into windows of this length before they are encoded.
    zenodo : str, optional
        Zenodo record that holds the shards, such as ``"14614287"``.
    """

    dataset: Name
    crop_seconds: Positive | None = None
    zenodo: Annotated[str, Field(pattern="^[0-9]+$")] | None = None


class Splits(_Table):
    """A shard pattern for each split. Two splits can have the same pattern: the protocol then separates their clips.

    Attributes
    ----------
    train : str
        Shards to train on, or to search for neighbours: ``"train-*.tar"`` or ``"train-{000..009}.tar"``, for example.
    valid : str
        Shards for model selection.
    test : str
        Shards that are scored.
    group : str, optional
        Field of a clip's JSON, such as ``"speaker"``. Clips of one group are not independent: intervals and comparisons
        resample groups, and a split that featstore draws keeps each group in one part. With ``[folds]``, ``group`` is
        the only key of this table; without it, the three patterns are required.
    """

    train: Pattern | None = None
    valid: Pattern | None = None
    test: Pattern | None = None
    group: FieldPath | None = None


class Label(_Table):
    """How a label is read from a sample's JSON. The kind of the task decides which keys apply.

    Attributes
    ----------
    field : str, optional
        Dotted path of the value; for frame tasks, of an event's class.
    events : str, optional
        Dotted path of the list of events. Default: the JSON itself is the list.
    onset : str
        Key of an event's onset, in seconds.
    offset : str
        Key of an event's offset, in seconds.
    separator : str, optional
        Separates several classes in one string.
    mapping : dict, optional
        Raw value to class; ``"*"`` matches every value that is not listed.
    captions : "*" or tuple of str, optional
        ``"*"``: every value of the object is a caption. Otherwise, the fields that hold captions. A value may be a list
        of captions.
    classes : tuple of str, optional
        Classes in order. Default: the sorted union of the observed classes.
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
    """Arguments of the metric.

    Attributes
    ----------
    segment_seconds : float
        Segment length of the segment F1 metrics.
    """

    segment_seconds: Positive = 1.0


class Probe(_Table):
    """Track A: how the probe is trained.

    Attributes
    ----------
    head : str, optional
        Head of the ``strict`` protocol. Default: ``"logistic"`` for kinds ``clip`` and ``multilabel``, ``"ridge"`` for
        ``regression``, ``"sweep"`` for all others. ``"linear"`` is the X-ARES schedule, which uses ``epochs`` and
        ``learning_rate``.
    epochs : int
        Passes over the training clips.
    learning_rate : float
        Learning rate of the first epoch; it follows a cosine decay.
    batch_size : int
        Clips per step.
    pos_weight : float, optional
        Weight of the positive labels in the binary cross-entropy.
    tokenizer : str, optional
        For contrastive tasks: folder or hub name of a transformers tokenizer. Default: words are the tokens.
    language_model : str, optional
        For speech recognition tasks: folder or hub name of a causal language model of transformers.
    """

    head: Literal["logistic", "ridge", "linear", "sweep", "logreg"] | None = None
    epochs: Count = 10
    learning_rate: Positive = 1e-3
    batch_size: Count = 32
    pos_weight: Positive | None = None
    tokenizer: Line | None = None
    language_model: Line | None = None


class Retrieve(_Table):
    """Track B: k-nearest-neighbour vote, and measures of pairs of clips.

    Attributes
    ----------
    enabled : bool
        Whether the task has the nearest-neighbour vote. Without a ``[retrieve]`` table, only tasks of kind ``clip``
        have it. Other measures do not depend on it.
    k : int
        Number of neighbours.
    temperature : float
        Temperature of the softmax over similarities that weights the neighbours.
    trials : str, optional
        CSV file of the pairs that ``--measure pairs`` scores, relative to the manifest: two keys of test clips, and
        ``same`` or ``different``. Default: all pairs of test clips.
    """

    enabled: Flag = True
    k: Count = 10
    temperature: Positive = 0.07
    trials: FileName | None = None


class ZeroShot(_Table):
    """Texts of the classes, for encoders with a text tower.

    Attributes
    ----------
    prompts : tuple of str
        Each contains ``{label}``, which is replaced by the words of a class. The default is that of CLAP (Elizalde et
        al. 2023).
    labels : dict
        Class to its words: ``S = "sad"``. Default: the class, with spaces for underscores.
    """

    prompts: Annotated[tuple[Line, ...], AfterValidator(_check_prompts)] = (f"this is a sound of {LABEL_PLACE}",)
    labels: dict[str, Line] = {}

    def texts(self, label: str) -> tuple[str, ...]:
        """Return the prompts with the words of a class.

        >>> ZeroShot(prompts=["a sound of {label}"]).texts("dog_bark")
        ('a sound of dog bark',)
        """
        words = self.labels.get(label, label.replace("_", " "))
        return tuple(prompt.replace(LABEL_PLACE, words) for prompt in self.prompts)


class Manifest(_Table):
    """One task: where its shards are, how its labels are read, and how it is probed and scored.

    `featstore.tasks.load_manifest` builds it from a file. The constructor raises ``pydantic.ValidationError`` with the
    same problems for invalid arguments.

    Attributes
    ----------
    name : str
        Name of the task in scores: letters, digits, ``_``, ``-`` and ``.``.
    title : str
        Name of the task in tables and pages.
    domain : str, optional
        Domain that `featstore tasks` sorts by.
    kind : str
        Kind of prediction.
    metric : str
        Metric of the score; the kind decides which are allowed.
    eval_weight : float
        Weight in the averages of a leaderboard. A task with weight 0 is shown but not averaged.
    private : bool
        Excluded from the average over public tasks.
    data : Data
        Location of the shards.
    splits : Splits, optional
        Shard patterns of train, valid and test, and the field of independent groups.
    folds : dict, optional
        Fold name to shard pattern; replaces the patterns of ``splits``.
    label : Label
        How a label is read.
    metric_args : MetricArgs
        Arguments of the metric.
    probe : Probe
        Hyperparameters of Track A.
    retrieve : Retrieve
        Hyperparameters of Track B.
    zero_shot : ZeroShot
        Texts of the classes.
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
    zero_shot: ZeroShot = ZeroShot()
    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _validate_all_rules(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(raw, Mapping):
            return handler(raw)
        given = {key: _as_table(value) for key, value in raw.items() if value is not None}
        if "retrieve" not in given and given.get("kind") != "clip":
            raw = {**raw, "retrieve": {"enabled": False}}
        manifest: Self | None = None
        problems: list[InitErrorDetails] = []
        try:
            manifest = handler(raw)
        except ValidationError as error:
            problems += [_detail(each["loc"], message_of(each, root=cls)) for each in error.errors()]
        reported = {each["loc"] for each in problems}
        broken = [rule for rule in broken_rules(given) if reported.isdisjoint((rule.place, rule.place[:1]))]
        problems += [_detail(each.place, each.message) for each in broken]
        if manifest is None or problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return manifest

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's values. Comments, key order and explicit defaults do not change it.

        Without ``zero_shot``, which only scores of texts depend on: see `sha256_with_texts`.
        """
        return sha256_of(self.model_dump(mode="json", exclude_none=True, exclude={"zero_shot"}))

    @property
    def sha256_with_texts(self) -> str:
        """SHA-256 of the manifest's values, ``zero_shot`` included."""
        return sha256_of(self.model_dump(mode="json", exclude_none=True))

    @property
    def feature_dataset(self) -> str:
        """Name of the dataset in a store, including the crop: ``librispeech``, ``librispeech+crop5s``."""
        return dataset_group(self.data.dataset, self.data.crop_seconds)

    @property
    def patterns(self) -> dict[str, str]:
        """Split or fold name to shard pattern: train, valid and test, or the folds in file order."""
        if self.folds is not None:
            return dict(self.folds)
        return {name: getattr(self.splits, name) for name in SPLIT_NAMES}

    @property
    def group(self) -> str | None:
        """Field of a clip's JSON that holds its group."""
        return None if self.splits is None else self.splits.group

    @property
    def trials_path(self) -> Path | None:
        """The file of trials: in the folder of the manifest's file, or in the current folder without one."""
        return None if self.retrieve.trials is None else (self._folder or Path()) / self.retrieve.trials

    @property
    def feature_sets(self) -> dict[str, str]:
        """Split or fold name to the name of the feature set that stores it.

        Splits with the same pattern share one feature set, named after the last of them: clips are encoded once.
        """
        last_of_pattern = {pattern: name for name, pattern in self.patterns.items()}
        return {name: last_of_pattern[pattern] for name, pattern in self.patterns.items()}

    @property
    def wants_frames(self) -> bool:
        """Whether the task is scored on frames instead of one vector per window."""
        return self.kind in ("frame", "ctc", "asr")


def _as_table(value: object) -> object:
    """Return a model or mapping as a TOML file would contain it: without defaults and None."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True, exclude_none=True)
    if isinstance(value, Mapping):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value


def _detail(place: tuple[int | str, ...], message: str) -> InitErrorDetails:
    # PydanticCustomError without a context does not substitute placeholders in the message.
    return InitErrorDetails(type=PydanticCustomError("manifest", message), loc=place, input=None)


def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a task's manifest.

    Raises
    ------
    featstore.errors.ManifestError
        The file cannot be read, is not TOML, or breaks manifest format 1. The error lists all problems by place.
    """
    raw = _read_toml(Path(path))
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        problems = tuple(f"{place_of(each['loc'])}: {each['msg']}" for each in error.errors())
        raise ManifestError(str(path), problems) from None
    if manifest.retrieve.trials is not None:  # equal manifests of different folders stay equal without a file in them
        manifest._folder = Path(path).absolute().parent
    return manifest


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Windows editors add a byte-order mark before the text.
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
