"""Arrays of whole rows, read where they lie.

A numeric array of a part is a sequence of blocks of whole rows: the chunks of a plain array, or the inner chunks of the
files of a sharded one. Of a local store the files are mapped, and a row is a NumPy view into the page cache; of a
remote one blocks are read by byte range, and checked. Arrays of any other layout come through zarr. Reads through the
map are not checked against the CRC-32C that follows each block: `featstore verify`, or
``featstore.open(url, verify=True)``, checks first.
"""

from __future__ import annotations

import io
import mmap
import struct
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedPart
from featstore.remote import NETWORK_THREADS
from featstore.store.codecs import CRC_BYTES, INDEX_ENTRY_BYTES, crc32c
from featstore.store.layout import ArrayLayout, parse_layout
from featstore.store.objects import Objects

__all__ = ["MappedRows", "RangedRows", "Ranges", "Rows", "ZarrRows", "open_remote_rows", "open_rows"]


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

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`."""

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Rows [start, stop) of each span are about to be read; rows that travel are asked for together."""


class Ranges(Protocol):
    """Bytes of objects by range; `featstore.remote.Remote` has them."""

    @property
    def url(self) -> str:
        """Where the objects are."""

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object."""


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
    return ZarrRows(objects, path) if layout is None else MappedRows(objects.root / path, layout)


def open_remote_rows(objects: Objects, path: str, document: bytes | None, size_of: Callable[[str], int]) -> Rows:
    """Open a numeric array of a remote store, of which `document` is its own and `size_of` knows its objects."""
    layout = _layout(objects, path, document)
    remote = getattr(objects, "remote", None)
    if layout is None or remote is None:
        return ZarrRows(objects, path)
    return RangedRows(remote, path, layout, size_of)


def _layout(objects: Objects, path: str, document: bytes | None) -> ArrayLayout | None:
    if document is None:
        raise DamagedPart(f"{objects.url}/{path} is missing: run `featstore verify --store {objects.url}`")
    try:
        return parse_layout(document)
    except ValueError as error:
        raise DamagedPart(f"{objects.url}/{path} is damaged: {error}: run `featstore verify`") from error


class ZarrRows:
    """Rows that zarr reads, through every codec and checksum."""

    def __init__(self, objects: Objects, path: str) -> None:
        from featstore.store.zarr_io import open_array

        self._array = open_array(objects, path)

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

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        return np.asarray(self._array[start:stop])

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`."""
        out[...] = np.asarray(self._array[start : start + len(out)])


class MappedRows:
    """Rows of a local array of one of format 1's layouts."""

    def __init__(self, folder: Path, layout: ArrayLayout) -> None:
        self._folder = folder
        self._layout = layout
        self._shape = layout.shape
        self._block_rows = layout.block_rows
        self._blocks: list[NDArray[Any] | None] = [None] * layout.n_blocks

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: another process makes its own, of the same pages."""
        return {**self.__dict__, "_blocks": [None] * self._layout.n_blocks}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        return self._layout.dtype

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: what is mapped is at hand."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop): a view where they lie in one block, else a copy."""
        if stop <= start:
            return np.empty((0, *self._shape[1:]), self._layout.dtype)
        first, at = divmod(start, self._block_rows)
        if at + (stop - start) <= self._block_rows:
            return self._block(first)[at : at + (stop - start)]
        out = np.empty((stop - start, *self._shape[1:]), self._layout.dtype)
        self.read_into(out, start=start)
        return out

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`, block by block."""
        done = 0
        while done < len(out):
            number, at = divmod(start + done, self._block_rows)
            rows = min(self._block_rows - at, len(out) - done)
            if at == 0 and rows == self._block_rows and self._blocks[number] is None and out.flags.c_contiguous:
                rows = self._read_whole_blocks(number, out[done:])
            else:
                out[done : done + rows] = self._block(number)[at : at + rows]
            done += rows

    def _read_whole_blocks(self, first: int, out: NDArray[Any]) -> int:
        """Read whole blocks from `first` on, of one file, straight into `out`; returns how many rows.

        A read costs no page fault for each page of a file that nobody has mapped.
        """
        layout = self._layout
        number = first // layout.blocks_per_file
        path = self._folder / layout.file_key(number)
        with _opened(path) as file:
            offsets = _block_offsets(file, layout, path)
            slot = first - number * layout.blocks_per_file
            rows = 0
            while slot < len(offsets) and rows + self._block_rows <= len(out):
                target = out[rows : rows + self._block_rows].data.cast("B")
                file.seek(offsets[slot])
                if offsets[slot] < 0 or _read_full(file, target) != len(target):
                    raise _wrong_size(path)
                rows += self._block_rows
                slot += 1
        return rows

    def _block(self, index: int) -> NDArray[Any]:
        block = self._blocks[index]
        return self._map(index) if block is None else block

    def _map(self, index: int) -> NDArray[Any]:
        """Map the file that holds a block, and with it every block of that file."""
        layout = self._layout
        number = index // layout.blocks_per_file
        path = self._folder / layout.file_key(number)
        with _opened(path) as file:
            offsets = _block_offsets(file, layout, path)
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        wanted = None
        for slot, offset in enumerate(offsets):
            at = number * layout.blocks_per_file + slot
            if at >= len(self._blocks) or offset < 0:
                continue
            rows = min(self._block_rows, self._shape[0] - at * self._block_rows)
            flat = np.frombuffer(view, layout.dtype, rows * layout.row_bytes // layout.dtype.itemsize, offset)
            self._blocks[at] = flat.reshape(rows, *self._shape[1:])
            wanted = self._blocks[at] if at == index else wanted
        if wanted is None:  # the index says that it was never written
            raise _wrong_size(path)
        _KEPT_MAPS.add(self, number)
        return wanted

    def forget(self, number: int) -> None:
        """Let the map of a file go; whoever has rows of it keeps them."""
        first = number * self._layout.blocks_per_file
        until = min(first + self._layout.blocks_per_file, len(self._blocks))
        self._blocks[first:until] = [None] * (until - first)


class _KeptMaps:
    """Which maps of this process are kept: each holds its file open, of which a process may have a thousand or so.

    A feature set has a file for each part and more. Past half of what the process may open, the oldest map goes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[weakref.ref[MappedRows], int]] = deque()

    def add(self, rows: MappedRows, number: int) -> None:
        """Keep the map of a file."""
        with self._lock:
            self._kept.append((weakref.ref(rows), number))
            while len(self._kept) > _most_maps():
                oldest, of = self._kept.popleft()
                if (gone := oldest()) is not None:
                    gone.forget(of)


def _most_maps() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # another system, which counts otherwise
        return 4096
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Linux lets a process have 65,530 maps, whatever it may open.
    return 16_384 if may_open == resource.RLIM_INFINITY else max(16, min(16_384, may_open // 2))


_KEPT_MAPS = _KeptMaps()


_BLOCKS_KEPT_BYTES = 128 << 20
_MOST_BYTES_A_REQUEST = 16 << 20


class RangedRows:
    """Rows of a remote array of one of format 1's layouts: only the blocks that are asked for travel.

    Each is held against its CRC-32C. The index of a file is read once, blocks that follow one another come in one
    request, and the last 128 MiB of them are kept, since windows that are read together lie together.
    """

    def __init__(self, remote: Ranges, path: str, layout: ArrayLayout, size_of: Callable[[str], int]) -> None:
        self._remote = remote
        self._path = path
        self._layout = layout
        self._size_of = size_of
        self._offsets: dict[int, list[int]] = {}
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._most_kept = max(2, _BLOCKS_KEPT_BYTES // max(1, layout.block_bytes))

    def __reduce__(self) -> tuple[type[RangedRows], tuple[Ranges, str, ArrayLayout, Callable[[str], int]]]:
        sizes = {self._layout.file_key(n): self._size_of(self._layout.file_key(n)) for n in range(self._layout.n_files)}
        return RangedRows, (self._remote, self._path, self._layout, sizes.__getitem__)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self._layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its numbers."""
        return self._layout.dtype

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop), a copy."""
        out = np.empty((max(0, stop - start), *self._layout.shape[1:]), self._layout.dtype)
        self.read_into(out, start=start)
        return out

    def read_into(self, out: NDArray[Any], *, start: int = 0) -> None:
        """Copy the rows from `start` on that fill `out`."""
        rows = self._layout.block_rows
        done = 0
        while done < len(out):
            # as many blocks at a time as are kept: of a long stretch the first would be gone before the last came
            stop = min(len(out), (start + done) // rows * rows + self._most_kept * rows - start)
            blocks = self._blocks(range((start + done) // rows, -(-(start + stop) // rows)))
            while done < stop:
                number, at = divmod(start + done, rows)
                n = min(rows - at, stop - done)
                out[done : done + n] = blocks[number][at : at + n]
                done += n

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Ask for the blocks of many spans together, as far as they are kept."""
        rows = self._layout.block_rows
        wanted = dict.fromkeys(n for start, stop in spans for n in range(start // rows, -(-stop // rows)))
        self._blocks(list(wanted)[: self._most_kept])

    def _blocks(self, numbers: Iterable[int]) -> dict[int, NDArray[Any]]:
        numbers = list(numbers)
        with self._lock:
            found = {number: self._kept[number] for number in numbers if number in self._kept}
        ranges = self._plan(sorted(set(numbers) - set(found)))
        if len(ranges) == 1:
            found |= self._read(ranges[0])
        elif ranges:
            with ThreadPoolExecutor(min(len(ranges), NETWORK_THREADS)) as pool:
                for some in pool.map(self._read, ranges):
                    found |= some
        with self._lock:
            for number in numbers:
                self._kept[number] = found[number]
                self._kept.move_to_end(number)
            while len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return found

    def _plan(self, numbers: Sequence[int]) -> list[_Range]:
        """Requests for blocks, those that lie one after another in one file taken together."""
        plan: list[_Range] = []
        for number in numbers:
            file, slot = divmod(number, self._layout.blocks_per_file)
            start = self._file_offsets(file)[slot]
            if start < 0:
                raise _wrong_size(self._url(file))
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
        for _ in range(2):  # once more where a checksum differs: the fault may be the way's
            raw = self._remote.get_range(self._key(wanted.file), wanted.start, wanted.stop)
            pieces = [raw[at : at + step] for at in range(0, len(raw), step)]
            if all(struct.pack("<I", crc32c(piece[:-CRC_BYTES])) == piece[-CRC_BYTES:] for piece in pieces):
                return dict(zip(wanted.blocks, map(self._array, pieces), strict=True))
        raise DamagedPart(
            f"{self._url(wanted.file)} is damaged: a checksum does not match; "
            f"`featstore verify --store {self._remote.url} --repair` drops the part"
        )

    def _array(self, piece: bytes) -> NDArray[Any]:
        count = self._layout.block_bytes // self._layout.dtype.itemsize
        return np.frombuffer(piece, self._layout.dtype, count).reshape(-1, *self._layout.shape[1:])

    def _file_offsets(self, file: int) -> list[int]:
        if file not in self._offsets:
            size = self._size_of(self._layout.file_key(file))
            if self._layout.kind == "plain":
                if size != self._layout.block_bytes + CRC_BYTES:
                    raise _wrong_size(self._url(file))
                self._offsets[file] = [0]
            else:
                index_at = size - CRC_BYTES - self._layout.blocks_per_file * INDEX_ENTRY_BYTES
                if index_at < 0:
                    raise _wrong_size(self._url(file))
                raw = self._remote.get_range(self._key(file), index_at, size - CRC_BYTES)
                self._offsets[file] = indexed_offsets(raw, self._layout, index_at=index_at, where=self._url(file))
        return self._offsets[file]

    def _key(self, file: int) -> str:
        return f"{self._path}/{self._layout.file_key(file)}"

    def _url(self, file: int) -> str:
        return f"{self._remote.url}/{self._key(file)}"


class _Range(NamedTuple):
    """Bytes [start, stop) of a file, which are these blocks one after another."""

    file: int
    start: int
    stop: int
    blocks: tuple[int, ...]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file of an array, open for reading; DamagedPart where it is missing or cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError as error:
        raise DamagedPart(
            f"{path} is missing: the store changed while it was open, or is damaged; open it again, and run "
            "`featstore verify` if it is still missing"
        ) from error
    except OSError as error:
        raise DamagedPart(f"{path} cannot be read: {error.strerror}") from error


def _block_offsets(file: BinaryIO, layout: ArrayLayout, path: Path) -> list[int]:
    """Where each block of a file begins, -1 where it is absent.

    The index of a sharded file stands at its end: (offset, nbytes) as little-endian uint64 per inner chunk, then a
    CRC-32C (Zarr v3 ``sharding_indexed`` codec).
    """
    file_bytes = file.seek(0, io.SEEK_END)
    if layout.kind == "plain":
        if file_bytes != layout.block_bytes + CRC_BYTES:
            raise _wrong_size(path)
        return [0]
    index_at = file_bytes - CRC_BYTES - layout.blocks_per_file * INDEX_ENTRY_BYTES
    if index_at < 0:
        raise _wrong_size(path)
    file.seek(index_at)
    return indexed_offsets(file.read(file_bytes - CRC_BYTES - index_at), layout, index_at=index_at, where=path)


def indexed_offsets(raw: bytes, layout: ArrayLayout, *, index_at: int, where: Path | str) -> list[int]:
    """Offsets that the index of a sharded file holds, which stands at byte `index_at`; -1 for an absent block."""
    index = np.frombuffer(raw[: len(raw) // INDEX_ENTRY_BYTES * INDEX_ENTRY_BYTES], "<u8").reshape(-1, 2)
    absent = (index == np.iinfo(np.uint64).max).all(axis=1)
    room = max(0, index_at - layout.block_bytes - CRC_BYTES)
    fits = (index[:, 1] == layout.block_bytes + CRC_BYTES) & (index[:, 0] <= room)
    if len(index) != layout.blocks_per_file or not (absent | fits).all():
        raise _wrong_size(where)
    return [-1 if gone else int(offset) for gone, offset in zip(absent, index[:, 0], strict=True)]


def _read_full(file: BinaryIO, target: memoryview) -> int:
    """Fill `target`; a read of an unbuffered file may stop short."""
    done = 0
    while done < len(target) and (got := cast(io.FileIO, file).readinto(target[done:])):
        done += got
    return done


def _wrong_size(path: Path | str) -> DamagedPart:
    return DamagedPart(f"{path} does not have the size that its array needs: run `featstore verify`")
