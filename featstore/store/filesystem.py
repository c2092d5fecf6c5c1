"""Objects of a store: the interface, and its implementation for a local folder.

Every key is checked before it becomes a path: no key leaves the folder of the store, no symbolic link below the root is
followed, and only regular files are opened.
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
    """A symbolic link, a pipe or a device lies in a store where one of its files is looked for."""


def checked_key(key: str) -> str:
    """Return the key of an object or a group; StoreError where it could lead out of the store.

    >>> checked_key("logmel@3f9c2a71/words")
    'logmel@3f9c2a71/words'
    """
    parts = key.split("/") if key else []
    if "\0" in key or "\\" in key or "" in parts or "." in parts or ".." in parts:
        raise StoreError(f"a key in a store has names and slashes, and no '..': got {key!r}")
    return key


def confined(root: Path, key: str) -> Path:
    """Path of a key below the folder of a store, which may itself be a symbolic link.

    Raises
    ------
    ForeignFile
        A component below the root is a symbolic link.
    StoreError
        The key could lead out of the store.
    """
    return Path(_walk(str(root), key, plain_folders=None)[0])


def _walk(root: str, key: str, *, plain_folders: set[str] | None) -> tuple[str, int | None]:
    """Path of a key, none of whose components is a link, and the mode of what is there; None where nothing is."""
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
            return f"{root}/{key}", None  # there is nothing there to follow
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if stat.S_ISLNK(mode):
            raise ForeignFile(
                f"{path} is a symbolic link, and featstore follows none inside a store: move what it leads to here, "
                "or delete the link"
            )
        if plain_folders is not None and stat.S_ISDIR(mode):
            plain_folders.add(path)
    return path, mode


def open_regular(root: Path, key: str, *, plain_folders: set[str]) -> FileIO:
    """Open a file of a store for reading, unbuffered.

    `plain_folders` has the paths of folders that were seen to be no links, and gets those that are seen now: a reader
    opens many files of few folders, and each look at a component costs as much as a small read.

    Raises
    ------
    ForeignFile
        It is no regular file, or lies behind a symbolic link.
    OSError
        It is missing, a folder, or may not be read.
    """
    path, mode = _walk(str(root), key, plain_folders=plain_folders)
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a device may act on it
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
    return ForeignFile(f"{path} is no regular file, and featstore reads no other: delete it")


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


class Objects(Protocol):
    """The bytes of a store under slash-separated keys."""

    @property
    def url(self) -> str:
        """Where the store is, as the user would write it, without credentials: to show, not to open."""

    @property
    def identity(self) -> str:
        """A hash of where the store is, which no other place has, whatever its URL shows."""

    @property
    def root(self) -> Path | None:
        """The folder of a local store, None for any other."""

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """The object's bytes, or None where there is none; with `most_bytes`, no more than that and one byte."""

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """What `read` says of each key, in order; a server is asked for many at a time."""

    def write(self, key: str, data: bytes) -> None:
        """Put the object in one atomic and durable step."""

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Put an object of a part that is not committed yet: buffers one after another, settled later."""

    def children(self, prefix: str) -> tuple[str, ...]:
        """Names directly under `prefix`, sorted; empty where there are none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Size in bytes of every object under `prefix`, by key relative to it; -1 of what is no regular file."""

    def settle(self, prefix: str) -> None:
        """Return when everything under `prefix` would survive a power cut."""

    def remove(self, key: str) -> None:
        """Delete one object; it is no error if it has gone."""

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete everything under `prefix`, the objects named in `first` before any other."""

    def touch(self, prefix: str) -> None:
        """Renew the time of the last change under `prefix`, where a part is being written."""

    def last_change(self, prefix: str) -> float | None:
        """When anything under `prefix` last changed: seconds of the store's own clock; None where it does not tell."""

    def clock(self, prefix: str) -> float | None:
        """The store's own time now, in seconds: that of an object made for it directly under `prefix`."""


def local_root(url: str) -> Path | None:
    """The folder that a URL names, or None where it is not of this machine.

    >>> str(local_root("file:///my%20data/e.zarr")), local_root("s3://bucket/e.zarr")
    ('/my data/e.zarr', None)
    """
    if url.partition(":")[0].lower() == "file":
        return Path(unquote(urlsplit(url).path))
    return Path(url) if "://" not in url else None


def open_objects(url: str) -> Objects:
    """The objects of the store at `url`, which need not exist yet."""
    root = local_root(url)
    if root is not None:
        return LocalObjects(root)
    from featstore.store.remote_objects import open_remote_objects

    return open_remote_objects(url)


_MOST_READ_BYTES = 4 << 30  # no object of a store is larger


class LocalObjects:
    """A folder. Writes are atomic (a temporary name, then a rename) and durable (fsync of file and folder).

    Every key becomes a path by `featstore.store.filesystem`: nothing outside the folder is read, written or deleted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._plain_folders: set[str] = set()

    def __reduce__(self) -> tuple[type[LocalObjects], tuple[Path]]:
        return LocalObjects, (self._root,)

    @property
    def url(self) -> str:
        """The folder as it was given."""
        return str(self._root)

    @property
    def identity(self) -> str:
        """Hash of the folder's path without links."""
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
                    raise StoreError(f"{path} has {size:,} bytes, more than an object of a store may have")
                return _read_fully(file, size)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(f"{self._root}{os.sep}{key}", error) from error

    def open_file(self, key: str) -> FileIO:
        """Open a file for reading, as `featstore.store.filesystem.open_regular` does."""
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
        """Write a new file as it is, for nobody looks for it before the commit. One that is there is never opened."""
        path = confined(self._root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            for buffer in buffers:
                _write_all(file, memoryview(buffer).cast("B"))

    def children(self, prefix: str) -> tuple[str, ...]:
        """List a folder. A link to a folder is refused, for what it leads to would be missed."""
        try:
            path = confined(self._root, prefix)
        except ForeignFile:
            if (self._root / prefix).is_dir():
                raise
            return ()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _telling(path), os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                if entry.is_symlink() and entry.is_dir():
                    confined(self._root, f"{prefix}/{entry.name}" if prefix else entry.name)
            return tuple(entry.name for entry in found)
        return ()

    def sizes(self, prefix: str) -> dict[str, int]:
        """Walk a folder; what another process deletes meanwhile is not there. Links are not followed."""
        base = confined(self._root, prefix)
        found: dict[str, int] = {}
        with _telling(base):
            for folder, folders, names in os.walk(base, onerror=_raise_unless_gone):
                for path in map(Path(folder).joinpath, (*names, *folders)):
                    with contextlib.suppress(FileNotFoundError):
                        about = path.lstat()
                        if not stat.S_ISDIR(about.st_mode):
                            size = about.st_size if stat.S_ISREG(about.st_mode) else -1
                            found[path.relative_to(base).as_posix()] = size
        return found

    def settle(self, prefix: str) -> None:
        """Fsync every file and folder under `prefix`, and the folders above it up to the root."""
        base = confined(self._root, prefix)
        for folder, _, names in os.walk(base):
            for name in names:
                descriptor = os.open(Path(folder) / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            fsync_folder(Path(folder))
        above = base
        while above not in (self._root, above.parent):
            above = above.parent
            fsync_folder(above)

    def remove(self, key: str) -> None:
        """Unlink a file, for good. Of a link it is the link that goes."""
        folder, _, name = key.rpartition("/")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = confined(self._root, folder) / checked_key(name)
            path.unlink()
            fsync_folder(path.parent)

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Remove a folder; one that has gone already is no error.

        It is hidden in one step, which needs no space, and then deleted: no listing shows a half of it.
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
        for _ in range(3):  # somebody else may be deleting the same folder, and take a file from under our hands
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(hidden)
                return

    def touch(self, prefix: str) -> None:
        """Touch the document of a group; no error if it has gone."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(confined(self._root, f"{prefix}/zarr.json"))

    def last_change(self, prefix: str) -> float | None:
        """The latest modification time of any file."""
        base, latest = confined(self._root, prefix), None
        for folder, _, names in os.walk(base, onerror=_raise_unless_gone):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    changed = (Path(folder) / name).stat(follow_symlinks=False).st_mtime
                    latest = changed if latest is None else max(latest, changed)
        return latest

    def clock(self, prefix: str) -> float | None:
        """Make an empty file, and see what time the file system gives it; None where it takes no file."""
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
    """Whether a file or folder of a local store is one that was to be renamed or deleted: ``.NAME.`` and 32 digits.

    >>> is_temporary(f".zarr.json.{uuid.uuid4().hex}"), is_temporary(".zarr.json.bak")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None


def _read_fully(file: FileIO, n_bytes: int) -> bytes:
    """Read up to `n_bytes`, and fewer only at the end of the file: an unbuffered read may stop short."""
    pieces: list[bytes] = []
    while n_bytes > 0 and (piece := file.read(n_bytes)):
        pieces.append(piece)
        n_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _telling(path: Path | str) -> Iterator[None]:
    """Say in one line that something is there and cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError) -> StoreError:
    return StoreError(f"cannot read {path}: {error.strerror}")


def _write_all(file: FileIO, view: memoryview) -> None:
    """Write a buffer whole: an unbuffered write may stop short, at 2 GiB or when a disk is nearly full."""
    while view:
        view = view[file.write(view) :]
