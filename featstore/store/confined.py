"""The one way from a key of a store to a file of this machine: never out of the store's folder, and to regular files.

A store may come from anywhere. Its names are checked where documents become records (`featstore.store.format`); what
is checked here holds whatever a caller asks for: a key has no ``..``, no component of its path below the root is a
symbolic link, and only regular files are opened, so that no pipe blocks a reader and no device fills its memory.
"""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from featstore.errors import StoreError

__all__ = ["ForeignFile", "checked_key", "confined", "open_regular"]


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
