"""Selects the client for a URL."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from featstore.errors import UsageError
from featstore.formatting import redacted
from featstore.remote.client import Remote

__all__ = ["open_remote"]

_BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_WEB = ("http", "https")
_BY_FSSPEC = ("hf", "memory")


def open_remote(url: str) -> Remote:
    """Open the client for a URL's scheme, without a request to the server.

    Raises
    ------
    UsageError
        The scheme is unknown, the URL names no bucket or host, or a client is not installed.
    RemoteError
        There are no credentials.
    """
    if not url.isprintable():
        raise UsageError(f"{redacted(url)!r} is not a valid URL: it has non-printable characters")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError if the port is invalid
    except ValueError as error:
        problem = redacted(str(error)) if "could not be cast" not in str(error) else "its port is not a number"
        raise UsageError(f"{redacted(url)!r} is not a valid URL: {problem}") from None
    if parts.scheme not in (*_BUCKETS, *_WEB, *_BY_FSSPEC):
        raise UsageError(
            "a store or data set must be a folder, or a URL of s3://, gs://, az://, hf://, https:// or memory://: "
            f"got {redacted(url)!r}"
        )
    if not parts.netloc and parts.scheme != "memory":
        raise UsageError(f"{redacted(url)!r} has no bucket or host: write {parts.scheme}://NAME/path")
    if any(part in (".", "..") for part in unquote(parts.path).split("/")):
        raise UsageError(f"{redacted(url)!r} has '.' or '..' in its path: write the resolved path")
    if parts.scheme in _BY_FSSPEC and parts.password is not None:
        raise UsageError(
            f"{redacted(url)} has a user and a password, which {parts.scheme}:// does not support: set HF_TOKEN instead"
        )
    if parts.scheme in _BUCKETS:
        from featstore.remote.buckets import BucketRemote

        return BucketRemote.open(url)
    if parts.scheme in _WEB:
        from featstore.remote.web import WebRemote

        return WebRemote.open(url)
    from featstore.remote.filesystems import FilesystemRemote

    return FilesystemRemote.open(url)
