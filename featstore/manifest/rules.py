"""What the fields of a manifest must be to one another. Pure: plain mappings in, problems out.

A rule reads only what is there and has the right shape, so that it can be asked of a manifest whose other fields are
wrong, and every problem of a file is told at once.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featstore.manifest.braces import PatternError, expand_braces
from featstore.manifest.wording import did_you_mean, shown

__all__ = ["KINDS", "METRICS_BY_KIND", "SPLIT_NAMES", "Problem", "broken_rules"]

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
    if "splits" in raw and "folds" in raw:
        yield Problem(place=("folds",), says="give [splits] or [folds], not both")
    elif "splits" not in raw and "folds" not in raw:
        says = "give [splits] with train, valid and test, or [folds] with one shard pattern each"
        yield Problem(place=("splits",), says=says)
    elif "folds" in raw and len(_table(raw, "folds")) < 2:
        yield Problem(place=("folds",), says=f"at least 2 folds are needed, got {len(_table(raw, 'folds'))}")


def _shards_belong_to_one_split(raw: Mapping[str, object]) -> Iterator[Problem]:
    """Two splits may share all their shards (the protocol then separates them), two folds none; neither shares some."""
    for name in ("splits", "folds"):
        patterns = {key: value for key, value in _table(raw, name).items() if isinstance(value, str)}
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
    retrieve = _table(raw, "retrieve")
    if retrieve and retrieve.get("enabled", True) is True and kind not in RETRIEVABLE_KINDS:
        says = f"a {kind} task has no nearest-neighbour track: set enabled = false"
        yield Problem(place=("retrieve", "enabled"), says=says)


def _table(raw: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Find the table of that name: empty where there is none or where it is no table."""
    table = raw.get(name)
    return table if isinstance(table, Mapping) else {}
