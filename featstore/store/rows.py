"""Arrays of whole rows, read where they lie.

A numeric array of a part is a sequence of blocks of whole rows: the chunks of a plain array, or the inner chunks of the
files of a sharded one. Of a local store the files are mapped (`featstore.store.mapped_rows`); of a remote one blocks
are read by byte range, and checked (`featstore.store.ranged_rows`). Arrays of any other layout come through zarr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import FeatstoreError
from featstore.store.codecs import MOST_CHUNK_BYTES
from featstore.store.damage import damaged, gone
from featstore.store.format import GROUP_DOCUMENT
from featstore.store.layout import ArrayLayout, parse_layout
from featstore.store.mapped_rows import MappedRows
from featstore.store.objects import Objects
from featstore.store.ranged_rows import RangedRows

_MOST_ABSENT = 1 << 16  # zarr stores no chunk that is all zeros
_MOST_CHUNKS_A_FILE = 1 << 20
_MOST_EXPANSION = 64  # of an array that zarr decompresses

__all__ = ["Rows", "ZarrRows", "open_remote_rows", "open_rows"]


class Rows(Protocol):
    """A read-only numeric array of shape (rows, ...)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), without a copy where they lie in one block."""

    def require(self, start: int, stop: int) -> None:
        """Make sure that what is stored accounts for rows [start, stop), before memory is allocated for them."""

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`."""

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Rows [start, stop) of each span are about to be read; rows that travel are asked for together."""


def open_rows(objects: Objects, path: str) -> Rows:
    """Open the numeric array at `path`: mapped, by ranges where it is remote, by zarr if its layout is another."""
    document = objects.read(f"{path}/zarr.json")
    if objects.root is None:
        sizes: dict[str, int] = {}

        def size_of(key: str) -> int:
            if not sizes:
                sizes.update(objects.sizes(path))
            return sizes.get(key, 0)

        return open_remote_rows(objects, path, document, size_of)
    layout = _layout(objects, path, document)
    if layout is not None:
        return MappedRows(objects.root, path, layout)
    if foreign := [name for name, size in objects.sizes(path).items() if size < 0]:  # zarr would follow or open it
        raise damaged(objects.url, f"{path}/{foreign[0]}", "is no regular file")
    return ZarrRows(objects, path)


def open_remote_rows(objects: Objects, path: str, document: bytes | None, size_of: Callable[[str], int]) -> Rows:
    """Open a numeric array of a remote store, of which `document` is its own and `size_of` knows its objects."""
    layout = _layout(objects, path, document)
    remote = getattr(objects, "remote", None)
    if layout is None or remote is None:
        return ZarrRows(objects, path)
    return RangedRows(remote, path, layout, size_of)


def _layout(objects: Objects, path: str, document: bytes | None) -> ArrayLayout | None:
    if document is None:
        raise gone(f"{objects.url}/{path}")
    try:
        return parse_layout(document)
    except ValueError as error:
        raise damaged(objects.url, path, f"is damaged: {error}") from error


class ZarrRows:
    """Rows that zarr reads, through every codec and checksum."""

    def __init__(self, objects: Objects, path: str) -> None:
        from featstore.store.zarr_io import open_array

        self._url, self._path = objects.url, path
        with self._telling():
            self._array = open_array(objects, path)
            sizes = objects.sizes(path)
            sizes.pop(GROUP_DOCUMENT, None)
            self._require_plausible(sum(sizes.values()), len(sizes))

    def _require_plausible(self, stored_bytes: int, n_objects: int) -> None:
        """Hold what the document claims against the objects that are there."""
        array = self._array
        files = array.shards or array.chunks
        n_files = math.prod(-(-length // step) for length, step in zip(array.shape, files, strict=True))
        if math.prod(files) // math.prod(array.chunks) > _MOST_CHUNKS_A_FILE:
            raise ValueError(f"chunks that are not plausible: {files} of {array.chunks}")
        n_bytes = math.prod(array.shape) * array.dtype.itemsize
        file_bytes = math.prod(files) * array.dtype.itemsize
        most = max(MOST_CHUNK_BYTES, _MOST_EXPANSION * stored_bytes)
        if n_files > max(n_objects, _MOST_ABSENT) or max(n_bytes, file_bytes) > most:
            raise ValueError(f"it claims {n_bytes:,} bytes in {n_files:,} chunks, and {stored_bytes:,} are stored")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        return np.dtype(self._array.dtype)

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Nothing to do."""

    def require(self, start: int, stop: int) -> None:
        """Nothing to do: the array is held against its objects when it is opened."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        with self._telling():
            return np.asarray(self._array[start:stop])

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`."""
        out[...] = self.slice(start, start + len(out))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Say where it is that zarr, or one of its codecs, cannot make sense of: damage raises whatever it raises."""
        try:
            yield
        except (FeatstoreError, OSError):
            raise
        except Exception as error:
            raise damaged(self._url, self._path, f"is damaged, or of a kind that zarr cannot read: {error}") from error
