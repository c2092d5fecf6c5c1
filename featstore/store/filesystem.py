"""Objects of a store: the protocol `Objects`, and its implementation for a local folder.

Every key is checked before it becomes a path: no key leads out of the store's folder, symbolic links below the root are
not followed, and only regular files are opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from featstore.errors import StoreError
from featstore.files import fsync_folder
from featstore.store.faults import fault_point

__all__ = [
    "ForeignFile",
    "LocalObjects",
    "Objects",
    "checked_key",
    "confined",
    "is_temporary",
    "local_root",
    "open_objects",
    "open_regular",
]


class ForeignFile(StoreError):
    """A symbolic link, a FIFO or a device is at the path of a file of the store."""


def checked_key(key: str) -> str:
    """Return the key of an object or a group. Raises StoreError if it could lead out of the store.

    >>> checked_key("logmel@3f9c2a71/words")
    'logmel@3f9c2a71/words'
    """
    parts = key.split("/") if key else []
    if "\0" in key or "\\" in key or "" in parts or "." in parts or ".." in parts:
        raise StoreError(f"a key in a store must have names separated by slashes, and no '..': got {key!r}")
    return key


def confined(root: Path, key: str) -> Path:
    """Return the path of a key below the folder of a store. The folder itself may be a symbolic link.

    Raises
    ------
    ForeignFile
        A component below the root is a symbolic link.
    StoreError
        The key could lead out of the store.
    """
    return Path(_walk(str(root), key, plain_folders=None)[0])


def _walk(root: str, key: str, *, plain_folders: set[str] | None) -> tuple[str, int | None]:
    """Return the path of a key, whose components must not be links, and its mode; None if it does not exist."""
    path, mode = root, None
    folder, _, name = checked_key(key).rpartition("/")
    if plain_folders is not None and (known := f"{root}/{folder}") in plain_folders:
        path, parts = known, [name]
    else:
        parts = key.split("/") if key else []
    for part in parts:
        path = f"{path}/{part}"
        if plain_folders is not None and path in plain_folders:
            continue
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return f"{root}/{key}", None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if stat.S_ISLNK(mode):
            raise ForeignFile(
                f"{path} is a symbolic link, and featstore does not follow links inside a store: move its target here, "
                "or delete the link"
            )
        if plain_folders is not None and stat.S_ISDIR(mode):
            plain_folders.add(path)
    return path, mode


def open_regular(root: Path, key: str, *, plain_folders: set[str]) -> FileIO:
    """Open a file of a store for reading, unbuffered.

    `plain_folders` is a cache of folders that are known not to be links, and is extended. A reader opens many files in
    few folders, and each ``lstat`` costs as much as a small read.

    Raises
    ------
    ForeignFile
        It is not a regular file, or a component of its path is a symbolic link.
    OSError
        It is missing, a folder, or not readable.
    """
    path, mode = _walk(str(root), key, plain_folders=plain_folders)
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a device may have side effects
        raise _not_regular(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a folder")
        if not stat.S_ISREG(mode):
            raise _not_regular(path)
    except BaseException:
        os.close(descriptor)
        raise
    return FileIO(descriptor)


def _not_regular(path: str) -> ForeignFile:
    return ForeignFile(f"{path} is not a regular file, and featstore reads only regular files: delete it")


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


class Objects(Protocol):
    """The objects of a store, byte strings with slash-separated keys."""

    @property
    def url(self) -> str:
        """The user's URL without credentials: for display, not for opening."""

    @property
    def identity(self) -> str:
        """A hash that identifies the store's location, including parts that `url` hides."""

    @property
    def root(self) -> Path | None:
        """Folder of a local store; None for a remote store."""

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Return an object's bytes, at most `most_bytes` + 1 of them; None if there is no such object."""

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """Yield the result of `read` for each key, in order; requests to a server run in parallel."""

    def write(self, key: str, data: bytes) -> None:
        """Write an object atomically and durably."""

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Write an object of an uncommitted part from consecutive buffers. It is durable after `sync`."""

    def children(self, prefix: str) -> tuple[str, ...]:
        """Return the names directly under `prefix`, sorted."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of each object under `prefix`, by relative key; -1 if it is not a regular file."""

    def sync(self, prefix: str) -> None:
        """Wait until all objects under `prefix` are durable."""

    def remove(self, key: str) -> None:
        """Delete one object; a missing one is ignored."""

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete all objects under `prefix`, those named in `first` before the others."""

    def touch(self, prefix: str) -> None:
        """Update the time of the last change under `prefix`, where a part is being written."""

    def last_change(self, prefix: str) -> float | None:
        """Return the time of the last change under `prefix`, in seconds of the store's clock; None if unknown."""

    def clock(self, prefix: str) -> float | None:
        """Return the store's current time in seconds, from a temporary object under `prefix`; None if unknown."""


def local_root(url: str) -> Path | None:
    """Return the folder of a local path or ``file:`` URL; None for other URLs.

    >>> str(local_root("file:///my%20data/e.zarr")), local_root("s3://bucket/e.zarr")
    ('/my data/e.zarr', None)
    """
    if url.partition(":")[0].lower() == "file":
        return Path(unquote(urlsplit(url).path))
    return Path(url) if "://" not in url else None


def open_objects(url: str) -> Objects:
    """Return the objects of the store at `url`, which need not exist yet."""
    root = local_root(url)
    if root is not None:
        return LocalObjects(root)
    from featstore.remote import open_remote
    from featstore.store.remote_objects import RemoteObjects

    return RemoteObjects(open_remote(url))


_MOST_READ_BYTES = 4 << 30  # larger than any object that featstore writes
_SYNC_THREADS = 8


class LocalObjects:
    """Objects in a local folder. Writes are atomic (temporary name, rename) and durable (fsync of file and folder).

    `confined` and `open_regular` check all keys: nothing outside the folder is read, written or deleted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._plain_folders: set[str] = set()

    def __reduce__(self) -> tuple[type[LocalObjects], tuple[Path]]:
        return LocalObjects, (self._root,)

    @property
    def url(self) -> str:
        """The folder, as the user gave it."""
        return str(self._root)

    @property
    def identity(self) -> str:
        """Hash of the folder's path with links resolved."""
        return hashlib.sha256(os.fsencode(self._root.resolve())).hexdigest()

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Read a file."""
        try:
            with self.open_file(key) as file:
                size = os.fstat(file.fileno()).st_size
                if most_bytes is not None:
                    return _read_fully(file, min(size, most_bytes + 1))
                if size > _MOST_READ_BYTES:
                    path = f"{self._root}{os.sep}{key}"
                    raise StoreError(f"{path} has {size:,} bytes, and the limit for an object is {_MOST_READ_BYTES:,}")
                return _read_fully(file, size)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(f"{self._root}{os.sep}{key}", error) from error

    def open_file(self, key: str) -> FileIO:
        """Open a file for reading with `open_regular`."""
        return open_regular(self._root, key, plain_folders=self._plain_folders)

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """Read files one after another."""
        return map(self.read if most_bytes is None else partial(self.read, most_bytes=most_bytes), keys)

    def write(self, key: str, data: bytes) -> None:
        """Write a temporary file, fsync it, rename it, fsync the folder."""
        path = confined(self._root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fault_point("document-written")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Write a new file in place: readers do not open it before the commit. An existing file raises an error."""
        path = confined(self._root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            for buffer in buffers:
                _write_all(file, memoryview(buffer).cast("B"))

    def children(self, prefix: str) -> tuple[str, ...]:
        """List a folder. Raises ForeignFile for a link to a folder, whose content would be missing from the list."""
        try:
            path = confined(self._root, prefix)
        except ForeignFile:
            if (self._root / prefix).is_dir():
                raise
            return ()
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with missing, _read_errors_explained(path), os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                if entry.is_symlink() and entry.is_dir():
                    confined(self._root, f"{prefix}/{entry.name}" if prefix else entry.name)
            return tuple(entry.name for entry in found)
        return ()

    def sizes(self, prefix: str) -> dict[str, int]:
        """Walk a folder. Files that another process deletes meanwhile are omitted, and links are not followed."""
        base = confined(self._root, prefix)
        found: dict[str, int] = {}
        with _read_errors_explained(base):
            for folder, folders, names in os.walk(base, onerror=_raise_unless_gone):
                for path in map(Path(folder).joinpath, (*names, *folders)):
                    with contextlib.suppress(FileNotFoundError):
                        about = path.lstat()
                        if not stat.S_ISDIR(about.st_mode):
                            size = about.st_size if stat.S_ISREG(about.st_mode) else -1
                            found[path.relative_to(base).as_posix()] = size
        return found

    def sync(self, prefix: str) -> None:
        """Fsync every file and folder under `prefix`, and the folders above it up to the root.

        They are fsynced side by side: a journal commits together what waits for it, in a tenth of the time.
        """
        base = confined(self._root, prefix)
        folders = [base, *(self._root / above for above in base.relative_to(self._root).parents)]
        files: list[Path] = []
        for folder, inside, names in os.walk(base):
            files += [Path(folder) / name for name in names]
            folders += [Path(folder) / name for name in inside]
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(_fsync_file, files))
            list(pool.map(fsync_folder, folders))

    def remove(self, key: str) -> None:
        """Unlink a file durably. If it is a link, the link is deleted, not its target."""
        folder, _, name = key.rpartition("/")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = confined(self._root, folder) / checked_key(name)
            path.unlink()
            fsync_folder(path.parent)

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete a folder; a missing one is ignored.

        The folder is first renamed to a hidden name, which is atomic and needs no space, so that no listing shows an
        incomplete folder.
        """
        base = confined(self._root, prefix)
        hidden = base if is_temporary(base.name) else base.with_name(f".{base.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            if hidden != base:
                base.rename(hidden)
                fsync_folder(base.parent)
            for name in first:
                (hidden / checked_key(name)).unlink(missing_ok=True)
                fault_point("deleting-arrays")
        for _ in range(3):  # another process may be deleting the same folder
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(hidden)
                return

    def touch(self, prefix: str) -> None:
        """Touch the document of a group; a missing one is ignored."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(confined(self._root, f"{prefix}/zarr.json"))

    def last_change(self, prefix: str) -> float | None:
        """Return the latest modification time of any file."""
        base, latest = confined(self._root, prefix), None
        for folder, _, names in os.walk(base, onerror=_raise_unless_gone):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    changed = (Path(folder) / name).stat(follow_symlinks=False).st_mtime
                    latest = changed if latest is None else max(latest, changed)
        return latest

    def clock(self, prefix: str) -> float | None:
        """Return the modification time of a new empty file; None if the file cannot be created."""
        probe = confined(self._root, prefix) / f".probe.{uuid.uuid4().hex}"
        try:
            with probe.open("xb") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file or folder of a local store is temporary: ``.NAME.`` and 32 hexadecimal digits.

    >>> is_temporary(f".zarr.json.{uuid.uuid4().hex}"), is_temporary(".zarr.json.bak")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


def _read_fully(file: FileIO, n_bytes: int) -> bytes:
    """Read `n_bytes`, or up to the end of the file: a single unbuffered read may return fewer bytes."""
    pieces: list[bytes] = []
    while n_bytes > 0 and (piece := file.read(n_bytes)):
        pieces.append(piece)
        n_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _read_errors_explained(path: Path | str) -> Iterator[None]:
    """Replace an OSError by a StoreError of one line, except if the file is missing."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError) -> StoreError:
    return StoreError(f"cannot read {path}: {error.strerror}")


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(file: FileIO, view: memoryview) -> None:
    """Write a complete buffer: a single unbuffered write may stop at 2 GiB, or when the disk is nearly full."""
    while view:
        view = view[file.write(view) :]
