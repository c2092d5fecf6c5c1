"""Under which name a store has an encoder that is called after the place where it was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from featstore.records import Recipe

__all__ = ["named_as_held"]


def named_as_held(recipes: Sequence[Recipe], *, name: str, groups: Iterable[str]) -> tuple[Recipe, ...]:
    """Recipes of one encoder's outputs, each under the name that the store has it by, or is to have it by.

    What the store lacks is named after what it has of the same encoder, so that the layers of a model stay together.

    Parameters
    ----------
    recipes : sequence of Recipe
        As the encoder is called now: `name`, and what tells one output from another (``.layer6``).
    groups : iterable of str
        Names of the groups of recipes that the store has.
    """
    known = sorted(groups)
    held = [_held(recipe, known) for recipe in recipes]
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
