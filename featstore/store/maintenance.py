"""Garbage collection and compaction: deletes obsolete parts, and merges small parts."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featstore.errors import StoreError
from featstore.records import JsonRecord
from featstore.store.catalogue import SplitEntry, check_root, read_commits, read_splits, split_address, split_paths
from featstore.store.documents import damaged, missing_object, read_document
from featstore.store.feature_set import FeatureSet
from featstore.store.filesystem import Objects, is_temporary, open_objects
from featstore.store.format import Segment, is_part_name
from featstore.store.part_check import PartReading
from featstore.store.part_writer import WindowBlock, is_disk_full
from featstore.store.writer import SplitWriter

__all__ = ["CompactRecord", "GcRecord", "compact_store", "gc_store"]

logger = logging.getLogger(__name__)

_WINDOWS_PER_BLOCK = 256
_SPLIT_DEPTH = 3  # encoder, dataset and split come before a part
_TEMPORARY_MAX_AGE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GcRecord(JsonRecord):
    """Names of the parts and orphans that were deleted from one feature set.

    ``left`` are the names in its group that featstore did not write.
    """

    path: str
    deleted: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactRecord(JsonRecord):
    """Number of parts of a feature set before and after compaction."""

    path: str
    parts_before: int
    parts_after: int


def gc_store(url: str) -> tuple[GcRecord, ...]:
    """Delete superseded parts, orphans of dead writers and temporary files older than an hour; rewrite catalogues.

    Parts of live writers and foreign items are kept. On a full disk, parts are deleted before the catalogue is written,
    which may then be outdated. There is one record for each feature set with deleted or foreign items.
    """
    objects = open_objects(url)
    check_root(objects)
    records = []
    for path in split_paths(objects, texts=True):
        content = read_document(objects, path)
        if content is None or "split" not in content:
            continue
        writer = SplitWriter(objects, split_address(objects, path, content))
        deleted = writer.sweep()
        try:
            writer.write_catalogue()
        except StoreError as error:
            if not is_disk_full(error):
                raise
            logger.warning("the catalogue of %s/%s is outdated: %s", url, path, error)
        left = writer.foreign()
        if deleted or left:
            records.append(GcRecord(path=path, deleted=deleted, left=left))
    temporary = tuple(_delete_dead_temporaries(objects))
    if temporary:
        records.append(GcRecord(path="", deleted=temporary))
    return tuple(records)


def compact_store(url: str, *, part_bytes: int) -> tuple[CompactRecord, ...]:
    """Merge adjacent small parts of each feature set to parts of about `part_bytes`.

    A new part is committed like any other, and its source parts are deleted afterwards, so that a killed run loses
    nothing. There is one record for each feature set that changed.

    Raises
    ------
    DamagedPart
        A part is damaged. Parts that were merged before remain.
    """
    objects = open_objects(url)
    check_root(objects)
    records = []
    for entry in read_splits(objects, split_paths(objects)):
        groups = [group for group in _groups(entry, part_bytes) if len({each.commit.part for each in group}) > 1]
        if not groups:
            continue
        writer = SplitWriter(objects, entry.address)
        before = len({segment.commit.part for segment in entry.segments})
        for group in groups:
            _check_parts(objects, entry, group)
            _merge(objects, writer, entry, group)
        writer.sweep()
        writer.write_catalogue()
        after = len({segment.commit.part for segment in writer.committed().values()})
        records.append(CompactRecord(path=entry.path, parts_before=before, parts_after=after))
    return tuple(records)


def _groups(entry: SplitEntry, part_bytes: int) -> Iterator[tuple[Segment, ...]]:
    """Group adjacent segments that fit into one part; segments with and without frames are not mixed."""
    group: list[Segment] = []
    size = 0
    for segment in entry.segments:
        cost = _array_bytes(entry, segment)
        if group and (size + cost > part_bytes or group[-1].commit.frames_stored != segment.commit.frames_stored):
            yield tuple(group)
            group, size = [], 0
        group.append(segment)
        size += cost
    if group:
        yield tuple(group)


def _array_bytes(entry: SplitEntry, segment: Segment) -> int:
    recipe = entry.address.recipe
    itemsize = 2 if recipe.frame_dtype == "float16" else 4
    frames = (
        segment.member.frames if segment.commit.frames_stored else 0
    )  # the count includes frames that a copy omitted
    return recipe.dim * (4 * segment.member.windows + itemsize * frames)


def _check_parts(objects: Objects, entry: SplitEntry, group: Sequence[Segment]) -> None:
    """Check the parts of a group against their seals, because memory-mapped reads are not checked.

    Reads from a remote store are always checked.
    """
    if objects.root is None:
        return
    names = list(dict.fromkeys(segment.commit.part for segment in group))
    for name, commit in zip(names, read_commits(objects, entry.path, names), strict=True):
        where = f"{entry.path}/{name}"
        if commit is None:
            raise missing_object(f"{objects.url}/{where}")
        for finding in PartReading(objects, where, commit, large=threading.Semaphore()).sealed_objects():
            if finding.remedy == "drop the part":
                raise damaged(objects.url, where, f"is damaged: {finding.problem}")


def _merge(objects: Objects, writer: SplitWriter, entry: SplitEntry, group: Sequence[Segment]) -> None:
    """Commit a part that replaces the parts of a group, unless a concurrent writer has replaced one of them."""
    source = FeatureSet(objects, SplitEntry(address=entry.address, segments=tuple(group)))
    frames = source.frames if source.has_frames else None
    generation = 1 + max(segment.commit.generation for segment in group)
    with writer.begin_part(f"compacted-{group[0].member.shard.name}", generation=generation) as part:
        for start in range(0, len(source), _WINDOWS_PER_BLOCK):
            window_slice = slice(start, min(start + _WINDOWS_PER_BLOCK, len(source)))
            part.add_block(
                WindowBlock(
                    keys=[str(key) for key in source.key[window_slice]],
                    metas=[str(meta) for meta in source.meta_json[window_slice]],
                    start_seconds=source.start_seconds[window_slice],
                    seconds=source.seconds[window_slice],
                    utterance=source.utterance[window_slice],
                    frames=None
                    if frames is None
                    else frames.ragged(range(window_slice.start, window_slice.stop)).values,
                    frame_counts=None if frames is None else frames.lengths[window_slice],
                )
            )
        members = [segment.member for segment in group]
        counted = {name: segment.commit.part for name, segment in writer.committed().items()}
        if all(counted.get(segment.member.shard.name) == segment.commit.part for segment in group):
            part.commit(members, frames_stored=frames is not None, versions=_common_versions(group))


def _common_versions(group: Sequence[Segment]) -> Mapping[str, str]:
    """Each library's version, or versions if they differ between the parts."""
    found: dict[str, set[str]] = {}
    for segment in group:
        for name, version in segment.commit.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


def _delete_dead_temporaries(objects: Objects) -> Iterator[str]:
    """Delete temporary files of killed processes, and empty folders of parts, that are older than an hour.

    Their age is measured with the store's clock. Object stores have neither.
    """
    if objects.root is None or (now := objects.clock("")) is None:
        return
    for path in sorted(objects.root.rglob("*"), reverse=True):  # the content of a folder precedes the folder
        with contextlib.suppress(FileNotFoundError):  # a live writer may rename or delete it
            within = path.relative_to(objects.root).parts
            is_temporary_file = is_temporary(path.name) and path.is_file()
            is_empty_part = (
                len(within) > _SPLIT_DEPTH
                and is_part_name(within[_SPLIT_DEPTH])
                and path.is_dir()
                and not any(path.iterdir())
            )
            if (is_temporary_file or is_empty_part) and now - path.stat().st_mtime > _TEMPORARY_MAX_AGE_SECONDS:
                path.unlink() if is_temporary_file else path.rmdir()
                yield path.relative_to(objects.root).as_posix()
