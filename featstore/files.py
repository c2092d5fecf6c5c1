"""Paths with ``~``, and atomic replacement of files: a reader sees all of the old content or all of the new content.

The new content is written under a temporary name in the same folder, fsynced, and renamed. A temporary file or folder
is locked with ``flock`` while it is written. The next writer deletes unlocked ones, which killed processes left behind;
this does not depend on clocks, process ids or host names. File systems without such locks keep the leftovers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: leftovers are not deleted
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "expanded",
    "fsync_folder",
    "replacing",
    "sha256_of_file",
    "sweep_leftovers",
    "temporary_folder",
    "write_whole",
]

_SUFFIX = ".featstore-tmp"
_MAX_NAME_BYTES = 180  # a temporary name adds at most 40 bytes, and file systems allow 255


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expand a leading ``~`` or ``~user``; of an unknown user it is unchanged, where `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; releases the GIL."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically. Text is encoded as UTF-8; lone surrogates are written as escapes.

    Raises
    ------
    OSError
        The file cannot be written; ``filename`` is `path`, and the old content is unchanged.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end of the block, unless the block raises.

    If `path` is a symbolic link, its target is replaced. If `path` is not a regular file, such as ``/dev/stdout`` or a
    FIFO, `path` itself is yielded.

    Raises
    ------
    OSError
        The file cannot be written; ``filename`` is `path`, and the old content is unchanged.
    """
    target = Path(os.path.realpath(path))
    if _is_special(path) or _is_special(target):
        yield path
        return
    sweep_leftovers(target)
    try:
        with _locked_new(target, _create_file) as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
            fsync_folder(target.parent)
    except OSError as error:
        if error.filename is not None and _SUFFIX not in str(error.filename):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`. It is deleted at the end, unless the block renamed it."""
    sweep_leftovers(path)
    with _locked_new(path, Path.mkdir) as temporary:
        yield temporary


def sweep_leftovers(path: Path) -> None:
    """Delete temporary files and folders of `path` that killed processes left behind: those that are not locked."""
    ours = re.compile(rf"{re.escape(_prefix(path))}[0-9a-f]{{12}}{re.escape(_SUFFIX)}(\.gz)?")
    with contextlib.suppress(OSError):
        for found in [each for each in path.parent.iterdir() if ours.fullmatch(each.name)]:
            with _locked(found, wait=False) as is_free:
                if is_free:
                    _delete(found)


@contextlib.contextmanager
def _locked_new(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """Create and lock a temporary file or folder; it is deleted at the end if it still exists."""
    while True:
        extension = ".gz" if path.suffix == ".gz" else ""  # PyTorch's profiler compresses if the name ends in .gz
        temporary = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex[:12]}{_SUFFIX}{extension}")
        create(temporary)
        try:
            with _locked(temporary, wait=True):
                if temporary.exists():
                    yield temporary
                    return  # otherwise another process deleted it before it was locked
        finally:
            _delete(temporary)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file or folder during the block. Yields False if another process holds the lock, or without flock."""
    descriptor, is_ours = None, False
    if fcntl is not None:
        with contextlib.suppress(OSError):
            access = os.O_RDONLY if path.is_dir() else os.O_RDWR  # NFS locks only files that are open for writing
            descriptor = os.open(path, access | os.O_NOFOLLOW)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_ours = True
    try:
        yield is_ours
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def fsync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    if os.name != "posix":  # other systems cannot open a folder, and journal renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    """Whether a path exists and cannot be replaced: a device, a FIFO, or a file descriptor below /proc or /dev."""
    if path.is_relative_to("/proc") or (path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")):
        return True
    return path.exists() and not path.is_file()


def _prefix(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])}."
