"""`Remote`, the base class of the clients: hides credentials in the URL, and checks the sizes of responses."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from featstore.errors import RemoteError, UsageError, missing_extra
from featstore.formatting import redacted
from featstore.remote.limits import MOST_BYTES

__all__ = [
    "ENDPOINTS",
    "NETWORK_THREADS",
    "RETRY_SECONDS",
    "Remote",
    "RemoteObject",
    "RetryPolicy",
    "hidden_cause",
    "identity_of",
    "is_url",
    "joined_url",
    "missing_library",
]  # fmt: skip

RETRY_SECONDS = 240.0  # a request is retried for at most this long
NETWORK_THREADS = 32  # requests in flight: enough to hide latency, and acceptable to servers
_WEB = ("http", "https")
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "hf": ("HF_ENDPOINT",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    """Metadata of an object from a listing or a HEAD response; None for fields that the server does not state."""

    key: str
    size: int | None
    etag: str | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Timeout and number of retries of a request. Both are bounded, so that a run ends with an error message."""

    retries: int
    timeout_seconds: float

    @property
    def transfer_seconds(self) -> float:
        """Seconds for the transfer of an object, in addition to the time for its size: a timeout, and the retries."""
        return self.timeout_seconds + (RETRY_SECONDS if self.retries else 0.0)

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """Read ``FEATSTORE_RETRIES`` (default: 8) and ``FEATSTORE_TIMEOUT`` (default: 60 seconds without data)."""
        return cls(
            retries=int(_number_from_environment("FEATSTORE_RETRIES", "8", least=0)),
            timeout_seconds=_number_from_environment("FEATSTORE_TIMEOUT", "60", least=0.1),
        )


class Remote(ABC):
    """Objects with slash-separated keys below a URL. All failures except a missing object raise RemoteError."""

    def __init__(self, url: str) -> None:
        self._url_with_credentials = url
        self._url = redacted(url)

    def __reduce__(self) -> tuple[Callable[[str], Remote], tuple[str]]:
        return type(self).open, (self._url_with_credentials,)

    @classmethod
    @abstractmethod
    def open(cls, url: str) -> Remote:
        """Open a URL, with credentials and a retry policy from the environment."""

    @property
    def url(self) -> str:
        """The user's URL without credentials: for display, not for opening."""
        return self._url

    @property
    def identity(self) -> str:
        """A hash of the URL and of the endpoints, which identifies the location even where `url` hides parts of it."""
        return identity_of(self._url_with_credentials)

    def get(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Return an object's content, read in one request, or None if there is no such object.

        With `most_bytes`, at most `most_bytes` + 1 bytes are returned; the extra byte shows that the object is larger.
        Without it, an object larger than `MOST_BYTES` raises RemoteError.
        """
        data = self._read(key, most_bytes=MOST_BYTES if most_bytes is None else most_bytes)
        if data is not None and most_bytes is None and len(data) > MOST_BYTES:
            raise RemoteError(
                f"{self._where(key)} is larger than {MOST_BYTES:,} bytes, the limit for an object of unknown size"
            )
        return data

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Return bytes [start, stop) of an object. Raises RemoteError if it is missing or its etag differs."""
        data = self._read(key, start=start, most_bytes=stop - start, etag=etag)
        if data is None:
            raise RemoteError(f"{self._where(key)} does not exist any more")
        if len(data) != stop - start:
            raise RemoteError(
                f"{self._where(key)}: bytes {start:,} to {stop:,} were requested, and {len(data):,} bytes received"
            )
        return data

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Put an object in one request, atomically."""

    @abstractmethod
    def head(self, key: str) -> RemoteObject | None:
        """Return an object's metadata, or None if there is no such object."""

    @abstractmethod
    def children(self, prefix: str) -> tuple[str, ...]:
        """Return the names directly under `prefix`, sorted."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """Yield all objects under `prefix`, with keys relative to the URL."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""

    @abstractmethod
    def _read(self, key: str, *, most_bytes: int, start: int | None = None, etag: str | None = None) -> bytes | None:
        """Read a range from `start` on, or an object plus one byte that shows it is larger. None if it is missing."""

    def _where(self, key: str) -> str:
        return joined_url(self._url, key)


def joined_url(url: str, key: str) -> str:
    """Append a key to the path of a URL; a query stays at the end.

    >>> joined_url("s3://bucket/data/", "a.tar"), joined_url("https://host/data?sig=x", "a.tar")
    ('s3://bucket/data/a.tar', 'https://host/data/a.tar?sig=x')
    """
    place, mark, query = url.partition("?")
    return f"{place.rstrip('/')}/{key}{mark}{query}" if key else url


def is_url(text: str) -> bool:
    """Whether the text is a URL of another machine; ``file:`` URLs are not.

    >>> is_url("s3://bucket/store.zarr"), is_url("store.zarr"), is_url("file:///data/store.zarr")
    (True, False, False)
    """
    return "://" in text and text.partition(":")[0].lower() != "file"


def missing_library(url: str, library: str) -> UsageError:
    """Return the error for a client that is not installed."""
    return missing_extra(redacted(url), library, "cloud")


def identity_of(url: str) -> str:
    """Hash a location: the URL without user and password, and the endpoints that the environment names."""
    scheme, _, rest = url.rstrip("/").partition("://")
    authority, slash, path = rest.partition("/")
    names = [name for names in ENDPOINTS.values() for name in names if scheme not in _WEB and os.environ.get(name)]
    named = [f"{name}={os.environ[name]}" for name in names]
    place = "\n".join([f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}", *named])
    return hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()


def hidden_cause(error: BaseException) -> BaseException | None:
    """Return the exception for use in ``raise ... from``; None if its message contains credentials."""
    text = str(error)
    return error if redacted(text) == text else None


def _number_from_environment(name: str, default: str, *, least: float) -> float:
    text = os.environ.get(name) or default
    try:
        value = float(text)
    except ValueError:
        value = least - 1
    if not least <= value < float("inf"):
        raise UsageError(f"{name} must be a number of at least {least:g}: got {text!r}")
    return value
