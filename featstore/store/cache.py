"""Copies of remote parts' small arrays on this machine: keys, JSON, times and utterance vectors, never frames.

A committed part never changes, so a copy of it holds for ever. A part's folder is named after the part and the hash of
what its commit record says; it holds the record with its seals, against which every object is checked as it comes, and
the objects under their own keys, so that they are mapped like those of a local store.

``FEATSTORE_CACHE`` names the folder (default: ``featstore`` in the user's cache folder) and ``FEATSTORE_CACHE_GB`` how
large it may grow (default: 20). Past that, the parts that were opened longest ago go, but none that was opened since
the process that makes room began.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featstore.errors import DamagedPart, StoreError, UsageError
from featstore.records import canonical_json
from featstore.store import codecs
from featstore.store.catalogue import read_commit
from featstore.store.damage import damaged
from featstore.store.format import GROUP_DOCUMENT, Commit, DamagedDocument, ObjectSeal, seal, unseal
from featstore.store.objects import LocalObjects, Objects

__all__ = ["CachedPart", "PartCache", "cache_folder", "fetch_array", "sealed_object"]

_PARTS_AT_A_TIME = 16
_DEFAULT_GB = "20"
_PROCESS_BEGAN = time.time()


@dataclass(frozen=True, slots=True)
class PartCache:
    """A folder of copies, at most about `most_bytes` of them."""

    folder: Path
    most_bytes: int

    @classmethod
    def from_environment(cls) -> PartCache:
        """The cache that the environment names."""
        text = os.environ.get("FEATSTORE_CACHE_GB") or _DEFAULT_GB
        try:
            most_bytes = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            most_bytes = -1
        if most_bytes < 0:
            raise UsageError(f"FEATSTORE_CACHE_GB must be a number of gigabytes, 0 or more: got {text!r}")
        return cls(cache_folder(), most_bytes)

    def folder_of(self, part_path: str, commit: Commit) -> Path:
        """Where a part's copies lie: by its name, and by what its record says, seals apart, which it may not hold."""
        said = canonical_json([part_path, commit.as_catalogue_json()])
        return self.folder / "parts" / f"{commit.part}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def trim(self, *, keep_since: float) -> None:
        """Delete the parts that were opened longest ago until the rest fits, none that was since `keep_since`."""
        found: list[tuple[float, int, Path]] = []
        for folder in (self.folder / "parts").glob("*"):
            try:
                files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
                record = files.get(folder / GROUP_DOCUMENT)
                # A killed process leaves copies without a record: these were opened when the last of them came.
                opened = max(about.st_mtime for about in ([record] if record else files.values()))
            except (OSError, ValueError):  # another process is deleting it, or has just made it
                continue
            found.append((opened, sum(about.st_size for about in files.values()), folder))
        total = sum(size for _, size, _ in found)
        for opened, size, folder in sorted(found):
            if total <= self.most_bytes or opened >= keep_since:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


class CachedPart:
    """One part of a remote store, with its small arrays copied here as they are asked for."""

    def __init__(self, objects: Objects, path: str, commit: Commit) -> None:
        self._objects = objects
        self._path = path
        self._sealed: Commit | None = commit if commit.objects else None
        self._checked: set[str] = set()
        self.cache = PartCache.from_environment()
        self.folder = self.cache.folder_of(path, commit)
        self.local = LocalObjects(self.folder)

    @property
    def commit(self) -> Commit:
        """The commit record with its seals: of the cache, else read from the part."""
        if self._sealed is None:
            self._sealed = self._cached_record() or self._read_record()
        return self._sealed

    def fetch(self, array: str) -> int:
        """Have the objects of an array here, of frames their document alone; returns the bytes that travelled."""
        seals = self.commit.objects
        names = [name for name in seals if name.startswith(f"{array}/") and not name.startswith("frames/c/")]
        missing = [name for name in names if not self._is_here(name, seals[name])]
        for name in missing:
            data = sealed_object(self._objects, f"{self._path}/{name}", seals[name])
            self._put(name, data)
        self._checked |= set(names)
        return sum(seals[name].size for name in missing)

    def note_use(self) -> None:
        """Say that the part was opened now, for the cache to keep it."""
        try:
            os.utime(self.folder / GROUP_DOCUMENT)
        except FileNotFoundError:
            with contextlib.suppress(StoreError):
                self._put(GROUP_DOCUMENT, seal({"commit": self.commit.as_json()}))
        except OSError:  # a cache that somebody else fills is read all the same
            return

    def _is_here(self, name: str, entry: ObjectSeal) -> bool:
        """Whether a sound copy is here: a power cut may have left another, and reading it once costs little."""
        if name in self._checked:  # and is here still: another process may have made room
            return (self.folder / name).exists()
        data = self.local.read(name)
        return data is not None and len(data) == entry.size and codecs.seal_crc32c([data]) == entry.crc32c

    def _put(self, name: str, data: bytes) -> None:
        """Put a copy in one step. It is not fsynced: it is checked before it is used."""
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StoreError(
                f"cannot keep copies in {self.cache.folder}: {error.strerror}; FEATSTORE_CACHE names another folder"
            ) from error

    def _cached_record(self) -> Commit | None:
        raw = self.local.read(GROUP_DOCUMENT)
        try:
            content = None if raw is None else unseal(raw)
            return None if content is None else Commit.from_json(content["commit"])
        except (DamagedDocument, KeyError):
            return None

    def _read_record(self) -> Commit:
        split_path, _, part = self._path.rpartition("/")
        commit = read_commit(self._objects, split_path, part)
        if commit is None:
            raise DamagedPart(f"{self._objects.url}/{self._path} has gone since the store was opened: open it again")
        return commit


def sealed_object(objects: Objects, key: str, entry: ObjectSeal) -> bytes:
    """Read an object and hold it against its seal; once more where it differs, for the fault may be the way's.

    Raises
    ------
    DamagedPart
        It is missing, or not what was committed.
    """
    data = None
    for _ in range(2):
        data = objects.read(key)
        if data is not None and len(data) == entry.size and codecs.seal_crc32c([data]) == entry.crc32c:
            return data
    says = "is missing" if data is None else "is not what was committed: its size or checksum differs"
    raise damaged(objects.url, key, says)


def fetch_array(parts: Sequence[CachedPart], array: str) -> None:
    """Copy one array of many parts here, side by side."""
    with ThreadPoolExecutor(_PARTS_AT_A_TIME, thread_name_prefix="fetch") as pool:
        travelled = sum(pool.map(partial(CachedPart.fetch, array=array), parts))
        list(pool.map(CachedPart.note_use, parts))
    if travelled:
        parts[0].cache.trim(keep_since=_PROCESS_BEGAN)


def cache_folder() -> Path:
    """Where featstore keeps what it can make or fetch again: ``FEATSTORE_CACHE``, else its own in the user's cache."""
    named = os.environ.get("FEATSTORE_CACHE")
    return Path(named) if named else _user_cache() / "featstore"


def _user_cache() -> Path:
    """The user's cache folder, as the platform has it."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"
