"""Where a store's bytes lie: a folder of this machine, or a URL.

Reading and writing documents and arrays, listing and deleting: a local store does them with the operating system alone;
any other goes through `featstore.remote`. Neither imports zarr.
"""

from __future__ import annotations

import contextlib
import os
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
from featstore.store.faults import fault_point

__all__ = ["LocalObjects", "Objects", "local_root", "open_objects"]


class Objects(Protocol):
    """The bytes of a store under slash-separated keys."""

    @property
    def url(self) -> str:
        """Where the store is, as the user would write it, without credentials: to show, not to open."""

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
        """Size in bytes of every object under `prefix`, by key relative to it."""

    def settle(self, prefix: str) -> None:
        """Return when everything under `prefix` would survive a power cut."""

    def remove(self, key: str) -> None:
        """Delete one object; it is no error if it has gone."""

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete everything under `prefix`, the objects named in `first` before any other."""


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
    from featstore.store.remote import open_remote_objects

    return open_remote_objects(url)


class LocalObjects:
    """A folder. Writes are atomic (a temporary name, then a rename) and durable (fsync of file and folder)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The folder as it was given."""
        return str(self._root)

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Read a file."""
        path = self._root / key
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), _telling(path):
            if most_bytes is None:
                return path.read_bytes()
            with path.open("rb") as file:
                return file.read(most_bytes + 1)
        return None

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """Read files one after another."""
        return map(self.read if most_bytes is None else partial(self.read, most_bytes=most_bytes), keys)

    def write(self, key: str, data: bytes) -> None:
        """Write a temporary file, fsync it, rename it, fsync the folder."""
        path = self._root / key
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
        _fsync_folder(path.parent)

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Write a file as it is; nobody looks for it before the commit."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for buffer in buffers:
                _write_all(file, memoryview(buffer).cast("B"))

    def children(self, prefix: str) -> tuple[str, ...]:
        """List a folder."""
        path = self._root / prefix
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _telling(path), os.scandir(path) as entries:
            return tuple(sorted(entry.name for entry in entries))
        return ()

    def sizes(self, prefix: str) -> dict[str, int]:
        """Walk a folder; what somebody deletes meanwhile is not there."""
        base = self._root / prefix
        found: dict[str, int] = {}
        with _telling(base):
            for folder, _, names in os.walk(base, onerror=_raise_unless_gone):  # rglob passes over what is forbidden
                for path in map(Path(folder).joinpath, names):
                    with contextlib.suppress(FileNotFoundError):
                        if stat.S_ISREG((about := path.stat()).st_mode):
                            found[path.relative_to(base).as_posix()] = about.st_size
        return found

    def settle(self, prefix: str) -> None:
        """Fsync every file and folder under `prefix`, and the folders above it up to the root."""
        base = self._root / prefix
        for folder, _, names in os.walk(base):
            for name in names:
                descriptor = os.open(Path(folder) / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            _fsync_folder(Path(folder))
        above = base
        while above not in (self._root, above.parent):
            above = above.parent
            _fsync_folder(above)

    def remove(self, key: str) -> None:
        """Unlink a file, for good."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self._root / key).unlink()
            _fsync_folder((self._root / key).parent)

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Remove a folder; a file that has gone already is no error."""
        base = self._root / prefix
        for name in first:
            self.remove(f"{prefix}/{name}")
            fault_point("deleting-arrays")
        for _ in range(3):  # somebody else may be deleting the same folder, and take a file from under our hands
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(base)
                return


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Say in one line that something is there and cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def _write_all(file: FileIO, view: memoryview) -> None:
    """Write a buffer whole: an unbuffered write may stop short, at 2 GiB or when a disk is nearly full."""
    while view:
        view = view[file.write(view) :]


def _fsync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder; their renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
