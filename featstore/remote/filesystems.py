"""The fsspec client: repositories of the Hugging Face Hub, memory, and index pages of web servers.

No other module imports fsspec.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urljoin

from featstore.errors import FeatstoreError, RemoteError
from featstore.formatting import one_line, redacted
from featstore.remote.client import (
    Remote,
    RemoteObject,
    RetryPolicy,
    hidden_cause,
    joined_url,
    missing_library,
)
from featstore.remote.limits import MOST_NAMES, MOST_PAGE_BYTES, Pace, TooSlow

__all__ = ["FilesystemRemote", "listed_names", "run_async"]

_T = TypeVar("_T")
_LINK = re.compile(r"""<a\s[^>]{0,4096}?href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+))""", re.IGNORECASE)
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class _Refused(Exception):
    """A server responds with an error that a retry does not change."""


def listed_names(url: str, prefix: str, policy: RetryPolicy) -> tuple[str, ...]:
    """Return the names that the index page of a folder links to; names of folders end in a slash.

    The result is empty if there is no such folder. Failed requests are retried as `policy` allows.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise missing_library(url, "aiohttp") from error
    place, mark, query = url.partition("?")
    scheme, _, rest = place.rstrip("/").partition("://")
    below = f"/{quote(prefix)}/" if prefix else "/"
    host, slash, path = rest.partition("/")
    base = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{below}"  # links do not contain the user
    where = joined_url(redacted(url), prefix)
    for attempt in range(policy.retries + 1):
        try:
            page: str = run_async(_index_page, f"{scheme}://{rest}{below}{mark}{query}", policy)
        except FileNotFoundError:
            return ()
        except _Refused as error:
            raise RemoteError(f"cannot list {where}: {one_line(error)}") from hidden_cause(error)
        except (aiohttp.ClientError, TooSlow, OSError, TimeoutError, ValueError) as error:
            if attempt == policy.retries:
                raise RemoteError(f"cannot list {where}: {one_line(error)}") from hidden_cause(error)
            time.sleep(min(15.0, 0.1 * 2**attempt))
        else:
            return _links_below(base, page, where)
    return ()


def run_async(function: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
    """Run an asynchronous function in fsspec's event loop thread, and return its result."""
    try:
        from fsspec.asyn import get_loop, sync
    except ImportError as error:
        raise missing_library("a listing", "fsspec") from error
    result: _T = sync(get_loop(), function, *arguments)
    return result


async def _index_page(url: str, policy: RetryPolicy) -> str:
    """Return the text of an HTML page, or "" for other content. The size and the time of the transfer are limited."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=policy.timeout_seconds)
    pace = Pace(policy.timeout_seconds)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        answer = await asyncio.wait_for(session.get(url), policy.timeout_seconds)
        async with answer:
            if answer.status == 404:
                raise FileNotFoundError
            if 400 <= answer.status < 500 and answer.status != 429:
                raise _Refused(f"the server answers {answer.status} {answer.reason or ''}".rstrip())
            answer.raise_for_status()
            if answer.headers.get("Content-Type", "text/html").partition(";")[0].strip().lower() != "text/html":
                return ""
            page = bytearray()
            async for chunk in answer.content.iter_any():
                page += chunk
                if len(page) > MOST_PAGE_BYTES:
                    raise _Refused(f"its index page is larger than {MOST_PAGE_BYTES:,} bytes")
                pace.check(len(page))
    return page.decode(errors="ignore")


def _links_below(base: str, page: str, where: str) -> tuple[str, ...]:
    names: set[str] = set()
    for found in _LINK.finditer(page):
        with contextlib.suppress(ValueError):  # a malformed link is ignored
            if name := _name_below(base, urljoin(base, html.unescape(found[1] or found[2] or found[3] or ""))):
                names.add(name)
        if len(names) > MOST_NAMES:
            raise RemoteError(f"cannot list {where}: its index page has more than {MOST_NAMES:,} names")
    return tuple(sorted(names))


def _name_below(base: str, link: str) -> str:
    """Name of a link's target if it is directly in the folder `base`, else ""; names of folders end in a slash."""
    folder, target = unquote(base), unquote(link.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])
    name, slash, rest = target.removeprefix(folder).partition("/") if target.startswith(folder) else ("", "", "")
    return "" if rest or name in ("", ".", "..") else name + slash


class FilesystemRemote(Remote):
    """Objects of an fsspec file system."""

    @classmethod
    def open(cls, url: str) -> FilesystemRemote:
        """Open the file system of a URL."""
        return cls(url)

    def __init__(self, url: str) -> None:
        url = url if url.endswith("://") else url.rstrip("/")
        super().__init__(url)
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            library = "huggingface_hub" if url.startswith("hf:") else "fsspec"
            raise missing_library(url, library) from error
        except Exception as error:  # noqa: BLE001 - the client depends on the scheme
            raise RemoteError(f"cannot open {self._url}: {one_line(error)}") from hidden_cause(error)

    def _read(self, key: str, *, most_bytes: int, start: int | None = None, etag: str | None = None) -> bytes | None:
        del etag  # fsspec has no conditional reads; the caller checks the content
        first, stop = (0, most_bytes + 1) if start is None else (start, start + most_bytes)
        try:
            return self._request(
                "read", key, lambda: bytes(self._system.cat_file(self._path(key), start=first, end=stop))
            )
        except _MISSING:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write a file in one call."""
        try:
            self._request("write", key, lambda: self._system.pipe_file(self._path(key), data))
        except _MISSING as error:
            raise RemoteError(f"cannot write {self._where(key)}: {one_line(error)}") from hidden_cause(error)

    def head(self, key: str) -> RemoteObject | None:
        """Return a file's metadata."""
        try:
            info = self._request("read", key, lambda: self._system.info(self._path(key)))
        except _MISSING:
            return None
        return self._remote_object(info) if info["type"] == "file" else None

    def children(self, prefix: str) -> tuple[str, ...]:
        """List a folder."""
        try:
            found = self._request(
                "list", prefix, lambda: self._system.ls(self._path(prefix), detail=False, refresh=True)
            )
        except (FileNotFoundError, NotADirectoryError):
            return ()
        at = self._path(prefix).rstrip("/")
        return tuple(sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found if path.rstrip("/") != at))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """Walk a folder."""
        try:
            found = self._request(
                "list", prefix, lambda: self._system.find(self._path(prefix), detail=True, refresh=True)
            )
        except _MISSING:
            return iter(())
        return (self._remote_object(info) for info in found.values() if info["type"] == "file")

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files one by one, and then empty folders."""
        folders: set[str] = set()
        for key in keys:
            with contextlib.suppress(*_MISSING):
                self._request("delete", key, lambda key=key: self._system.rm_file(self._path(key)))  # type: ignore[misc]
            parts = key.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        for folder in sorted(folders, key=len, reverse=True):
            with contextlib.suppress(Exception):  # the folder is not empty, or the file system has no folders
                self._system.rmdir(self._path(folder))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _remote_object(self, info: dict[str, Any]) -> RemoteObject:
        etag = info.get("ETag") or info.get("etag") or info.get("blob_id") or info.get("oid")
        modified = info.get("mtime") or info.get("created")
        stamp = round(modified.timestamp() * 1e9) if modified is not None and hasattr(modified, "timestamp") else None
        return RemoteObject(
            key=info["name"].removeprefix(self._root).lstrip("/"), size=info["size"], etag=etag, modified_ns=stamp
        )

    def _request(self, verb: str, key: str, ask: Callable[[], _T]) -> _T:
        """Call `ask`, and replace other exceptions by a RemoteError of one line."""
        try:
            return ask()
        except (*_MISSING, FeatstoreError):
            raise
        except Exception as error:  # noqa: BLE001 - from httpx, the hub's client or another library
            raise RemoteError(f"cannot {verb} {self._where(key)}: {one_line(error)}") from hidden_cause(error)
