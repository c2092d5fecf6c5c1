"""The bytes of a tar, plain or gzipped, for a reader that believes every size a header claims."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import BinaryIO, Self

__all__ = ["MAX_HEADER_BYTES", "TarBytes", "open_tar_bytes"]

MAX_HEADER_BYTES = 32 << 10  # of one member: its long name and its pax records with it
_MOST_EXPANSION = 20
_FREE_EXPANSION_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class TarBytes:
    """A file to read and to seek in, that gives out no more than it was told to allow.

    tarfile reads what a header claims, be it a name of eight gigabytes. With an allowance set before each step, a
    claim like that is an error.

    Parameters
    ----------
    file : binary file
    most_bytes : int, optional
        Where the file must have ended.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile, *, most_bytes: int | None) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._allowed = 0

    def allow(self, n_bytes: int) -> None:
        """From here on so many bytes may be read."""
        self._allowed = n_bytes

    def read(self, n_bytes: int) -> bytes:
        """Read up to `n_bytes`; tarfile.ReadError where that is not allowed."""
        if not 0 <= n_bytes <= self._allowed:
            raise tarfile.ReadError(f"a header that claims {n_bytes:,} bytes more, where {self._allowed:,} are allowed")
        self._allowed -= n_bytes
        data = self._file.read(n_bytes)
        self._check_expansion(self._file.tell())
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to `position`."""
        if whence == io.SEEK_SET:
            self._check_expansion(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """Where the next byte is."""
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _check_expansion(self, position: int) -> None:
        if self._most_bytes is not None and position > self._most_bytes:
            raise tarfile.ReadError(f"it unpacks to more than {_MOST_EXPANSION} times its size, as no audio does")


def open_tar_bytes(path: Path) -> TarBytes:
    """Open a shard, unpacking what is gzipped. Raises OSError."""
    with path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
    if magic != _GZIP_MAGIC:
        return TarBytes(path.open("rb"), most_bytes=None)
    most_bytes = _FREE_EXPANSION_BYTES + _MOST_EXPANSION * path.stat().st_size
    return TarBytes(gzip.open(path, "rb"), most_bytes=most_bytes)
