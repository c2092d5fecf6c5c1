"""A local cache of the small arrays of remote parts: keys, JSON, times and utterance vectors, but not frames.

A committed part never changes, so a copy of it stays valid. A copy is not trusted: each time a part is opened, its
commit record is read from the store with one small request, and every object is checked against the seals of that
record, when it is downloaded and when it is read from the cache. The name of a part's folder is a hash of the store's
location, the part's path and the commit record, so that different stores never share a folder.

``FEATSTORE_CACHE`` names the cache folder (default: ``featstore`` in the user's cache folder), and
``FEATSTORE_CACHE_GB`` is its capacity (default: 20). Above the capacity, the parts that were opened longest ago are
deleted, except those opened since the current process started. All files are in one subfolder that contains a marker;
other content of ``FEATSTORE_CACHE`` is neither read nor deleted, and links are not followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from featstore.errors import DamagedPart, StoreError, UsageError
from featstore.records import canonical_json
from featstore.store import codecs
from featstore.store.catalogue import read_commit
from featstore.store.documents import damaged
from featstore.store.filesystem import LocalObjects, Objects, confined
from featstore.store.format import GROUP_DOCUMENT, Commit, ObjectSeal, seal

__all__ = ["CachedPart", "PartCache", "cache_folder", "fetch_array", "sealed_object"]

_PARALLEL_PARTS = 16
_DEFAULT_GB = "20"
_PROCESS_STARTED = time.time()
_PARTS = "featstore-parts"
_MARKER, _MARKED = ".featstore-cache", b"Copies of parts of remote stores, which featstore makes and deletes.\n"
_OWN_NAME = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class PartCache:
    """A cache folder with a capacity of about `most_bytes`."""

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

    @property
    def parts(self) -> Path:
        """The subfolder that contains the copies."""
        return self.folder / _PARTS

    def folder_of(self, objects: Objects, path: str, commit: Commit) -> Path:
        """Folder of a part's copies, named by a hash of the store's location, the path and the commit record."""
        identity = canonical_json([objects.identity, path, commit.as_json()])
        return self.parts / hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:40]

    def make(self) -> None:
        """Create the subfolder with its marker. Raises StoreError if that fails, or if other software created it."""
        if self._is_ours():
            return
        temporary = self.folder / f".{_PARTS}.{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
            (temporary / _MARKER).write_bytes(_MARKED)
            with contextlib.suppress(OSError):  # another process has created it
                temporary.rename(self.parts)
            shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from error
        if not self._is_ours():
            raise self.unusable(f"featstore did not create {self.parts}")

    def unusable(self, why: str) -> StoreError:
        """Return the error for a cache that cannot be written."""
        return StoreError(f"cannot cache in {self.folder}: {why}; set FEATSTORE_CACHE to another folder")

    def _is_ours(self) -> bool:
        """Whether featstore created the subfolder: it is a folder, not a link to one, and contains the marker."""
        try:
            is_folder = stat.S_ISDIR(self.parts.lstat().st_mode)
            return is_folder and stat.S_ISREG((self.parts / _MARKER).lstat().st_mode)
        except OSError:
            return False

    def trim(self, *, keep_since: float) -> None:
        """Delete the least recently opened parts until the rest fits, except those opened since `keep_since`."""
        if not self._is_ours():
            return
        found: list[tuple[float, int, Path]] = []
        for folder in self.parts.iterdir():
            if not _OWN_NAME.fullmatch(folder.name) or folder.is_symlink():
                continue
            try:
                files = _files_in(folder)
                record = files.get(folder / GROUP_DOCUMENT)
                # A killed process leaves copies without a record: the last file's time is then the time of opening.
                opened = max(about.st_mtime for about in ([record] if record else files.values()))
            except (OSError, ValueError):  # another process is deleting or creating it
                continue
            found.append((opened, sum(about.st_size for about in files.values()), folder))
        total = sum(size for _, size, _ in found)
        for opened, size, folder in sorted(found):
            if total <= self.most_bytes or opened >= keep_since:
                return
            shutil.rmtree(folder, ignore_errors=True)  # does not follow links
            total -= size


def _files_in(folder: Path) -> dict[Path, os.stat_result]:
    """Regular files of a folder, with their metadata; links are not followed."""
    files: dict[Path, os.stat_result] = {}
    for above, _, names in os.walk(folder):
        for path in map(Path(above).joinpath, names):
            if stat.S_ISREG((about := path.lstat()).st_mode):
                files[path] = about
    return files


class CachedPart:
    """One part of a remote store; its small arrays are cached when they are requested."""

    def __init__(self, objects: Objects, path: str, commit: Commit) -> None:
        self._objects = objects
        self._path = path
        self._listed = commit
        self._checked: set[str] = set()
        self.cache = PartCache.from_environment()

    @cached_property
    def commit(self) -> Commit:
        """The commit record with its seals, read from the store."""
        split_path, _, part = self._path.rpartition("/")
        commit = read_commit(self._objects, split_path, part)
        if commit is None:
            raise DamagedPart(f"{self._objects.url}/{self._path} was deleted after the store was opened: open it again")
        if replace(commit, objects={}) != replace(self._listed, objects={}):
            raise damaged(
                self._objects.url, self._path, "has a different commit record than its split's catalogue lists"
            )
        return commit

    @cached_property
    def folder(self) -> Path:
        """Folder of its copies."""
        folder = self.cache.folder_of(self._objects, self._path, self.commit)
        if folder.is_symlink():
            raise self.cache.unusable(f"{folder} is a symbolic link")
        return folder

    @property
    def local(self) -> LocalObjects:
        """Its copies; call `fetch` first, which checks them."""
        return LocalObjects(self.folder)

    def fetch(self, array: str) -> int:
        """Cache the objects of an array, for frames only their document; returns the downloaded bytes."""
        seals = self.commit.objects
        names = [name for name in seals if name.startswith(f"{array}/") and not name.startswith("frames/c/")]
        missing = [name for name in names if not self._is_cached(name, seals[name])]
        for name in missing:
            data = sealed_object(self._objects, f"{self._path}/{name}", seals[name])
            self._put(name, data)
        self._checked |= set(names)
        return sum(seals[name].size for name in missing)

    def note_use(self) -> None:
        """Record that the part was opened now, for `PartCache.trim`."""
        with contextlib.suppress(OSError, StoreError):  # a read-only cache is still usable
            record = confined(self.folder, GROUP_DOCUMENT)
            if record.exists():
                os.utime(record)
            else:
                self._put(GROUP_DOCUMENT, seal({"commit": self.commit.as_json()}))

    def _is_cached(self, name: str, entry: ObjectSeal) -> bool:
        """Whether an undamaged copy is cached; a power failure can damage a copy."""
        if name in self._checked:  # the file must still exist: another process may have trimmed the cache
            return (self.folder / name).exists()
        return _matches(self.local.read(name, most_bytes=entry.size), entry)

    def _put(self, name: str, data: bytes) -> None:
        """Write a copy atomically. It is not fsynced, because it is checked before use."""
        self.cache.make()
        path = confined(self.folder, name)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self.cache.unusable(error.strerror or str(error)) from error


def sealed_object(objects: Objects, key: str, entry: ObjectSeal) -> bytes:
    """Read an object and check it against its seal. It is read again if it differs: the transfer may be at fault.

    Raises
    ------
    DamagedPart
        The object is missing, or differs from its seal.
    """
    data = None
    for _ in range(2):
        data = objects.read(key, most_bytes=entry.size)
        if data is not None and _matches(data, entry):
            return data
    problem = "is missing" if data is None else "is not what was committed: its size or checksum differs"
    raise damaged(objects.url, key, problem)


def _matches(data: bytes | None, entry: ObjectSeal) -> bool:
    return data is not None and len(data) == entry.size and codecs.seal_crc32c([data]) == entry.crc32c


def fetch_array(parts: Sequence[CachedPart], array: str) -> None:
    """Cache one array of many parts in parallel."""
    with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="fetch") as pool:
        downloaded_bytes = sum(pool.map(partial(CachedPart.fetch, array=array), parts))
        list(pool.map(CachedPart.note_use, parts))
    if downloaded_bytes:
        parts[0].cache.trim(keep_since=_PROCESS_STARTED)


def cache_folder() -> Path:
    """The cache folder: ``FEATSTORE_CACHE``, else ``featstore`` in the user's cache folder."""
    named = os.environ.get("FEATSTORE_CACHE")
    return Path(named) if named else _user_cache() / "featstore"


def _user_cache() -> Path:
    """The user's cache folder, by the convention of the platform."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"
