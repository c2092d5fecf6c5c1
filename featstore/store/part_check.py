"""Checks one part against its commit record, and defines the findings of a verification."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featstore.clip_json import parse_clip_json
from featstore.errors import DamagedPart
from featstore.records import JsonRecord
from featstore.remote import Remote
from featstore.store import codecs
from featstore.store.arrays import Rows, open_rows
from featstore.store.filesystem import Objects
from featstore.store.format import GROUP_DOCUMENT, HEARTBEAT, Commit
from featstore.store.layout import parse_layout
from featstore.store.remote_arrays import RangedRows

__all__ = ["Finding", "PartReading", "Remedy", "VerifyReport"]


Remedy = Literal["drop the part", "write the document again", "delete the object", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem. ``where`` is the path of the part, group or object; `remedy` is the action of a repair."""

    where: str
    problem: str
    remedy: Remedy
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(JsonRecord):
    """Result of a verification."""

    url: str
    parts: int
    objects: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there are no problems, or all were repaired."""
        return all(finding.repaired for finding in self.findings)

    @property
    def repairable(self) -> bool:
        """Whether a repair would change anything."""
        return any(finding.remedy != "none" and not finding.repaired for finding in self.findings)


_SMALL_BYTES = 1 << 20
_MAX_CACHE_BYTES = 8 << 20  # per part
_CHECKED_ARRAYS = ("start_seconds", "seconds", "utterance", "frame_offsets", "frames")


class PartReading:
    """Checks of one part; call `sealed_objects` before `contents`.

    Attributes
    ----------
    keys : bytes or None
        The chunk of the key array.
    """

    def __init__(self, objects: Objects, where: str, commit: Commit, *, large: threading.Semaphore) -> None:
        self._objects = objects
        self._where = where
        self._commit = commit
        self._large = large
        self._cache: dict[str, bytes] = {}
        self._cache_bytes = 0
        self.keys: bytes | None = None
        self._metas: bytes | None = None
        self.objects_read = 0
        self.bytes_read = 0

    def sealed_objects(self) -> Iterator[Finding]:
        """Check that the objects of the commit record match their seals, and that there are no other objects."""
        where, seals = self._where, self._commit.objects
        sizes = self._objects.sizes(where)
        for name in (GROUP_DOCUMENT, HEARTBEAT):  # a heartbeat object may arrive after the commit
            sizes.pop(name, None)
        right_size = [name for name, entry in seals.items() if sizes.get(name) == entry.size]
        differ = {
            name
            for name, data in self._read(right_size)
            if (len(data), codecs.seal_crc32c([data])) != (seals[name].size, seals[name].crc32c)
        }
        for name, entry in seals.items():
            size = sizes.pop(name, None)
            if size is not None and size < 0:
                yield Finding(where=where, problem=f"{name} is not a regular file", remedy="drop the part")
            elif size is None:
                yield Finding(where=where, problem=f"{name} is missing", remedy="drop the part")
            elif size != entry.size:
                problem = f"{name} has {size:,} bytes instead of {entry.size:,}"
                yield Finding(where=where, problem=problem, remedy="drop the part")
            elif name in differ:
                problem = f"the checksum of {name} differs"
                yield Finding(where=where, problem=problem, remedy="drop the part")
        for name in sizes:
            yield Finding(
                where=f"{where}/{name}", problem="this object does not belong to a part", remedy="delete the object"
            )

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Read objects: small ones in parallel, large ones one by one; `large` limits these over all parts."""
        small = [name for name in names if self._commit.objects[name].size <= _SMALL_BYTES]
        keys = (f"{self._where}/{name}" for name in small)
        for name, data in zip(small, self._objects.read_many(keys, most_bytes=_SMALL_BYTES), strict=True):
            yield name, self._count(name, data or b"")
        for name in names:
            if (size := self._commit.objects[name].size) > _SMALL_BYTES:
                with self._large:
                    data = self._objects.read(f"{self._where}/{name}", most_bytes=size)
                    yield name, self._count(name, data or b"")

    def _count(self, name: str, data: bytes) -> bytes:
        """Count an object, and cache it if `contents` needs it, so that it is not downloaded twice."""
        self.objects_read += 1
        self.bytes_read += len(data)
        if name == "key/c/0":
            self.keys = data
        if name == "meta/c/0":
            self._metas = data
        is_checked = name.split("/", maxsplit=1)[0] in _CHECKED_ARRAYS and not name.startswith("frames/c/")
        if is_checked and self._objects.root is None and self._cache_bytes + len(data) <= _MAX_CACHE_BYTES:
            self._cache[f"{self._where}/{name}"] = data
            self._cache_bytes += len(data)
        return data

    def contents(self) -> Iterator[Finding]:
        """Check that the arrays are consistent with each other; only a bug in the writer can violate this."""
        try:
            problem = self._wrong_contents() or self._wrong_metas()
        except DamagedPart as error:  # no other StoreError: an unreachable server is not damage
            problem = str(error)
        if problem:
            yield Finding(where=self._where, problem=problem, remedy="drop the part")

    def _wrong_contents(self) -> str:
        commit = self._commit
        if commit.recipe_fingerprint != self._where.split("/", maxsplit=1)[0].rpartition("@")[2]:
            return f"it has another recipe, {commit.recipe_fingerprint}"
        lengths = {name: self._rows(name).shape[0] for name in ("start_seconds", "seconds", "utterance")}
        wrong = {name: length for name, length in lengths.items() if length != commit.windows}
        if wrong:
            return f"the lengths of arrays differ from its {commit.windows} windows: {wrong}"
        with contextlib.ExitStack() as stack:
            if commit.windows and f"{self._where}/utterance/c/0/0" not in self._cache and self._objects.root is None:
                stack.enter_context(self._large)  # it is downloaded again
            utterance = self._rows("utterance")
            for start in range(0, commit.windows, 4096):
                rows = utterance.slice(start, min(start + 4096, commit.windows))
                if not np.isfinite(rows).all():
                    return f"utterance vectors from window {start} on are not all finite"
        if commit.frames_stored:
            offset_rows = self._rows("frame_offsets")
            offsets = offset_rows.slice(0, offset_rows.shape[0])
            frame_rows = self._rows("frames")
            frames = frame_rows.shape[0]
            frame_rows.require(0, frames)
            if len(offsets) != commit.windows + 1 or offsets[0] != 0 or not offsets[-1] == frames == commit.frames:
                return "frame_offsets do not lead from 0 to the number of frames"
            if (np.diff(offsets) < 1).any():
                return "frame_offsets do not increase: a window has no frames"
        return ""

    def _wrong_metas(self) -> str:
        """Return the problem of the clips' JSON, or ""."""
        if self._metas is None:
            return "it has no meta array" if self._commit.windows else ""
        chunk, self._metas = self._metas, None
        with self._large:
            try:
                metas = codecs.decode_strings(chunk, n=self._commit.windows)
                last = None
                for meta in metas:
                    if meta != last:  # the windows of a clip are adjacent and share its JSON
                        parse_clip_json(meta)
                        last = meta
            except ValueError as error:
                return f"meta cannot be read: {error}"
        return ""

    def _rows(self, name: str) -> Rows:
        path = f"{self._where}/{name}"
        remote: Remote | None = getattr(self._objects, "remote", None)
        document = self._cache.get(f"{path}/{GROUP_DOCUMENT}")
        layout = None
        if document is not None:
            with contextlib.suppress(ValueError):  # `open_rows` reports the problem
                layout = parse_layout(document)
        if remote is None or layout is None:
            return open_rows(self._objects, path)

        def get_range(key: str, start: int, stop: int) -> bytes:
            data = self._cache.get(key)
            return remote.get_range(key, start, stop) if data is None else data[start:stop]

        sizes = {key: entry.size for key, entry in self._commit.objects.items()}
        return RangedRows(remote.url, path, layout, get_range, lambda key: sizes.get(f"{name}/{key}", 0))
