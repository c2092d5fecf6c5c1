"""What a store holds: reads group documents into records, and nothing of the arrays.

A split's document carries a catalogue, the commit records of its parts as they were when a run ended. It saves a reader
from opening a thousand documents, and is never trusted alone: the listing of the group decides which parts there are,
and a part that the catalogue does not know is read from its own document.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from featstore.errors import DamagedPart, StoreError, StoreNotFound, StoreVersionError
from featstore.store.documents import SplitAddress, read_document
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    Segment,
    counted_segments,
)
from featstore.store.objects import Objects

__all__ = ["SplitEntry", "check_root", "group_names", "read_commit", "read_splits", "split_commits", "split_paths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One feature set as the store lists it: the rows that count for each shard, in order of shard name."""

    address: SplitAddress
    segments: tuple[Segment, ...]

    @property
    def path(self) -> str:
        """Path of its group."""
        return self.address.path

    @property
    def dataset_group(self) -> str:
        """Name of its dataset in the store, crop included."""
        return self.path.split("/")[1]

    @property
    def has_frames(self) -> bool:
        """Whether frames were stored for every shard."""
        return all(segment.commit.frames_stored for segment in self.segments)

    @property
    def clips(self) -> int:
        """Clips with embeddings."""
        return sum(segment.member.clips for segment in self.segments)

    @property
    def windows(self) -> int:
        """Windows, the rows of its arrays."""
        return sum(segment.member.windows for segment in self.segments)

    @property
    def frames(self) -> int:
        """Frames of all windows."""
        return sum(segment.member.frames for segment in self.segments)

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio."""
        return sum(segment.member.audio_seconds for segment in self.segments)


def check_root(objects: Objects) -> None:
    """Make sure that there is a store of a format this featstore can read.

    The store's own document is the first that a writer makes: while there is nothing beside it, there is no store yet.
    """
    is_empty = not group_names(objects, "")
    content = _root_document(objects)
    if content is None and is_empty:
        if objects.read(GROUP_DOCUMENT) is None:
            raise StoreNotFound(f"there is no store at {objects.url}: `featstore extract` makes one, or check the path")
        content = _root_document(objects)  # a writer may have made it since we first looked
    if content is None or "format" not in content:
        raise StoreError(f"{objects.url} is not a featstore store: its {GROUP_DOCUMENT} says nothing of featstore")
    if content["format"] != FORMAT_VERSION:
        raise StoreVersionError(
            f"{objects.url} has store format {content['format']}, and this featstore reads format {FORMAT_VERSION}: "
            "upgrade featstore, or extract into another store"
        )


def _root_document(objects: Objects) -> dict[str, Any] | None:
    try:
        return read_document(objects, "")
    except DamagedPart as error:
        raise StoreError(f"{objects.url} is not a featstore store: {error.__cause__}") from error


def group_names(objects: Objects, prefix: str) -> tuple[str, ...]:
    """Names of the groups directly under `prefix`."""
    names = objects.children(prefix)
    return tuple(name for name in names if name != GROUP_DOCUMENT and not name.startswith("."))


def split_paths(objects: Objects) -> Iterator[str]:
    """Path of every group at the depth of a split."""
    for encoder in group_names(objects, ""):
        for dataset in group_names(objects, encoder):
            for split in group_names(objects, f"{encoder}/{dataset}"):
                yield f"{encoder}/{dataset}/{split}"


def read_commit(objects: Objects, split_path: str, part: str) -> Commit | None:
    """Commit record of a part; None where it has none yet."""
    content = read_document(objects, f"{split_path}/{part}")
    if content is None or "commit" not in content:
        return None
    try:
        return Commit.from_json(content["commit"])
    except DamagedDocument as error:
        raise DamagedPart(f"{objects.url}/{split_path}/{part} is damaged: {error}") from error


def split_commits(objects: Objects, split_path: str, *, without: Collection[str] = ()) -> tuple[Commit, ...]:
    """Every committed part of a split, superseded ones too, in order of name; parts named in `without` are not read."""
    known: dict[str, Commit] = {}
    for raw in (read_document(objects, split_path) or {}).get("catalogue", ()):
        commit = Commit.from_json(raw)
        known[commit.part] = commit
    present = (name for name in group_names(objects, split_path) if name not in without)
    found = (known.get(part) or read_commit(objects, split_path, part) for part in present)
    return tuple(commit for commit in found if commit is not None)


def read_splits(objects: Objects) -> Iterator[SplitEntry]:
    """Every feature set of the store, in order of path; groups that featstore did not write are passed over."""
    for path in split_paths(objects):
        content = read_document(objects, path)
        if content is None or "split" not in content:
            continue
        segments = counted_segments(split_commits(objects, path))
        if segments:
            yield SplitEntry(address=SplitAddress.from_document(content), segments=segments)
