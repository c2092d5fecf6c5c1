"""Bytes of chunks: the one door of numcodecs and google_crc32c, the implementations that zarr-python itself uses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from featstore.store.layout import ZSTD_LEVEL, ArrayLayout

__all__ = ["CRC_BYTES", "INDEX_ENTRY_BYTES", "Buffers", "crc32c", "decode_strings", "encode_file", "encode_strings",
           "seal_crc32c"]  # fmt: skip

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16

Buffers = Sequence[Any]  # objects of the buffer protocol, to be written one after another


def crc32c(data: Any, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of a contiguous buffer, or of what `crc` is of and the buffer after it."""
    return int(google_crc32c.extend(crc, np.frombuffer(data, np.uint8)))


def seal_crc32c(buffers: Buffers) -> int:
    """CRC-32C of an object with its last four bytes put first.

    The plain CRC of a chunk that ends in its own CRC is the same number whatever the chunk holds; turned round, it
    tells two such chunks apart.
    """
    *before, last = (memoryview(buffer).cast("B") for buffer in buffers)
    turned = (last[-CRC_BYTES:], *before, last[:-CRC_BYTES])
    crc = 0
    for piece in turned:
        crc = int(google_crc32c.extend(crc, np.frombuffer(piece, np.uint8))) if len(piece) else crc
    return crc


def encode_file(layout: ArrayLayout, rows: NDArray[Any]) -> Buffers:
    """Buffers of one file that holds `rows`, (at most file_rows, ...), without copying whole blocks."""
    rows = np.ascontiguousarray(rows, layout.dtype)
    buffers: list[Any] = []
    index: list[tuple[int, int]] = []
    offset = 0
    for start in range(0, len(rows), layout.block_rows):
        block = rows[start : start + layout.block_rows]
        if len(block) < layout.block_rows:  # the last block is stored whole, its rows beyond the end zero
            padded = np.zeros((layout.block_rows, *layout.shape[1:]), layout.dtype)
            padded[: len(block)] = block
            block = padded
        flat = block.reshape(-1).view(np.uint8)
        buffers += [flat, struct.pack("<I", crc32c(flat))]
        index.append((offset, layout.block_bytes + CRC_BYTES))
        offset += layout.block_bytes + CRC_BYTES
    if layout.kind == "sharded":
        absent = (2**64 - 1, 2**64 - 1)
        index += [absent] * (layout.blocks_per_file - len(index))
        raw = struct.pack(f"<{2 * len(index)}Q", *(number for entry in index for number in entry))
        buffers += [raw, struct.pack("<I", crc32c(raw))]
    return buffers


def encode_strings(values: Sequence[str]) -> bytes:
    """Make the one chunk of a string array."""
    packed = Zstd(level=ZSTD_LEVEL).encode(VLenUTF8().encode(np.asarray(values, dtype=object)))
    return bytes(packed) + struct.pack("<I", crc32c(packed))


def decode_strings(chunk: bytes) -> NDArray[np.object_]:
    """Read what `encode_strings` made.

    Raises
    ------
    ValueError
        The checksum does not match, or the bytes are no such chunk.
    """
    if len(chunk) < CRC_BYTES or struct.pack("<I", crc32c(chunk[:-CRC_BYTES])) != chunk[-CRC_BYTES:]:
        raise ValueError("its checksum does not match")
    try:
        return np.asarray(VLenUTF8().decode(Zstd().decode(chunk[:-CRC_BYTES])), dtype=object)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
