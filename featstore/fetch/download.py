"""One file to disk: resumed, checked against its MD5, and renamed when it is right."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import FetchError
from featstore.fetch.listing import RemoteFile
from featstore.wording import redacted

if TYPE_CHECKING:
    from featstore.fetch.http import Connection

__all__ = ["download", "is_right"]

MAX_FAILURES = 6
"""In a row, without getting further between them."""

MAX_WRONG = 2
"""Times that a whole file may turn out wrong: the first may have been resumed across a change."""


def is_right(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the MD5 that its record says."""
    try:
        if path.stat().st_size != file.size:
            return False
        with path.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == file.md5
    except FileNotFoundError:
        return False


def download(
    connection: Connection,
    file: RemoteFile,
    path: Path,
    *,
    on_bytes: Callable[[int], None],
    backoff_seconds: float,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Bring a file to ``path``, which appears when it is whole and right. Return how many bytes came.

    What came of it before, in this run or another, lies beside it as ``.NAME.part`` and is gone on from.

    Parameters
    ----------
    on_bytes : callable
        Told of bytes as they come, of those that were there already, and, below zero, of those that were thrown away.
    stopped : callable
        Asked between chunks: whether to break off.

    Raises
    ------
    FetchError
        The server has no such file, breaks off again and again, or sends what its record does not say.
    """
    partial = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    came = failures = wrong = 0
    furthest = _size(partial)
    on_bytes(furthest)
    while not stopped():
        if _size(partial) > file.size:
            on_bytes(-_drop(partial))
        try:
            new = _go_on(connection, file, partial, on_bytes=on_bytes, stopped=stopped) if _left(partial, file) else 0
        except _Broke as broke:
            came += broke.came
            reached = _size(partial)
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= MAX_FAILURES:
                raise FetchError(
                    f"{file.name}: {broke.why}; {failures} times without getting further. "
                    "The same command goes on from there"
                ) from broke
            if broke.start_again:
                on_bytes(-_drop(partial))
            time.sleep(min(60.0, backoff_seconds * 2**failures))
            continue
        came += new
        if stopped():
            break
        if is_right(partial, file):
            with partial.open("rb") as content:
                os.fsync(content.fileno())
            partial.replace(path)
            return came
        wrong += 1
        on_bytes(-_drop(partial))
        if wrong >= MAX_WRONG:
            raise FetchError(
                f"{file.name}: what {redacted(file.url)} sends is not what its record says (size or MD5 differ)"
            )
    return came


class _Broke(Exception):
    """A connection broke after some bytes."""

    def __init__(self, why: str, *, came: int, start_again: bool) -> None:
        super().__init__(why)
        self.why, self.came, self.start_again = why, came, start_again


def _go_on(
    connection: Connection,
    file: RemoteFile,
    partial: Path,
    *,
    on_bytes: Callable[[int], None],
    stopped: Callable[[], bool],
) -> int:
    """Append what is left, or all of it where the server cannot start in the middle."""
    from featstore.fetch.http import ConnectionBroke, RangeRefused

    start, came = _size(partial), 0
    try:
        with connection.stream(file.url, start=start) as stream:
            if stream.start != start:
                on_bytes(-start)
            with partial.open("r+b" if stream.start else "wb") as out:
                out.seek(stream.start)
                for chunk in stream.chunks:
                    if stopped() or stream.start + came > file.size:
                        break
                    out.write(chunk)
                    came += len(chunk)
                    on_bytes(len(chunk))
    except ConnectionBroke as error:
        raise _Broke(str(error), came=came, start_again=isinstance(error, RangeRefused)) from error
    if _left(partial, file) and not stopped():
        raise _Broke("it ended early", came=came, start_again=False)
    return came


def _left(partial: Path, file: RemoteFile) -> bool:
    return not partial.exists() or _size(partial) < file.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _drop(path: Path) -> int:
    """Delete a file; its size."""
    size = _size(path)
    path.unlink(missing_ok=True)
    return size
