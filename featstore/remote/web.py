"""A web server's files, read-only: bytes by obstore, names from the server's own page of links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from featstore.errors import RemoteError
from featstore.remote.buckets import open_files
from featstore.remote.client import Patience, Remote, RemoteObject, open_remote
from featstore.remote.filesystems import listed_links

__all__ = ["WebRemote"]


class WebRemote:
    """``https://``: whole files, ranges of them, and the names that an index page links to."""

    def __init__(self, url: str, patience: Patience) -> None:
        self._url = url.rstrip("/")
        self._patience = patience
        self._files = open_files(self._url, patience)

    def __reduce__(self) -> tuple[Callable[[str], Remote], tuple[str]]:
        return open_remote, (self._url,)

    @property
    def url(self) -> str:
        """The URL as the user gave it."""
        return self._url

    @property
    def store(self) -> object:
        """Obstore's own store, for zarr."""
        return self._files.store

    def get(self, key: str) -> bytes | None:
        """One GET."""
        return self._files.get(key)

    def get_range(self, key: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """One GET of a range."""
        return self._files.get_range(key, start, stop, etag=etag)

    def put(self, key: str, data: bytes) -> None:  # noqa: ARG002
        """Refuse."""
        raise self._read_only()

    def head(self, key: str) -> RemoteObject | None:
        """One HEAD."""
        return self._files.head(key)

    def children(self, prefix: str) -> tuple[str, ...]:
        """One GET of an index page, which a plain server makes of a folder."""
        links = listed_links(self._at(prefix), self._patience)
        return tuple(sorted({link.rstrip("/").rsplit("/", 1)[-1] for link in links}))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """One GET for each folder, and a HEAD for each file."""
        for link in listed_links(self._at(prefix), self._patience):
            key = link.removeprefix(self._url + "/")
            if key.endswith("/"):
                yield from self.objects(key.rstrip("/"))
            elif (found := self.head(key)) is not None:
                yield found

    def delete(self, keys: Iterable[str]) -> None:  # noqa: ARG002
        """Refuse."""
        raise self._read_only()

    def _at(self, prefix: str) -> str:
        return f"{self._url}/{prefix}" if prefix else self._url

    def _read_only(self) -> RemoteError:
        return RemoteError(f"{self._url} is read-only: a web server takes no files; write to a folder or a bucket")
