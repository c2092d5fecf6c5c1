"""Under which group a store has an encoder: by the name of its place, or by what it was to an earlier featstore.

A group of an earlier featstore is of a recipe whose identity says less than today's. When it is met, today's identity
is noted in its document, and from then on that has to agree too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from featstore.records import Recipe

__all__ = ["differing_fields", "named_as_held", "what_changed"]

_IN_WORDS = {
    "code_sha256": "code",
    "source_sha256": "code",
    "model_code_sha256": "code of the model",
    "model_source_sha256": "code of the model",
    "distribution": "version of its package",
    "state_sha256": "weights",
    "config_sha256": "configuration",
    "feature_extractor_sha256": "feature extractor",
}

Noted = Callable[[str], Mapping[str, Any] | None]


def named_as_held(
    recipes: Sequence[Recipe],
    *,
    name: str,
    groups: Iterable[str],
    earlier: Sequence[Recipe | None] = (),
    noted: Noted = lambda _: None,
) -> tuple[Recipe, ...]:
    """Recipes of one encoder's outputs, each as the store has it, or is to have it.

    What the store lacks is named after what it has of the same encoder, so that the layers of a model stay together.

    Parameters
    ----------
    recipes : sequence of Recipe
        As the encoder is called now: `name`, and what tells one output from another (``.layer6``).
    groups : iterable of str
        Names of the groups of recipes that the store has.
    earlier : sequence of Recipe or None
        Recipes of the same outputs by the rules of an earlier featstore, where these were others.
    noted : callable
        Name of a group -> the identity that is noted in its document, or None.
    """
    known = sorted(groups)
    before = earlier or (None,) * len(recipes)
    held = [
        _held(recipe, known) or _held_before(recipe, then, known, noted)
        for recipe, then in zip(recipes, before, strict=True)
    ]
    endings = [recipe.encoder.removeprefix(name) for recipe in recipes]
    called = next(
        (there.encoder.removesuffix(ending) for there, ending in zip(held, endings, strict=True) if there), name
    )
    return tuple(
        there or replace(recipe, encoder=f"{called}{ending}")
        for there, recipe, ending in zip(held, recipes, endings, strict=True)
    )


def _held(recipe: Recipe, groups: Iterable[str]) -> Recipe | None:
    """Where a store has it under several names, the one that it is called by now comes first."""
    found = [there for group in groups if (there := recipe.named_as(group)) is not None]
    return min(found, key=lambda there: there.encoder != recipe.encoder, default=None)


def _held_before(recipe: Recipe, then: Recipe | None, groups: Iterable[str], noted: Noted) -> Recipe | None:
    """The recipe of an earlier featstore, unless the group was seen to be of an encoder that is another by now."""
    if then is None or (there := _held(then, groups)) is None:
        return None
    identity = noted(there.group_name)
    same = identity is None or replace(recipe, encoder_identity=identity).fingerprint == recipe.fingerprint
    return there if same else None


def what_changed(
    recipe: Recipe, then: Recipe | None, stored: Iterable[tuple[Recipe, Mapping[str, Any] | None]]
) -> str | None:
    """One line about a recipe that the store lacks: in what it differs from the nearest that it has.

    `stored` are recipes of the same name, each with the identity that is noted beside it.
    """
    found = []
    for other, identity in stored:
        known = other if identity is None else replace(other, encoder_identity=identity)
        fields = tuple(differing_fields(known, _of_its_kind(recipe, then, known)))
        if fields and other.fingerprint != recipe.fingerprint:
            found.append((len(fields), other, known, fields))
    if not found:
        return None
    _, other, known, fields = min(found, key=lambda each: (each[0], each[1].group_name))
    now = _of_its_kind(recipe, then, known)
    said = dict.fromkeys(_said(field, known, now) for field in fields)
    return f"{recipe.group_name} is encoded anew: not as {other.group_name} has it: {', '.join(said)}"


def _of_its_kind(recipe: Recipe, then: Recipe | None, stored: Recipe) -> Recipe:
    """Of two recipes of one output the one whose identity has the fields that a stored one has."""
    if then is None:
        return recipe
    keys = stored.encoder_identity.keys()
    return then if keys == then.encoder_identity.keys() != recipe.encoder_identity.keys() else recipe


def differing_fields(stored: Recipe, made: Recipe) -> Iterator[str]:
    """Fields of a recipe, or of the identity in it, that decide the fingerprint and differ."""
    one, other = stored.as_decided(), made.as_decided()
    for name in dict.fromkeys([*one, *other]):
        if name == "named_by" or one.get(name) == other.get(name):
            continue
        if name != "encoder_identity":
            if not (name == "encoder" and "place" in (stored.named_by, made.named_by)):
                yield name
            continue
        keys = dict.fromkeys([*one[name], *other[name]])
        yield from (key for key in keys if one[name].get(key) != other[name].get(key))


def _said(field: str, stored: Recipe, now: Recipe) -> str:
    if field in _IN_WORDS:
        return _IN_WORDS[field]
    one, other = ({**each.encoder_identity, **each.as_json()}.get(field) for each in (stored, now))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        changed = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
        return f"{field} ({', '.join(changed)})"
    return f"{field} {other} (was {one})"
