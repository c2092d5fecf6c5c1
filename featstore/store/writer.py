"""Writes a feature set, part by part.

The commit protocol of one part, on a local disk and on an object store alike:

1. its group document says who is writing (so that a sweep can tell a live writer from a dead one);
2. its arrays are written, and settled;
3. its group document is replaced, in one atomic step, by the commit record. From then on it is a part.

A part is never changed after that. A newer part of the same shard gets a greater generation, and so takes its place;
only then is the older one deleted: from the catalogue first, then its commit record, then its arrays.

What featstore did not write is never deleted, wherever in the group it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from featstore.errors import DamagedPart, StoreError
from featstore.records import Recipe
from featstore.store.catalogue import (
    SplitState,
    check_root,
    group_names,
    is_foreign_group,
    look_at_split,
    read_commits,
)
from featstore.store.documents import SplitAddress, is_foreign, read_document, write_document
from featstore.store.faults import fault_point
from featstore.store.filesystem import Objects, open_objects
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    Segment,
    counted_segments,
    is_group_name,
    is_part_name,
    part_stem,
    seal,
)
from featstore.store.liveness import is_abandoned
from featstore.store.part_writer import PartInFlight, PartWriter, is_disk_full, telling_what_to_do

__all__ = [
    "SplitWriter",
    "find_split_writer",
    "is_split_begun",
    "open_split_writer",
    "open_split_writer_at",
    "recipe_groups",
]


def open_split_writer_at(objects: Objects, address: SplitAddress) -> SplitWriter:
    """Open, and where needed make, the feature set at an address. Errors as of `open_split_writer`."""
    with telling_what_to_do(objects):
        if objects.root is None and (content := _own_document(objects, address)) is not None:
            return SplitWriter(objects, address, document=content)
        documents = address.documents()
        if not group_names(objects, "") and objects.read(GROUP_DOCUMENT) is None:
            write_document(objects, "", documents[""])
        check_root(objects)
        for path, content in documents.items():
            if read_document(objects, path) is None:
                if is_foreign(objects, path):
                    raise StoreError(
                        f"{objects.url}/{path} is a Zarr group or array that featstore did not write: move it, or "
                        "extract into another store"
                    )
                write_document(objects, path, content)
    return SplitWriter(objects, address)


def open_split_writer(
    url: str, *, recipe: Recipe, spec: str, dataset: str, crop_seconds: float | None, split: str
) -> SplitWriter:
    """Open, and where needed make, the feature set that a split's parts go to.

    `spec` is how the encoder was named on the command line; it is kept beside the recipe and is no part of it.

    Raises
    ------
    StoreError
        The URL cannot be written, or a name cannot be a group's.
    StoreVersionError
        A newer featstore wrote the store.
    """
    for kind, name in (("dataset", dataset), ("split", split), ("encoder", recipe.encoder)):
        if not is_group_name(name):
            raise StoreError(f"a {kind} may have letters, digits and . _ + @ = - in its name: got {name!r}")
    objects = open_objects(url)
    address = SplitAddress(recipe=recipe, spec=spec, dataset=dataset, crop_seconds=crop_seconds, split=split)
    return open_split_writer_at(objects, address)


def find_split_writer(
    url: str, *, recipe: Recipe, spec: str, dataset: str, crop_seconds: float | None, split: str
) -> SplitWriter | None:
    """Open the feature set as `open_split_writer` does where it is there; None where that would have to make it."""
    objects = open_objects(url)
    address = SplitAddress(recipe=recipe, spec=spec, dataset=dataset, crop_seconds=crop_seconds, split=split)
    content = _own_document(objects, address)
    if content is None or objects.root is None:
        return None if content is None else SplitWriter(objects, address, document=content)
    return open_split_writer_at(objects, address)


def _own_document(objects: Objects, address: SplitAddress) -> dict[str, Any] | None:
    """The split's document, where it says all that those above it do: a server need not be asked for these."""
    try:
        content = read_document(objects, address.path)
        if content is None or content.get("format") != FORMAT_VERSION:
            return None
        return content if SplitAddress.from_document(content).path == address.path else None
    except (DamagedPart, DamagedDocument):
        return None  # what reads it next says so


def recipe_groups(url: str) -> tuple[str, ...]:
    """Names of the groups of recipes in the store at `url`, ``logmel@3f9c2a71``; none where there is no store yet."""
    objects = open_objects(url)
    with telling_what_to_do(objects):
        return tuple(name for name in group_names(objects, "") if "@" in name)


def is_split_begun(url: str, *, recipe: Recipe, dataset: str, crop_seconds: float | None, split: str) -> bool:
    """Whether the store at `url`, as it is seen from here, has the feature set that somebody opened for writing."""
    address = SplitAddress(recipe=recipe, spec="", dataset=dataset, crop_seconds=crop_seconds, split=split)
    return read_document(open_objects(url), address.path) is not None


class SplitWriter:
    """The feature set of one split, open for writing."""

    def __init__(self, objects: Objects, address: SplitAddress, *, document: dict[str, Any] | None = None) -> None:
        self._objects = objects
        self._address = address
        self._document = document  # as it was a moment ago, for the first look at the split alone
        self._written: dict[str, Commit] = {}
        self._generations: dict[str, int] | None = None  # of shards, where a part was begun without one
        self._is_catalogued = False
        self._has_leftovers = False

    @property
    def path(self) -> str:
        """Path of the split's group in the store."""
        return self._address.path

    @property
    def is_catalogued(self) -> bool:
        """Whether the catalogue said just what there was, when this writer last looked."""
        return self._is_catalogued

    @property
    def has_leftovers(self) -> bool:
        """Whether a sweep would have deleted something when the run began."""
        return self._has_leftovers

    def begin_run(self) -> dict[str, Segment]:
        """Look at the split, and return what counts for each shard: two requests of a server. Nothing is deleted."""
        document, self._document = self._document or read_document(self._objects, self.path), None
        state = self._look(document)
        self._has_leftovers = any(self._leftovers(state))
        return _by_shard(state.commits)

    def committed(self) -> dict[str, Segment]:
        """What counts for each shard, by shard name."""
        return _by_shard(self._look(read_document(self._objects, self.path)).commits)

    def _look(self, document: dict[str, Any] | None, *, without: Collection[str] = ()) -> SplitState:
        state = look_at_split(self._objects, self.path, document, without=without, also_known=self._written)
        self._is_catalogued = state.catalogued
        return state

    def begin_part(self, shard: str, *, generation: int | None = None) -> PartWriter:
        """Start the part of a shard.

        Parameters
        ----------
        generation : int, optional
            Greater than that of every part that it replaces. None reads what there is, once for all parts.
        """
        if generation is None:
            if self._generations is None:
                self._generations = {name: each.commit.generation for name, each in self.committed().items()}
            generation = self._generations.get(shard, -1) + 1
        address = self._address
        return PartWriter(
            self._objects,
            f"{self.path}/{_new_part_name(part_stem(shard))}",
            recipe=address.recipe,
            crop_seconds=address.crop_seconds,
            generation=generation,
            on_commit=self._remember,
        )

    def copy_part(self, commit: Commit, objects: Iterable[tuple[str, bytes]]) -> Commit:
        """Commit a copy of a part, under a name of its own, whose objects are held against their seals already."""
        copied = replace(commit, part=_new_part_name(commit.part.rpartition(".")[0]))
        with telling_what_to_do(self._objects), PartInFlight(self._objects, f"{self.path}/{copied.part}") as part:
            for name, data in objects:
                part.put(name, [data], entry=commit.objects[name])
            part.settle()
            part.commit(copied)
        self._remember(copied)
        return copied

    def _remember(self, commit: Commit) -> None:
        """Keep what a commit says for the catalogue, without its seals, rather than read it back."""
        self._written[commit.part] = replace(commit, objects={})
        if self._generations is not None:
            self._generations |= {member.shard.name: commit.generation for member in commit.members}

    def sweep(self) -> tuple[str, ...]:
        """Delete what counts for nothing: superseded parts, and orphans of writers that are gone.

        Returns
        -------
        tuple of str
            Names of what was deleted.
        """
        superseded, orphans = self._leftovers(self._look(read_document(self._objects, self.path)))
        self._delete_groups(orphans)  # which are in no catalogue: so that they go where there is no space to write one
        self.delete(superseded)
        fault_point("swept")
        return (*superseded, *orphans)

    def _leftovers(self, state: SplitState) -> tuple[list[str], list[str]]:
        """Superseded parts, and orphans."""
        commits = {commit.part: commit for commit in state.commits}
        counted = {segment.commit.part for segment in counted_segments(commits.values())}
        superseded = [name for name in state.names if name in commits and name not in counted]
        unknown = [name for name in state.names if name not in commits and is_part_name(name)]
        clock = cache(partial(self._objects.clock, self.path))
        orphans = [name for name in unknown if is_abandoned(self._objects, f"{self.path}/{name}", clock=clock)]
        return superseded, [*orphans, *state.discarded]

    def foreign(self) -> tuple[str, ...]:
        """Names of what is in the split's group and not of featstore: no sweep touches it."""
        state = self._look(read_document(self._objects, self.path))
        known = {commit.part for commit in state.commits}
        names = [name for name in state.names if name not in known]
        return tuple(name for name in names if is_foreign_group(self._objects, self.path, name))

    def delete(self, parts: Iterable[str]) -> None:
        """Delete parts, so that at no moment a half of one looks whole.

        A local part disappears from the listing in one step, so that a catalogue may list it a while longer: on a full
        disk the parts go first, and the catalogue is written when there is space.
        """
        parts = tuple(parts)
        if not parts:
            return
        try:
            self.write_catalogue(without=parts)
        except StoreError as error:
            if not is_disk_full(error):
                raise
        self._delete_groups(parts)

    def _delete_groups(self, names: Iterable[str]) -> None:
        with telling_what_to_do(self._objects):
            for name in names:
                fault_point("deleting-document")
                self._objects.delete(f"{self.path}/{name}", first=(GROUP_DOCUMENT,))

    def write_catalogue(self, *, without: Iterable[str] = ()) -> None:
        """Put the commit records into the split's own document, so that a reader opens one instead of thousands.

        Parts named in `without` are neither read nor listed.
        """
        leave_out = frozenset(without)
        while True:
            document = read_document(self._objects, self.path)
            state = self._look(document, without=leave_out)
            content = self._address.split_document(state.commits)
            if document != content:
                with telling_what_to_do(self._objects):
                    self._objects.write(f"{self.path}/{GROUP_DOCUMENT}", seal(content))
            fault_point("catalogue-written")
            # Another writer may have committed since that listing, and written its catalogue before this one was: of
            # all writers the last looks once more, so that its catalogue lists every part there is.
            if document == content or self._is_whole(state, leave_out):
                self._is_catalogued = True
                return

    def _is_whole(self, state: SplitState, leave_out: Collection[str]) -> bool:
        """Whether no part was committed since `state`; parts in the making are passed over."""
        new = set(group_names(self._objects, self.path)) - set(state.names) - set(leave_out)
        return not any(read_commits(self._objects, self.path, sorted(new)))


def _by_shard(commits: Iterable[Commit]) -> dict[str, Segment]:
    return {segment.member.shard.name: segment for segment in counted_segments(commits)}


def _new_part_name(stem: str) -> str:
    return f"{stem}.{secrets.token_hex(4)}"
