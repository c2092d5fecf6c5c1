"""The interface of a remote, `Remote`, and what its clients share."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from featstore.errors import RemoteError, UsageError
from featstore.formatting import redacted
from featstore.remote.limits import MOST_BYTES

__all__ = ["NETWORK_THREADS", "RETRY_SECONDS", "Patience", "Remote", "RemoteAt", "RemoteObject", "hidden_cause",
           "identity_of", "is_url", "joined_url", "missing_library", "one_line"]  # fmt: skip

RETRY_SECONDS = 240.0  # over which a request is repeated
NETWORK_THREADS = 32  # requests on their way at a time: latency is hidden, and no server minds
_WEB = ("http", "https")
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT",
              "AZURE_ENDPOINT", "HF_ENDPOINT")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    """One object as a listing or its headers show it; None where the server does not say."""

    key: str
    size: int | None
    etag: str | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is waited for, and how often it is asked again. Bounded, so that a run ends and says why."""

    retries: int
    timeout_seconds: float

    @property
    def transfer_seconds(self) -> float:
        """For an object, on top of what its size allows: for silence, and for a body that is asked for again."""
        return self.timeout_seconds + (RETRY_SECONDS if self.retries else 0.0)

    @classmethod
    def from_environment(cls) -> Patience:
        """``FEATSTORE_RETRIES`` (8) and ``FEATSTORE_TIMEOUT`` (60 seconds in which nothing comes)."""
        return cls(
            retries=int(_number("FEATSTORE_RETRIES", "8", least=0)),
            timeout_seconds=_number("FEATSTORE_TIMEOUT", "60", least=0.1),
        )


class Remote(Protocol):
    """Objects under slash-separated keys below a URL. Every failure but "not there" is a RemoteError, of one line."""

    @property
    def url(self) -> str:
        """The URL as the user gave it, without the credentials in it: to show, not to open."""

    @property
    def identity(self) -> str:
        """A hash that no other place has, whatever its URL shows."""

    def get(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """An object, or None where there is none.

        With `most_bytes`, no more of it than that and one byte, which shows that there is more; without, a RemoteError
        where it is larger than an object without a known size may be.
        """

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Bytes [start, stop) of an object; RemoteError where it has gone, or its etag is another."""

    def put(self, key: str, data: bytes) -> None:
        """Put an object in one request, atomically."""

    def head(self, key: str) -> RemoteObject | None:
        """What the server says of an object, or None where there is none."""

    def children(self, prefix: str) -> tuple[str, ...]:
        """Names directly under `prefix`, sorted; empty where there are none."""

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """Every object under `prefix`, with keys relative to the URL."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; it is no error if one has gone."""


class RemoteAt(ABC):
    """What clients have in common: a URL, shown without its credentials, and what an answer must be."""

    def __init__(self, url: str) -> None:
        self._url_with_credentials = url
        self._url = redacted(url)

    def __reduce__(self) -> tuple[Callable[[str], RemoteAt], tuple[str]]:
        return type(self).open, (self._url_with_credentials,)

    @classmethod
    @abstractmethod
    def open(cls, url: str) -> RemoteAt:
        """Open the client of a URL, with the credentials and the patience of the environment."""

    @property
    def url(self) -> str:
        """The URL without its credentials."""
        return self._url

    @property
    def identity(self) -> str:
        """Hash of the URL, and of the endpoint."""
        return identity_of(self._url_with_credentials)

    def get(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Read an object in one request."""
        data = self._read(key, most_bytes=MOST_BYTES if most_bytes is None else most_bytes)
        if data is not None and most_bytes is None and len(data) > MOST_BYTES:
            raise RemoteError(
                f"{self._where(key)} is larger than the {MOST_BYTES:,} bytes that are read of such an object"
            )
        return data

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read a range of an object in one request."""
        data = self._read(key, start=start, most_bytes=stop - start, etag=etag)
        if data is None:
            raise RemoteError(f"{self._where(key)} has gone")
        if len(data) != stop - start:
            raise RemoteError(f"{self._where(key)}: bytes {start:,} to {stop:,} were asked for, and {len(data):,} came")
        return data

    @abstractmethod
    def _read(self, key: str, *, most_bytes: int, start: int | None = None, etag: str | None = None) -> bytes | None:
        """An object, of which one byte more shows that it is larger; of one from `start` on, a range. None if gone."""

    def _where(self, key: str) -> str:
        return joined_url(self._url, key)


def joined_url(url: str, key: str) -> str:
    """URL of what is below another, before its query.

    >>> joined_url("s3://bucket/data/", "a.tar"), joined_url("https://host/data?sig=x", "a.tar")
    ('s3://bucket/data/a.tar', 'https://host/data/a.tar?sig=x')
    """
    place, mark, query = url.partition("?")
    return f"{place.rstrip('/')}/{key}{mark}{query}" if key else url


def is_url(text: str) -> bool:
    """Whether it names something that is not of this machine.

    >>> is_url("s3://bucket/store.zarr"), is_url("store.zarr"), is_url("file:///data/store.zarr")
    (True, False, False)
    """
    return "://" in text and text.partition(":")[0].lower() != "file"


def missing_library(url: str, library: str) -> UsageError:
    """The one line for a client that is not installed."""
    return UsageError(f"{redacted(url)} needs {library}, which is not installed: `pip install 'featstore[cloud]'`")


def identity_of(url: str) -> str:
    """Hash of where a URL leads: of itself without user and password, and of the servers that the environment names."""
    scheme, _, rest = url.rstrip("/").partition("://")
    authority, slash, path = rest.partition("/")
    named = [f"{name}={os.environ[name]}" for name in _ENDPOINTS if os.environ.get(name)] if scheme not in _WEB else []
    place = "\n".join([f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}", *named])
    return hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()


def one_line(error: BaseException, *, most: int = 300) -> str:
    """What an exception says, on one line and without credentials; its type where it says nothing."""
    return redacted(" ".join(str(error).split())[: 4 * most])[:most] or type(error).__name__


def hidden_cause(error: BaseException) -> BaseException | None:
    """An exception as the cause of another, where a traceback may show it: None where it holds credentials."""
    text = str(error)
    return error if redacted(text) == text else None


def _number(name: str, default: str, *, least: float) -> float:
    text = os.environ.get(name) or default
    try:
        value = float(text)
    except ValueError:
        value = least - 1
    if not least <= value < float("inf"):
        raise UsageError(f"{name} must be a number of at least {least:g}: got {text!r}")
    return value
