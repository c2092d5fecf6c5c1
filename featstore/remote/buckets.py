"""The one door of obstore: buckets of S3, Google Cloud Storage and Azure, and files of a web server."""

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
from featstore.formatting import redacted
from featstore.remote.client import (
    RETRY_SECONDS,
    Patience,
    RemoteAt,
    RemoteObject,
    hidden_cause,
    missing_library,
    one_line,
)
from featstore.remote.filesystems import waited_for
from featstore.remote.limits import MOST_LISTED, MOST_NAMES, Pace, TooSlow, gathered

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["BucketRemote", "open_files"]

_T = TypeVar("_T")
_QUICK_TURNS = 2
_runtime_of: dict[str, int] = {}  # the process that obstore's threads, which it has one set of, were started in
_QUICK_SECONDS = 0.5
_MOST_SECONDS = timedelta(days=1)  # of an object: `Pace` ends it sooner where too little comes
_MOST_SECONDS_OF_A_PAGE = timedelta(minutes=5)  # of an answer of names, which obstore reads by itself
_NAMES_AT_A_TIME = 1000
_LEAST_BYTES_OF_A_NAME = 100  # of an answer
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


def open_files(url: str, patience: Patience) -> ObjectStore:
    """Open the files below a URL of a web server, for reading."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore
    except ImportError as error:
        raise missing_library(url, "obstore") from error
    manners = _manners(patience, _MOST_SECONDS)
    place, user = _without_user(url.rstrip("/"))
    if user:  # which the client does not send by itself
        manners["client_options"]["default_headers"] = {"authorization": f"Basic {b64encode(user).decode()}"}
    try:
        return HTTPStore.from_url(place, **manners)
    except (BaseError, ValueError) as error:
        raise UsageError(f"cannot open {redacted(url)}: {_told(error)}") from hidden_cause(error)


def _without_user(url: str) -> tuple[str, bytes]:
    """A URL without its user and password, and these as they were before they were put into a URL."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}://{host}{slash}{path}", unquote_to_bytes(user) + (b"" if not at or ":" in user else b":")


def _manners(patience: Patience, most: timedelta) -> dict[str, Any]:
    quiet = timedelta(seconds=patience.timeout_seconds)
    return {
        # A request may take as long as bytes keep coming: what ends it is silence, or too little (`limits.Pace`).
        "client_options": {
            "allow_http": True,
            "connect_timeout": min(quiet, timedelta(seconds=10)),
            "read_timeout": quiet,
            "timeout": max(quiet, most),
        },
        "retry_config": {
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
        },
    }


def _check_endpoint(kind: str) -> None:
    """Refuse a host without a scheme, on which the client would break with a page of its own."""
    for name in _ENDPOINTS[kind]:
        parts = urlsplit(text := os.environ.get(name) or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{name} must be a URL such as http://localhost:9000: got {redacted(text)!r}")


def _keys_in_environment() -> bool:
    """Whether obstore finds credentials by itself, without asking a cloud's own address for them."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    return any(os.environ.get(name) for name in names)


def _credentials_of_boto3(url: str) -> Any:
    """Profiles, single sign-on and roles, as the AWS command line finds them; None where boto3 is not installed."""
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return Boto3CredentialProvider()
    except Exception as error:
        raise RemoteError(f"there are no credentials for {redacted(url)}: set {_CREDENTIALS['s3']}") from error


class BucketRemote(RemoteAt):
    """Objects that obstore reads and writes. ``store`` is its client for objects, ``names`` for listings."""

    def __init__(
        self, url: str, store: ObjectStore, names: ObjectStore, *, credentials: str, patience: Patience
    ) -> None:
        super().__init__(url)
        self._credentials = credentials
        self._patience = patience
        self.store = store
        self._names = names

    @classmethod
    def open(cls, url: str) -> BucketRemote:
        """Open a bucket with the credentials of the environment."""
        patience = Patience.from_environment()
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
            store = from_url(url, **_manners(patience, _MOST_SECONDS), **given)
            names = from_url(url, **_manners(patience, _MOST_SECONDS_OF_A_PAGE), **given)
        except (BaseError, ValueError) as error:
            raise RemoteError(
                f"cannot open {redacted(url)}: {_told(error)}; it wants {_CREDENTIALS[kind]}"
            ) from hidden_cause(error)
        return BucketRemote(url, store, names, credentials=_CREDENTIALS[kind], patience=patience)

    def _read(self, key: str, *, most_bytes: int, start: int | None = None, etag: str | None = None) -> bytes | None:
        options: Any = {} if start is None else {"range": (start, start + most_bytes)}
        if etag:
            options["if_match"] = etag
        try:
            return self._asked("read", key, lambda: self._received(key, options, most_bytes))
        except FileNotFoundError:
            return None

    def _received(self, key: str, options: Any, most_bytes: int) -> bytes:
        """The body of an answer piece by piece: the client would allocate whatever length the server states."""
        import obstore

        pace = Pace(self._patience.transfer_seconds)
        answer = obstore.get(self.store, key, options=options)
        return gathered(answer.stream(min_chunk_size=1), most_bytes=most_bytes, pace=pace)

    def put(self, key: str, data: bytes) -> None:
        """One PUT: never in pieces, whatever the size."""
        import obstore

        try:
            self._asked("write", key, lambda: obstore.put(self.store, key, data, use_multipart=False))
        except FileNotFoundError as error:
            raise RemoteError(f"cannot write to {self._url}: there is no such bucket; make it first") from error

    def head(self, key: str) -> RemoteObject | None:
        """One HEAD."""
        import obstore

        try:
            return _described(self._asked("read", key, lambda: obstore.head(self.store, key)))
        except FileNotFoundError:
            return None

    def children(self, prefix: str) -> tuple[str, ...]:
        """One listing with a delimiter. The client follows its pages by itself, so that a deadline ends it."""
        found = self._asked("list", prefix, lambda: waited_for(self._level, prefix))
        paths = (*found["common_prefixes"], *(each["path"] for each in found["objects"]))
        if len(paths) > MOST_NAMES:
            raise RemoteError(f"cannot list {self._where(prefix)}: it has more than {MOST_NAMES:,} names")
        return tuple(sorted(path.rsplit("/", 1)[-1] for path in paths))

    async def _level(self, prefix: str) -> Any:
        import obstore

        seconds = self._patience.transfer_seconds
        try:
            async with asyncio.timeout(seconds):
                return await obstore.list_with_delimiter_async(self._names, prefix or None)
        except TimeoutError:
            raise RemoteError(
                f"cannot list {self._where(prefix)}: its pages did not end in {seconds:.0f} s; FEATSTORE_TIMEOUT "
                "allows more"
            ) from None

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """One listing without a delimiter."""
        return iter(self._asked("list", prefix, lambda: self._listed(prefix)))

    def _listed(self, prefix: str) -> list[RemoteObject]:
        import obstore

        pace = Pace(self._patience.transfer_seconds)
        found: list[RemoteObject] = []
        for page in obstore.list(self._names, prefix or None, chunk_size=_NAMES_AT_A_TIME):
            found += map(_described, page)
            if len(found) > MOST_LISTED:
                raise RemoteError(f"{self._where(prefix)} has more than {MOST_LISTED:,} objects: name a folder in it")
            pace.check(len(found) * _LEAST_BYTES_OF_A_NAME)
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete up to a thousand objects with a request, where the protocol can."""
        import contextlib

        import obstore

        if keys := list(keys):
            with contextlib.suppress(FileNotFoundError):
                self._asked("delete", keys[0], lambda: obstore.delete(self.store, keys))

    def _asked(self, verb: str, key: str, ask: Callable[[], _T]) -> _T:
        """Ask, and turn what the client says into one line."""
        from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError

        where = self._where(key)
        _require_own_runtime(where)
        try:
            return _asked_again_at_once(ask)
        except (FileNotFoundError, RemoteError):
            raise
        except (UnauthenticatedError, PermissionDeniedError) as error:
            raise RemoteError(
                f"cannot {verb} {where}: the server refuses these credentials: {_told(error)}; "
                f"it wants {self._credentials}"
            ) from hidden_cause(error)
        except PreconditionError as error:
            raise RemoteError(f"{where} changed while it was read: run the same command again") from hidden_cause(error)
        except (BaseError, TooSlow, OSError, ValueError) as error:
            wants = f"; it wants {self._credentials}" if "403 Forbidden" in (told := _told(error)) else ""
            raise RemoteError(f"cannot {verb} {where}: {told}{wants}") from hidden_cause(error)


def _require_own_runtime(where: str) -> None:
    """Refuse in a forked process what would wait for ever: obstore's threads stay behind in the one that had them."""
    if _runtime_of.setdefault("process", os.getpid()) != os.getpid():
        raise RemoteError(
            f"cannot read {where} in a process that was forked after the store was read: start workers with "
            "multiprocessing_context='spawn', or `featstore copy` the store to a folder first"
        )


def _asked_again_at_once(ask: Callable[[], _T]) -> _T:
    """Ask once more where the client gave up at once: it does not retry an answer that breaks off in its body.

    Every request of ours may be repeated: a whole object is put, or a range is read.
    """
    from obstore.exceptions import GenericError

    for _ in range(_QUICK_TURNS):
        began = time.monotonic()
        try:
            return ask()
        except GenericError as error:
            broke_off = "kind: Interrupted" in str(error)
            if time.monotonic() - began > _QUICK_SECONDS and not broke_off:
                raise
    return ask()


def _described(meta: Any) -> RemoteObject:
    modified = meta["last_modified"]
    return RemoteObject(
        key=meta["path"],
        size=meta["size"],
        etag=meta["e_tag"],
        modified_ns=round(modified.timestamp() * 1e9) if modified and modified.year > 1970 else None,
    )


def _told(error: Exception) -> str:
    """What the server answered, where it did, else the first paragraph of what obstore says; the rest is its source."""
    if isinstance(error, TooSlow):
        return one_line(error)
    text, _, source = redacted(str(error)).partition("Debug source")
    text = " ".join(text.split())
    tries = re.search(r"after \d+ retries", text)
    tried = f" ({tries.group()})" if tries else ""
    if (status := re.search(r"non-2xx status code: (\d+[^:]*)", text)) is None:
        return (_no_answer(text, source) or text.rpartition(" - ")[2][:360]) + tried
    said = [found.group(1) for tag in ("Code", "Message") if (found := re.search(rf"<{tag}>(.*?)</{tag}>", text))]
    said = [re.sub(r"\s*RequestId:.*", "", each) for each in said]  # Azure's, for its own staff
    return ": ".join([f"the server answers {status.group(1).strip()}", *said]) + tried


def _no_answer(text: str, source: str) -> str:
    """Which server did not answer, and what the operating system says of it; the client's first line says neither."""
    server = re.search(r"performing [A-Z]+ (https?://[^/\s]+)", text)
    if server is None or "error sending request" not in text:
        return ""
    cause = re.search(r'(?:message|error): "([^"]+)"', source)
    why = cause.group(1) if cause else "it took too long" if re.search(r"\b(Timeout|TimedOut)\b", source) else ""
    return f"no answer from {server.group(1)}" + (f": {why}" if why else "")
