"""Copies feature sets from one store to another, part by part, between folders and URLs in any direction.

A copied part is the part: the same name, the same objects, each held against its seal on the way, and the same commit
record, put last. So a copy that was killed goes on where it was, and what it left is no part.

Without frames a part is another part. Its record says so, and names the objects that it has; its name is made from the
original's, so that a second copy finds it. What its vectors were made from, and with it the content hash that scores
name, is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from featstore.errors import DamagedPart, StoreError, UnknownFeatureSet
from featstore.remote import NETWORK_THREADS
from featstore.store.ahead import in_order
from featstore.store.cache import sealed_object
from featstore.store.catalogue import SplitEntry, check_root, read_commits, read_split, split_commits, split_paths
from featstore.store.encoder_groups import copy_notes
from featstore.store.faults import fault_point
from featstore.store.format import GROUP_DOCUMENT, Commit, Segment, part_stem, seal
from featstore.store.objects import Objects, open_objects
from featstore.store.part import telling_what_to_do, writing_document
from featstore.store.writer import SplitWriter, open_split_writer_at

__all__ = ["CopyRecord", "copy_store", "without_frames"]

_PARTS_AT_A_TIME = 8
_SMALL_BYTES = 1 << 20
_SMALL_AHEAD = 16  # of one part; of large objects, up to 64 MiB each, there is one: eight parts hold half a gigabyte
_FRAME_ARRAYS = ("frames", "frame_offsets")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRecord:
    """What became of one feature set: its parts, those copied now, those that were there, and what travelled."""

    path: str
    parts: int
    copied: int
    there: int
    objects: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


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
    """Bring the feature sets of one store that match, or all, into another.

    Parameters
    ----------
    source_url, target_url : str
        Folders or URLs. The target is made where there is none.
    only : "everything" or "utterance"
        Whether frames come along.
    encoder, dataset, split : str, optional
        Only these, as `Store.select` takes them.
    on_part : callable
        Told the path of each part when it is in the target.

    Raises
    ------
    UnknownFeatureSet
        Nothing matches.
    DamagedPart
        An object of the source is not what was committed: parts before it are in the target, that one is not.
    StoreError
        A store cannot be read or written; what is committed is safe, and the same call goes on.
    """
    source, target = open_objects(source_url), open_objects(target_url)
    if _place(source) == _place(target):
        raise StoreError(f"source and target are one store: {source.url}")
    check_root(source)
    paths = split_paths(source, encoder=encoder, dataset=dataset, split=split)
    entries = [entry for entry in (read_split(source, path) for path in paths) if entry is not None]
    if not entries:
        raise UnknownFeatureSet(
            f"{source.url} holds nothing of {encoder or '*'}/{dataset or '*'}/{split or '*'}: "
            f"`featstore inspect --store {source.url}` shows what is there"
        )
    return tuple(_SplitCopy(source, target, entry, only=only, on_part=on_part).run() for entry in entries)


def _place(objects: Objects) -> str:
    return objects.url.rstrip("/") if objects.root is None else str(objects.root.resolve())


def without_frames(commit: Commit) -> Commit:
    """The record of a part's copy that leaves its frames out.

    Members keep their counts of frames, which say what the vectors are means of. The name is the shard's and a hash.
    """
    if not commit.frames_stored:
        return commit
    stem, _, _ = commit.part.rpartition(".")
    suffix = hashlib.sha256(f"utterance of {commit.part}".encode()).hexdigest()[:8]
    kept = {name: entry for name, entry in commit.objects.items() if name.split("/")[0] not in _FRAME_ARRAYS}
    return replace(commit, part=f"{part_stem(stem)}.{suffix}", frames_stored=False, objects=kept)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part to copy: its name in the source, and the record it gets in the target."""

    name: str
    commit: Commit


class _SplitCopy:
    def __init__(
        self,
        source: Objects,
        target: Objects,
        entry: SplitEntry,
        *,
        only: Literal["everything", "utterance"],
        on_part: Callable[[str], None],
    ) -> None:
        self._source = source
        self._target = target
        self._entry = entry
        self._only = only
        self._on_part = on_part
        self._reads = ThreadPoolExecutor(NETWORK_THREADS, thread_name_prefix="read")

    def run(self) -> CopyRecord:
        parts = self._parts()
        writer = open_split_writer_at(self._target, self._entry.address)
        copy_notes(self._source, self._target, self._entry.path.split("/")[0])
        counted = writer.begin_run()
        wanted: list[_Part] = []
        for part in parts:
            if self._is_there(part.commit, counted):
                self._on_part(f"{self._entry.path}/{part.commit.part}")
            else:
                wanted.append(part)
        try:
            with ThreadPoolExecutor(_PARTS_AT_A_TIME, thread_name_prefix="copy") as pool, self._reads:
                for commit in in_order(pool, self._copy, wanted, ahead=_PARTS_AT_A_TIME):
                    writer.adopt(commit)
                    self._on_part(f"{self._entry.path}/{commit.part}")
        finally:
            if wanted or not writer.is_catalogued:
                self._finish(writer, [part.commit for part in parts])
        seals = [entry for part in wanted for entry in part.commit.objects.values()]
        return CopyRecord(
            path=self._entry.path,
            parts=len(parts),
            copied=len(wanted),
            there=len(parts) - len(wanted),
            objects=len(seals),
            bytes=sum(entry.size for entry in seals),
        )

    def _parts(self) -> list[_Part]:
        """Parts that count in the source, with their seals, and as they will be in the target."""
        names = list(dict.fromkeys(segment.commit.part for segment in self._entry.segments))
        found: list[_Part] = []
        for name, commit in zip(names, read_commits(self._source, self._entry.path, names), strict=True):
            if commit is None:
                raise DamagedPart(f"{self._source.url}/{self._entry.path}/{name} has gone: run the same command again")
            found.append(_Part(name, without_frames(commit) if self._only == "utterance" else commit))
        return found

    def _is_there(self, commit: Commit, counted: dict[str, Segment]) -> bool:
        """Whether the target has all that the copy would bring: this very part, the same with frames, or newer ones."""
        return all(
            (there := counted.get(member.shard.name)) is not None
            and (there.commit.committed_at, there.commit.frames_stored) >= (commit.committed_at, commit.frames_stored)
            for member in commit.members
        )

    def _copy(self, part: _Part) -> Commit:
        """Copy one part. What is left of one that fails is swept by the next run, or written over."""
        source, target = f"{self._entry.path}/{part.name}", f"{self._entry.path}/{part.commit.part}"
        with telling_what_to_do(self._target):
            self._target.write(f"{target}/{GROUP_DOCUMENT}", writing_document(datetime.now(UTC)))
            fault_point("part-begun")
            for name, data in self._objects_of(source, part.commit):
                self._target.put(f"{target}/{name}", [data])
            self._target.settle(target)
            fault_point("arrays-settled")
            self._target.write(f"{target}/{GROUP_DOCUMENT}", seal({"commit": part.commit.as_json()}))
            fault_point("committed")
        return part.commit

    def _objects_of(self, source: str, commit: Commit) -> Iterator[tuple[str, bytes]]:
        """Each object of a part, whole and as it was committed: small ones many at a time, large ones one by one."""
        small = [name for name, entry in commit.objects.items() if entry.size <= _SMALL_BYTES]
        large = [name for name, entry in commit.objects.items() if entry.size > _SMALL_BYTES]
        for names, ahead in ((small, _SMALL_AHEAD), (large, 1)):
            keys = [(f"{source}/{name}", commit.objects[name]) for name in names]
            read = in_order(self._reads, lambda each: sealed_object(self._source, *each), keys, ahead=ahead)
            yield from zip(names, read, strict=True)

    def _finish(self, writer: SplitWriter, commits: Sequence[Commit]) -> None:
        """Write the catalogue; copies without frames go where the same part with them is there now."""
        if self._only == "everything":
            there = {commit.part for commit in split_commits(self._target, self._entry.path)}
            whole = [commit for commit in commits if commit.frames_stored and commit.part in there]
            writer.delete([part for part in (without_frames(commit).part for commit in whole) if part in there])
        writer.write_catalogue()
