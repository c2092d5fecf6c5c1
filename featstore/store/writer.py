"""Writes a feature set, part by part.

The commit protocol of a part is the same on a local disk and on an object store:

1. Write the group document with the identity of the writer, so that a sweep can distinguish live from dead writers.
2. Write the arrays, and wait until they are durable.
3. Replace the group document atomically by the commit record. This commits the part.

A committed part never changes. A newer part of the same shard has a greater generation, and supersedes the older part.
The older part is then deleted: first from the catalogue, then its commit record, then its arrays.

Foreign items, which featstore did not write, are never deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from featstore.errors import DamagedPart, PartLost, StoreError
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
from featstore.store.filesystem import Objects, confined, open_objects
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
from featstore.store.part_writer import PartInFlight, PartWriter, is_disk_full, write_errors_explained

__all__ = [
    "SplitWriter",
    "find_split_writer",
    "is_split_begun",
    "open_split_writer",
    "open_split_writer_at",
    "recipe_groups",
]


def open_split_writer_at(objects: Objects, address: SplitAddress) -> SplitWriter:
    """Open the feature set at an address, and create it if needed. Errors are those of `open_split_writer`."""
    with write_errors_explained(objects):
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
    """Open the feature set of a split for writing, and create it if needed.

    `spec` is the encoder's name on the command line; it is stored next to the recipe, and is not part of it.

    Raises
    ------
    StoreError
        The URL cannot be written, or a name is not a valid group name.
    StoreVersionError
        A newer featstore wrote the store.
    """
    for kind, name in (("dataset", dataset), ("split", split), ("encoder", recipe.encoder)):
        if not is_group_name(name):
            raise StoreError(f"the name of a {kind} may have letters, digits and . _ + @ = -: got {name!r}")
    objects = open_objects(url)
    address = SplitAddress(recipe=recipe, spec=spec, dataset=dataset, crop_seconds=crop_seconds, split=split)
    return open_split_writer_at(objects, address)


def find_split_writer(
    url: str, *, recipe: Recipe, spec: str, dataset: str, crop_seconds: float | None, split: str
) -> SplitWriter | None:
    """Open an existing feature set as `open_split_writer` does; None if it does not exist."""
    objects = open_objects(url)
    address = SplitAddress(recipe=recipe, spec=spec, dataset=dataset, crop_seconds=crop_seconds, split=split)
    content = _own_document(objects, address)
    if content is None or objects.root is None:
        return None if content is None else SplitWriter(objects, address, document=content)
    return open_split_writer_at(objects, address)


def _own_document(objects: Objects, address: SplitAddress) -> dict[str, Any] | None:
    """The split's document if it is valid. It contains the content of those above it, which then need not be read."""
    try:
        content = read_document(objects, address.path)
        if content is None or content.get("format") != FORMAT_VERSION:
            return None
        SplitAddress.from_document(content, path=address.path)
    except (DamagedPart, DamagedDocument):
        return None  # the next reader reports it
    return content


def recipe_groups(url: str) -> tuple[str, ...]:
    """Names of the recipe groups in the store at `url`, such as ``logmel@3f9c2a71``; empty if there is no store."""
    objects = open_objects(url)
    with write_errors_explained(objects):
        return tuple(name for name in group_names(objects, "") if "@" in name)


def is_split_begun(url: str, *, recipe: Recipe, dataset: str, crop_seconds: float | None, split: str) -> bool:
    """Whether this process sees the feature set that another process has opened for writing in the store at `url`."""
    address = SplitAddress(recipe=recipe, spec="", dataset=dataset, crop_seconds=crop_seconds, split=split)
    return read_document(open_objects(url), address.path) is not None


class SplitWriter:
    """The feature set of one split, open for writing."""

    def __init__(self, objects: Objects, address: SplitAddress, *, document: dict[str, Any] | None = None) -> None:
        self._objects = objects
        self._address = address
        self._document = document  # for `begin_run`, which reads it again only if it is None
        self._written: dict[str, Commit] = {}
        self._generations: dict[str, int] | None = None  # by shard name; read when a part starts without one
        self._is_catalogued = False
        self._has_leftovers = False

    @property
    def path(self) -> str:
        """Path of the split's group in the store."""
        return self._address.path

    @property
    def is_catalogued(self) -> bool:
        """Whether the catalogue listed exactly the committed parts when this writer last read it."""
        return self._is_catalogued

    @property
    def has_leftovers(self) -> bool:
        """Whether there was anything for a sweep to delete when the run started."""
        return self._has_leftovers

    def begin_run(self) -> dict[str, Segment]:
        """Return the current segment of each shard, with two requests to a server. Nothing is deleted."""
        document, self._document = self._document or read_document(self._objects, self.path), None
        state = self._look(document)
        self._has_leftovers = any(self._leftovers(state))
        return _by_shard(state.commits)

    def committed(self) -> dict[str, Segment]:
        """Return the current segment of each shard, by shard name."""
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
            Must be greater than the generations of the parts that it replaces. None reads them from the store, once
            for all parts.
        """
        if generation is None:
            if self._generations is None:
                self._generations = {name: each.commit.generation for name, each in self.committed().items()}
            generation = self._generations.get(shard, -1) + 1
        address = self._address
        return PartWriter(
            self._objects,
            self._new_group(part_stem(shard)),
            recipe=address.recipe,
            crop_seconds=address.crop_seconds,
            generation=generation,
            on_commit=self._remember,
        )

    def copy_part(self, commit: Commit, objects: Iterable[tuple[str, bytes]]) -> Commit:
        """Commit a copy of a part under a new name. `objects` must be checked against their seals."""
        path = self._new_group(commit.part.rpartition(".")[0])
        copied = replace(commit, part=path.rpartition("/")[2])
        with write_errors_explained(self._objects), PartInFlight(self._objects, path) as part:
            for name, data in objects:
                part.put(name, [data], entry=commit.objects[name])
            part.sync()
            part.commit(copied)
        self._remember(copied)
        return copied

    def _new_group(self, stem: str) -> str:
        """Path of a new part. In a local store its folder is created, without the folders above it.

        Raises
        ------
        PartLost
            The feature set no longer exists: its encoder was renamed, or it was deleted.
        """
        path = f"{self.path}/{stem}.{secrets.token_hex(4)}"
        if (root := self._objects.root) is not None:
            with write_errors_explained(self._objects):
                try:
                    confined(root, path).mkdir()
                except FileNotFoundError:
                    raise self._is_gone() from None
        return path

    def _is_gone(self) -> PartLost:
        return PartLost(
            f"{self._objects.url}/{self.path} is gone: its encoder was renamed, or it was deleted, while it was "
            "written; run the same command again, which resumes"
        )

    def _remember(self, commit: Commit) -> None:
        """Keep a commit record without seals for the catalogue, so that it is not read back."""
        self._written[commit.part] = replace(commit, objects={})
        if self._generations is not None:
            self._generations |= {member.shard.name: commit.generation for member in commit.members}

    def sweep(self) -> tuple[str, ...]:
        """Delete superseded parts, and orphans of dead writers.

        Returns
        -------
        tuple of str
            Names of the deleted groups.
        """
        superseded, orphans = self._leftovers(self._look(read_document(self._objects, self.path)))
        self._delete_groups(orphans)  # first, because it needs no space for a catalogue
        self.delete(superseded)
        fault_point("swept")
        return (*superseded, *orphans)

    def _leftovers(self, state: SplitState) -> tuple[list[str], list[str]]:
        """Return the names of superseded parts and of orphans."""
        commits = {commit.part: commit for commit in state.commits}
        counted = {segment.commit.part for segment in counted_segments(commits.values())}
        superseded = [name for name in state.names if name in commits and name not in counted]
        unknown = [name for name in state.names if name not in commits and is_part_name(name)]
        clock = cache(partial(self._objects.clock, self.path))
        orphans = [name for name in unknown if is_abandoned(self._objects, f"{self.path}/{name}", clock=clock)]
        return superseded, [*orphans, *state.discarded]

    def foreign(self) -> tuple[str, ...]:
        """Names of foreign items in the split's group; no sweep deletes them."""
        state = self._look(read_document(self._objects, self.path))
        known = {commit.part for commit in state.commits}
        names = [name for name in state.names if name not in known]
        return tuple(name for name in names if is_foreign_group(self._objects, self.path, name))

    def delete(self, parts: Iterable[str]) -> None:
        """Delete parts so that an incomplete part never looks complete.

        The catalogue is written first. On a full disk the parts are deleted first: a local part disappears from the
        listing atomically, so that an outdated catalogue is harmless.
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
        with write_errors_explained(self._objects):
            for name in names:
                fault_point("deleting-document")
                self._objects.delete(f"{self.path}/{name}", first=(GROUP_DOCUMENT,))

    def write_catalogue(self, *, without: Iterable[str] = ()) -> None:
        """Write the commit records to the split's document, so that a reader opens one document instead of thousands.

        Parts named in `without` are neither read nor listed.
        """
        excluded = frozenset(without)
        while True:
            if (root := self._objects.root) is not None and not confined(root, self.path).is_dir():
                raise self._is_gone()
            document = read_document(self._objects, self.path)
            state = self._look(document, without=excluded)
            content = self._address.split_document(state.commits)
            if document != content:
                with write_errors_explained(self._objects):
                    self._objects.write(f"{self.path}/{GROUP_DOCUMENT}", seal(content))
            fault_point("catalogue-written")
            # Another writer may have committed since that listing, and written its catalogue before this one. Each
            # writer lists again after writing, so that the last catalogue contains all parts.
            if document == content or self._is_up_to_date(state, excluded):
                self._is_catalogued = True
                return

    def _is_up_to_date(self, state: SplitState, excluded: Collection[str]) -> bool:
        """Whether no part was committed since `state`; uncommitted parts are ignored."""
        new = set(group_names(self._objects, self.path)) - set(state.names) - set(excluded)
        return not any(read_commits(self._objects, self.path, sorted(new)))


def _by_shard(commits: Iterable[Commit]) -> dict[str, Segment]:
    return {segment.member.shard.name: segment for segment in counted_segments(commits)}
