"""Copies of remote parts' small arrays on this machine: keys, JSON, times and utterance vectors, never frames.

A committed part never changes, so a copy of it holds for ever. What vouches for a copy is never the copy: the part's
record is read from the store each time that a part is opened, one small request, and every object is held against the
seals in it, as it comes and when it is read back. A part's folder is named after the place of the store, the path of
the part and all that its record says, so that another store, which may repeat a record, has folders of its own.

``FEATSTORE_CACHE`` names the folder (default: ``featstore`` in the user's cache folder) and ``FEATSTORE_CACHE_GB`` how
large it may grow (default: 20). Past that, the parts that were opened longest ago go, but none that was opened since
the process that makes room began. All of this happens in one folder in there, which holds a marker: whatever else
``FEATSTORE_CACHE`` holds is neither read nor deleted, and links are not followed.
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
from featstore.store.filesystem import LocalObjects, Objects
from featstore.store.format import GROUP_DOCUMENT, Commit, ObjectSeal, seal

__all__ = ["CachedPart", "PartCache", "cache_folder", "fetch_array", "sealed_object"]

_PARTS_AT_A_TIME = 16
_DEFAULT_GB = "20"
_PROCESS_BEGAN = time.time()
_PARTS = "featstore-parts"
_MARKER, _MARKED = ".featstore-cache", b"Copies of parts of remote stores, which featstore makes and deletes.\n"
_OWN_NAME = re.compile(r"[0-9a-f]{40}")
_OBJECT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


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

    @property
    def parts(self) -> Path:
        """The folder of parts in it, and nothing else."""
        return self.folder / _PARTS

    def folder_of(self, objects: Objects, path: str, commit: Commit) -> Path:
        """Where the copies of a part are: by the place of its store, and by its record with its seals."""
        said = canonical_json([objects.identity, path, commit.as_json()])
        return self.parts / hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:40]

    def make(self) -> None:
        """Have the folder of parts there with its marker; StoreError where it cannot be, or another made it."""
        if self._is_ours():
            return
        temporary = self.folder / f".{_PARTS}.{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
            (temporary / _MARKER).write_bytes(_MARKED)
            with contextlib.suppress(OSError):  # it is there by now
                temporary.rename(self.parts)
            shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from error
        if not self._is_ours():
            raise self.unusable(f"{self.parts} is not of featstore's making")

    def unusable(self, why: str) -> StoreError:
        """What to raise where nothing can be kept."""
        return StoreError(f"cannot keep copies in {self.folder}: {why}; FEATSTORE_CACHE names another folder")

    def _is_ours(self) -> bool:
        """Whether featstore made the folder of parts: it is a folder, not a link to one, and has the marker."""
        try:
            is_folder = stat.S_ISDIR(self.parts.lstat().st_mode)
            return is_folder and stat.S_ISREG((self.parts / _MARKER).lstat().st_mode)
        except OSError:
            return False

    def trim(self, *, keep_since: float) -> None:
        """Delete the parts that were opened longest ago until the rest fits, none that was since `keep_since`."""
        if not self._is_ours():
            return
        found: list[tuple[float, int, Path]] = []
        for folder in self.parts.iterdir():
            if not _OWN_NAME.fullmatch(folder.name) or folder.is_symlink():
                continue
            try:
                files = _files_in(folder)
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
            shutil.rmtree(folder, ignore_errors=True)  # which does not follow links either
            total -= size


def _files_in(folder: Path) -> dict[Path, os.stat_result]:
    """Regular files of a folder, whatever links in it lead to."""
    files: dict[Path, os.stat_result] = {}
    for above, _, names in os.walk(folder):
        for path in map(Path(above).joinpath, names):
            if stat.S_ISREG((about := path.lstat()).st_mode):
                files[path] = about
    return files


class CachedPart:
    """One part of a remote store, with its small arrays copied here as they are asked for."""

    def __init__(self, objects: Objects, path: str, commit: Commit) -> None:
        self._objects = objects
        self._path = path
        self._listed = commit
        self._checked: set[str] = set()
        self.cache = PartCache.from_environment()

    @cached_property
    def commit(self) -> Commit:
        """The commit record with its seals, as the store has it now."""
        split_path, _, part = self._path.rpartition("/")
        commit = read_commit(self._objects, split_path, part)
        if commit is None:
            raise DamagedPart(f"{self._objects.url}/{self._path} has gone since the store was opened: open it again")
        if replace(commit, objects={}) != replace(self._listed, objects={}):
            raise damaged(self._objects.url, self._path, "has another commit record than its split's catalogue lists")
        return commit

    @cached_property
    def folder(self) -> Path:
        """Where its copies are."""
        return self.cache.folder_of(self._objects, self._path, self.commit)

    @property
    def local(self) -> LocalObjects:
        """Its copies, for which `fetch` vouches."""
        return LocalObjects(self.folder)

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
            if (record := self._place(GROUP_DOCUMENT)) is not None:
                os.utime(record)
            else:
                self._put(GROUP_DOCUMENT, seal({"commit": self.commit.as_json()}))
        except (OSError, StoreError):  # a cache that cannot be written is read all the same
            return

    def _is_here(self, name: str, entry: ObjectSeal) -> bool:
        """Whether a sound copy is here: a power cut may have left another, and reading it once costs little."""
        path = self._place(name)
        if path is None:
            return False
        if name in self._checked:  # and is here still: another process may have made room
            return True
        data = self.local.read(name, most_bytes=entry.size)
        return data is not None and len(data) == entry.size and codecs.seal_crc32c([data]) == entry.crc32c

    def _put(self, name: str, data: bytes) -> None:
        """Put a copy in one step. It is not fsynced: it is checked before it is used."""
        self._place(name)
        self.cache.make()
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self.cache.unusable(error.strerror or str(error)) from error

    def _place(self, name: str) -> Path | None:
        """The file of an object where it is there; nothing below the part's folder is followed out of it.

        Raises
        ------
        DamagedPart
            It is no name of an object of a part: the record that has it is no writer's.
        StoreError
            A link or a special file is in its way.
        """
        if not _OBJECT_NAME.fullmatch(name):
            raise damaged(self._objects.url, self._path, f"names an object that no part has: {name!r}")
        path = self.folder
        steps = ("", *name.split("/"))
        for number, step in enumerate(steps):
            path = path / step
            try:
                mode = path.lstat().st_mode
            except OSError:  # it is not there yet, or cannot be read
                return None
            if not (stat.S_ISREG(mode) if number == len(steps) - 1 else stat.S_ISDIR(mode)):
                raise self.cache.unusable(f"{path} is a link or a special file")
        return path


def sealed_object(objects: Objects, key: str, entry: ObjectSeal) -> bytes:
    """Read an object and hold it against its seal; once more where it differs, for the fault may be the way's.

    Raises
    ------
    DamagedPart
        It is missing, or not what was committed.
    """
    data = None
    for _ in range(2):
        data = objects.read(key, most_bytes=entry.size)
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
