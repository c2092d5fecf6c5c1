"""The groups of encoders in a store: their recipes, and what extraction notes beside these.

Beside ``recipe``, ``fingerprint`` and ``spec``, the document of an encoder's group may hold

- ``canary``: what the encoder returned for reference signals (`featstore.encoders.canary`);
- ``encoder_identity``: what the encoder is by the rules of today, where the recipe has it by earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featstore.errors import DamagedPart
from featstore.records import Recipe
from featstore.store.documents import read_document, write_document
from featstore.store.format import DamagedDocument, recipe_from_json
from featstore.store.objects import open_objects
from featstore.store.part import telling_what_to_do

__all__ = ["EncoderGroup", "note_in_encoder_group", "read_encoder_group", "read_encoder_groups"]

_NOTED = ("canary", "encoder_identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderGroup:
    """What the document of an encoder's group holds."""

    name: str
    recipe: Recipe
    canary: Mapping[str, Any] | None
    encoder_identity: Mapping[str, Any] | None

    def noted(self) -> dict[str, Any]:
        """What was noted in it."""
        return {name: value for name in _NOTED if (value := getattr(self, name)) is not None}


def read_encoder_group(url: str, name: str) -> EncoderGroup | None:
    """One group's document; None where it is missing or damaged, of which `verify` tells."""
    return next(read_encoder_groups(url, [name]), None)


def read_encoder_groups(url: str, names: Iterable[str]) -> Iterator[EncoderGroup]:
    """Documents of the groups that have a sound one."""
    objects = open_objects(url)
    for name in names:
        with telling_what_to_do(objects):
            try:
                content = read_document(objects, name) or {}
                recipe = recipe_from_json(content["recipe"])
            except (DamagedPart, DamagedDocument, KeyError, TypeError):
                continue
        noted = {key: value for key in _NOTED if isinstance(value := content.get(key), Mapping)}
        yield EncoderGroup(name=name, recipe=recipe, **{**dict.fromkeys(_NOTED), **noted})


def note_in_encoder_group(url: str, name: str, **noted: Mapping[str, Any]) -> None:
    """Put ``canary`` or ``encoder_identity`` into a group's document, in one step; of two writers the last counts."""
    objects = open_objects(url)
    with telling_what_to_do(objects):
        content = read_document(objects, name)
        if content is not None:
            write_document(objects, name, {**content, **noted})
