"""The obstore client: buckets of S3, Google Cloud Storage and Azure, and files of a web server.

No other module imports obstore.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from featstore.errors import RemoteError, UsageError
from featstore.formatting import one_line, redacted
from featstore.remote.client import (
    ENDPOINTS,
    RETRY_SECONDS,
    Remote,
    RemoteObject,
    RetryPolicy,
    hidden_cause,
    missing_library,
)
from featstore.remote.filesystems import run_async
from featstore.remote.limits import MOST_LISTED, MOST_NAMES, Pace, TooSlow, read_limited

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["BucketRemote", "open_files"]

_T = TypeVar("_T")
_EARLY_RETRIES = 2
_runtime_of: dict[str, int] = {}  # id of the process that obstore's threads were started in
_EARLY_SECONDS = 0.5
_MAX_SECONDS = timedelta(days=1)  # for an object: `Pace` aborts a slow transfer earlier
_MAX_PAGE_SECONDS = timedelta(minutes=5)  # for a page of a listing, which obstore reads without `Pace`
_LISTING_PAGE_SIZE = 1000
_MIN_BYTES_PER_NAME = 100  # in the response
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}


def open_files(url: str, policy: RetryPolicy) -> ObjectStore:
    """Open the files below a URL of a web server for reading."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore
    except ImportError as error:
        raise missing_library(url, "obstore") from error
    options = _client_options(policy, _MAX_SECONDS)
    place, user = _split_user(url.rstrip("/"))
    if user:  # the client does not send credentials of the URL by itself
        options["client_options"]["default_headers"] = {"authorization": f"Basic {b64encode(user).decode()}"}
    try:
        return HTTPStore.from_url(place, **options)
    except (BaseError, ValueError) as error:
        raise UsageError(f"cannot open {redacted(url)}: {_reason(error)}") from hidden_cause(error)


def _split_user(url: str) -> tuple[str, bytes]:
    """Split a URL into the URL without user and password, and the decoded ``user:password``."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}://{host}{slash}{path}", unquote_to_bytes(user) + (b"" if not at or ":" in user else b":")


def _client_options(policy: RetryPolicy, longest: timedelta) -> dict[str, Any]:
    idle = timedelta(seconds=policy.timeout_seconds)
    return {
        # A request may take long while bytes arrive: the read timeout and `limits.Pace` abort it.
        "client_options": {
            "allow_http": True,
            "connect_timeout": min(idle, timedelta(seconds=10)),
            "read_timeout": idle,
            "timeout": max(idle, longest),
        },
        "retry_config": {
            "max_retries": policy.retries,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
        },
    }


def _check_endpoint(kind: str) -> None:
    """Raise UsageError for an endpoint without a scheme: the client's own message would be a page long."""
    for name in ENDPOINTS[kind]:
        parts = urlsplit(text := os.environ.get(name) or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{name} must be a URL such as http://localhost:9000: got {redacted(text)!r}")


def _keys_in_environment() -> bool:
    """Whether obstore finds credentials in the environment, without a request to the cloud's metadata server."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    return any(os.environ.get(name) for name in names)


def _credentials_of_boto3(url: str) -> Any:
    """Credentials from profiles, single sign-on and roles, as in the AWS command line; None without boto3."""
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return Boto3CredentialProvider()
    except Exception as error:
        raise RemoteError(f"there are no credentials for {redacted(url)}: set {_CREDENTIALS['s3']}") from error


class BucketRemote(Remote):
    """Objects that obstore reads and writes. ``store`` is the client for objects, ``names`` the client for listings."""

    def __init__(
        self, url: str, store: ObjectStore, names: ObjectStore, *, credentials: str, policy: RetryPolicy
    ) -> None:
        super().__init__(url)
        self._credentials = credentials
        self._policy = policy
        self.store = store
        self._names = names

    @classmethod
    def open(cls, url: str) -> BucketRemote:
        """Open a bucket with credentials from the environment."""
        policy = RetryPolicy.from_environment()
        scheme = urlsplit(url).scheme
        kind = {"s3a": "s3"}.get(scheme, scheme if scheme in ("s3", "gs") else "az")
        _check_endpoint(kind)
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise missing_library(url, "obstore") from error
        extra: dict[str, Any] = {}
        if kind == "s3" and not _keys_in_environment():
            extra["credential_provider"] = _credentials_of_boto3(url)
        given = {name: value for name, value in extra.items() if value}
        try:
            store = from_url(url, **_client_options(policy, _MAX_SECONDS), **given)
            names = from_url(url, **_client_options(policy, _MAX_PAGE_SECONDS), **given)
        except (BaseError, ValueError) as error:
            raise RemoteError(
                f"cannot open {redacted(url)}: {_reason(error)}; it needs {_CREDENTIALS[kind]}"
            ) from hidden_cause(error)
        return BucketRemote(url, store, names, credentials=_CREDENTIALS[kind], policy=policy)

    def _read(self, key: str, *, most_bytes: int, start: int | None = None, etag: str | None = None) -> bytes | None:
        options: Any = {} if start is None else {"range": (start, start + most_bytes)}
        if etag:
            options["if_match"] = etag
        try:
            return self._request("read", key, lambda: self._read_body(key, options, most_bytes))
        except FileNotFoundError:
            return None

    def _read_body(self, key: str, options: Any, most_bytes: int) -> bytes:
        """Read a response body in chunks: a single read would allocate the length that the server states."""
        import obstore

        pace = Pace(self._policy.transfer_seconds)
        answer = obstore.get(self.store, key, options=options)
        return read_limited(answer.stream(min_chunk_size=1), most_bytes=most_bytes, pace=pace)

    def put(self, key: str, data: bytes) -> None:
        """Send one PUT request, never a multipart upload."""
        import obstore

        try:
            self._request("write", key, lambda: obstore.put(self.store, key, data, use_multipart=False))
        except FileNotFoundError as error:
            raise RemoteError(f"cannot write to {self._url}: there is no such bucket; create it first") from error

    def head(self, key: str) -> RemoteObject | None:
        """Send one HEAD request."""
        import obstore

        try:
            return _remote_object(self._request("read", key, lambda: obstore.head(self.store, key)))
        except FileNotFoundError:
            return None

    def children(self, prefix: str) -> tuple[str, ...]:
        """List with a delimiter. The client reads all pages by itself, within a deadline."""
        found = self._request("list", prefix, lambda: run_async(self._level, prefix))
        paths = (*found["common_prefixes"], *(each["path"] for each in found["objects"]))
        if len(paths) > MOST_NAMES:
            raise RemoteError(f"cannot list {self._where(prefix)}: it has more than {MOST_NAMES:,} names")
        return tuple(sorted(path.rsplit("/", 1)[-1] for path in paths))

    async def _level(self, prefix: str) -> Any:
        import obstore

        seconds = self._policy.transfer_seconds
        try:
            async with asyncio.timeout(seconds):
                return await obstore.list_with_delimiter_async(self._names, prefix or None)
        except TimeoutError:
            raise RemoteError(
                f"cannot list {self._where(prefix)}: the listing was not complete after {seconds:.0f} s; increase "
                "FEATSTORE_TIMEOUT"
            ) from None

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """List without a delimiter."""
        return iter(self._request("list", prefix, lambda: self._listed(prefix)))

    def _listed(self, prefix: str) -> list[RemoteObject]:
        import obstore

        pace = Pace(self._policy.transfer_seconds)
        found: list[RemoteObject] = []
        for page in obstore.list(self._names, prefix or None, chunk_size=_LISTING_PAGE_SIZE):
            found += map(_remote_object, page)
            if len(found) > MOST_LISTED:
                raise RemoteError(f"{self._where(prefix)} has more than {MOST_LISTED:,} objects: name a folder in it")
            pace.check(len(found) * _MIN_BYTES_PER_NAME)
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, up to a thousand per request if the protocol supports it."""
        import contextlib

        import obstore

        if keys := list(keys):
            with contextlib.suppress(FileNotFoundError):
                self._request("delete", keys[0], lambda: obstore.delete(self.store, keys))

    def _request(self, verb: str, key: str, ask: Callable[[], _T]) -> _T:
        """Call `ask`, and replace exceptions of the client by a RemoteError of one line."""
        from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

        where = self._where(key)
        _check_not_forked(where)
        try:
            return _retry_early_failures(ask)
        except (FileNotFoundError, RemoteError):
            raise
        except (UnauthenticatedError, PermissionDeniedError) as error:
            raise RemoteError(
                f"cannot {verb} {where}: the server refuses these credentials: {_reason(error)}; "
                f"it needs {self._credentials}"
            ) from hidden_cause(error)
        except PreconditionError as error:
            raise RemoteError(f"{where} changed while it was read: run the same command again") from hidden_cause(error)
        except (BaseError, TooSlow, OSError, ValueError) as error:
            reason = _reason(error)
            needs = f"; it needs {self._credentials}" if "403 Forbidden" in reason else ""
            raise RemoteError(f"cannot {verb} {where}: {reason}{needs}") from hidden_cause(error)


def _check_not_forked(where: str) -> None:
    """Raise RemoteError in a forked process, where a request would hang: a fork does not copy obstore's threads."""
    if _runtime_of.setdefault("process", os.getpid()) != os.getpid():
        raise RemoteError(
            f"cannot read {where} in a process that was forked after the store was read: start workers with "
            "multiprocessing_context='spawn', or `featstore copy` the store to a folder first"
        )


def _retry_early_failures(ask: Callable[[], _T]) -> _T:
    """Repeat a request that failed early: the client does not retry a response whose body is truncated.

    All requests are idempotent: they put a complete object, or read a range.
    """
    from obstore.exceptions import GenericError

    for _ in range(_EARLY_RETRIES):
        began = time.monotonic()
        try:
            return ask()
        except GenericError as error:
            broke_off = "kind: Interrupted" in str(error)
            if time.monotonic() - began > _EARLY_SECONDS and not broke_off:
                raise
    return ask()


def _remote_object(meta: Any) -> RemoteObject:
    modified = meta["last_modified"]
    return RemoteObject(
        key=meta["path"],
        size=meta["size"],
        etag=meta["e_tag"],
        modified_ns=round(modified.timestamp() * 1e9) if modified and modified.year > 1970 else None,
    )


def _reason(error: Exception) -> str:
    """The server's response if there is one, else the first paragraph of obstore's message."""
    if isinstance(error, TooSlow):
        return one_line(error)
    text, _, source = redacted(str(error)).partition("Debug source")
    text = " ".join(text.split())
    tries = re.search(r"after \d+ retries", text)
    tried = f" ({tries.group()})" if tries else ""
    if (status := re.search(r"non-2xx status code: (\d+[^:]*)", text)) is None:
        return (_no_answer(text, source) or text.rpartition(" - ")[2][:360]) + tried
    details = [found.group(1) for tag in ("Code", "Message") if (found := re.search(rf"<{tag}>(.*?)</{tag}>", text))]
    details = [re.sub(r"\s*RequestId:.*", "", each) for each in details]  # Azure's request id is of no use to the user
    return ": ".join([f"the server answers {status.group(1).strip()}", *details]) + tried


def _no_answer(text: str, source: str) -> str:
    """Name the server that did not answer, and the operating system's error; obstore's first line has neither."""
    server = re.search(r"performing [A-Z]+ (https?://[^/\s]+)", text)
    if server is None or "error sending request" not in text:
        return ""
    cause = re.search(r'(?:message|error): "([^"]+)"', source)
    why = cause.group(1) if cause else "it took too long" if re.search(r"\b(Timeout|TimedOut)\b", source) else ""
    return f"no answer from {server.group(1)}" + (f": {why}" if why else "")
