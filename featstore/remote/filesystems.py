"""The one door of fsspec: repositories of the Hugging Face Hub, memory, and the index pages of web servers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import unquote

from featstore.errors import RemoteError
from featstore.remote.client import Patience, Remote, RemoteObject, missing_library, open_remote

__all__ = ["FilesystemRemote", "listed_names"]

_T = TypeVar("_T")


def listed_names(url: str, patience: Patience) -> tuple[str, ...]:
    """Names in a folder, as the links of its index page tell them; those of folders end in a slash.

    Nothing where there is no such folder. Asked again as often as `patience` says.
    """
    try:
        import aiohttp
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError as error:
        raise missing_library(url, "aiohttp") from error
    system = HTTPFileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        client_kwargs={"timeout": aiohttp.ClientTimeout(sock_connect=10, sock_read=patience.timeout_seconds)},
    )
    base = url.rstrip("/") + "/"
    for attempt in range(patience.retries + 1):
        try:
            found = system.ls(base, detail=False)
        except FileNotFoundError:
            return ()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if attempt == patience.retries:
                told = " ".join(str(error).split())[:200] or type(error).__name__
                raise RemoteError(f"cannot list {url}: {told}") from error
            time.sleep(min(15.0, 0.1 * 2**attempt))
        else:
            return tuple(sorted({name for link in found if (name := _name_below(base, link))}))
    return ()


def _name_below(base: str, link: str) -> str:
    """Name of what a link leads to, where it lies directly in the folder; a folder's ends in a slash."""
    plain, inside = unquote(base), unquote(link.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])
    name, slash, rest = inside.removeprefix(plain).partition("/") if inside.startswith(plain) else ("", "", "")
    return "" if rest or name in ("", ".", "..") else name + slash


class FilesystemRemote:
    """Objects of any file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(self._url)
        except ImportError as error:
            library = "huggingface_hub" if url.startswith("hf:") else "fsspec"
            raise missing_library(url, library) from error
        except (ValueError, OSError) as error:
            raise RemoteError(f"cannot open {url}: {_told(error)}") from error

    def __reduce__(self) -> tuple[Callable[[str], Remote], tuple[str]]:
        return open_remote, (self._url,)

    @property
    def url(self) -> str:
        """The URL as the user gave it."""
        return self._url

    def get(self, key: str) -> bytes | None:
        """Read a file whole."""
        try:
            return self._asked("read", key, lambda: bytes(self._system.cat_file(self._at(key))))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:  # noqa: ARG002
        """Read a range of a file; this client cannot pin an etag, and its caller checks what came."""
        try:
            data = self._asked("read", key, lambda: bytes(self._system.cat_file(self._at(key), start=start, end=stop)))
        except FileNotFoundError as error:
            raise RemoteError(f"{self._url}/{key} has gone") from error
        if len(data) != stop - start:
            raise RemoteError(f"{self._url}/{key}: bytes {start:,} to {stop:,} were asked for, and {len(data):,} came")
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write a file in one go."""
        self._asked("write", key, lambda: self._system.pipe_file(self._at(key), data))

    def head(self, key: str) -> RemoteObject | None:
        """What the file system says of a file."""
        try:
            info = self._asked("read", key, lambda: self._system.info(self._at(key)))
        except FileNotFoundError:
            return None
        return self._described(info) if info["type"] == "file" else None

    def children(self, prefix: str) -> tuple[str, ...]:
        """List a folder."""
        try:
            found = self._asked("list", prefix, lambda: self._system.ls(self._at(prefix), detail=False, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        at = self._at(prefix).rstrip("/")
        return tuple(sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found if path.rstrip("/") != at))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """Walk a folder."""
        found = self._asked("list", prefix, lambda: self._system.find(self._at(prefix), detail=True, refresh=True))
        return (self._described(info) for info in found.values() if info["type"] == "file")

    def delete(self, keys: Iterable[str]) -> None:
        """Delete files one by one, and forget the folders that this leaves empty."""
        folders: set[str] = set()
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._asked("delete", key, lambda key=key: self._system.rm_file(self._at(key)))  # type: ignore[misc]
            parts = key.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        for folder in sorted(folders, key=len, reverse=True):
            with contextlib.suppress(OSError, NotImplementedError):
                self._system.rmdir(self._at(folder))

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _described(self, info: dict[str, Any]) -> RemoteObject:
        etag = info.get("ETag") or info.get("etag") or info.get("blob_id") or info.get("oid")
        modified = info.get("mtime") or info.get("created")
        stamp = round(modified.timestamp() * 1e9) if modified is not None and hasattr(modified, "timestamp") else None
        return RemoteObject(
            key=info["name"].removeprefix(self._root).lstrip("/"), size=info["size"], etag=etag, modified_ns=stamp
        )

    def _asked(self, verb: str, key: str, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise RemoteError(f"cannot {verb} {self._url}/{key}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
