"""A web server's files, read-only: bytes by obstore, names from the server's own page of links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featstore.errors import RemoteError
from featstore.remote.buckets import BucketRemote, open_files
from featstore.remote.client import Patience, RemoteObject
from featstore.remote.filesystems import listed_names
from featstore.remote.limits import MOST_DEPTH, MOST_FOLDERS, MOST_NAMES

__all__ = ["WebRemote"]


class WebRemote(BucketRemote):
    """``https://``: whole files, ranges of them, and the names that an index page links to."""

    @classmethod
    def open(cls, url: str) -> WebRemote:
        """Open the files below a URL."""
        patience = Patience.from_environment()
        store = open_files(url.rstrip("/"), patience)
        return cls(url.rstrip("/"), store, store, credentials="a URL that anybody may read", patience=patience)

    def get(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """One GET; an index page is no object, though a server answers with one where a folder is asked for."""
        data = super().get(key, most_bytes=most_bytes)
        is_page = data is not None and data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        return None if is_page else data

    def put(self, key: str, data: bytes) -> None:  # noqa: ARG002
        """Refuse."""
        raise self._read_only()

    def children(self, prefix: str) -> tuple[str, ...]:
        """One GET of an index page, which a plain server makes of a folder."""
        return tuple(sorted({name.rstrip("/") for name in self._names_in(prefix)}))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """One GET for each folder, and a HEAD for each file, in order of key.

        A page can link to itself for ever: folders are followed as far as `MOST_DEPTH`, `MOST_FOLDERS` and
        `MOST_NAMES` let them.
        """
        waiting: list[tuple[str, int]] = [(f"{prefix}/" if prefix else "", 0)]
        folders = names = 0
        while waiting:
            key, depth = waiting.pop()
            if key and not key.endswith("/"):
                if (found := self.head(key)) is not None:
                    yield found
                continue
            folders += 1
            below = self._names_in(key.rstrip("/"))
            names += len(below)
            if depth > MOST_DEPTH or folders > MOST_FOLDERS or names > MOST_NAMES:
                raise RemoteError(
                    f"cannot list {self._where(prefix)}: its index pages go on and on: more than {MOST_DEPTH} folders "
                    f"deep, {MOST_FOLDERS:,} folders or {MOST_NAMES:,} names"
                )
            waiting += [(f"{key}{name}", depth + 1) for name in reversed(below)]

    def delete(self, keys: Iterable[str]) -> None:  # noqa: ARG002
        """Refuse."""
        raise self._read_only()

    def _names_in(self, prefix: str) -> tuple[str, ...]:
        return listed_names(self._url_with_credentials, prefix, self._patience)

    def _read_only(self) -> RemoteError:
        return RemoteError(f"{self._url} is read-only: a web server takes no files; write to a folder or a bucket")
