"""Renames an encoder in a local store.

The name of an encoder is in the name of its groups only, ``NAME@FINGERPRINT`` or ``NAME.layer3.max@FINGERPRINT``. Group
documents contain the recipe, which decides the fingerprint, and are not changed. So each group is renamed by one atomic
rename of its folder, and a store with some renamed groups is a complete store: the same call renames the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from featstore.errors import DamagedPart, StoreError, UnknownFeatureSet, UsageError
from featstore.files import fsync_folder
from featstore.records import JsonRecord, Recipe, check_encoder_name
from featstore.store.catalogue import check_root, group_names, known_address, split_paths
from featstore.store.documents import read_document
from featstore.store.encoder_groups import read_encoder_group
from featstore.store.filesystem import Objects, confined, open_objects
from featstore.store.format import is_part_name
from featstore.store.liveness import is_abandoned
from featstore.store.part_writer import write_errors_explained

__all__ = ["RenameRecord", "rename_encoder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameRecord(JsonRecord):
    """Names of one group, an output of the encoder under one recipe, before and after it was renamed."""

    before: str
    after: str


def rename_encoder(url: str, old: str, new: str) -> tuple[RenameRecord, ...]:
    """Change the name that a store has for an encoder; its fingerprints and embeddings stay.

    The groups of all its layers and pools are renamed. A killed call leaves a complete store, in which the same call
    renames the other groups. Extractions of the encoder continue under the new name.

    Parameters
    ----------
    old : str
        ``logmel``: every recipe of that name. ``logmel@3f9c2a71``: the outputs of this recipe only.
    new : str
        The store may have other encoders of this name.

    Raises
    ------
    UnknownFeatureSet
        The store has no such encoder.
    UsageError
        `new` cannot be a name, or is the old name.
    StoreError
        The store is not a local folder, a writer is writing embeddings of the encoder, or the store has the same
        encoder under the new name.
    """
    check_encoder_name(new)
    objects = open_objects(url)
    root = objects.root
    if root is None:
        raise StoreError(
            f"{objects.url} is not a local folder, and only in one can a group be renamed in one step: copy the store "
            "to a folder with `featstore copy`, rename there, and copy it to a new URL"
        )
    check_root(objects)
    renamed = tuple(
        RenameRecord(before=recipe.group_name, after=recipe.renamed(f"{new}{recipe.output_suffix}").group_name)
        for recipe in _recipes_of(objects, old)
    )
    if any(each.before == each.after for each in renamed):
        raise UsageError(f"{objects.url} has {old} under this name already: give another name than {new}")
    there = set(objects.children(""))
    if taken := next((each for each in renamed if each.after in there), None):
        raise StoreError(
            f"{objects.url} has {taken.after}, the same encoder and recipe as {taken.before}: nothing was renamed; "
            "give another name"
        )
    for each in renamed:
        if writing := next(_parts_in_flight(objects, each.before), None):
            raise StoreError(
                f"{objects.url}/{writing} is being written: nothing was renamed; repeat this when the writer has ended "
                "(one on another machine counts as ended after six hours without a change)"
            )
    with write_errors_explained(objects):
        for each in renamed:
            confined(root, each.before).rename(confined(root, each.after))
            fsync_folder(root)
            logger.info("%s is now %s", each.before, each.after)
    return renamed


def _recipes_of(objects: Objects, old: str) -> tuple[Recipe, ...]:
    """Recipes of all outputs of an encoder, sorted by name of their groups."""
    found = [recipe for name in group_names(objects, "") if (recipe := _recipe_of(objects, name)) is not None]
    chosen = [recipe for recipe in found if old in (recipe.encoder, recipe.group_name)]
    recipes = [recipe for recipe in found if recipe.encoder_name == old.partition("@")[0]]
    if "@" in old:
        same = {recipe.encoder_key for recipe in chosen}
        recipes = [recipe for recipe in recipes if recipe.encoder_key in same]
    if chosen and not recipes:
        name = chosen[0].encoder_name
        raise UsageError(f"{old} is a layer or pool of {name}, and is named after it: rename {name}")
    if not recipes:
        raise UnknownFeatureSet(
            f"{objects.url} has no encoder {old!r}: `featstore inspect --store {objects.url}` lists what it has"
        )
    return tuple(sorted(recipes, key=lambda recipe: recipe.group_name))


def _recipe_of(objects: Objects, name: str) -> Recipe | None:
    """Recipe of an encoder's group, from its document or those of its splits; None for a foreign group."""
    if "@" not in name:
        return None
    if (group := read_encoder_group(str(objects.root), name)) is not None:
        return group.recipe
    addresses = (known_address(objects, path) for path in split_paths(objects, encoder=name))
    return next((address.recipe for address in addresses if address is not None), None)


def _parts_in_flight(objects: Objects, group: str) -> Iterator[str]:
    """Paths of parts of an encoder's group that are not committed, and whose writer may be alive."""
    for path in split_paths(objects, encoder=group):
        for name in filter(is_part_name, group_names(objects, path)):
            part = f"{path}/{name}"
            with suppress(DamagedPart):  # `verify --repair` handles the damage
                is_uncommitted = "writing" in (read_document(objects, part) or {})
                if is_uncommitted and not is_abandoned(objects, part, clock=partial(objects.clock, path)):
                    yield part
