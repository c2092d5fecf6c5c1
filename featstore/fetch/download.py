"""Downloads: the file list of a Zenodo record, and resumable files that are checked against their MD5."""

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

from featstore.errors import FetchError, missing_extra
from featstore.formatting import one_line, redacted

try:
    import urllib3
    from urllib3.exceptions import HTTPError
    from urllib3.util import Retry, Timeout
except ModuleNotFoundError as error:
    raise missing_extra("`featstore fetch`", error, "fetch") from error

__all__ = ["Connection", "RemoteFile", "download", "file_bytes", "matches_record", "parse_record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a record. ``name`` is a file name without folders; ``md5`` has 32 hexadecimal digits."""

    name: str
    size: int
    md5: str
    url: str

    @property
    def is_archive(self) -> bool:
        """Whether the file is a zip of shards."""
        return self.name.lower().endswith(".zip")


def parse_record(text: bytes, *, where: str) -> tuple[RemoteFile, ...]:
    """Read the JSON of a Zenodo record: its tars and zips, sorted by name. Other files are ignored.

    Raises
    ------
    FetchError
        The JSON is not a record, lists no shard, or has an invalid file entry.
    """
    try:
        raw = json.loads(text)
        listed = [each for each in raw["files"] if str(each["key"]).lower().endswith((".tar", ".zip"))]
        files = sorted((_parse_file(each) for each in listed), key=lambda file: file.name)
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FetchError(f"{where} is not a Zenodo record: {problem}") from error
    if not files:
        raise FetchError(f"{where} lists no .tar and no .zip: download its shards manually")
    names = [file.name.lower() for file in files]
    if repeated := [file.name for file in files if names.count(file.name.lower()) > 1]:
        raise FetchError(f"{where} lists {repeated[0]!r} {len(repeated)} times")
    return tuple(files)


def _parse_file(raw: Mapping[str, object]) -> RemoteFile:
    name, size, links = raw["key"], raw["size"], raw["links"]
    if not isinstance(name, str) or PurePosixPath(name).name != name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{name!r} is not a plain file name")
    if "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is not a plain file name")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{name} needs a size in bytes: got {size!r}")
    found = re.fullmatch(r"md5:([0-9a-f]{32})", str(raw["checksum"]))
    if not found:
        raise ValueError(f"{name} needs an MD5 checksum: got {raw['checksum']!r}")
    if not isinstance(links, Mapping):
        raise TypeError(f"{name} has no links")
    url = str(links["self"])
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{name} needs an http or https URL: got {url!r}")
    return RemoteFile(name=name, size=size, md5=found[1], url=url)


CHUNK_BYTES = 1 << 20
RETRY_STATUSES = (429, 500, 502, 503, 504)


class _ConnectionBroke(Exception):
    """A download was interrupted. Received bytes are kept, and the rest is requested again.

    With `start_again`, the server cannot resume from there: the complete file is requested again.
    """

    def __init__(self, why: str, *, start_again: bool = False) -> None:
        super().__init__(why)
        self.start_again = start_again


class Connection:
    """A pool of connections. Requests to a busy server are retried with exponential backoff and its Retry-After header.

    Parameters
    ----------
    backoff_seconds : float
        Delay before the first retry.
    timeout_seconds : float
        Timeout for connecting, and for each read.
    """

    def __init__(self, *, n_connections: int, backoff_seconds: float, timeout_seconds: float) -> None:
        self._pool = urllib3.PoolManager(
            maxsize=n_connections,
            timeout=Timeout(connect=timeout_seconds, read=timeout_seconds),
            retries=Retry(
                total=5,
                backoff_factor=backoff_seconds,
                backoff_max=60,
                status_forcelist=RETRY_STATUSES,
                raise_on_status=False,
            ),
            headers={"User-Agent": "featstore", "Accept-Encoding": "identity"},
        )

    def get(self, url: str) -> bytes:
        """Return the body of a response, at most 64 MiB. Raises FetchError."""
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            with answer:
                body = answer.read(64 << 20)
        except HTTPError as error:
            raise FetchError(f"cannot reach {redacted(url)}: {one_line(error, most=200)}") from error
        if answer.status != 200:
            raise FetchError(f"{redacted(url)} answers {answer.status} {answer.reason or ''}".rstrip())
        return bytes(body)

    @contextmanager
    def stream(self, url: str, *, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Open a file from byte `start` on, or from byte 0 if the server ignores ranges; yields that byte and chunks.

        Raises FetchError if the server has no such file, or refuses the request.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            answer = self._pool.request("GET", url, headers=headers, preload_content=False, enforce_content_length=True)
        except HTTPError as error:
            raise _ConnectionBroke(one_line(error, most=200)) from error
        try:
            if answer.status in RETRY_STATUSES:
                raise _ConnectionBroke(f"the server answers {answer.status}")
            if answer.status not in (200, 206, 416):
                raise FetchError(f"{redacted(url)} answers {answer.status} {answer.reason or ''}".rstrip())
            # A server that ignores the range sends the complete file. If it rejects the range, request all of it.
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status == 416 or (answer.status == 206 and not resumed):
                raise _ConnectionBroke("the server cannot resume the file", start_again=True)
            yield start if resumed else 0, _chunks(answer)
        finally:
            answer.close()


def _chunks(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        yield from answer.stream(CHUNK_BYTES, decode_content=False)
    except (HTTPError, OSError) as error:
        raise _ConnectionBroke(one_line(error, most=200)) from error


MAX_FAILURES = 6
"""Consecutive failures without progress."""

MAX_MISMATCHES = 2
"""Complete files that do not match the record: the first may have been resumed after the file changed."""


def matches_record(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the MD5 of its record."""
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
    """Download a file to `path`, which is created when the file is complete and correct. Returns the received bytes.

    An incomplete file of this or an earlier run is kept as ``.NAME.part`` in the same folder, and is resumed.

    Parameters
    ----------
    on_bytes : callable
        Called with the number of received bytes, of bytes that were present before, and, negative, of discarded bytes.
    stopped : callable
        Called between chunks; returns True to stop the download.

    Raises
    ------
    FetchError
        The server has no such file, fails repeatedly, or sends content that does not match the record.
    """
    partial = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    received = failures = mismatches = 0
    furthest = file_bytes(partial)
    on_bytes(furthest)

    def on_received(n_bytes: int) -> None:
        nonlocal received
        received += n_bytes
        on_bytes(n_bytes)

    def discard() -> None:
        on_bytes(-file_bytes(partial))
        partial.unlink(missing_ok=True)

    while not stopped():
        if file_bytes(partial) > file.size:
            discard()
        try:
            if not partial.exists() or file_bytes(partial) < file.size:
                _resume(connection, file, partial, on_received=on_received, on_bytes=on_bytes, stopped=stopped)
        except _ConnectionBroke as error:
            reached = file_bytes(partial)
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= MAX_FAILURES:
                raise FetchError(
                    f"{file.name}: {error}; {failures} consecutive failures without progress. "
                    "Run the same command again to resume"
                ) from error
            if error.start_again:
                discard()
            time.sleep(min(60.0, backoff_seconds * 2**failures))
            continue
        if stopped():
            break
        if matches_record(partial, file):
            with partial.open("rb") as content:
                os.fsync(content.fileno())
            partial.replace(path)
            return received
        mismatches += 1
        discard()
        if mismatches >= MAX_MISMATCHES:
            raise FetchError(f"{file.name}: {redacted(file.url)} does not match its record (size or MD5 differs)")
    return received


def _resume(
    connection: Connection,
    file: RemoteFile,
    partial: Path,
    *,
    on_received: Callable[[int], None],
    on_bytes: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """Download the rest of a file, or all of it if the server ignores ranges."""
    present = file_bytes(partial)
    with connection.stream(file.url, start=present) as (start, chunks):
        if start != present:
            on_bytes(-present)
        with partial.open("r+b" if start else "wb") as out:
            out.seek(start)
            for chunk in chunks:
                if stopped() or out.tell() > file.size:
                    break
                out.write(chunk)
                on_received(len(chunk))
    if file_bytes(partial) < file.size and not stopped():
        raise _ConnectionBroke("the response ended early")


def file_bytes(path: Path) -> int:
    """Size of a file, 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0
