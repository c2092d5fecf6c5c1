"""The groups of encoders in a store: their recipes, and what extraction notes beside these.

Beside ``recipe``, ``fingerprint`` and ``spec``, the document of an encoder's group may hold

- ``canary``: what the encoder returned for reference signals (`featstore.encoders.canary`): ``version`` of the signals,
  ``signals`` (name -> null, or ``utterance``, numbers, and ``frames``, null or ``count``, ``mean`` and ``std``) and
  ``made_by``, an object;
- ``encoder_identity``: what the encoder is by the rules of today, where the recipe has it by earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featstore.errors import DamagedPart
from featstore.records import Recipe, canonical_json
from featstore.store.documents import damaged, read_document, write_document
from featstore.store.filesystem import ForeignFile, Objects, open_objects
from featstore.store.format import DamagedDocument, recipe_from_json
from featstore.store.part_writer import telling_what_to_do

__all__ = ["EncoderGroup", "copy_notes", "note_in_encoder_group", "read_encoder_group", "read_encoder_groups"]

_NOTED = ("canary", "encoder_identity")
_MOST = 3.5e38  # of float32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderGroup:
    """What the document of an encoder's group holds."""

    name: str
    recipe: Recipe
    canary: Mapping[str, Any] | None
    encoder_identity: Mapping[str, Any] | None


def read_encoder_group(url: str, name: str) -> EncoderGroup | None:
    """One group's document; None where it is missing or damaged, of which `verify` tells."""
    return next(read_encoder_groups(url, [name]), None)


def read_encoder_groups(url: str, names: Iterable[str]) -> Iterator[EncoderGroup]:
    """Documents of the groups that have a sound one."""
    yield from _read(open_objects(url), names)


def _read(objects: Objects, names: Iterable[str]) -> Iterator[EncoderGroup]:
    for name in names:
        with telling_what_to_do(objects):
            try:
                content = read_document(objects, name) or {}
                recipe = recipe_from_json(content.get("recipe"))
            except (DamagedPart, DamagedDocument, ForeignFile):
                continue
        yield EncoderGroup(
            name=name,
            recipe=recipe,
            canary=_sound_canary(content.get("canary")),
            encoder_identity=_sound_identity(content.get("encoder_identity"), recipe),
        )


def _sound_canary(value: Any) -> Mapping[str, Any] | None:
    """A canary as extraction notes it; None for anything else, in place of which the next extraction notes another."""
    try:
        canonical_json(value)
        return value if _is_canary(value) else None
    except (ValueError, RecursionError):
        return None


def _sound_identity(value: Any, recipe: Recipe) -> Mapping[str, Any] | None:
    try:
        return recipe_from_json({**recipe.as_json(), "encoder_identity": value}).encoder_identity
    except DamagedDocument:
        return None


def _is_canary(value: Any) -> bool:
    """Whether it has the form that this module's docstring says."""
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
    return all(type(number) in (int, float) and abs(number) <= _MOST for number in (*value["utterance"], *summary))


def copy_notes(source: Objects, target: Objects, name: str) -> None:
    """Put into a group's document of one store what that of another has noted and it has not."""
    found = next(_read(source, [name]), None)
    if found is not None:
        noted = {key: value for key in _NOTED if (value := getattr(found, key)) is not None}
        _write(target, name, lambda content: {**noted, **content})


def note_in_encoder_group(url: str, name: str, **noted: Mapping[str, Any]) -> None:
    """Put ``canary`` or ``encoder_identity`` into a group's document, in one step; of two writers the last counts.

    Raises
    ------
    DamagedPart
        The document is not one that featstore wrote.
    """
    _write(open_objects(url), name, lambda content: {**content, **noted})


def _write(objects: Objects, name: str, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    with telling_what_to_do(objects):
        content = read_document(objects, name)
        if content is not None:
            try:
                write_document(objects, name, change(content))
            except (ValueError, RecursionError) as error:  # it holds a number that is none
                raise damaged(objects.url, name, f"is damaged: {error}") from error
