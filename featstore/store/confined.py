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
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") for part in parts):
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
    path = str(root)
    for part in checked_key(key).split("/") if key else ():
        path = f"{path}{os.sep}{part}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            break  # there is nothing there to follow
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if stat.S_ISLNK(mode):
            raise ForeignFile(
                f"{path} is a symbolic link, and featstore follows none inside a store: move what it leads to here, "
                "or delete the link"
            )
    return root / key


def open_regular(root: Path, key: str) -> FileIO:
    """Open a file of a store for reading, unbuffered.

    Raises
    ------
    ForeignFile
        It is no regular file, or lies behind a symbolic link.
    OSError
        It is missing, a folder, or may not be read.
    """
    path = confined(root, key)
    if not (stat.S_ISREG(mode := os.lstat(path).st_mode) or stat.S_ISDIR(mode)):  # opening a device may act on it
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


def _not_regular(path: Path) -> ForeignFile:
    return ForeignFile(f"{path} is no regular file, and featstore reads no other: delete it")
