"""Keeps a store tidy: deletes what counts for nothing, and makes one part of many small ones."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featstore.errors import StoreError
from featstore.store.catalogue import SplitEntry, check_root, read_commits, read_splits, split_address, split_paths
from featstore.store.documents import damaged, gone, read_document
from featstore.store.feature_set import FeatureSet
from featstore.store.filesystem import Objects, is_temporary, open_objects
from featstore.store.format import Segment, is_part_name
from featstore.store.part_check import PartReading
from featstore.store.part_writer import WindowBlock, is_disk_full
from featstore.store.writer import SplitWriter

__all__ = ["CompactRecord", "GcRecord", "compact_store", "gc_store"]

logger = logging.getLogger(__name__)

_WINDOWS_AT_ONCE = 256
_SPLIT_DEPTH = 3  # encoder, dataset and split come before a part
_TEMPORARY_IS_DEAD_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GcRecord:
    """What was deleted of one feature set: names of its parts and orphans.

    ``left`` are names in its group that featstore did not write.
    """

    path: str
    deleted: tuple[str, ...]
    left: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactRecord:
    """How many parts one feature set had, and has now."""

    path: str
    parts_before: int
    parts_after: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def gc_store(url: str) -> tuple[GcRecord, ...]:
    """Delete superseded parts, orphans of writers that are gone, and temporary files an hour old; rewrite catalogues.

    What a live writer is making stays, and so does what featstore did not write. On a full disk parts are deleted
    before the catalogue is written, which may then be behind. One record for each feature set that lost anything, or
    that has something in its group which is not of featstore.
    """
    objects = open_objects(url)
    check_root(objects)
    records = []
    for path in split_paths(objects):
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
            logger.warning("the catalogue of %s/%s is behind: %s", url, path, error)
        left = writer.foreign()
        if deleted or left:
            records.append(GcRecord(path=path, deleted=deleted, left=left))
    temporary = tuple(_delete_dead_temporaries(objects))
    if temporary:
        records.append(GcRecord(path="", deleted=temporary))
    return tuple(records)


def compact_store(url: str, *, part_bytes: int) -> tuple[CompactRecord, ...]:
    """Make parts of about `part_bytes` from the small parts of each feature set that stand together.

    A new part is committed like any other, and the parts it was made of are deleted afterwards; a killed run leaves the
    old parts, or both, never less. One record for each feature set that changed.

    Raises
    ------
    DamagedPart
        A part is not what was committed; what was compacted before it is.
    """
    objects = open_objects(url)
    check_root(objects)
    records = []
    for entry in read_splits(objects):
        groups = [group for group in _groups(entry, part_bytes) if len({each.commit.part for each in group}) > 1]
        if not groups:
            continue
        writer = SplitWriter(objects, entry.address)
        before = len({segment.commit.part for segment in entry.segments})
        for group in groups:
            _check_sound(objects, entry, group)
            _write_together(objects, writer, entry, group)
        writer.sweep()
        writer.write_catalogue()
        after = len({segment.commit.part for segment in writer.committed().values()})
        records.append(CompactRecord(path=entry.path, parts_before=before, parts_after=after))
    return tuple(records)


def _groups(entry: SplitEntry, part_bytes: int) -> Iterator[tuple[Segment, ...]]:
    """Neighbours that fit into one part; with and without frames apart."""
    group: list[Segment] = []
    size = 0
    for segment in entry.segments:
        cost = _numbers_bytes(entry, segment)
        if group and (size + cost > part_bytes or group[-1].commit.frames_stored != segment.commit.frames_stored):
            yield tuple(group)
            group, size = [], 0
        group.append(segment)
        size += cost
    if group:
        yield tuple(group)


def _numbers_bytes(entry: SplitEntry, segment: Segment) -> int:
    recipe = entry.address.recipe
    itemsize = 2 if recipe.frame_dtype == "float16" else 4
    frames = segment.member.frames if segment.commit.frames_stored else 0  # it counts those that a copy left behind
    return recipe.dim * (4 * segment.member.windows + itemsize * frames)


def _check_sound(objects: Objects, entry: SplitEntry, group: Sequence[Segment]) -> None:
    """Hold the parts of a group against their seals: a map checks nothing, and the new part's seals would vouch for it.

    What is read of a remote store is checked as it comes.
    """
    if objects.root is None:
        return
    names = list(dict.fromkeys(segment.commit.part for segment in group))
    for name, commit in zip(names, read_commits(objects, entry.path, names), strict=True):
        where = f"{entry.path}/{name}"
        if commit is None:
            raise gone(f"{objects.url}/{where}")
        for finding in PartReading(objects, where, commit, large=threading.Semaphore()).sealed_objects():
            if finding.remedy == "drop the part":
                raise damaged(objects.url, where, f"is damaged: {finding.problem}")


def _write_together(objects: Objects, writer: SplitWriter, entry: SplitEntry, group: Sequence[Segment]) -> None:
    """Commit a part that replaces those of a group, unless another writer has replaced one of them meanwhile."""
    source = FeatureSet(objects, SplitEntry(address=entry.address, segments=tuple(group)))
    frames = source.frames if source.has_frames else None
    generation = 1 + max(segment.commit.generation for segment in group)
    with writer.begin_part(f"compacted-{group[0].member.shard.name}", generation=generation) as part:
        for start in range(0, len(source), _WINDOWS_AT_ONCE):
            some = slice(start, min(start + _WINDOWS_AT_ONCE, len(source)))
            part.add_block(
                WindowBlock(
                    keys=[str(key) for key in source.key[some]],
                    metas=[str(meta) for meta in source.meta_json[some]],
                    start_seconds=source.start_seconds[some],
                    seconds=source.seconds[some],
                    utterance=source.utterance[some],
                    frames=None if frames is None else frames.ragged(range(some.start, some.stop)).values,
                    frame_counts=None if frames is None else frames.lengths[some],
                )
            )
        members = [segment.member for segment in group]
        counted = {name: segment.commit.part for name, segment in writer.committed().items()}
        if all(counted.get(segment.member.shard.name) == segment.commit.part for segment in group):
            part.commit(members, frames_stored=frames is not None, versions=_common_versions(group))


def _common_versions(group: Sequence[Segment]) -> Mapping[str, str]:
    """Each library's version, or its versions where the parts were made with several."""
    found: dict[str, set[str]] = {}
    for segment in group:
        for name, version in segment.commit.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


def _delete_dead_temporaries(objects: Objects) -> Iterator[str]:
    """Temporary files that killed processes left anywhere, and what is empty of a part, when they are an hour old.

    The store's clock says how old they are. An object store has neither.
    """
    if objects.root is None or (now := objects.clock("")) is None:
        return
    for path in sorted(objects.root.rglob("*"), reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(FileNotFoundError):  # a writer that lives has renamed it, or deleted it, meanwhile
            within = path.relative_to(objects.root).parts
            dead_file = is_temporary(path.name) and path.is_file()
            empty_part = (
                len(within) > _SPLIT_DEPTH
                and is_part_name(within[_SPLIT_DEPTH])
                and path.is_dir()
                and not any(path.iterdir())
            )
            if (dead_file or empty_part) and now - path.stat().st_mtime > _TEMPORARY_IS_DEAD_AFTER_SECONDS:
                path.unlink() if dead_file else path.rmdir()
                yield path.relative_to(objects.root).as_posix()
