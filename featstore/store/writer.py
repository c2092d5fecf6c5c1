"""Writes a feature set, part by part.

The commit protocol of one part, on a local disk and on an object store alike:

1. its group document says who is writing (so that a sweep can tell a live writer from a dead one);
2. its arrays are written, and settled;
3. its group document is replaced, in one atomic step, by the commit record. From then on it is a part.

A part is never changed after that. A newer part of the same shard takes its place, and only then is it deleted: from
the catalogue first, then its commit record, then its arrays.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from featstore.errors import DamagedPart, StoreError
from featstore.records import Recipe
from featstore.store.catalogue import SplitState, check_root, group_names, look_at_split, read_commits
from featstore.store.documents import SplitAddress, read_document, write_document
from featstore.store.faults import fault_point
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    Segment,
    Writing,
    counted_segments,
    is_group_name,
    part_stem,
    seal,
)
from featstore.store.objects import Objects, open_objects
from featstore.store.part import PartWriter, process_started, telling_what_to_do

__all__ = ["SplitWriter", "is_split_begun", "open_split_writer", "open_split_writer_at", "recipe_groups"]

_FOREIGN_WRITER_IS_DEAD_AFTER = timedelta(hours=24)


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
        self._is_catalogued = False

    @property
    def path(self) -> str:
        """Path of the split's group in the store."""
        return self._address.path

    @property
    def is_catalogued(self) -> bool:
        """Whether the catalogue said just what there was, when this writer last looked."""
        return self._is_catalogued

    def begin_run(self) -> dict[str, Segment]:
        """Sweep, and say what counts for each shard: one look at the split, two requests of a server, answers both."""
        document, self._document = self._document or read_document(self._objects, self.path), None
        state = self._look(document)
        self._sweep(state)
        return _by_shard(state.commits)

    def committed(self) -> dict[str, Segment]:
        """What counts for each shard, by shard name."""
        return _by_shard(self._look(read_document(self._objects, self.path)).commits)

    def _look(self, document: dict[str, Any] | None, *, without: Collection[str] = ()) -> SplitState:
        state = look_at_split(self._objects, self.path, document, without=without, also_known=self._written)
        self._is_catalogued = state.catalogued
        return state

    def begin_part(self, shard: str) -> PartWriter:
        """Start the part of a shard."""
        part = f"{part_stem(shard)}.{secrets.token_hex(4)}"
        address = self._address
        return PartWriter(
            self._objects,
            f"{self.path}/{part}",
            recipe=address.recipe,
            crop_seconds=address.crop_seconds,
            on_commit=self._remember,
        )

    def _remember(self, commit: Commit) -> None:
        """Keep what a commit says for the catalogue, without its seals, rather than read it back."""
        self._written[commit.part] = replace(commit, objects={})

    def sweep(self) -> tuple[str, ...]:
        """Delete what counts for nothing: superseded parts, and orphans of writers that are gone.

        Returns
        -------
        tuple of str
            Names of what was deleted.
        """
        return self._sweep(self._look(read_document(self._objects, self.path)))

    def _sweep(self, state: SplitState) -> tuple[str, ...]:
        commits = {commit.part: commit for commit in state.commits}
        counted = {segment.commit.part for segment in counted_segments(commits.values())}
        superseded = [name for name in state.names if name in commits and name not in counted]
        unknown = [name for name in state.names if name not in commits]
        orphans = [name for name in unknown if _is_abandoned(self._objects, f"{self.path}/{name}")]
        self.delete((*superseded, *orphans))
        fault_point("swept")
        return (*superseded, *orphans)

    def adopt(self, commit: Commit) -> None:
        """Count a part that was committed here by other means than `begin_part`."""
        self._remember(commit)

    def delete(self, parts: Iterable[str]) -> None:
        """Delete parts, so that at no moment a half of one looks whole."""
        parts = tuple(parts)
        if not parts:
            return
        self.write_catalogue(without=parts)
        with telling_what_to_do(self._objects):
            for part in parts:
                fault_point("deleting-document")
                self._objects.delete(f"{self.path}/{part}", first=(GROUP_DOCUMENT,))

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


def _is_abandoned(objects: Objects, path: str) -> bool:
    """Whether the writer of a part without commit record is gone."""
    try:
        content = read_document(objects, path)
        if content is None or not content.keys() & {"commit", "writing"}:
            # A writer's document comes before its arrays, and goes before them. Arrays without a document are what a
            # killed deletion left; a group with nothing in it yet may be a writer that is just beginning, and may have
            # begun since we asked.
            has_arrays = any(not name.startswith(".") for name in objects.children(path))
            return has_arrays and read_document(objects, path) == content
    except DamagedPart:
        return False  # `verify --repair` decides about damage
    if "commit" in content:
        return False  # it was committed after the look that took it for an orphan
    writer = Writing(**content["writing"])
    if writer.host == socket.gethostname():
        return not _is_alive(writer)
    return datetime.now(UTC) - datetime.fromisoformat(writer.began_at) > _FOREIGN_WRITER_IS_DEAD_AFTER


def _is_alive(writer: Writing) -> bool:
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process_started(writer.pid) == writer.process_started
