"""Read-only arrays of complete rows: memory-mapped if local, read by byte range if remote, else read by zarr."""

from __future__ import annotations

import io
import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import FeatstoreError, StoreError
from featstore.store.codecs import MOST_CHUNK_BYTES, UNCHECKED_BYTES, block_offsets, require_files, wrong_size
from featstore.store.documents import damaged, missing_object
from featstore.store.filesystem import LocalObjects, Objects
from featstore.store.format import GROUP_DOCUMENT
from featstore.store.layout import ArrayLayout, parse_layout
from featstore.store.remote_arrays import RangedRows

__all__ = ["MappedRows", "Rows", "ZarrRows", "open_remote_rows", "open_rows"]


class MappedRows:
    """Rows of a local array with a layout of format 1, memory-mapped."""

    def __init__(self, objects: LocalObjects, path: str, layout: ArrayLayout) -> None:
        self._objects = objects
        self._path = path
        self._layout = layout
        self._shape = layout.shape
        self._block_rows = layout.block_rows
        self._blocks: dict[int, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Omit the memory maps: another process maps the same files again."""
        return {**self.__dict__, "_blocks": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complete array."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._layout.dtype

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Do nothing: mapped rows need no prefetch."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop): a view if they are in one block, else a copy."""
        if stop <= start:
            return np.empty((0, *self._shape[1:]), self._layout.dtype)
        first, at = divmod(start, self._block_rows)
        if at + (stop - start) <= self._block_rows:
            return self._block(first)[at : at + (stop - start)]
        self.require(start, stop)
        out = np.empty((stop - start, *self._shape[1:]), self._layout.dtype)
        self.read_into(out, start=start)
        return out

    def require(self, start: int, stop: int) -> None:
        """Raise DamagedPart if the files are too small for rows [start, stop). Small ranges are not checked."""
        if (stop - start) * self._layout.row_bytes > UNCHECKED_BYTES:
            require_files(self._layout, start, stop, size_of=self._size_of, where=self._objects.root / self._path)

    def _size_of(self, key: str) -> int:
        try:
            return (self._objects.root / self._path / key).stat().st_size
        except OSError:
            return 0

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Fill `out` with the rows from `start` on, block by block."""
        done = 0
        while done < len(out):
            number, at = divmod(start + done, self._block_rows)
            rows = min(self._block_rows - at, len(out) - done)
            if at == 0 and rows == self._block_rows and number not in self._blocks and out.flags.c_contiguous:
                rows = self._read_complete_blocks(number, out[done:])
            else:
                out[done : done + rows] = self._block(number)[at : at + rows]
            done += rows

    def _read_complete_blocks(self, first: int, out: NDArray[Any]) -> int:
        """Read complete blocks of one file from `first` on into `out`; returns the number of rows.

        Unlike a new memory map, a read has no page fault for each page of the file.
        """
        layout = self._layout
        number = first // layout.blocks_per_file
        key = f"{self._path}/{layout.file_key(number)}"
        path = f"{self._objects.url}/{key}"
        with _open_file(self._objects, key) as file:
            offsets = _block_offsets(file, layout, path)
            slot = first - number * layout.blocks_per_file
            rows = 0
            while slot < len(offsets) and rows + self._block_rows <= len(out):
                target = out[rows : rows + self._block_rows].data.cast("B")
                if offsets[slot] < 0:
                    raise wrong_size(path)
                file.seek(offsets[slot])
                if _read_full(file, target) != len(target):
                    raise wrong_size(path)
                rows += self._block_rows
                slot += 1
        return rows

    def _block(self, index: int) -> NDArray[Any]:
        block = self._blocks.get(index)
        return self._map(index) if block is None else block

    def _map(self, index: int) -> NDArray[Any]:
        """Map the file of a block, and all blocks of that file."""
        layout = self._layout
        number = index // layout.blocks_per_file
        key = f"{self._path}/{layout.file_key(number)}"
        path = f"{self._objects.url}/{key}"
        with _open_file(self._objects, key) as file:
            offsets = _block_offsets(file, layout, path)
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        wanted = None
        for slot, offset in enumerate(offsets):
            at = number * layout.blocks_per_file + slot
            if at >= layout.n_blocks or offset < 0:
                continue
            rows = min(self._block_rows, self._shape[0] - at * self._block_rows)
            flat = np.frombuffer(view, layout.dtype, rows * layout.row_bytes // layout.dtype.itemsize, offset)
            self._blocks[at] = flat.reshape(rows, *self._shape[1:])
            wanted = self._blocks[at] if at == index else wanted
        if wanted is None:  # the block is absent from the file's index
            raise wrong_size(path)
        _KEPT_MAPS.add(self, number)
        return wanted

    def forget(self, number: int) -> None:
        """Drop the map of a file; rows that a caller holds stay valid."""
        first = number * self._layout.blocks_per_file
        for at in range(first, first + self._layout.blocks_per_file):
            self._blocks.pop(at, None)


class _KeptMaps:
    """The memory maps of this process, oldest first. Each keeps a file open, and the number of open files is limited.

    A feature set has at least one file per part. If the maps exceed half of the limit, the oldest is dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[weakref.ref[MappedRows], int]] = deque()

    def add(self, rows: MappedRows, number: int) -> None:
        """Register the map of a file, and drop the oldest maps above the limit."""
        with self._lock:
            self._kept.append((weakref.ref(rows), number))
            while len(self._kept) > _most_maps():
                oldest, number_of_oldest = self._kept.popleft()
                if (owner := oldest()) is not None:
                    owner.forget(number_of_oldest)


def _most_maps() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no `resource` module
        return 4096
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Linux allows 65,530 maps per process, independent of the number of open files.
    return 16_384 if may_open == resource.RLIM_INFINITY else max(16, min(16_384, may_open // 2))


_KEPT_MAPS = _KeptMaps()


@contextmanager
def _open_file(objects: LocalObjects, key: str) -> Iterator[FileIO]:
    """Open a file of an array. Raises DamagedPart if it is missing, StoreError if it cannot be read."""
    try:
        with objects.open_file(key) as file:
            yield file
    except FileNotFoundError as error:
        raise missing_object(objects.root / key) from error
    except OSError as error:
        raise StoreError(f"cannot read {objects.root / key}: {error.strerror}") from error


def _block_offsets(file: FileIO, layout: ArrayLayout, path: str) -> list[int]:
    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return block_offsets(layout, file_bytes=file.seek(0, io.SEEK_END), read=read, where=path)


def _read_full(file: FileIO, target: memoryview) -> int:
    """Fill `target`; a single read of an unbuffered file may return fewer bytes."""
    done = 0
    while done < len(target) and (got := file.readinto(target[done:])):
        done += got
    return done


_MOST_ABSENT = 1 << 16  # chunks without an object: zarr does not store chunks of zeros
_MOST_CHUNKS_A_FILE = 1 << 20
_MOST_EXPANSION = 64  # ratio of decompressed to stored bytes


class Rows(Protocol):
    """A read-only numeric array of shape (rows, ...)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complete array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), without a copy if they are in one block."""

    def require(self, start: int, stop: int) -> None:
        """Raise DamagedPart if the stored bytes are too few for rows [start, stop), before memory is allocated."""

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Fill `out` with the rows from `start` on."""

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Prefetch rows [start, stop) of each span; remote rows are requested together."""


def open_rows(objects: Objects, path: str) -> Rows:
    """Open the numeric array at `path`: memory-mapped, by byte range if it is remote, by zarr for other layouts."""
    document = objects.read(f"{path}/zarr.json")
    if not isinstance(objects, LocalObjects):
        sizes: dict[str, int] = {}

        def size_of(key: str) -> int:
            if not sizes:
                sizes.update(objects.sizes(path))
            return sizes.get(key, 0)

        return open_remote_rows(objects, path, document, size_of)
    layout = _layout(objects, path, document)
    if layout is not None:
        return MappedRows(objects, path, layout)
    for name, size in objects.sizes(path).items():
        if size < 0:  # zarr would follow a link or open a device
            raise damaged(objects.url, f"{path}/{name}", "is not a regular file")
    return ZarrRows(objects, path)


def open_remote_rows(objects: Objects, path: str, document: bytes | None, size_of: Callable[[str], int]) -> Rows:
    """Open a numeric array of a remote store. `document` is its ``zarr.json``; `size_of` returns an object's size."""
    layout = _layout(objects, path, document)
    remote = getattr(objects, "remote", None)
    if layout is None or remote is None:
        return ZarrRows(objects, path)
    return RangedRows(remote.url, path, layout, remote.get_range, size_of)


def _layout(objects: Objects, path: str, document: bytes | None) -> ArrayLayout | None:
    if document is None:
        raise missing_object(f"{objects.url}/{path}")
    try:
        return parse_layout(document)
    except ValueError as error:
        raise damaged(objects.url, path, f"is damaged: {error}") from error


class ZarrRows:
    """Rows that zarr reads, with all codecs and checksums."""

    def __init__(self, objects: Objects, path: str) -> None:
        from featstore.store.zarr_io import open_array

        self._url, self._path = objects.url, path
        with self._damage_reported():
            self._array = open_array(objects, path)
            sizes = objects.sizes(path)
            sizes.pop(GROUP_DOCUMENT, None)
            self._require_plausible(sum(sizes.values()), len(sizes))

    def _require_plausible(self, stored_bytes: int, n_objects: int) -> None:
        """Raise ValueError if the array document claims far more than its objects contain."""
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
        """Shape of the complete array."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return np.dtype(self._array.dtype)

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Do nothing."""

    def require(self, start: int, stop: int) -> None:
        """Do nothing: the sizes are checked when the array is opened."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        with self._damage_reported():
            return np.asarray(self._array[start:stop])

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Fill `out` with the rows from `start` on."""
        out[...] = self.slice(start, start + len(out))

    @contextmanager
    def _damage_reported(self) -> Iterator[None]:
        """Replace any exception of zarr or a codec by DamagedPart: damaged data can raise anything."""
        try:
            yield
        except (FeatstoreError, OSError):
            raise
        except Exception as error:
            raise damaged(self._url, self._path, f"is damaged, or zarr cannot read it: {error}") from error
