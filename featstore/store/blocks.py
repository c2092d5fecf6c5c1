"""Where the blocks of a file lie, by the file's size and its index. Pure: whoever asks brings what reads bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featstore.errors import DamagedPart
from featstore.store.codecs import CRC_BYTES, INDEX_ENTRY_BYTES, crc32c
from featstore.store.layout import ArrayLayout

__all__ = ["UNCHECKED_BYTES", "block_offsets", "require_files", "wrong_size"]

UNCHECKED_BYTES = 64 << 20  # what may be allocated before the files are looked at that it is read from


def block_offsets(
    layout: ArrayLayout, *, file_bytes: int, read: Callable[[int, int], bytes], where: Path | str
) -> list[int]:
    """Where each block of a file begins, -1 where it is absent.

    The index of a sharded file stands at its end: (offset, nbytes) as little-endian uint64 per inner chunk, then a
    CRC-32C (Zarr v3 ``sharding_indexed`` codec). `read` hands out bytes [start, stop) of the file.

    Raises
    ------
    DamagedPart
        The file is not as large as its blocks, or the index is none of such blocks, or not what was written.
    """
    if layout.kind == "plain":
        if file_bytes != layout.block_bytes + CRC_BYTES:
            raise wrong_size(where)
        return [0]
    index_at = file_bytes - CRC_BYTES - layout.blocks_per_file * INDEX_ENTRY_BYTES
    if index_at < 0:
        raise wrong_size(where)
    raw = read(index_at, file_bytes)
    if struct.pack("<I", crc32c(raw[:-CRC_BYTES])) != raw[-CRC_BYTES:]:
        raise DamagedPart(f"{where} is damaged: the checksum of its index does not match: run `featstore verify`")
    index = np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(-1, 2)
    absent = (index == np.iinfo(np.uint64).max).all(axis=1)
    room = max(0, index_at - layout.block_bytes - CRC_BYTES)
    fits = (index[:, 1] == layout.block_bytes + CRC_BYTES) & (index[:, 0] <= room)
    if not (absent | fits).all():
        raise wrong_size(where)
    return [-1 if gone else int(offset) for gone, offset in zip(absent, index[:, 0], strict=True)]


def require_files(
    layout: ArrayLayout, start: int, stop: int, *, size_of: Callable[[str], int], where: Path | str
) -> None:
    """Make sure that files hold rows [start, stop), by their sizes, so that memory may be allocated for these.

    `size_of` knows a file by its key below the array, and one that is not there as of 0 bytes. It is asked of no more
    files than there are, whatever the array claims.
    """
    for number in range(start // layout.file_rows, -(-stop // layout.file_rows)):
        rows = min(layout.shape[0] - number * layout.file_rows, layout.file_rows)
        if size_of(key := layout.file_key(number)) < rows * layout.row_bytes:
            raise wrong_size(f"{where}/{key}")


def wrong_size(where: Path | str) -> DamagedPart:
    """What to raise of a file that does not have the size that its array needs."""
    return DamagedPart(f"{where} does not have the size that its array needs: run `featstore verify`")
