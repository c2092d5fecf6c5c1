"""Arrays of whole rows, read where they lie.

A numeric array of a part is a sequence of blocks of whole rows: the chunks of a plain array, or the inner chunks of the
files of a sharded one. Of a local store the files are mapped, and a row is a NumPy view into the page cache; of any
other store blocks come through zarr. Reads through the map are not checked against the CRC-32C that follows each block:
`featstore verify`, or ``featstore.open(url, verify=True)``, checks first.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedPart
from featstore.store.codecs import CRC_BYTES, INDEX_ENTRY_BYTES
from featstore.store.layout import ArrayLayout, parse_layout
from featstore.store.objects import Objects

__all__ = ["MappedRows", "Rows", "ZarrRows", "open_rows"]


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


def open_rows(objects: Objects, path: str) -> Rows:
    """Open the numeric array at `path`: mapped where the store is local and the layout is format 1's, else by zarr."""
    if objects.root is not None:
        raw = objects.read(f"{path}/zarr.json")
        if raw is None:
            raise DamagedPart(f"{objects.url}/{path} is missing: run `featstore verify --store {objects.url}`")
        try:
            layout = parse_layout(raw)
        except ValueError as error:
            raise DamagedPart(f"{objects.url}/{path} is damaged: {error}: run `featstore verify`") from error
        if layout is not None:
            return MappedRows(objects.root / path, layout)
    return ZarrRows(objects, path)


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
            piece = self._block(number)[at : at + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _block(self, index: int) -> NDArray[Any]:
        block = self._blocks[index]
        return self._map(index) if block is None else block

    def _map(self, index: int) -> NDArray[Any]:
        """Map the file that holds a block, and with it every block of that file."""
        layout = self._layout
        number = index // layout.blocks_per_file
        path = self._folder / layout.file_key(number)
        view = _map_file(path)
        offsets = _shard_offsets(view, layout, path) if layout.kind == "sharded" else [0]
        if layout.kind == "plain" and len(view) != layout.block_bytes + CRC_BYTES:
            raise _wrong_size(path)
        for slot, offset in enumerate(offsets):
            at = number * layout.blocks_per_file + slot
            if at >= len(self._blocks) or offset < 0:
                continue
            rows = min(self._block_rows, self._shape[0] - at * self._block_rows)
            flat = np.frombuffer(view, layout.dtype, rows * layout.row_bytes // layout.dtype.itemsize, offset)
            self._blocks[at] = flat.reshape(rows, *self._shape[1:])
        block = self._blocks[index]
        if block is None:  # the index says that it was never written
            raise _wrong_size(path)
        return block


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DamagedPart(
            f"{path} is missing: the store changed while it was open, or is damaged; open it again, and run "
            "`featstore verify` if it is still missing"
        ) from error
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        raise _wrong_size(path) from error


def _shard_offsets(view: mmap.mmap, layout: ArrayLayout, path: Path) -> list[int]:
    """Where each inner chunk of a sharded file begins, -1 where it is absent.

    The index stands at the end of the file: (offset, nbytes) as little-endian uint64 per inner chunk, then a CRC-32C
    (Zarr v3 ``sharding_indexed`` codec).
    """
    size = layout.blocks_per_file * INDEX_ENTRY_BYTES
    if len(view) < size + CRC_BYTES:
        raise _wrong_size(path)
    index = np.frombuffer(view, "<u8", layout.blocks_per_file * 2, len(view) - CRC_BYTES - size).reshape(-1, 2)
    absent = (index == np.iinfo(np.uint64).max).all(axis=1)
    room = max(0, len(view) - CRC_BYTES - size - layout.block_bytes - CRC_BYTES)
    fits = (index[:, 1] == layout.block_bytes + CRC_BYTES) & (index[:, 0] <= room)
    if not (absent | fits).all():
        raise _wrong_size(path)
    return [-1 if gone else int(offset) for gone, offset in zip(absent, index[:, 0], strict=True)]


def _wrong_size(path: Path) -> DamagedPart:
    return DamagedPart(f"{path} does not have the size that its array needs: run `featstore verify`")
