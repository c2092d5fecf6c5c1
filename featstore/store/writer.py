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
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from featstore.errors import DamagedPart, StoreError
from featstore.records import Recipe
from featstore.store.catalogue import check_root, group_names, split_commits
from featstore.store.documents import SplitAddress, read_document, write_document
from featstore.store.faults import fault_point
from featstore.store.format import GROUP_DOCUMENT, Segment, Writing, counted_segments, is_group_name, part_stem
from featstore.store.objects import Objects, open_objects
from featstore.store.part import PartWriter, process_started, telling_what_to_do

__all__ = ["SplitWriter", "is_split_begun", "open_split_writer"]

_FOREIGN_WRITER_IS_DEAD_AFTER = timedelta(hours=24)


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
    with telling_what_to_do(objects):
        documents = address.documents()
        if not group_names(objects, "") and objects.read(GROUP_DOCUMENT) is None:
            write_document(objects, "", documents[""])
        check_root(objects)
        for path, content in documents.items():
            if read_document(objects, path) is None:
                write_document(objects, path, content)
    return SplitWriter(objects, address)


def is_split_begun(url: str, *, recipe: Recipe, dataset: str, crop_seconds: float | None, split: str) -> bool:
    """Whether the store at `url`, as it is seen from here, has the feature set that somebody opened for writing."""
    address = SplitAddress(recipe=recipe, spec="", dataset=dataset, crop_seconds=crop_seconds, split=split)
    return read_document(open_objects(url), address.path) is not None


class SplitWriter:
    """The feature set of one split, open for writing."""

    def __init__(self, objects: Objects, address: SplitAddress) -> None:
        self._objects = objects
        self._address = address

    @property
    def path(self) -> str:
        """Path of the split's group in the store."""
        return self._address.path

    def committed(self) -> dict[str, Segment]:
        """What counts for each shard, by shard name."""
        segments = counted_segments(split_commits(self._objects, self.path))
        return {segment.member.shard.name: segment for segment in segments}

    def begin_part(self, shard: str) -> PartWriter:
        """Start the part of a shard."""
        part = f"{part_stem(shard)}.{secrets.token_hex(4)}"
        address = self._address
        return PartWriter(
            self._objects, f"{self.path}/{part}", recipe=address.recipe, crop_seconds=address.crop_seconds
        )

    def sweep(self) -> tuple[str, ...]:
        """Delete what counts for nothing: superseded parts, and orphans of writers that are gone.

        Returns
        -------
        tuple of str
            Names of what was deleted.
        """
        commits = {commit.part: commit for commit in split_commits(self._objects, self.path)}
        counted = {segment.commit.part for segment in counted_segments(commits.values())}
        names = group_names(self._objects, self.path)
        superseded = [name for name in names if name in commits and name not in counted]
        unknown = [name for name in names if name not in commits]
        orphans = [name for name in unknown if _is_abandoned(self._objects, f"{self.path}/{name}")]
        self.delete((*superseded, *orphans))
        fault_point("swept")
        return (*superseded, *orphans)

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
        commits = split_commits(self._objects, self.path, without=frozenset(without))
        with telling_what_to_do(self._objects):
            write_document(self._objects, self.path, self._address.split_document(commits))
        fault_point("catalogue-written")


def _is_abandoned(objects: Objects, path: str) -> bool:
    """Whether the writer of a part without commit record is gone."""
    try:
        content = read_document(objects, path)
    except DamagedPart:
        return False  # `verify --repair` decides about damage
    if content is None or "writing" not in content:
        # A writer's document comes before its arrays, and goes before them. Arrays without a document are what a killed
        # deletion left; a group with nothing in it yet may be a writer that is just beginning.
        return any(not name.startswith(".") for name in objects.children(path))
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
