"""Rules between the fields of a manifest, and the messages of the problems found."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from featstore.shard_patterns import PatternError, expand_braces

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "KINDS",
    "LABEL_PLACE",
    "METRICS_BY_KIND",
    "SPLIT_NAMES",
    "Problem",
    "broken_rules",
    "did_you_mean",
    "message_of",
    "place_of",
    "shown",
    "some_of",
]


LONGEST_SHOWN = 60
MOST_LISTED = 12


def shown(value: object) -> str:
    r"""Return `value` as error messages show it: one line of at most 60 characters.

    >>> shown("dog\nbark")
    "'dog\\nbark'"
    >>> len(shown("x" * 1000))
    60
    """
    text = "true" if value is True else "false" if value is False else _encodable(repr(value))
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _encodable(text: str) -> str:
    """Escape what a terminal or a log file cannot encode (lone surrogates)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some_of(values: Sequence[str]) -> str:
    """List the first 12 values, and the number of the others.

    >>> some_of(["M", "F"])
    "'M', 'F'"
    >>> some_of([str(i) for i in range(100)])[-16:]
    "'11' and 88 more"
    """
    listed = ", ".join(shown(value) for value in values[:MOST_LISTED])
    more = len(values) - MOST_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean a or b?"`` with the closest known words, or ``""`` if there is none.

    >>> did_you_mean("epoch", ["epochs", "batch_size"])
    '; did you mean epochs?'
    >>> did_you_mean("ESC-50", ["esc50", "fsd50k"])
    '; did you mean esc50?'
    >>> did_you_mean("gtzan", ["gtzan_genre", "esc50"])
    '; did you mean gtzan_genre?'
    >>> did_you_mean("banana", ["epochs"])
    ''
    """
    typed, words = word.lower(), sorted(known)
    prefixed = [name for name in words if len(typed) > 2 and name.startswith(typed)]
    near = list(dict.fromkeys(difflib.get_close_matches(typed, words, n=3, cutoff=0.7) + prefixed))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def place_of(path: Sequence[int | str]) -> str:
    """Format a place in a manifest as a dotted TOML key, with list indices in brackets.

    >>> place_of(("probe", "epochs"))
    'probe.epochs'
    >>> place_of(("label", "classes", 3))
    'label.classes[3]'
    >>> place_of(("folds", "fold one"))
    'folds."fold one"'
    """
    place = ""
    for step in path:
        if isinstance(step, int):
            place += f"[{step}]"
        else:
            key = step if re.fullmatch(r"[\w-]+", step) else json.dumps(step)
            place += f".{key}" if place else key
    return place


def message_of(error: ErrorDetails, *, root: type[BaseModel]) -> str:
    """Return pydantic's message of an error, with the value and, for a misspelt key or choice, a suggestion."""
    match error["type"]:
        case "missing":
            return error["msg"]
        case "extra_forbidden":
            return _unknown_key(error["loc"], root=root)
        case "literal_error":
            guess = did_you_mean(str(error["input"]), re.findall(r"'(\w+)'", error["ctx"]["expected"]))
        case _:
            guess = ""
    return f"{error['msg']}, got {shown(error['input'])}{guess}"


def _unknown_key(place: tuple[int | str, ...], *, root: type[BaseModel]) -> str:
    key = str(place[-1])
    siblings = list(_table_at(place[:-1], root=root).model_fields)
    if guess := did_you_mean(key, siblings):
        return f"unknown key{guess}"
    home = next((f"[{name}]" for name, table in _tables_of(root) if key in table.model_fields), None)
    if home is None and len(place) > 1 and key in root.model_fields:
        home = "the top of the file"
    return f"unknown key; it belongs in {home}" if home else f"unknown key; known here: {', '.join(siblings)}"


def _table_at(place: tuple[int | str, ...], *, root: type[BaseModel]) -> type[BaseModel]:
    return next((table for name, table in _tables_of(root) if place[:1] == (name,)), root)


def _tables_of(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in root.model_fields.items():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield name, candidate


MAX_BRACES = 10_000
MAX_COMPARISONS = 100_000

SPLIT_NAMES = ("train", "valid", "test")
LABEL_PLACE = "{label}"
"""What the words of a class replace in a prompt."""

METRICS_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "clip": ("accuracy", "macro_f1", "mAP", "eer", "d_prime"),
    "multilabel": ("mAP", "macro_f1", "d_prime"),
    "frame": ("segment_f1_macro", "segment_f1_micro"),
    "regression": ("pearson", "spearman", "mae", "mse"),
    "contrastive": ("recall_at_1",),
    "ctc": ("wer_inv",),
    "asr": ("wer_inv",),
}
KINDS = tuple(METRICS_BY_KIND)

RETRIEVABLE_KINDS = ("clip", "multilabel")
MULTI_LABEL_KINDS = ("multilabel", "frame")
KIND_OF_TEXT_MODEL: Mapping[str, str] = {"tokenizer": "contrastive", "language_model": "asr"}

KINDS_OF_HEAD: Mapping[str, tuple[str, ...]] = {
    "logistic": ("clip", "multilabel"),
    "logreg": ("clip", "multilabel"),
    "ridge": ("regression",),
    "sweep": tuple(kind for kind in KINDS if kind != "regression"),
}

REQUIRED_LABEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "clip": ("field",),
    "multilabel": ("field",),
    "frame": ("field",),
    "regression": ("field",),
    "contrastive": ("captions",),
    "ctc": ("field",),
    "asr": ("field",),
}
OPTIONAL_LABEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "clip": ("mapping", "classes"),
    "multilabel": ("separator", "mapping", "classes"),
    "frame": ("events", "onset", "offset", "separator", "mapping", "classes"),
    "regression": (),
    "contrastive": (),
    "ctc": (),
    "asr": (),
}
ALL_LABEL_KEYS = frozenset(key for keys in REQUIRED_LABEL_KEYS.values() for key in keys).union(
    *OPTIONAL_LABEL_KEYS.values()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem of a manifest."""

    place: tuple[int | str, ...]
    message: str


def broken_rules(raw: Mapping[str, object]) -> Iterator[Problem]:
    """Yield every rule between fields that a manifest breaks.

    Parameters
    ----------
    raw : mapping
        A manifest as TOML contains it: tables are mappings, defaults are absent.
    """
    yield from _either_splits_or_folds(raw)
    yield from _shards_belong_to_one_split(raw)
    yield from _classes_and_mapping_agree(_table(raw, "label"))
    kind = raw.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        yield from _metric_fits_kind(raw, kind)
        yield from _label_fits_kind(_table(raw, "label"), kind)
        yield from _training_fits_kind(raw, kind)
        yield from _texts_fit_classes(raw, kind)


def _either_splits_or_folds(raw: Mapping[str, object]) -> Iterator[Problem]:
    splits = _table(raw, "splits")
    if "folds" in raw and any(name in splits for name in SPLIT_NAMES):
        yield Problem(place=("folds",), message="give patterns in [splits] or in [folds], not in both")
    elif "splits" not in raw and "folds" not in raw:
        message = "give [splits] with train, valid and test, or [folds] with one shard pattern each"
        yield Problem(place=("splits",), message=message)
    elif "folds" in raw and len(_table(raw, "folds")) < 2:
        yield Problem(place=("folds",), message=f"at least 2 folds are needed, got {len(_table(raw, 'folds'))}")
    elif "folds" not in raw and isinstance(raw.get("splits"), Mapping):
        for name in SPLIT_NAMES:
            if name not in splits:
                yield Problem(place=("splits", name), message="Field required")


def _shards_belong_to_one_split(raw: Mapping[str, object]) -> Iterator[Problem]:
    """Splits share all their shards (the protocol then separates the clips) or none; folds are disjoint."""
    for name in ("splits", "folds"):
        patterns = {
            key: value
            for key, value in _table(raw, name).items()
            if isinstance(value, str) and (name == "folds" or key in SPLIT_NAMES)
        }
        if name == "folds":
            first_with = {pattern: fold for fold, pattern in reversed(patterns.items())}
            for fold, pattern in patterns.items():
                if first_with[pattern] != fold:
                    message = f"has the same shards as {shown(first_with[pattern])}; folds are disjoint"
                    yield Problem(place=(name, fold), message=message)
        names = {pattern: _names(pattern) for pattern in patterns.values()}
        for (one, wide), (other, narrow) in itertools.permutations(patterns.items(), 2):
            if wide != narrow and _covers(names[wide], names[narrow]):
                message = f"{shown(wide)} also matches the shards of {other} ({shown(narrow)})"
                yield Problem(place=(name, one), message=message)


def _names(pattern: str) -> tuple[str, ...]:
    """Expand a pattern to at most 10,000 names; a pattern that cannot be expanded is returned as it is."""
    try:
        return tuple(expand_braces(pattern)[:MAX_BRACES])
    except PatternError:  # reported by the field's own validator
        return (pattern,)


def _covers(wides: Sequence[str], narrows: Sequence[str]) -> bool:
    """Return whether a shard of `narrows` is also in `wides`, judged by names and globs."""
    literal = {each for each in wides if not set(each) & set("*?[")}
    globs = [each for each in wides if each not in literal][: MAX_COMPARISONS // max(1, len(narrows))]
    return any(each in literal or any(fnmatch.fnmatchcase(each, glob) for glob in globs) for each in narrows)


def _classes_and_mapping_agree(label: Mapping[str, object]) -> Iterator[Problem]:
    classes = label.get("classes")
    if not isinstance(classes, list | tuple):
        return
    known = {value for value in classes if isinstance(value, str)}
    for source, target in _table(label, "mapping").items():
        if isinstance(target, str) and target not in known:
            message = f"maps to {shown(target)}, which is not one of label.classes{did_you_mean(target, known)}"
            yield Problem(place=("label", "mapping", source), message=message)


def _metric_fits_kind(raw: Mapping[str, object], kind: str) -> Iterator[Problem]:
    metric, metrics = raw.get("metric"), METRICS_BY_KIND[kind]
    if not isinstance(metric, str):
        return
    if metric not in metrics:
        message = f"a {kind} task takes {' or '.join(metrics)}, got {shown(metric)}{did_you_mean(metric, metrics)}"
        yield Problem(place=("metric",), message=message)
    if "segment_seconds" in _table(raw, "metric_args") and not metric.startswith("segment_f1"):
        message = "only segment_f1_macro and segment_f1_micro have segments: remove it"
        yield Problem(place=("metric_args", "segment_seconds"), message=message)


def _label_fits_kind(label: Mapping[str, object], kind: str) -> Iterator[Problem]:
    required, optional = REQUIRED_LABEL_KEYS[kind], OPTIONAL_LABEL_KEYS[kind]
    for key in required:
        if key not in label:
            yield Problem(place=("label", key), message=f"required for a {kind} task")
    for key in label:
        if key in ALL_LABEL_KEYS and key not in required and key not in optional:
            keys = ", ".join((*required, *optional))
            message = f"not a label key of a {kind} task, which takes {keys}: remove it"
            yield Problem(place=("label", key), message=message)

    classes = label.get("classes")
    if kind == "clip" and isinstance(classes, list | tuple) and len(classes) == 1:
        yield Problem(place=("label", "classes"), message="a clip task needs at least 2 classes, got 1")


def _training_fits_kind(raw: Mapping[str, object], kind: str) -> Iterator[Problem]:
    if "pos_weight" in _table(raw, "probe") and kind not in MULTI_LABEL_KINDS:
        message = f"only {' and '.join(MULTI_LABEL_KINDS)} tasks have a positive weight: remove it"
        yield Problem(place=("probe", "pos_weight"), message=message)
    for key, its_kind in KIND_OF_TEXT_MODEL.items():
        if key in _table(raw, "probe") and kind != its_kind:
            yield Problem(place=("probe", key), message=f"only tasks of kind {its_kind} have one: remove it")
    head = _table(raw, "probe").get("head")
    if isinstance(head, str) and kind not in KINDS_OF_HEAD.get(head, KINDS):
        message = f"{shown(head)} is a head of tasks of kind {' and '.join(KINDS_OF_HEAD[head])}: remove it"
        yield Problem(place=("probe", "head"), message=message)
    retrieve = _table(raw, "retrieve")
    if retrieve and retrieve.get("enabled", True) is True and kind not in RETRIEVABLE_KINDS:
        message = f"a {kind} task has no nearest-neighbour track: set enabled = false"
        yield Problem(place=("retrieve", "enabled"), message=message)


def _texts_fit_classes(raw: Mapping[str, object], kind: str) -> Iterator[Problem]:
    if "zero_shot" in raw and kind not in RETRIEVABLE_KINDS:
        message = f"only {' and '.join(RETRIEVABLE_KINDS)} tasks have classes to describe by texts: remove it"
        yield Problem(place=("zero_shot",), message=message)
    classes = _table(raw, "label").get("classes")
    known = [each for each in classes if isinstance(each, str)] if isinstance(classes, list | tuple) else None
    for label in _table(_table(raw, "zero_shot"), "labels"):
        if known is not None and label not in known:
            message = f"not one of label.classes{did_you_mean(label, known)}"
            yield Problem(place=("zero_shot", "labels", label), message=message)


def _table(raw: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the table of that name; an empty one if it is missing or not a table."""
    table = raw.get(name)
    return table if isinstance(table, Mapping) else {}
