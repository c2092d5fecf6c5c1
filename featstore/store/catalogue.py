"""Contents of a store: reads group documents into records, and no arrays.

The document of a split contains a catalogue: the commit records of its parts at the end of the last run. The catalogue
saves a reader from opening a thousand documents. The listing of the group decides which parts exist, and a part that is
missing from the catalogue is read from its own document.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featstore.errors import DamagedPart, StoreError, StoreNotFound, StoreVersionError
from featstore.shard_patterns import ShardPattern
from featstore.store.documents import SplitAddress, damaged, read_document, read_documents
from featstore.store.filesystem import ForeignFile, Objects, is_temporary
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    TEXT_GROUP,
    Commit,
    DamagedDocument,
    Segment,
    counted_segments,
    is_object_name,
    is_part_name,
    is_store_name,
)

__all__ = [
    "SplitEntry",
    "SplitState",
    "check_root",
    "foreign_names",
    "foreign_paths",
    "group_names",
    "is_foreign_group",
    "is_without_document",
    "known_address",
    "look_at_split",
    "read_commit",
    "read_commits",
    "read_split",
    "read_splits",
    "split_address",
    "split_paths",
    "view_of_shards",
]

MOST_SPLITS = 100_000  # a server may list names endlessly


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One feature set: the current segment of each shard, in order of shard name.

    ``homes`` has the path of the group that each segment is stored in; it is empty if all are in the address's group.
    """

    address: SplitAddress
    segments: tuple[Segment, ...]
    homes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of its group."""
        return self.address.path

    @property
    def placed_segments(self) -> tuple[tuple[str, Segment], ...]:
        """Pairs of the path of a segment's group and the segment."""
        return tuple(zip(self.homes or (self.path,) * len(self.segments), self.segments, strict=True))


def view_of_shards(entries: Sequence[SplitEntry], *, split: str, pattern: ShardPattern) -> SplitEntry | None:
    """Return the shards of a dataset that match a pattern, from all its splits; None if no shard matches.

    Parameters
    ----------
    entries : sequence of SplitEntry
        Feature sets of one dataset under one recipe.
    split : str
        Split of the view. A shard that several groups contain is read from this split's group if it is there, else
        from the newest part.
    pattern : ShardPattern
    """
    chosen: dict[str, tuple[tuple[bool, tuple[int, str, str]], str, Segment]] = {}
    for entry in entries:
        for segment in entry.segments:
            name = segment.member.shard.name
            if not pattern.matches(name):
                continue
            rank = (entry.address.split == split, segment.commit.order)
            if name not in chosen or rank > chosen[name][0]:
                chosen[name] = (rank, entry.path, segment)
    if not chosen:
        return None
    address = next((entry.address for entry in entries if entry.address.split == split), entries[0].address)
    found = [chosen[name] for name in sorted(chosen)]
    return SplitEntry(
        address=replace(address, split=split),
        segments=tuple(segment for _, _, segment in found),
        homes=tuple(path for _, path, _ in found),
    )


def check_root(objects: Objects) -> None:
    """Check that there is a store, and that this featstore can read its format.

    A writer creates the store's document before anything else.
    """
    content = _root_document(objects)
    if content is None:
        if not group_names(objects, "") and objects.read(GROUP_DOCUMENT) is None:
            raise StoreNotFound(
                f"there is no store at {objects.url}: check the path, or make one with `featstore extract`"
            )
        content = _root_document(objects)  # a writer may have created it since the first read
    if content is None or "format" not in content:
        is_missing = content is None and objects.read(GROUP_DOCUMENT) is None
        problem = f"it has no {GROUP_DOCUMENT}" if is_missing else f"its {GROUP_DOCUMENT} has no featstore attributes"
        raise StoreError(f"{objects.url} is not a featstore store: {problem}")
    if content["format"] != FORMAT_VERSION:
        raise StoreVersionError(
            f"{objects.url} has store format {content['format']}, but this featstore reads format {FORMAT_VERSION}: "
            "upgrade featstore, or extract into another store"
        )


def _root_document(objects: Objects) -> dict[str, Any] | None:
    try:
        return read_document(objects, "")
    except DamagedPart as error:
        raise StoreError(f"{objects.url} is not a featstore store: {error.__cause__}") from error


def group_names(objects: Objects, prefix: str) -> tuple[str, ...]:
    """Names directly under `prefix` that featstore may give to a group. All other names are foreign and ignored."""
    return tuple(filter(_may_be_a_group, objects.children(prefix)))


def foreign_names(objects: Objects, prefix: str) -> tuple[str, ...]:
    """Names directly under `prefix` that featstore does not use, without the temporary files of writers."""
    names = objects.children(prefix)
    return tuple(name for name in names if not (_may_be_a_group(name) or name == GROUP_DOCUMENT or name[:1] == "."))


def _may_be_a_group(name: str) -> bool:
    return name != GROUP_DOCUMENT and is_store_name(name)


def is_foreign_group(objects: Objects, split_path: str, name: str) -> bool:
    """Whether featstore did not write an item of a split's group that is not a committed part: it is never deleted."""
    path = f"{split_path}/{name}"
    if not is_part_name(name):
        return True
    try:
        if objects.read(path) is not None:
            return True
    except ForeignFile:
        return True
    if not is_without_document(objects, path):
        return False  # a writer is writing it, or `verify --repair` handles the damage
    # A writer that was killed while it wrote its document left only a temporary file.
    return any(not (key.startswith(".") or is_object_name(key)) for key in objects.sizes(path))


def foreign_paths(objects: Objects, entries: Sequence[SplitEntry]) -> Iterator[str]:
    """Paths of foreign items, which featstore did not write; items below a foreign folder are not listed.

    `entries` are the feature sets of the store; the groups above them are not read again.
    """
    known = {path for entry in entries for path in entry.address.documents()}
    pending = [""]
    while pending:
        above = pending.pop()
        is_split = above.count("/") == 2
        parts = {segment.commit.part for entry in entries if entry.path == above for segment in entry.segments}
        for name in objects.children(above):
            path = f"{above}/{name}" if above else name
            if not _may_be_a_group(name):
                is_foreign = name != GROUP_DOCUMENT and not name.startswith(".")
            elif is_split:
                is_foreign = name not in parts and is_foreign_group(objects, above, name)
            else:
                is_foreign = path not in known and is_without_document(objects, path)
                pending += [] if is_foreign else [path]
            if is_foreign:
                yield path


def is_without_document(objects: Objects, path: str) -> bool:
    """Whether a group has no featstore document, intact or damaged."""
    try:
        return read_document(objects, path) is None
    except DamagedPart:
        return False  # `verify --repair` handles the damage


def split_paths(
    objects: Objects,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    texts: bool = False,
) -> Iterator[str]:
    """Yield the paths of the split groups that match; only groups that match are listed.

    `encoder` is ``logmel`` or ``logmel@3f9c2a71``. With `texts`, the groups of texts (`featstore.store.texts`) too.
    """
    found = 0
    for above in group_names(objects, ""):
        if encoder not in (None, above, above.rpartition("@")[0]):
            continue
        for group in (*group_names(objects, above), *((TEXT_GROUP,) if texts else ())):
            if dataset not in (None, group):
                continue
            for name in group_names(objects, f"{above}/{group}"):
                if split in (None, name):
                    found += 1
                    if found > MOST_SPLITS:
                        raise StoreError(
                            f"{objects.url} lists more than {MOST_SPLITS:,} feature sets: select one of them"
                        )
                    yield f"{above}/{group}/{name}"


def read_commit(objects: Objects, split_path: str, part: str) -> Commit | None:
    """Read the commit record of a part; None if it is not committed."""
    [commit] = read_commits(objects, split_path, [part])
    return commit


def read_commits(objects: Objects, split_path: str, parts: Sequence[str]) -> Iterator[Commit | None]:
    """Yield the commit records of parts, in order; None for a part that is not committed."""
    for part, content in zip(parts, read_documents(objects, [f"{split_path}/{part}" for part in parts]), strict=True):
        if content is None or "commit" not in content:
            yield None
            continue
        try:
            yield Commit.from_json(content["commit"], part=part)
        except DamagedDocument as error:
            raise damaged(objects.url, f"{split_path}/{part}", f"is damaged: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """Snapshot of a split's group: the names of its groups, and the commit records of the committed parts.

    ``catalogued`` is whether the catalogue lists exactly these parts. ``discarded`` are the folders of a local store
    whose deletion was interrupted.
    """

    names: tuple[str, ...]
    commits: tuple[Commit, ...]
    catalogued: bool
    discarded: tuple[str, ...]


def look_at_split(
    objects: Objects,
    split_path: str,
    document: Mapping[str, Any] | None,
    *,
    without: Collection[str] = (),
    also_known: Mapping[str, Commit] | None = None,
) -> SplitState:
    """List a split's group, and read the commit records that are neither in its document nor in `also_known`.

    If all records are known, this is one request. Parts of the catalogue that no longer exist are ignored. Groups whose
    names are not part names are foreign, and are not read.
    """
    catalogue = _catalogued(objects, split_path, document or {})
    known = {**(also_known or {}), **catalogue}
    children = objects.children(split_path)
    names = tuple(filter(_may_be_a_group, children))
    present = [name for name in names if name not in without and is_part_name(name)]
    unknown = [name for name in present if name not in known]
    read = dict(zip(unknown, read_commits(objects, split_path, unknown), strict=True))
    found = (known.get(part) or read[part] for part in present)
    commits = tuple(commit for commit in found if commit is not None)
    return SplitState(
        names=names,
        commits=commits,
        catalogued={commit.part for commit in commits} == set(catalogue),
        discarded=tuple(name for name in children if is_temporary(name) and is_part_name(name[1:].rpartition(".")[0])),
    )


def _catalogued(objects: Objects, split_path: str, document: Mapping[str, Any]) -> dict[str, Commit]:
    """Commit records of a split's catalogue, by part. Raises DamagedPart if the catalogue is invalid."""
    raw = document.get("catalogue", [])
    try:
        if not isinstance(raw, list):
            raise DamagedDocument("it is not a list")
        commits = map(Commit.from_json, raw)
        return {commit.part: commit for commit in commits}
    except DamagedDocument as error:
        raise damaged(objects.url, split_path, f"is damaged: in its catalogue, {error}") from error


def read_split(objects: Objects, path: str) -> SplitEntry | None:
    """Read the feature set at a path with two requests, its document and a listing; None if there is none.

    Raises
    ------
    DamagedPart
        Its document or a commit record is damaged.
    """
    content = read_document(objects, path)
    if content is None or "split" not in content:
        return None  # a group that featstore did not write
    address = split_address(objects, path, content)
    segments = counted_segments(look_at_split(objects, path, content).commits)
    return SplitEntry(address=address, segments=segments) if segments else None


def split_address(objects: Objects, path: str, content: Mapping[str, Any]) -> SplitAddress:
    """Read the address in a split's document. Raises DamagedPart if it is invalid, or belongs to another path."""
    try:
        return SplitAddress.from_document(content, path=path)
    except DamagedDocument as error:
        raise damaged(objects.url, path, f"is damaged: {error}") from error


def known_address(objects: Objects, path: str) -> SplitAddress | None:
    """Address of a split, from its own document, or from the documents above it if its own is damaged.

    None if no document shows that featstore wrote the split; it may then belong to other software.
    """
    encoder, dataset, split = path.split("/")
    for sources in ((path,), (encoder, f"{encoder}/{dataset}")):
        try:
            content: dict[str, Any] = {"split": split}
            for source in sources:
                content |= read_document(objects, source) or {}
            return SplitAddress.from_document(content, path=path)
        except (DamagedPart, DamagedDocument):
            continue
    return None


def read_splits(objects: Objects, paths: Iterable[str]) -> Iterator[SplitEntry]:
    """Yield the feature sets at paths; foreign groups are skipped."""
    for path in paths:
        if (entry := read_split(objects, path)) is not None:
            yield entry
