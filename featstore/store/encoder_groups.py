"""Encoder groups of a store: their recipes, and the notes that extraction adds.

Besides ``recipe``, ``fingerprint`` and ``spec``, the document of an encoder's group may contain:

- ``canary``: the encoder's output for reference signals (`featstore.encoders.canary`): ``version`` of the signals,
  ``signals`` (name -> null, or ``utterance``, numbers, and ``frames``, null or ``count``, ``mean`` and ``std``) and
  ``made_by``, an object;
- ``encoder_identity``: the encoder's identity by the current rules, if the recipe has it by earlier rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featstore.errors import DamagedPart
from featstore.records import Recipe, canonical_json
from featstore.store.documents import damaged, read_document, write_document
from featstore.store.filesystem import ForeignFile, Objects, open_objects
from featstore.store.format import DamagedDocument, recipe_from_json, recipe_of_group
from featstore.store.part_writer import write_errors_explained

__all__ = ["EncoderGroup", "copy_notes", "note_in_encoder_group", "read_encoder_group", "read_encoder_groups"]

_NOTES = ("canary", "encoder_identity")
_MAX_NUMBER = 3.5e38  # just above the largest float32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderGroup:
    """Content of the document of an encoder's group."""

    name: str
    recipe: Recipe
    canary: Mapping[str, Any] | None
    encoder_identity: Mapping[str, Any] | None


def read_encoder_group(url: str, name: str) -> EncoderGroup | None:
    """Read a group's document; None if it is missing or damaged (`verify` reports damage)."""
    return next(read_encoder_groups(url, [name]), None)


def read_encoder_groups(url: str, names: Iterable[str]) -> Iterator[EncoderGroup]:
    """Yield the documents of groups, without missing and damaged ones."""
    yield from _read(open_objects(url), names)


def _read(objects: Objects, names: Iterable[str]) -> Iterator[EncoderGroup]:
    for name in names:
        with write_errors_explained(objects):
            try:
                content = read_document(objects, name) or {}
                recipe = recipe_of_group(content.get("recipe"), name)
            except (DamagedPart, DamagedDocument, ForeignFile):
                continue
        yield EncoderGroup(
            name=name,
            recipe=recipe,
            canary=_valid_canary(content.get("canary")),
            encoder_identity=_valid_identity(content.get("encoder_identity"), recipe),
        )


def _valid_canary(value: Any) -> Mapping[str, Any] | None:
    """Return a valid canary, else None; the next extraction then replaces it."""
    try:
        canonical_json(value)
        return value if _is_canary(value) else None
    except (ValueError, RecursionError):
        return None


def _valid_identity(value: Any, recipe: Recipe) -> Mapping[str, Any] | None:
    try:
        return recipe_from_json({**recipe.as_json(), "encoder_identity": value}).encoder_identity
    except DamagedDocument:
        return None


def _is_canary(value: Any) -> bool:
    """Whether a value has the form that the module docstring describes."""
    if not isinstance(value, dict) or not isinstance(value.get("version"), int):
        return False
    signals, made_by = value.get("signals"), value.get("made_by")
    if not isinstance(signals, dict) or not isinstance(made_by, dict):
        return False
    return isinstance(made_by.get("versions", {}), dict) and all(map(_is_signal, signals.values()))


def _is_signal(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("utterance"), list) or "frames" not in value:
        return False
    frames = value["frames"]
    if not (frames is None or isinstance(frames, dict)):
        return False
    summary = [] if frames is None else [frames.get(name) for name in ("count", "mean", "std")]
    return all(
        type(number) in (int, float) and abs(number) <= _MAX_NUMBER for number in (*value["utterance"], *summary)
    )


def copy_notes(source: Objects, source_name: str, target: Objects, target_name: str) -> None:
    """Copy the notes that the target's group lacks from the source's group of the same recipe."""
    found = next(_read(source, [source_name]), None)
    if found is not None:
        noted = {key: value for key in _NOTES if (value := getattr(found, key)) is not None}
        _write(target, target_name, lambda content: {**noted, **content})


def note_in_encoder_group(url: str, name: str, **noted: Mapping[str, Any]) -> None:
    """Write ``canary`` or ``encoder_identity`` to a group's document, atomically. The last of two writers wins.

    Raises
    ------
    DamagedPart
        The document is damaged.
    """
    _write(open_objects(url), name, lambda content: {**content, **noted})


def _write(objects: Objects, name: str, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    with write_errors_explained(objects):
        content = read_document(objects, name)
        if content is not None:
            try:
                write_document(objects, name, change(content))
            except (ValueError, RecursionError) as error:  # NaN or an infinity is not JSON
                raise damaged(objects.url, name, f"is damaged: {error}") from error
