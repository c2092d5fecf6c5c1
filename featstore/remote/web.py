"""Read-only files of a web server: obstore reads the bytes, fsspec the index pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featstore.errors import RemoteError
from featstore.remote.buckets import BucketRemote, open_files
from featstore.remote.client import RemoteObject, RetryPolicy
from featstore.remote.filesystems import listed_names
from featstore.remote.limits import MOST_DEPTH, MOST_FOLDERS, MOST_NAMES

__all__ = ["WebRemote"]


class WebRemote(BucketRemote):
    """``https://``: files, byte ranges of files, and the names on index pages."""

    @classmethod
    def open(cls, url: str) -> WebRemote:
        """Open the files below a URL."""
        policy = RetryPolicy.from_environment()
        store = open_files(url.rstrip("/"), policy)
        return cls(url.rstrip("/"), store, store, credentials="a URL that anybody may read", policy=policy)

    def get(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Send one GET request. An index page, which a server returns for a folder, is not an object."""
        data = super().get(key, most_bytes=most_bytes)
        is_page = data is not None and data[:64].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        return None if is_page else data

    def put(self, key: str, data: bytes) -> None:  # noqa: ARG002
        """Raise RemoteError."""
        raise self._read_only()

    def children(self, prefix: str) -> tuple[str, ...]:
        """Read the index page of a folder."""
        return tuple(sorted({name.rstrip("/") for name in self._names_in(prefix)}))

    def objects(self, prefix: str) -> Iterator[RemoteObject]:
        """Read the index page of each folder, and send a HEAD request for each file, in order of key.

        Index pages may link to each other endlessly, so `MOST_DEPTH`, `MOST_FOLDERS` and `MOST_NAMES` limit the walk.
        """
        pending: list[tuple[str, int]] = [(f"{prefix}/" if prefix else "", 0)]
        folders = names = 0
        while pending:
            key, depth = pending.pop()
            if key and not key.endswith("/"):
                if (found := self.head(key)) is not None:
                    yield found
                continue
            folders += 1
            below = self._names_in(key.rstrip("/"))
            names += len(below)
            if depth > MOST_DEPTH or folders > MOST_FOLDERS or names > MOST_NAMES:
                raise RemoteError(
                    f"cannot list {self._where(prefix)}: its index pages exceed the limit of {MOST_DEPTH} nested "
                    f"folders, {MOST_FOLDERS:,} folders or {MOST_NAMES:,} names"
                )
            pending += [(f"{key}{name}", depth + 1) for name in reversed(below)]

    def delete(self, keys: Iterable[str]) -> None:  # noqa: ARG002
        """Raise RemoteError."""
        raise self._read_only()

    def _names_in(self, prefix: str) -> tuple[str, ...]:
        return listed_names(self._url_with_credentials, prefix, self._policy)

    def _read_only(self) -> RemoteError:
        return RemoteError(f"{self._url} is read-only, as all web servers are: write to a folder or a bucket")
