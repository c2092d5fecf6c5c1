"""A web server's files, read-only: bytes by obstore, names from the server's own page of links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from featstore.errors import RemoteError
from featstore.remote.buckets import open_files
from featstore.remote.client import Patience, Remote, RemoteObject, open_remote
from featstore.remote.filesystems import listed_names

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
        """One GET; an index page is no object, though a server answers with one where a folder is asked for."""
        data = self._files.get(key)
        is_page = data is not None and data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        return None if is_page else data

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
        return tuple(sorted({name.rstrip("/") for name in listed_names(self._at(prefix), self._patience)}))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """One GET for each folder, and a HEAD for each file."""
        for name in listed_names(self._at(prefix), self._patience):
            key = f"{prefix}/{name}" if prefix else name
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
