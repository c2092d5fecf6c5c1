"""What a store holds: reads group documents into records, and nothing of the arrays.

A split's document carries a catalogue, the commit records of its parts as they were when a run ended. It saves a reader
from opening a thousand documents, and is never trusted alone: the listing of the group decides which parts there are,
and a part that the catalogue does not know is read from its own document.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featstore.errors import DamagedPart, StoreError, StoreNotFound, StoreVersionError
from featstore.shard_patterns import ShardPattern
from featstore.store.documents import SplitAddress, damaged, read_document, read_documents
from featstore.store.filesystem import ForeignFile, Objects, is_temporary
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    Segment,
    counted_segments,
    is_name_of_ours,
    is_object_name,
    is_part_name,
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
    "split_commits",
    "split_paths",
    "view_of_shards",
]

MOST_SPLITS = 100_000  # a server may list names for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One feature set as the store lists it: the rows that count for each shard, in order of shard name.

    ``homes`` are the paths of the groups that the segments are stored in, one for each segment; empty where all are
    stored in the group of the address.
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
        """Each segment behind the path of the group that it is stored in."""
        return tuple(zip(self.homes or (self.path,) * len(self.segments), self.segments, strict=True))

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


def view_of_shards(entries: Sequence[SplitEntry], *, split: str, pattern: ShardPattern) -> SplitEntry | None:
    """The shards of a dataset that a pattern names, whichever splits they were extracted as; None where there is none.

    Parameters
    ----------
    entries : sequence of SplitEntry
        Feature sets of one dataset under one recipe.
    split : str
        The split that the view stands for. A shard that several groups hold is taken from this split's own group, and
        where that lacks it from the newest part.
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
    """Make sure that there is a store of a format this featstore can read.

    The store's own document is the first that a writer makes: while there is nothing beside it, there is no store yet.
    """
    content = _root_document(objects)
    if content is None:
        if not group_names(objects, "") and objects.read(GROUP_DOCUMENT) is None:
            raise StoreNotFound(f"there is no store at {objects.url}: `featstore extract` makes one, or check the path")
        content = _root_document(objects)  # a writer may have made it since we first looked
    if content is None or "format" not in content:
        says = (
            "has no" if content is None and objects.read(GROUP_DOCUMENT) is None else "says nothing of featstore in its"
        )
        raise StoreError(f"{objects.url} is not a featstore store: it {says} {GROUP_DOCUMENT}")
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
    """Names directly under `prefix` that groups of featstore may have; any other name is foreign, and is left alone."""
    return tuple(filter(_may_be_a_group, objects.children(prefix)))


def foreign_names(objects: Objects, prefix: str) -> tuple[str, ...]:
    """Names directly under `prefix` that no group of featstore has; temporary files of a writer are not among them."""
    names = objects.children(prefix)
    return tuple(name for name in names if not (_may_be_a_group(name) or name == GROUP_DOCUMENT or name[:1] == "."))


def _may_be_a_group(name: str) -> bool:
    return name != GROUP_DOCUMENT and is_name_of_ours(name)


def is_foreign_group(objects: Objects, split_path: str, name: str) -> bool:
    """Whether what is in a split's group, and is no committed part, is not of featstore: it is never deleted."""
    path = f"{split_path}/{name}"
    if not is_part_name(name):
        return True
    try:
        if objects.read(path) is not None:
            return True
    except ForeignFile:
        return True
    if not is_without_document(objects, path):
        return False  # it is being written, or `verify --repair` decides about damage
    # A writer killed while it wrote its document left a temporary file and nothing else.
    return any(not (key.startswith(".") or is_object_name(key)) for key in objects.sizes(path))


def foreign_paths(objects: Objects, entries: Sequence[SplitEntry]) -> Iterator[str]:
    """Path of everything that is in a store and not of featstore, and of nothing below it.

    `entries` are the feature sets of the store: what the documents above them are of is known without reading them.
    """
    known = {path for entry in entries for path in entry.address.documents()}
    waiting = [""]
    while waiting:
        above = waiting.pop()
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
                waiting += [] if is_foreign else [path]
            if is_foreign:
                yield path


def is_without_document(objects: Objects, path: str) -> bool:
    """Whether a group has no document of featstore, sound or damaged."""
    try:
        return read_document(objects, path) is None
    except DamagedPart:
        return False  # `verify --repair` decides about damage


def split_paths(
    objects: Objects, *, encoder: str | None = None, dataset: str | None = None, split: str | None = None
) -> Iterator[str]:
    """Path of every group at the depth of a split; where names are given, only of these, and nothing else is listed.

    `encoder` is ``logmel`` or ``logmel@3f9c2a71``.
    """
    found = 0
    for above in group_names(objects, ""):
        if encoder not in (None, above, above.rpartition("@")[0]):
            continue
        for group in group_names(objects, above):
            if dataset not in (None, group):
                continue
            for name in group_names(objects, f"{above}/{group}"):
                if split in (None, name):
                    found += 1
                    if found > MOST_SPLITS:
                        raise StoreError(
                            f"{objects.url} lists more than {MOST_SPLITS:,} feature sets: name one of them"
                        )
                    yield f"{above}/{group}/{name}"


def read_commit(objects: Objects, split_path: str, part: str) -> Commit | None:
    """Commit record of a part; None where it has none yet."""
    [commit] = read_commits(objects, split_path, [part])
    return commit


def read_commits(objects: Objects, split_path: str, parts: Sequence[str]) -> Iterator[Commit | None]:
    """Commit records of parts, in order: None for one that has none yet."""
    for part, content in zip(parts, read_documents(objects, [f"{split_path}/{part}" for part in parts]), strict=True):
        if content is None or "commit" not in content:
            yield None
            continue
        try:
            yield Commit.from_json(content["commit"], part=part)
        except DamagedDocument as error:
            raise damaged(objects.url, f"{split_path}/{part}", f"is damaged: {error}") from error


def split_commits(objects: Objects, split_path: str) -> tuple[Commit, ...]:
    """Every committed part of a split, superseded ones too, in order of name."""
    return look_at_split(objects, split_path, read_document(objects, split_path)).commits


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """What is in a split's group at one moment: names of its groups, and the commit records of those that have one.

    ``catalogued`` says whether the catalogue knew just these records. ``discarded`` are folders whose deletion was cut
    short, of a local store.
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
    """List a split's group, and read what neither its document nor `also_known` says: one request where nothing is.

    A catalogue that lists parts which are gone hides nothing and adds nothing, and a group that is not called as a part
    is never read: it is not of featstore.
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
    """Commit records of a split's catalogue, by part; DamagedPart where it is not one."""
    raw = document.get("catalogue", [])
    try:
        if not isinstance(raw, list):
            raise DamagedDocument("it is no list")
        commits = map(Commit.from_json, raw)
        return {commit.part: commit for commit in commits}
    except DamagedDocument as error:
        raise damaged(objects.url, split_path, f"is damaged: in its catalogue, {error}") from error


def read_split(objects: Objects, path: str) -> SplitEntry | None:
    """The feature set at a path, in two requests: its document, and a listing; None where there is none.

    Raises
    ------
    DamagedPart
        Its document, or the record of one of its parts, is not as featstore writes it.
    """
    content = read_document(objects, path)
    if content is None or "split" not in content:
        return None  # a group that featstore did not write
    address = split_address(objects, path, content)
    segments = counted_segments(look_at_split(objects, path, content).commits)
    return SplitEntry(address=address, segments=segments) if segments else None


def split_address(objects: Objects, path: str, content: Mapping[str, Any]) -> SplitAddress:
    """Read the document of the split at a path; DamagedPart where it is no split's, or that of another path."""
    try:
        address = SplitAddress.from_document(content)
        if address.path != path:
            raise DamagedDocument(f"it is the document of {address.path}")
    except DamagedDocument as error:
        raise damaged(objects.url, path, f"is damaged: {error}") from error
    return address


def known_address(objects: Objects, path: str) -> SplitAddress | None:
    """Address of a split, from its own document, or from those above it where its own is damaged.

    None where none of them says that featstore made a split there: whatever lies there may be anybody's.
    """
    encoder, dataset, split = path.split("/")
    for sources in ((path,), (encoder, f"{encoder}/{dataset}")):
        try:
            content: dict[str, Any] = {"split": split}
            for source in sources:
                content |= read_document(objects, source) or {}
            address = SplitAddress.from_document(content)
        except (DamagedPart, DamagedDocument):
            continue
        if address.path == path:
            return address
    return None


def read_splits(objects: Objects) -> Iterator[SplitEntry]:
    """Every feature set of the store, in order of path; groups that featstore did not write are passed over."""
    for path in split_paths(objects):
        if (entry := read_split(objects, path)) is not None:
            yield entry
