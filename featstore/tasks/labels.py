"""Read labels from the samples' JSON, by the rules of a manifest.

The JSON is untrusted text from a store. An invalid sample raises `featstore.errors.LabelError` with the clip, the field
and the value.

Each value has one text form. A string is used as it is. A number is written as in JSON, without a trailing ``.0``: 3
and 3.0 are the same class. Booleans are ``"true"`` and ``"false"``. null, lists, objects, NaN and the empty string are
not classes. A manifest's mapping is looked up by this text; its ``"*"`` entry applies to all other values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featstore.errors import LabelError
from featstore.tasks.manifest import Manifest
from featstore.tasks.rules import did_you_mean, shown, some_of

__all__ = [
    "Event",
    "captions",
    "class_names",
    "clip_groups",
    "field_events",
    "field_numbers",
    "field_sets",
    "field_values",
    "transcripts",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: its class, and its ``onset`` and ``offset`` in seconds from the start of the clip."""

    onset: float
    offset: float
    label: str


def field_values(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[str]:
    """Read the class of every clip (kind ``clip``), after the mapping.

    Parameters
    ----------
    manifest : Manifest
    keys : sequence of str
        Keys of the clips, for error messages.
    metas : sequence of str
        JSON of the clips, in the same order.

    Raises
    ------
    featstore.errors.LabelError
        A clip has no usable class, or a class that is not in ``manifest.label.classes``.
    """
    to_class = _class_reader(manifest)
    return _read_all(manifest, keys, metas, lambda sample: to_class(_at(sample, _field(manifest))))


def field_sets(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[frozenset[str]]:
    """Read the classes of every clip (kind ``multilabel``): the parts of a string, or the items of a list.

    A string is split at the separator, and each part is stripped; without a separator it is one class. An empty string
    and an empty list give an empty set. Raises the errors of `field_values`.
    """
    to_class = _class_reader(manifest)

    def to_set(sample: object) -> frozenset[str]:
        value = _at(sample, _field(manifest))
        parts = value if isinstance(value, list) else _parts(value, separator=manifest.label.separator)
        return frozenset(to_class(part) for part in parts)

    return _read_all(manifest, keys, metas, to_set)


def field_numbers(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[float]:
    """Read the number of every clip (kind ``regression``): a finite JSON number, or a string that contains one."""
    return _read_all(manifest, keys, metas, lambda sample: _number(_at(sample, _field(manifest))))


def field_events(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[tuple[Event, ...]]:
    """Read the events of every clip (kind ``frame``), in JSON order.

    An item with several classes becomes several events. Raises the errors of `field_values`.
    """
    rules, to_class = manifest.label, _class_reader(manifest)

    def to_events(sample: object) -> tuple[Event, ...]:
        items = sample if rules.events is None else _at(sample, rules.events)
        if not isinstance(items, list):
            msg = f"{'the JSON' if rules.events is None else shown(rules.events)} must be a list of events"
            raise _UnusableError(f"{msg}, got {shown(items)}")
        return tuple(event for item in items for event in to_event(item))

    def to_event(item: object) -> Iterable[Event]:
        onset, offset = _number(_at(item, rules.onset)), _number(_at(item, rules.offset))
        if not 0 <= onset <= offset:
            msg = f"an event must have 0 <= onset <= offset, got {onset:g} to {offset:g} s"
            raise _UnusableError(msg)
        for part in _parts(_at(item, _field(manifest)), separator=rules.separator):
            yield Event(onset=onset, offset=offset, label=to_class(part))

    return _read_all(manifest, keys, metas, to_events)


def captions(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[tuple[str, ...]]:
    """Read the captions of every clip (kind ``contrastive``): each field has one or a list; a clip has at least one."""
    wanted = manifest.label.captions or "*"

    def to_captions(sample: object) -> tuple[str, ...]:
        if not isinstance(sample, dict):
            msg = f"the JSON must be an object of captions, got {shown(sample)}"
            raise _UnusableError(msg)
        fields = list(sample.values()) if wanted == "*" else [_at(sample, field) for field in wanted]
        found = [caption for each in fields for caption in (each if isinstance(each, list) else [each])]
        if not found:
            msg = "the object has no caption"
            raise _UnusableError(msg)
        return tuple(_sentence(caption) for caption in found)

    return _read_all(manifest, keys, metas, to_captions)


def transcripts(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> list[str]:
    """Read the transcript of every clip (kinds ``ctc`` and ``asr``), unchanged."""
    return _read_all(manifest, keys, metas, lambda sample: _sentence(_at(sample, _field(manifest))))


def clip_groups(
    manifest: Manifest, keys: Sequence[str], metas: Sequence[str], *, field: str | None = None
) -> list[str]:
    """Read the group of every clip: the text of a field, by default of the one that ``splits.group`` names."""
    field = field or manifest.group
    if field is None:
        msg = f"{manifest.name}: the manifest has no splits.group"
        raise LabelError(msg)
    return _read_all(manifest, keys, metas, lambda sample: _text(_at(sample, field), where=f"field {shown(field)}"))


def class_names(manifest: Manifest, observed: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of a task in order: those of the manifest, or else the sorted classes in `observed`.

    If all classes are whole numbers, they are sorted numerically.
    """
    if manifest.label.classes is not None:
        return manifest.label.classes
    found = sorted(set(observed))
    return (
        tuple(sorted(found, key=int)) if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in found) else tuple(found)
    )


class _UnusableError(Exception):
    """The problem with one sample; `_read_all` adds the clip's key."""


def _read_all(manifest: Manifest, keys: Sequence[str], metas: Sequence[str], read: Callable[[object], T]) -> list[T]:
    labels = []
    for key, meta in zip(keys, metas, strict=True):
        try:
            labels.append(read(_parsed(meta)))
        except _UnusableError as error:
            msg = f"{manifest.name}: clip {shown(key)}: {error}"
            raise LabelError(msg) from None
    return labels


def _parsed(meta: str) -> object:
    try:
        return json.loads(meta)
    except RecursionError:
        msg = "its JSON is nested too deeply"
    except ValueError as error:
        # json.JSONDecodeError, or the plain ValueError of an integer with thousands of digits
        msg = f"its JSON cannot be read ({error}), got {shown(meta)}"
    raise _UnusableError(msg)


def _field(manifest: Manifest) -> str:
    if manifest.label.field is None:
        msg = f"{manifest.name}: a {manifest.kind} task has no label.field"
        raise LabelError(msg)
    return manifest.label.field


def _at(sample: object, path: str) -> object:
    """Return the value at a dotted path."""
    value = sample
    for step in path.split("."):
        if not isinstance(value, dict):
            msg = f"field {shown(path)} needs an object to look {shown(step)} up in, got {shown(value)}"
            raise _UnusableError(msg)
        if step not in value:
            has = some_of(sorted(value)) if value else "nothing"
            msg = f"field {shown(path)} is missing{did_you_mean(step, value)}; the object has {has}"
            raise _UnusableError(msg)
        value = value[step]
    return value


def _class_reader(manifest: Manifest) -> Callable[[object], str]:
    """Return a function that converts a raw value to a class: text, then mapping, then a check against the classes."""
    where, mapping, classes = f"field {shown(_field(manifest))}", manifest.label.mapping, manifest.label.classes
    allowed = frozenset(classes or ())

    def to_class(value: object) -> str:
        text = _text(value, where=where)
        if mapping is not None:
            mapped = mapping.get(text, mapping.get("*"))
            if mapped is None:
                msg = f"{where} has no mapping for {shown(text)}; it has one for {some_of(sorted(mapping))}"
                raise _UnusableError(msg)
            text = mapped
        if not text:
            msg = f"{where} is empty"
            raise _UnusableError(msg)
        if classes is not None and text not in allowed:
            msg = f"{where} is {shown(text)}, which is not one of its {len(classes)} classes: {some_of(classes)}"
            raise _UnusableError(msg)
        return text

    return to_class


def _text(value: object, *, where: str) -> str:
    if isinstance(value, str):
        if not _is_unicode(value):
            msg = f"{where} is not valid Unicode text, got {shown(value)}"
            raise _UnusableError(msg)
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value).removesuffix(".0")
    msg = f"{where} must be text, a number, true or false, got {shown(value)}"
    raise _UnusableError(msg)


def _parts(value: object, *, separator: str | None) -> Sequence[object]:
    if not isinstance(value, str):
        return [value]
    parts = [value] if separator is None else [part.strip() for part in value.split(separator)]
    return [part for part in parts if part]


def _number(value: object) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool) and "_" not in str(value):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        msg = f"must be a finite number, got {shown(value)}"
        raise _UnusableError(msg)
    return number


def _sentence(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
        msg = f"must be text that is not empty, got {shown(value)}"
        raise _UnusableError(msg)
    return value


def _is_unicode(text: str) -> bool:
    """Return whether the text can be encoded: JSON can contain unpaired surrogates."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
