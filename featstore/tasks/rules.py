"""Rules between the fields of a manifest, and the wording of what violates them."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from featstore.shard_patterns import PatternError, expand_braces

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "KINDS",
    "METRICS_BY_KIND",
    "SPLIT_NAMES",
    "Problem",
    "broken_rules",
    "did_you_mean",
    "place_of",
    "reworded",
    "shown",
    "some_of",
]


LONGEST_SHOWN = 60
MOST_LISTED = 12


def shown(value: object) -> str:
    r"""Show a value as an error message does: on one line, and short.

    >>> shown("dog\nbark")
    "'dog\\nbark'"
    >>> len(shown("x" * 1000))
    60
    """
    text = "true" if value is True else "false" if value is False else _encodable(repr(value))
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _encodable(text: str) -> str:
    """Spell out what a terminal or a log file cannot encode (lone surrogates)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some_of(values: Sequence[str]) -> str:
    """List the first dozen values, and how many more there are.

    >>> some_of(["M", "F"])
    "'M', 'F'"
    >>> some_of([str(i) for i in range(100)])[-16:]
    "'11' and 88 more"
    """
    listed = ", ".join(shown(value) for value in values[:MOST_LISTED])
    left_out = len(values) - MOST_LISTED
    return f"{listed} and {left_out} more" if left_out > 0 else listed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say ``"; did you mean a or b?"``, or nothing where no known word is near.

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
    begun = [name for name in words if len(typed) > 2 and name.startswith(typed)]
    near = list(dict.fromkeys(difflib.get_close_matches(typed, words, n=3, cutoff=0.7) + begun))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def place_of(path: Sequence[int | str]) -> str:
    """Spell a place in a manifest, in a form that TOML would understand where it is a key.

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


# Error type of pydantic -> what the value must be. {name} is filled from the error's own context.
MUST_BE: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_too_short": "text that is not empty",
    "string_type": "text in quotes",
    "tuple_type": "a list",
}


def reworded(error: ErrorDetails, *, root: type[BaseModel]) -> str:
    """Say one finding of pydantic to the author of a manifest, its place left out."""
    kind, place, value = error["type"], error["loc"], error["input"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind in MUST_BE:
        return f"must be {MUST_BE[kind].format(**context)}, got {shown(value)}"
    match kind:
        case "missing":
            says = "required, and missing"
        case "extra_forbidden":
            says = _unknown_key(place, root=root)
        case "literal_error":
            allowed = _literals_at(place, root=root)
            guess = did_you_mean(value, allowed) if isinstance(value, str) else ""
            says = f"must be one of {', '.join(allowed)}, got {shown(value)}{guess}"
        case "too_short":
            says = f"must hold at least {context['min_length']}, got {context['actual_length']}"
        case "value_error":
            says = str(context["error"])
        case _:
            says = f"{error['msg']}, got {shown(value)}"
    return says


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


def _literals_at(place: tuple[int | str, ...], *, root: type[BaseModel]) -> list[str]:
    """List the values that a Literal field of the top of the file takes."""
    annotation = root.model_fields[str(place[0])].annotation
    nested = [get_args(arg) for arg in get_args(annotation)]
    return [
        arg for arg in (*get_args(annotation), *(inner for group in nested for inner in group)) if isinstance(arg, str)
    ]


MAX_BRACES = 10_000
MAX_COMPARISONS = 100_000

SPLIT_NAMES = ("train", "valid", "test")

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
SEVERAL_AT_ONCE_KINDS = ("multilabel", "frame")
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
    """One thing that is wrong with a manifest: where, and what."""

    place: tuple[int | str, ...]
    says: str


def broken_rules(raw: Mapping[str, object]) -> Iterator[Problem]:
    """Every rule between fields that a manifest breaks.

    Parameters
    ----------
    raw : mapping
        A manifest as TOML gives it: tables are mappings, defaults are absent.
    """
    yield from _either_splits_or_folds(raw)
    yield from _shards_belong_to_one_split(raw)
    yield from _classes_and_mapping_agree(_table(raw, "label"))
    kind = raw.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        yield from _metric_fits_kind(raw, kind)
        yield from _label_fits_kind(_table(raw, "label"), kind)
        yield from _training_fits_kind(raw, kind)


def _either_splits_or_folds(raw: Mapping[str, object]) -> Iterator[Problem]:
    splits = _table(raw, "splits")
    if "folds" in raw and any(name in splits for name in SPLIT_NAMES):
        yield Problem(place=("folds",), says="give patterns in [splits] or in [folds], not in both")
    elif "splits" not in raw and "folds" not in raw:
        says = "give [splits] with train, valid and test, or [folds] with one shard pattern each"
        yield Problem(place=("splits",), says=says)
    elif "folds" in raw and len(_table(raw, "folds")) < 2:
        yield Problem(place=("folds",), says=f"at least 2 folds are needed, got {len(_table(raw, 'folds'))}")
    elif "folds" not in raw and isinstance(raw.get("splits"), Mapping):
        for name in SPLIT_NAMES:
            if name not in splits:
                yield Problem(place=("splits", name), says="required, and missing")


def _shards_belong_to_one_split(raw: Mapping[str, object]) -> Iterator[Problem]:
    """Two splits may share all their shards (the protocol then separates them), two folds none; neither shares some."""
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
                    says = f"has the same shards as {shown(first_with[pattern])}; folds are disjoint"
                    yield Problem(place=(name, fold), says=says)
        names = {pattern: _names(pattern) for pattern in patterns.values()}
        for (one, wide), (other, narrow) in itertools.permutations(patterns.items(), 2):
            if wide != narrow and _covers(names[wide], names[narrow]):
                says = f"{shown(wide)} also matches the shards of {other} ({shown(narrow)})"
                yield Problem(place=(name, one), says=says)


def _names(pattern: str) -> tuple[str, ...]:
    """What a pattern stands for, at most the first ten thousand; the pattern itself where it cannot be expanded."""
    try:
        return tuple(itertools.islice(expand_braces(pattern), MAX_BRACES))
    except PatternError:  # told of its own
        return (pattern,)


def _covers(wides: Sequence[str], narrows: Sequence[str]) -> bool:
    """Whether some shard of `narrows` is one of `wides` too, as far as the names and globs tell."""
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
            says = f"maps to {shown(target)}, which is none of label.classes{did_you_mean(target, known)}"
            yield Problem(place=("label", "mapping", source), says=says)


def _metric_fits_kind(raw: Mapping[str, object], kind: str) -> Iterator[Problem]:
    metric, metrics = raw.get("metric"), METRICS_BY_KIND[kind]
    if not isinstance(metric, str):
        return
    if metric not in metrics:
        says = f"a {kind} task takes {' or '.join(metrics)}, got {shown(metric)}{did_you_mean(metric, metrics)}"
        yield Problem(place=("metric",), says=says)
    if "segment_seconds" in _table(raw, "metric_args") and not metric.startswith("segment_f1"):
        says = "only segment_f1_macro and segment_f1_micro have segments: remove it"
        yield Problem(place=("metric_args", "segment_seconds"), says=says)


def _label_fits_kind(label: Mapping[str, object], kind: str) -> Iterator[Problem]:
    required, optional = REQUIRED_LABEL_KEYS[kind], OPTIONAL_LABEL_KEYS[kind]
    for key in required:
        if key not in label:
            yield Problem(place=("label", key), says=f"required for a {kind} task, and missing")
    for key in label:
        if key in ALL_LABEL_KEYS and key not in required and key not in optional:
            says = (
                f"means nothing for a {kind} task, whose label keys are {', '.join((*required, *optional))}: remove it"
            )
            yield Problem(place=("label", key), says=says)

    classes = label.get("classes")
    if kind == "clip" and isinstance(classes, list | tuple) and len(classes) == 1:
        yield Problem(place=("label", "classes"), says="a clip task tells at least 2 classes apart, got 1")


def _training_fits_kind(raw: Mapping[str, object], kind: str) -> Iterator[Problem]:
    if "pos_weight" in _table(raw, "probe") and kind not in SEVERAL_AT_ONCE_KINDS:
        says = f"only {' and '.join(SEVERAL_AT_ONCE_KINDS)} tasks weigh positives: remove it"
        yield Problem(place=("probe", "pos_weight"), says=says)
    for key, its_kind in KIND_OF_TEXT_MODEL.items():
        if key in _table(raw, "probe") and kind != its_kind:
            yield Problem(place=("probe", key), says=f"only a task of kind {its_kind} has one: remove it")
    head = _table(raw, "probe").get("head")
    if isinstance(head, str) and kind not in KINDS_OF_HEAD.get(head, KINDS):
        says = f"{shown(head)} is a head of tasks of kind {' and '.join(KINDS_OF_HEAD[head])}: remove it"
        yield Problem(place=("probe", "head"), says=says)
    retrieve = _table(raw, "retrieve")
    if retrieve and retrieve.get("enabled", True) is True and kind not in RETRIEVABLE_KINDS:
        says = f"a {kind} task has no nearest-neighbour track: set enabled = false"
        yield Problem(place=("retrieve", "enabled"), says=says)


def _table(raw: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Find the table of that name: empty where there is none or where it is no table."""
    table = raw.get(name)
    return table if isinstance(table, Mapping) else {}
