"""Rows of a remote array, read by byte range: only the requested blocks are downloaded, and each is checked."""

from __future__ import annotations

import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.remote import NETWORK_THREADS
from featstore.store.codecs import CRC_BYTES, block_offsets, crc32c, require_files, wrong_size
from featstore.store.documents import damaged
from featstore.store.layout import ArrayLayout
from featstore.system import free_memory_bytes

__all__ = ["RangedRows"]

_BLOCKS_AT_ONCE_BYTES = 128 << 20
_MOST_BYTES_A_REQUEST = 16 << 20


GetRange = Callable[[str, int, int], bytes]
"""Returns bytes [start, stop) of the object with a key, as `featstore.remote.Remote.get_range` does."""


class RangedRows:
    """Rows of a remote array with a layout of format 1: only the requested blocks are downloaded.

    Each block is checked against its CRC-32C. The index of a file is read once, and adjacent blocks are read in one
    request. Recently used blocks are cached, because windows that are read together are usually adjacent. The cache of
    all arrays of the process is at most an eighth of the free memory, between 128 MiB and 1 GiB.
    """

    def __init__(
        self, url: str, path: str, layout: ArrayLayout, get_range: GetRange, size_of: Callable[[str], int]
    ) -> None:
        self._store_url = url
        self._path = path
        self._layout = layout
        self._get_range = get_range
        self._size_of = size_of
        self._offsets: dict[int, list[int]] = {}
        self._kept: dict[int, NDArray[Any]] = {}
        self._most_at_once = max(2, _BLOCKS_AT_ONCE_BYTES // max(1, layout.block_bytes))

    def __reduce__(
        self,
    ) -> tuple[type[RangedRows], tuple[str, str, ArrayLayout, GetRange, Callable[[str], int]]]:
        self.require(0, self._layout.shape[0])
        sizes = {self._layout.file_key(n): self._size_of(self._layout.file_key(n)) for n in range(self._layout.n_files)}
        return RangedRows, (self._store_url, self._path, self._layout, self._get_range, sizes.__getitem__)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complete array."""
        return self._layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._layout.dtype

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return a copy of rows [start, stop)."""
        self.require(start, stop)
        out = np.empty((max(0, stop - start), *self._layout.shape[1:]), self._layout.dtype)
        self.read_into(out, start=start)
        return out

    def require(self, start: int, stop: int) -> None:
        """Raise DamagedPart if the objects are too small for rows [start, stop)."""
        where = f"{self._store_url}/{self._path}"
        require_files(self._layout, start, stop, size_of=self._size_of, where=where)

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Fill `out` with the rows from `start` on."""
        rows = self._layout.block_rows
        done = 0
        while done < len(out):
            # The number of blocks is limited, because all are in memory until they are copied.
            stop = min(len(out), (start + done) // rows * rows + self._most_at_once * rows - start)
            blocks = self._blocks(range((start + done) // rows, -(-(start + stop) // rows)))
            while done < stop:
                number, at = divmod(start + done, rows)
                n = min(rows - at, stop - done)
                out[done : done + n] = blocks[number][at : at + n]
                done += n

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Download the blocks of several spans together, as far as they fit into the cache."""
        rows = self._layout.block_rows
        wanted = dict.fromkeys(n for start, stop in spans for n in range(start // rows, -(-stop // rows)))
        self._blocks(list(wanted)[: self._most_at_once])

    def _blocks(self, numbers: Iterable[int]) -> dict[int, NDArray[Any]]:
        numbers = list(numbers)
        found = {number: block for number in numbers if (block := self._kept.get(number)) is not None}
        ranges = self._plan(sorted(set(numbers) - set(found)))
        if len(ranges) == 1:
            found |= self._read(ranges[0])
        elif ranges:
            with ThreadPoolExecutor(min(len(ranges), NETWORK_THREADS)) as pool:
                for some in pool.map(self._read, ranges):
                    found |= some
        self._kept |= found
        _KEPT_BLOCKS.note(self, numbers, block_bytes=self._layout.block_bytes)
        return found

    def forget(self, number: int) -> None:
        """Drop a block from the cache; rows that a caller holds stay valid."""
        self._kept.pop(number, None)

    def _plan(self, numbers: Sequence[int]) -> list[_Range]:
        """Plan the requests for blocks; adjacent blocks of a file share a request."""
        plan: list[_Range] = []
        for number in numbers:
            file, slot = divmod(number, self._layout.blocks_per_file)
            start = self._file_offsets(file)[slot]
            if start < 0:
                raise wrong_size(self._url(file))
            stop = start + self._layout.block_bytes + CRC_BYTES
            last = plan[-1] if plan else None
            follows = last is not None and last.file == file and last.stop == start
            if last is not None and follows and stop - last.start <= _MOST_BYTES_A_REQUEST:
                plan[-1] = _Range(file, last.start, stop, (*last.blocks, number))
            else:
                plan.append(_Range(file, start, stop, (number,)))
        return plan

    def _read(self, wanted: _Range) -> dict[int, NDArray[Any]]:
        step = self._layout.block_bytes + CRC_BYTES
        for _ in range(2):  # if a checksum differs, read again: the transfer may be at fault
            raw = self._get_range(self._key(wanted.file), wanted.start, wanted.stop)
            pieces = [raw[at : at + step] for at in range(0, len(raw), step)]
            if all(struct.pack("<I", crc32c(piece[:-CRC_BYTES])) == piece[-CRC_BYTES:] for piece in pieces):
                return dict(zip(wanted.blocks, map(self._array, pieces), strict=True))
        raise damaged(self._store_url, self._key(wanted.file), "is damaged: a checksum does not match")

    def _array(self, piece: bytes) -> NDArray[Any]:
        count = self._layout.block_bytes // self._layout.dtype.itemsize
        return np.frombuffer(piece, self._layout.dtype, count).reshape(-1, *self._layout.shape[1:])

    def _file_offsets(self, file: int) -> list[int]:
        if file not in self._offsets:
            self._offsets[file] = block_offsets(
                self._layout,
                file_bytes=self._size_of(self._layout.file_key(file)),
                read=partial(self._get_range, self._key(file)),
                where=self._url(file),
            )
        return self._offsets[file]

    def _key(self, file: int) -> str:
        return f"{self._path}/{self._layout.file_key(file)}"

    def _url(self, file: int) -> str:
        return f"{self._store_url}/{self._key(file)}"


class _KeptBlocks:
    """Cached blocks of all remote arrays of this process, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._last_used: OrderedDict[tuple[weakref.ref[RangedRows], int], int] = OrderedDict()

    def note(self, rows: RangedRows, numbers: Sequence[int], *, block_bytes: int) -> None:
        """Mark blocks as used, and drop the least recently used ones above the limit."""
        of = weakref.ref(rows)
        with self._lock:
            for number in numbers:
                self._bytes += block_bytes - self._last_used.pop((of, number), 0)
                self._last_used[of, number] = block_bytes
            while self._bytes > _most_bytes_kept():
                (oldest, number), gone_bytes = self._last_used.popitem(last=False)
                self._bytes -= gone_bytes
                if (owner := oldest()) is not None:
                    owner.forget(number)


@cache
def _most_bytes_kept() -> int:
    return min(1 << 30, max(128 << 20, (free_memory_bytes() or 0) // 8))


_KEPT_BLOCKS = _KeptBlocks()


class _Range(NamedTuple):
    """Bytes [start, stop) of a file, which contain adjacent blocks."""

    file: int
    start: int
    stop: int
    blocks: tuple[int, ...]
