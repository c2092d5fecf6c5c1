"""The one door of urllib3: a listing, and the bytes of a file from some place on. Only `featstore fetch` needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from featstore.errors import FetchError
from featstore.wording import redacted

__all__ = ["Connection", "ConnectionBroke", "RangeRefused", "Stream"]

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
