"""Draft manifests: the kind of a label from its values, the splits from their names.

The rules of `find_label`, in order:

- a list of objects with an onset and an offset in any clip: events (kind ``frame``);
- any other list, or a separator that the caller gives: several classes (``multilabel``);
- numbers, not all of them whole: a number (``regression``);
- whole numbers: classes, if there are at most 100 values and two clips or more for each on average; else a number;
- everything else: one class (``clip``).

Numbers in a CSV or in a Kaldi folder are text; there they count as numbers, while text in JSON is a class.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from featstore.errors import UsageError
from featstore.tasks.manifest import Kind
from featstore.tasks.rules import METRICS_BY_KIND, RETRIEVABLE_KINDS, shown

__all__ = [
    "FoundLabel", "draft_manifest", "find_label", "in_order", "is_split_name", "roles_of_splits", "split_name_in",
    "strata_of", "value_at",
]  # fmt: skip

MAX_NUMBERED_CLASSES = 100
MIN_CLIPS_OF_A_NUMBERED_CLASS = 2
TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "validation", "val", "dev")
TEST_NAMES = ("test", "testing", "eval", "evaluation")
_SPANS = (("onset", "offset"), ("start", "end"), ("begin", "end"), ("start_time", "end_time"))
_CLASS_NAMES = ("label", "class", "event", "event_label", "category", "name", "what", "text", "speaker")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLabel:
    """The label of a task.

    Attributes
    ----------
    field : str
        Dotted path in a clip's JSON.
    kind : str
        Kind of the task.
    n_values : int
        Number of distinct classes, or of distinct numbers or texts.
    note : str
        Why the kind could be another one; empty if it could not.
    keys : mapping
        The ``[label]`` table of a manifest.
    """

    field: str
    kind: Kind
    n_values: int
    note: str
    keys: Mapping[str, Any]

    @property
    def description(self) -> str:
        """What the label is, for people: ``a class (12 values)``."""
        values = f"{self.n_values:,} value{'' if self.n_values == 1 else 's'}"
        what = {
            "clip": f"a class ({values})",
            "multilabel": f"several classes ({values})",
            "frame": f"events with onset and offset ({values})",
            "regression": f"a number ({values})",
        }.get(self.kind, f"text ({values})")
        return f"{what}{f'; {self.note}' if self.note else ''}"


def value_at(meta: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = meta
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


# --- the label --------------------------------------------------------------------------------------------------------


def find_label(
    metas: Sequence[Mapping[str, Any]],
    field: str,
    *,
    kind: str | None = None,
    separator: str | None = None,
    is_text: bool = False,
) -> FoundLabel:
    """Find what the label is, by the rules of this module or as `kind`.

    Parameters
    ----------
    metas : sequence of mapping
        JSON of the clips.
    field : str
        Dotted path of the label.
    kind : str, optional
        Kind of the task, if the values do not decide it.
    separator : str, optional
        Separates several classes in one text.
    is_text : bool
        Whether all values are text, as in a CSV: then text that is a number counts as one.

    Raises
    ------
    UsageError
        No clip has a label, or the labels cannot be those of `kind`.
    """
    values = [value_at(meta, field) for meta in metas]
    given = [value for value in values if value is not None and value != ""]
    if not given:
        fields = dict.fromkeys(name for meta in metas for name in meta)
        if field in fields and "." in field:
            raise UsageError(f"{field!r} cannot be the column of labels: a dot reaches into an object, rename it")
        raise UsageError(f"no clip has a label at {field!r}: name one of {', '.join(fields)} with --label")
    note = ""
    if kind is None:
        found, note = _kind_of(given, separator=separator, is_text=is_text)
    elif kind in get_args(Kind):
        found = cast("Kind", kind)
    else:
        raise UsageError(f"kind must be one of {', '.join(get_args(Kind))}: got {kind!r}")
    if separator is not None and found not in ("multilabel", "frame"):
        raise UsageError(f"a separator divides several classes: a label of kind {found} has one value")
    keys = _keys(given, field, found, separator)
    distinct = {text for value in given for text in _texts(value, found, keys)}
    return FoundLabel(field=field, kind=found, n_values=len(distinct), note=note, keys=keys)


def _kind_of(  # noqa: PLR0911 - a rule for each
    values: Sequence[Any], *, separator: str | None, is_text: bool
) -> tuple[Kind, str]:
    """The kind, and why it could be another one."""
    lists = [value for value in values if isinstance(value, list)]
    if lists:
        events = [item for value in lists for item in value]
        is_frame = bool(events) and all(isinstance(item, Mapping) and _span_of([item]) for item in events)
        return ("frame" if is_frame else "multilabel"), ""
    if separator is not None:
        return "multilabel", ""
    numbers = [_number(value, is_text=is_text) for value in values]
    if any(number is None for number in numbers):
        distinct = len({json.dumps(value, sort_keys=True, default=str) for value in values})
        if distinct == len(values) > 2:
            return "clip", "each clip has its own: another --label, or --kind ctc if it is a transcript"
        return "clip", ""
    if not all(cast("float", number).is_integer() for number in numbers):
        return "regression", ""
    distinct = len(set(numbers))
    if distinct <= MAX_NUMBERED_CLASSES and len(values) >= MIN_CLIPS_OF_A_NUMBERED_CLASS * distinct:
        return "clip", "whole numbers: --kind regression if they are amounts"
    return "regression", "whole numbers: --kind clip if they are classes"


def _number(value: Any, *, is_text: bool) -> float | None:
    """The finite number that a value is, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or (isinstance(value, str) and not is_text):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if "_" not in str(value) and abs(number) < float("inf") else None


def _keys(values: Sequence[Any], field: str, kind: Kind, separator: str | None) -> dict[str, Any]:
    """The ``[label]`` table. Raises UsageError if the values cannot be labels of the kind."""
    if kind == "contrastive":
        return {"captions": [field]}
    if kind != "frame":
        _check(values, field, kind)
        return {"field": field} if separator is None else {"field": field, "separator": separator}
    events = [item for value in values if isinstance(value, list) for item in value]
    span = _span_of(events)
    if not events or span is None or not all(isinstance(value, list) for value in values):
        raise UsageError(f"{field!r} is not a list of events: objects with an onset, an offset and a class")
    others = [name for name in events[0] if name not in span and all(_is_scalar(item.get(name)) for item in events)]
    named = next((name for name in _CLASS_NAMES if name in others), others[0] if others else None)
    if named is None:
        raise UsageError(f"the events of {field!r} have no class, only {', '.join(events[0])}")
    keys: dict[str, Any] = {"events": field, "onset": span[0], "offset": span[1], "field": named}
    return keys if separator is None else {**keys, "separator": separator}


def _check(values: Sequence[Any], field: str, kind: Kind) -> None:
    """Raise UsageError for the first value that no task of the kind can read."""
    for value in values:
        if kind == "regression":
            fits = _number(value, is_text=True) is not None
        elif kind == "multilabel":
            fits = all(map(_is_scalar, value)) if isinstance(value, list) else _is_scalar(value)
        elif kind == "clip":
            fits = _is_scalar(value)
        else:
            fits = isinstance(value, str)
        if not fits:
            raise UsageError(f"{shown(value)} at {field!r} cannot be a label of kind {kind}: see --kind and --label")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _span_of(events: Sequence[Any]) -> tuple[str, str] | None:
    """The keys of onset and offset that all events have."""
    return next(
        (
            span
            for span in _SPANS
            if all(
                isinstance(event, Mapping) and all(_number(event.get(key), is_text=True) is not None for key in span)
                for event in events
            )
        ),
        None,
    )


def _texts(value: Any, kind: Kind, keys: Mapping[str, Any]) -> list[str]:
    """The classes of one label as text; 3 and 3.0 are one class."""
    separator = keys.get("separator")
    if kind == "frame":
        return [_text(item[keys["field"]]) for item in value]
    if isinstance(value, list):
        return [_text(each) for each in value]
    if separator is not None and isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    return [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def strata_of(metas: Sequence[Mapping[str, Any]], label: FoundLabel) -> list[int]:
    """The stratum of each clip: its class, the rarest of its classes, or the tenth that its number is in."""
    values = [value_at(meta, label.field) for meta in metas]
    if label.kind == "regression":
        import numpy as np

        numbers = np.array([_number(value, is_text=True) or 0.0 for value in values])
        return [int(each) for each in np.searchsorted(np.quantile(numbers, np.arange(1, 10) / 10), numbers)]
    if label.kind not in ("clip", "multilabel", "frame"):
        return [0] * len(values)
    sets = [sorted(set(_texts(value, label.kind, label.keys))) if value is not None else [] for value in values]
    counts = Counter(name for names in sets for name in names)
    rarest = [min(names, key=lambda name: (counts[name], name)) if names else "" for names in sets]
    index = {name: number for number, name in enumerate(sorted(set(rarest)))}
    return [index[name] for name in rarest]


# --- splits -----------------------------------------------------------------------------------------------------------


def is_split_name(name: str) -> bool:
    """Whether a name is one of a training, validation or test split."""
    return name.lower() in (*TRAIN_NAMES, *VALID_NAMES, *TEST_NAMES)


def split_name_in(text: str) -> str | None:
    """The name of a split that is a word of a text, as in ``clips_test_2``, or None."""
    return next((word for word in re.split(r"[^A-Za-z0-9]+", text) if is_split_name(word)), None)


def roles_of_splits(names: Sequence[str]) -> dict[str, str] | None:
    """Role (train, valid, test) to the name of a split; None if the splits are folds.

    >>> roles_of_splits(["train", "dev", "test"]), roles_of_splits(["train", "validation"])["test"]
    ({'train': 'train', 'valid': 'dev', 'test': 'test'}, 'validation')
    >>> roles_of_splits(["all"]), roles_of_splits(["1", "2"])
    ({'train': 'all', 'valid': 'all', 'test': 'all'}, None)
    """
    if len(names) == 1:
        return dict.fromkeys(("train", "valid", "test"), names[0])
    train, valid, test = (
        next((name for name in names if name.lower() in known), None)
        for known in (TRAIN_NAMES, VALID_NAMES, TEST_NAMES)
    )
    if train is None or (test is None and (valid is None or len(names) > 2)):
        return None
    last = test or cast("str", valid)
    return {"train": train, "valid": valid or last, "test": last}


# --- the manifest -----------------------------------------------------------------------------------------------------


def draft_manifest(*, dataset: str, label: FoundLabel, splits: Sequence[str], group: str | None = None) -> str:
    """The text of a manifest to start from.

    Parameters
    ----------
    dataset : str
        Name of the task and of its folder of shards.
    label : FoundLabel
    splits : sequence of str
        Names of splits or folds; each has the shards ``NAME-*.tar``.
    group : str, optional
        Field of the groups that are never divided.
    """
    lines = [
        f"name = {_toml(dataset)}",
        f"title = {_toml(dataset)}",
        f"kind = {_toml(label.kind)}",
        f"metric = {_toml(METRICS_BY_KIND[label.kind][0])}",
        "eval_weight = 1.0  # weight in averages; tasks of X-ARES have their number of test clips",
        "",
        "[data]",
        f"dataset = {_toml(dataset)}",
        "# crop_seconds = 10.0  # cut longer clips into windows",
        "",
        *_split_lines(list(splits), group=group),
        "",
        "[label]",
        *(f"{key} = {_toml(value)}" for key, value in label.keys.items()),
        "",
        "[retrieve]",
        f"enabled = {'true' if label.kind in RETRIEVABLE_KINDS else 'false'}",
    ]
    return "\n".join(lines) + "\n"


def _split_lines(names: list[str], *, group: str | None) -> list[str]:
    grouped = [] if group is None else [f"group = {_toml(group)}"]
    roles = roles_of_splits(names)
    if roles is None:
        folds = ["[folds]", *(f"{_toml(name)} = {_toml(f'{name}-*.tar')}" for name in in_order(names))]
        return [*folds, *(["", "[splits]", *grouped] if grouped else [])]
    comments = []
    if len(names) == 1:
        comments.append("# one set: strict makes five folds, retrieval leaves one clip out")
    elif roles["valid"] == roles["test"]:
        missing = "test" if roles["test"].lower() in VALID_NAMES else "validation"
        comments.append(f"# no {missing} split: strict selects on a tenth of training")
    comments += [f"# not used: {name}" for name in names if name not in roles.values()]
    return ["[splits]", *comments, *(f"{role} = {_toml(f'{name}-*.tar')}" for role, name in roles.items()), *grouped]


def in_order(folds: Sequence[str]) -> list[str]:
    """Folds as a manifest lists them: by their first number, then by name.

    >>> in_order(["fold10", "fold2"])
    ['fold2', 'fold10']
    """

    def place(name: str) -> tuple[int, str]:
        digits = re.search(r"[0-9]+", name)
        return (int(digits[0]) if digits else 0, name)

    return sorted(folds, key=place)


def _toml(value: Any) -> str:
    """A basic string of TOML, which for printable text is a string of JSON; a list of these."""
    return json.dumps(value if isinstance(value, list) else str(value), ensure_ascii=False)
