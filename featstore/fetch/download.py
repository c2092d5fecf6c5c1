"""Downloads: the listing of a record, and a file that is resumed, checked against its MD5 and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from featstore.errors import FetchError
from featstore.formatting import redacted

__all__ = [
    "Connection",
    "ConnectionBroke",
    "RangeRefused",
    "RemoteFile",
    "Stream",
    "download",
    "is_right",
    "parse_record",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a record. ``name`` is a plain file name; ``md5`` 32 hexadecimal digits."""

    name: str
    size: int
    md5: str
    url: str

    @property
    def is_archive(self) -> bool:
        """Whether the shards are inside it."""
        return self.name.lower().endswith(".zip")


def parse_record(text: bytes, *, where: str) -> tuple[RemoteFile, ...]:
    """Read the JSON of a Zenodo record: its tars and zips, sorted by name; other files are no shards.

    Raises
    ------
    FetchError
        It is no such JSON, holds no shard, or names a file that is none.
    """
    try:
        raw = json.loads(text)
        listed = [each for each in raw["files"] if str(each["key"]).lower().endswith((".tar", ".zip"))]
        files = sorted((_parse_file(each) for each in listed), key=lambda file: file.name)
    except (ValueError, TypeError, KeyError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FetchError(f"{where} is not the listing of a record: {told}") from error
    if not files:
        raise FetchError(f"{where} lists no .tar and no .zip: its shards are to be downloaded by hand")
    names = [file.name.lower() for file in files]
    if len(set(names)) < len(names):
        raise FetchError(f"{where} lists a file twice")
    return tuple(files)


def _parse_file(raw: Mapping[str, object]) -> RemoteFile:
    name, size, links = raw["key"], raw["size"], raw["links"]
    if not isinstance(name, str) or PurePosixPath(name).name != name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{name!r} is no plain file name")
    if "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is no plain file name")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{name} has no size")
    found = re.fullmatch(r"md5:([0-9a-f]{32})", str(raw["checksum"]))
    if not found:
        raise ValueError(f"{name} has no MD5 checksum, but {raw['checksum']!r}")
    if not isinstance(links, Mapping):
        raise TypeError(f"{name} has no links")
    url = str(links["self"])
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{name} is not at a web address, but at {url!r}")
    return RemoteFile(name=name, size=size, md5=found[1], url=url)


CHUNK_BYTES = 1 << 20
BUSY = (429, 500, 502, 503, 504)


class ConnectionBroke(Exception):
    """A download broke off: what came is kept, and the rest is asked for again."""


class RangeRefused(ConnectionBroke):
    """The server cannot go on from there: the whole file is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Bytes of a file. ``start`` is 0 where the server sends the whole of it, whatever was asked for."""

    start: int
    chunks: Iterator[bytes]


class Connection:
    """A pool of connections. A server that is busy is asked again, later each time, and as late as it says itself.

    Parameters
    ----------
    backoff_seconds : float
        First pause before a request is repeated.
    timeout_seconds : float
        For a connection, and for each piece of an answer.
    """

    def __init__(self, *, n_connections: int, backoff_seconds: float, timeout_seconds: float) -> None:
        self._pool = urllib3.PoolManager(
            maxsize=n_connections,
            timeout=Timeout(connect=timeout_seconds, read=timeout_seconds),
            retries=Retry(
                total=5, backoff_factor=backoff_seconds, backoff_max=60, status_forcelist=BUSY, raise_on_status=False
            ),
            headers={"User-Agent": "featstore", "Accept-Encoding": "identity"},
        )

    def get(self, url: str) -> bytes:
        """Return a whole answer, of at most 64 MiB. Raises FetchError."""
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            with answer:
                body = answer.read(64 << 20)
        except HTTPError as error:
            raise FetchError(f"{redacted(url)} cannot be reached: {_told(error)}") from error
        if answer.status != 200:
            raise FetchError(f"{redacted(url)} answers {answer.status} {answer.reason or ''}".rstrip())
        return bytes(body)

    @contextmanager
    def stream(self, url: str, *, start: int) -> Iterator[Stream]:
        """Open a file from byte ``start`` on.

        Raises
        ------
        ConnectionBroke
            The server cannot be reached or stops half-way.
        FetchError
            The server has no such file, or refuses it.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            answer = self._pool.request("GET", url, headers=headers, preload_content=False, enforce_content_length=True)
        except HTTPError as error:
            raise ConnectionBroke(_told(error)) from error
        try:
            if answer.status in BUSY:
                raise ConnectionBroke(f"the server answers {answer.status}")
            if answer.status not in (200, 206, 416):
                raise FetchError(f"{redacted(url)} answers {answer.status} {answer.reason or ''}".rstrip())
            # A server that ignores the range sends all of the file; one that has no such range is asked for all of it.
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status == 416 or (answer.status == 206 and not resumed):
                raise RangeRefused("the server cannot go on from there")
            yield Stream(start=start if resumed else 0, chunks=_chunks(answer))
        finally:
            answer.close()


def _chunks(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer.stream(CHUNK_BYTES, decode_content=False)
    except (HTTPError, OSError) as error:
        raise ConnectionBroke(_told(error)) from error


def _told(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))[:200] or type(error).__name__


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
