"""Fields of the clips' JSON as arrays: the labels of a feature set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.clip_json import parse_clip_json
from featstore.errors import LabelError

__all__ = [
    "Labels",
    "encode_labels",
    "field_of",
    "field_values",
    "is_label_sets",
    "multi_hot",
    "plain_labels",
    "stored_clip_json",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The label of each window.

    Attributes
    ----------
    values : int64 or float64 (windows,), or uint8 (windows, n_classes)
        Numbers of the JSON, class codes, or a multi-hot array of label sets.
    classes : tuple of str or of bool, or None
        Classes of the codes or columns; None if the labels are numbers.
    """

    values: NDArray[Any]
    classes: tuple[Any, ...] | None


def stored_clip_json(text: str, *, key: str) -> Any:
    """Parse the JSON of the clip `key`, which is untrusted. Raises LabelError if it is invalid."""
    try:
        return parse_clip_json(text)
    except ValueError as error:
        raise LabelError(f"the JSON of clip {key!r} cannot be read: {error}") from None


def field_of(meta: str, field: str, *, key: str) -> Any:
    """Return a field of the JSON of the clip `key`; dots separate nested names. Raises LabelError if it is missing."""
    value = stored_clip_json(meta, key=key)
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise LabelError(f"clip {key!r} has no field {field!r} in its JSON, which has: {known}")
        value = value[name]
    return value


def field_values(keys: Iterable[str], metas: Iterable[str], field: str) -> list[Any]:
    """Return one field of each clip's JSON.

    Parameters
    ----------
    keys, metas : iterable of str
        Keys of the windows, for error messages, and the JSON of their clips.
    field : str
        Name of the field; dots separate nested names: ``"speaker.gender"``.

    Raises
    ------
    LabelError
        A clip's JSON has no such field, or cannot be read.
    """
    values: list[Any] = []
    last_meta, value = None, None
    for key, meta in zip(keys, metas, strict=True):
        if meta != last_meta:  # the windows of a clip are adjacent and share its JSON
            last_meta, value = meta, field_of(meta, field, key=key)
        values.append(value)
    return values


def is_label_sets(values: Sequence[Any]) -> bool:
    """Whether all values are lists of strings: label sets, which may be empty."""
    return bool(values) and all(isinstance(each, list) and all(isinstance(of, str) for of in each) for each in values)


def multi_hot(
    keys: Sequence[str], values: Sequence[list[str]], field: str, *, classes: Sequence[Any] | None = None
) -> Labels:
    """Encode label sets as a multi-hot array, uint8 (windows, n_classes). Columns are `classes`, or all sorted labels.

    >>> multi_hot(["a", "b"], [["rain", "dog"], []], "tags")
    Labels(values=array([[1, 1],
           [0, 0]], dtype=uint8), classes=('dog', 'rain'))
    """
    columns = sorted({label for each in values for label in each}) if classes is None else list(classes)
    codes = {name: code for code, name in enumerate(columns)}
    found = np.zeros((len(values), len(columns)), np.uint8)
    for row, (key, labels) in enumerate(zip(keys, values, strict=True)):
        for label in labels:
            found[row, _code_of(label, codes, field=field, key=key)] = 1
    return Labels(values=found, classes=tuple(columns))


def _code_of(label: Any, codes: Mapping[Any, int], *, field: str, key: str) -> int:
    if label not in codes:
        shown = ", ".join(repr(name) for name in list(codes)[:8]) + (", ..." if len(codes) > 8 else "")
        raise LabelError(f"clip {key!r}: {field} {label!r} is not one of the {len(codes)} classes {shown}")
    return codes[label]


def plain_labels(keys: Sequence[str], values: Sequence[Any], field: str) -> NDArray[Any]:
    """Convert the values of one field to an array of strings (object), numbers or booleans, (windows,).

    Raises
    ------
    LabelError
        A value has another type, or the types differ between clips.
    """
    kinds: dict[type, str] = {}
    for key, value in zip(keys, values, strict=True):
        kind = float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        if kind not in (str, float, bool):
            raise LabelError(
                f"clip {key!r}: a label must be text, a list of text, a number or true/false: {field!r} is "
                f"{json.dumps(value)[:60]}"
            )
        kinds.setdefault(kind, key)
    if len(kinds) > 1:
        (one, one_key), (other, other_key) = list(kinds.items())[:2]
        raise LabelError(
            f"{field!r} has two types: {_TYPE_NAMES[one]} in clip {one_key!r}, {_TYPE_NAMES[other]} in clip "
            f"{other_key!r}"
        )
    if str in kinds:
        return np.asarray(values, dtype=object)
    fits_int64 = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values)
    return np.asarray(values, dtype=bool if bool in kinds else np.int64 if fits_int64 and values else np.float64)


def encode_labels(
    keys: Sequence[str], metas: Sequence[str], field: str, *, classes: Sequence[Any] | None = None
) -> Labels:
    """Encode one field as numbers: strings and booleans become class codes, lists of strings a multi-hot array.

    Numbers are not changed, unless `classes` is given.

    Parameters
    ----------
    classes : sequence, optional
        Classes of the codes or columns, for example those of a training set. Default: the sorted values.

    Raises
    ------
    LabelError
        A clip has no such field; its value is not text, a list of text, a number or true/false; the types differ
        between clips; or a label is not in `classes`.
    """
    found = field_values(keys, metas, field)
    if is_label_sets(found):
        return multi_hot(keys, found, field, classes=classes)
    values = plain_labels(keys, found, field)
    if classes is None:
        if values.dtype.kind in "if":
            return Labels(values=values, classes=None)
        classes = sorted(set(values.tolist()))
    codes = {name: code for code, name in enumerate(classes)}
    coded = np.fromiter(
        (_code_of(value, codes, field=field, key=key) for key, value in zip(keys, values.tolist(), strict=True)),
        np.int64,
        len(values),
    )
    return Labels(values=coded, classes=tuple(classes))


_TYPE_NAMES: dict[type, str] = {str: "text", float: "a number", bool: "true/false"}
