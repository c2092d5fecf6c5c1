"""Copies feature sets from one store to another, part by part, between folders and URLs.

A copied part has the same objects as the original, each checked against its seal, and the same commit record except for
two fields. Its name is new, so that no object of the target is ever overwritten, even with concurrent copies, writers
and readers. Its generation is greater than that of the parts it replaces.

Parts that the target already has are recognised by content: the SHA-256 of their shards, and the recipe. So a copy that
was killed resumes, and its incomplete part is not visible to readers.

A part copied without frames has a commit record that lists only the copied objects. The content hash that scores refer
to is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from featstore.errors import DamagedPart, StoreError, UnknownFeatureSet
from featstore.records import JsonRecord
from featstore.remote import NETWORK_THREADS
from featstore.store.cache import sealed_object
from featstore.store.catalogue import SplitEntry, check_root, group_names, read_commits, read_splits, split_paths
from featstore.store.documents import SplitAddress
from featstore.store.encoder_groups import copy_notes
from featstore.store.filesystem import Objects, open_objects
from featstore.store.format import Commit, Member, Segment
from featstore.store.prefetch import in_order
from featstore.store.texts import text_entries
from featstore.store.writer import open_split_writer_at

__all__ = ["CopyRecord", "copy_store", "without_frames"]

_PARALLEL_PARTS = 8
_SMALL_BYTES = 1 << 20
_SMALL_AHEAD = 16  # small objects prefetched per part; of large objects (up to 64 MiB) one, so 8 parts buffer 512 MiB
_FRAME_ARRAYS = ("frames", "frame_offsets")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRecord(JsonRecord):
    """Result of copying one feature set to ``path`` of the target.

    ``there`` is the number of parts that the target already had; ``replaced`` of the copied parts replaced parts with
    other content of the same shards. ``objects`` and ``bytes`` were copied.
    """

    path: str
    parts: int
    copied: int
    there: int
    replaced: int
    objects: int
    bytes: int


def copy_store(
    source_url: str,
    target_url: str,
    *,
    only: Literal["everything", "utterance"],
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    on_part: Callable[[str], None] = lambda _: None,
) -> tuple[CopyRecord, ...]:
    """Copy the matching feature sets of a store to another store, with all stored texts of their encoders.

    Parameters
    ----------
    source_url, target_url : str
        Folders or URLs. The target is created if it does not exist.
    only : "everything" or "utterance"
        ``"utterance"`` copies no frames.
    encoder, dataset, split : str, optional
        Selection, as for `Store.select`.
    on_part : callable
        Called with the path of each part when it is in the target.

    Raises
    ------
    UnknownFeatureSet
        Nothing matches.
    DamagedPart
        An object of the source differs from its seal. Earlier parts are in the target, the damaged part is not.
    StoreError
        A store cannot be read or written. Committed parts are kept, and the same call resumes.
    """
    source, target = open_objects(source_url), open_objects(target_url)
    if _location(source) == _location(target):
        raise StoreError(f"source and target are the same store: {source.url}")
    check_root(source)
    paths = split_paths(source, encoder=encoder, dataset=dataset, split=split)
    entries = list(read_splits(source, paths))
    if not entries:
        raise UnknownFeatureSet(
            f"{source.url} has no feature set {encoder or '*'}/{dataset or '*'}/{split or '*'}: "
            f"`featstore inspect --store {source.url}` lists them"
        )
    groups = dict.fromkeys(entry.address.recipe.group_name for entry in entries)
    entries += [text for group in groups for text in text_entries(source, group)]
    return tuple(_copy_split(source, target, entry, only=only, on_part=on_part) for entry in entries)


def _address_in(target: Objects, address: SplitAddress) -> SplitAddress:
    """Address of a feature set in the target, which may have its encoder under another name."""
    names = group_names(target, "")
    recipe = address.recipe
    same = [name for name in names if name.endswith(f"@{recipe.fingerprint}")]
    if not same or recipe.group_name in same:
        return address
    return replace(address, recipe=recipe.renamed(same[0].rpartition("@")[0]))


def _location(objects: Objects) -> str:
    return objects.url.rstrip("/") if objects.root is None else str(objects.root.resolve())


def without_frames(commit: Commit) -> Commit:
    """Return the commit record of a part copied without frames.

    Members keep their frame counts, the numbers of frames that the utterance vectors were pooled from.
    """
    if not commit.frames_stored:
        return commit
    kept = {name: entry for name, entry in commit.objects.items() if name.split("/")[0] not in _FRAME_ARRAYS}
    return replace(commit, frames_stored=False, objects=kept)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part to copy: its commit record in the target, except for the name, and its current segments in the source."""

    commit: Commit
    segments: tuple[Segment, ...]
    replaces_other_content: bool = False


def _plan(parts: Sequence[_Part], counted: Mapping[str, Segment]) -> list[_Part]:
    """Parts that the target lacks, with generations that give them the same precedence as in the source."""
    wanted: list[_Part] = []
    copied: dict[str, Commit] = {}  # shard name -> last planned part with that shard, current or superseded
    for part in sorted(parts, key=lambda part: part.commit.order):
        there = {name: counted.get(name) for name in (segment.member.shard.name for segment in part.segments)}
        is_there = all(_has(there[each.member.shard.name], each, part.commit) for each in part.segments)
        older = [copied[member.shard.name] for member in part.commit.members if member.shard.name in copied]
        rivals = [segment.commit for segment in there.values() if segment is not None]
        if is_there and all(rival.order > other.order for rival in rivals for other in older):
            continue
        generation = max(part.commit.generation, *(1 + each.generation for each in (*rivals, *older)), 0)
        other = any(
            (present := there[each.member.shard.name]) is not None and not _is_same(present.member, each.member)
            for each in part.segments
        )
        commit = replace(part.commit, generation=generation)
        wanted.append(replace(part, commit=commit, replaces_other_content=other))
        copied |= {member.shard.name: commit for member in commit.members}
    return wanted


def _has(there: Segment | None, wanted: Segment, commit: Commit) -> bool:
    """Whether the target has a shard with the same content, and no fewer windows and frames."""
    return (
        there is not None
        and _is_same(there.member, wanted.member)
        and there.commit.recipe_fingerprint == commit.recipe_fingerprint
        and there.commit.frames_stored >= commit.frames_stored
        and (there.member.windows, there.member.frames) >= (wanted.member.windows, wanted.member.frames)
    )


def _is_same(one: Member, other: Member) -> bool:
    """Whether two members were made from the same bytes."""
    if one.shard.sha256 and other.shard.sha256:
        return one.shard.sha256 == other.shard.sha256
    return one.shard == other.shard


def _copy_split(
    source: Objects,
    target: Objects,
    entry: SplitEntry,
    *,
    only: Literal["everything", "utterance"],
    on_part: Callable[[str], None],
) -> CopyRecord:
    parts = _parts_of(source, entry, only=only)
    address = _address_in(target, entry.address)
    writer = open_split_writer_at(target, address)
    copy_notes(source, entry.path.split("/")[0], target, address.path.split("/")[0])
    wanted = _plan(parts, writer.begin_run())
    if writer.has_leftovers:
        writer.sweep()
    for _ in range(len(parts) - len(wanted)):
        on_part(entry.path)
    try:
        with (
            ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="copy") as pool,
            ThreadPoolExecutor(NETWORK_THREADS, thread_name_prefix="read") as reads,
        ):

            def copy_part(part: _Part) -> str:
                path = f"{entry.path}/{part.commit.part}"
                writer.copy_part(part.commit, _objects_of(source, path, part.commit, pool=reads))
                return path

            for path in in_order(pool, copy_part, wanted, ahead=_PARALLEL_PARTS):
                on_part(path)
    finally:
        if wanted:
            writer.sweep()
        if wanted or not writer.is_catalogued:
            writer.write_catalogue()
    seals = [each for part in wanted for each in part.commit.objects.values()]
    return CopyRecord(
        path=address.path,
        parts=len(parts),
        copied=len(wanted),
        there=len(parts) - len(wanted),
        replaced=sum(part.replaces_other_content for part in wanted),
        objects=len(seals),
        bytes=sum(each.size for each in seals),
    )


def _parts_of(source: Objects, entry: SplitEntry, *, only: Literal["everything", "utterance"]) -> list[_Part]:
    """Parts with current segments in the source, with their seals, and without frames if these are not copied."""
    segments: dict[str, list[Segment]] = {}
    for segment in entry.segments:
        segments.setdefault(segment.commit.part, []).append(segment)
    found: list[_Part] = []
    for name, commit in zip(segments, read_commits(source, entry.path, list(segments)), strict=True):
        if commit is None:
            raise DamagedPart(f"{source.url}/{entry.path}/{name} was deleted: run the same command again")
        kept = without_frames(commit) if only == "utterance" else commit
        found.append(_Part(kept, tuple(segments[name])))
    return found


def _objects_of(source: Objects, path: str, commit: Commit, *, pool: ThreadPoolExecutor) -> Iterator[tuple[str, bytes]]:
    """Read the objects of a part, checked against their seals: small ones in parallel, large ones one by one."""
    small = [name for name, entry in commit.objects.items() if entry.size <= _SMALL_BYTES]
    large = [name for name, entry in commit.objects.items() if entry.size > _SMALL_BYTES]
    for names, ahead in ((small, _SMALL_AHEAD), (large, 1)):
        keys = [(f"{path}/{name}", commit.objects[name]) for name in names]
        read = in_order(pool, lambda each: sealed_object(source, *each), keys, ahead=ahead)
        yield from zip(names, read, strict=True)
