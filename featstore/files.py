"""Files and folders of the user's, replaced as a unit: the old content or the new, never half of one and never none.

The new content is written under a temporary name in the same folder, fsynced, and renamed. A temporary file or folder
is locked (``flock``) while it is written, so that what a killed process left is known by the next writer, whatever
clocks, process ids and host names are, and is deleted. Where a file system has no such locks, it stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["fsync_folder", "replacing", "sweep_leftovers", "temporary_folder", "write_whole"]

_SUFFIX = ".featstore-tmp"
_MOST_OF_A_NAME = 180  # bytes, so that a temporary name fits where the name does


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: UTF-8 for text, with half a surrogate pair as its escape.

    Raises
    ------
    OSError
        It cannot be written; ``filename`` is `path`, and what was there is untouched.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write to, which replaces `path` at the end of a block that raises nothing.

    A symbolic link stays one, and what it points to is replaced. What is not a regular file, such as ``/dev/stdout`` or
    a FIFO, is given itself.

    Raises
    ------
    OSError
        It cannot be written; ``filename`` is `path`, and what was there is untouched.
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
    """Give a temporary folder beside `path`, to be renamed in the block; it is deleted where it was not."""
    sweep_leftovers(path)
    with _locked_new(path, Path.mkdir) as temporary:
        yield temporary


def sweep_leftovers(path: Path) -> None:
    """Delete temporary files and folders of `path` that no process has locked: killed ones left them."""
    ours = re.compile(rf"{re.escape(_prefix(path))}[0-9a-f]{{12}}{re.escape(_SUFFIX)}(\.gz)?")
    with contextlib.suppress(OSError):
        for found in [each for each in path.parent.iterdir() if ours.fullmatch(each.name)]:
            with _locked(found, wait=False) as is_free:
                if is_free:
                    _delete(found)


@contextlib.contextmanager
def _locked_new(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """A new temporary file or folder, locked; deleted at the end, where it is still there."""
    while True:
        packed = ".gz" if path.suffix == ".gz" else ""  # by which PyTorch's profiler knows what to write
        temporary = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex[:12]}{_SUFFIX}{packed}")
        create(temporary)
        try:
            with _locked(temporary, wait=True):
                if temporary.exists():
                    yield temporary
                    return  # else it was swept between its creation and its lock
        finally:
            _delete(temporary)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file or folder for a block; False where another process has it, or there are no locks."""
    descriptor, is_ours = None, False
    if fcntl is not None:
        with contextlib.suppress(OSError):
            access = os.O_RDONLY if path.is_dir() else os.O_RDWR  # NFS locks what is open for writing
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
    """Make the names in a folder survive a power cut."""
    if os.name != "posix":  # other systems cannot open a folder; their renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    """Whether it is there and cannot be replaced: a device, a FIFO, or a name of a descriptor of this process."""
    if path.is_relative_to("/proc") or (path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")):
        return True
    return path.exists() and not path.is_file()


def _prefix(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:_MOST_OF_A_NAME])}."
