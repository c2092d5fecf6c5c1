"""Chunk codecs (numcodecs, google_crc32c), and the byte ranges of the blocks in a file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from featstore.errors import DamagedPart
from featstore.store.layout import ZSTD_LEVEL, ArrayLayout

__all__ = [
    "CRC_BYTES",
    "INDEX_ENTRY_BYTES",
    "MOST_CHUNK_BYTES",
    "UNCHECKED_BYTES",
    "Buffers",
    "block_offsets",
    "crc32c",
    "decode_strings",
    "decode_zstd",
    "encode_file",
    "encode_strings",
    "require_files",
    "seal_crc32c",
    "wrong_size",
]


CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16

MOST_STRING_BYTES = (4 << 20) + 4  # of one string and its length: a clip's JSON may have 4 MiB
MOST_CHUNK_BYTES = 256 << 20  # a chunk may expand to this, or to
MOST_EXPANSION = 64  # times its compressed size
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPED = range(0x184D2A50, 0x184D2A60)
_ZSTD_BLOCK_BYTES = 128 << 10

Buffers = Sequence[Any]  # objects with the buffer protocol, written one after another


def crc32c(data: Any, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of a contiguous buffer; `crc` is the checksum of the data before it."""
    return int(google_crc32c.extend(crc, np.frombuffer(data, np.uint8)))


def seal_crc32c(buffers: Buffers) -> int:
    """CRC-32C of an object, with its last four bytes moved to the front.

    The plain CRC of any chunk that ends in its own CRC is a constant. With the four bytes in front, the checksum
    depends on the content.
    """
    *before, last = (memoryview(buffer).cast("B") for buffer in buffers)
    rotated = (last[-CRC_BYTES:], *before, last[:-CRC_BYTES])
    crc = 0
    for piece in rotated:
        crc = int(google_crc32c.extend(crc, np.frombuffer(piece, np.uint8))) if len(piece) else crc
    return crc


def encode_file(layout: ArrayLayout, rows: NDArray[Any]) -> Buffers:
    """Encode one file with `rows`, (at most file_rows, ...), without copying complete blocks."""
    rows = np.ascontiguousarray(rows, layout.dtype)
    buffers: list[Any] = []
    index: list[tuple[int, int]] = []
    offset = 0
    for start in range(0, len(rows), layout.block_rows):
        block = rows[start : start + layout.block_rows]
        if len(block) < layout.block_rows:  # the last block is padded with zeros
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
    """Encode the single chunk of a string array."""
    packed = Zstd(level=ZSTD_LEVEL).encode(VLenUTF8().encode(np.asarray(values, dtype=object)))
    return bytes(packed) + struct.pack("<I", crc32c(packed))


def decode_strings(chunk: bytes, *, n: int) -> NDArray[np.object_]:
    """Decode a chunk of `n` strings that `encode_strings` made.

    Allocated memory is bounded by `n`, whatever expanded size and number of strings the chunk claims.

    Raises
    ------
    ValueError
        The checksum does not match, the chunk is malformed, or it does not contain `n` strings.
    """
    if len(chunk) < CRC_BYTES or struct.pack("<I", crc32c(chunk[:-CRC_BYTES])) != chunk[-CRC_BYTES:]:
        raise ValueError("its checksum does not match")
    packed = memoryview(chunk)[:-CRC_BYTES]
    most_bytes = min(4 + n * MOST_STRING_BYTES, max(MOST_CHUNK_BYTES, MOST_EXPANSION * len(packed)))
    plain = decode_zstd(packed, most_bytes=most_bytes)
    count = struct.unpack_from("<I", plain)[0] if len(plain) >= 4 else 0
    if count != n or len(plain) < 4 + 4 * n:
        raise ValueError(f"it has {count:,} rows in {len(plain):,} bytes, and {n:,} were committed")
    return np.asarray(VLenUTF8().decode(plain), dtype=object)


def decode_zstd(packed: Any, *, most_bytes: int) -> bytes:
    """Decompress zstd frames. Raises ValueError if they are malformed, or expand to more than `most_bytes`."""
    if (expanded := _zstd_bytes(packed)) > most_bytes:
        raise ValueError(f"it expands to {expanded:,} bytes, and the limit is {most_bytes:,}")
    try:
        return bytes(Zstd().decode(packed))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _zstd_bytes(packed: Any) -> int:
    """Expanded size of frames by their headers (RFC 8878), or an upper bound if a frame does not state it.

    Each block of a frame expands to at most 128 KiB.
    """
    view, at = memoryview(packed).cast("B"), 0
    stated, blocks = 0, 0
    all_stated = True
    try:
        while at < len(view):
            (magic,) = struct.unpack_from("<I", view, at)
            if magic in _ZSTD_SKIPPED:
                at += 8 + struct.unpack_from("<I", view, at + 4)[0]
                continue
            if magic != _ZSTD_MAGIC:
                raise ValueError("it is not compressed by zstd")
            at, size, checksum = _zstd_header(view, at + 4)
            all_stated = all_stated and size is not None
            stated += size or 0
            last = 0
            while not last:
                header = int.from_bytes(view[at : at + 3], "little") if at + 3 <= len(view) else -1
                last, kind, length = header & 1, header >> 1 & 3, header >> 3
                if header < 0 or kind == 3:
                    raise ValueError("a zstd frame is truncated")
                at += 3 + (1 if kind == 1 else length)  # a block of one repeated byte stores one byte
                blocks += length if kind < 2 else _ZSTD_BLOCK_BYTES
            at += checksum
    except struct.error as error:
        raise ValueError("a zstd frame is truncated") from error
    return stated if all_stated else max(stated, blocks)


def _zstd_header(view: memoryview, at: int) -> tuple[int, int | None, int]:
    """Offset of a frame's first block, its stated size or None, and the number of checksum bytes."""
    (descriptor,) = struct.unpack_from("<B", view, at)
    single = descriptor >> 5 & 1
    at += 1 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    kind = descriptor >> 6
    checksum = 4 if descriptor & 4 else 0
    if kind == 0 and not single:
        return at, None, checksum
    form, more = (("<B", 0), ("<H", 256), ("<I", 0), ("<Q", 0))[kind]
    return at + struct.calcsize(form), struct.unpack_from(form, view, at)[0] + more, checksum


UNCHECKED_BYTES = 64 << 20  # arrays up to this size are allocated without checking the sizes of their files


def block_offsets(
    layout: ArrayLayout, *, file_bytes: int, read: Callable[[int, int], bytes], where: Path | str
) -> list[int]:
    """Offset of each block of a file, -1 if the block is absent.

    The index of a sharded file is at its end: (offset, nbytes) as little-endian uint64 per inner chunk, then a CRC-32C
    (Zarr v3 ``sharding_indexed`` codec). ``read(start, stop)`` returns bytes [start, stop) of the file.

    Raises
    ------
    DamagedPart
        The file size does not match the layout, or the index is damaged.
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
    last_offset = max(0, index_at - layout.block_bytes - CRC_BYTES)
    fits = (index[:, 1] == layout.block_bytes + CRC_BYTES) & (index[:, 0] <= last_offset)
    if not (absent | fits).all():
        raise wrong_size(where)
    return [-1 if is_absent else int(offset) for is_absent, offset in zip(absent, index[:, 0], strict=True)]


def require_files(
    layout: ArrayLayout, start: int, stop: int, *, size_of: Callable[[str], int], where: Path | str
) -> None:
    """Raise DamagedPart if the files are too small for rows [start, stop), before memory is allocated for them.

    ``size_of(key)`` returns the size of a file of the array, 0 if it is missing. The loop stops at the first missing
    file, however many the array claims.
    """
    for number in range(start // layout.file_rows, -(-stop // layout.file_rows)):
        rows = min(layout.shape[0] - number * layout.file_rows, layout.file_rows)
        if size_of(key := layout.file_key(number)) < rows * layout.row_bytes:
            raise wrong_size(f"{where}/{key}")


def wrong_size(where: Path | str) -> DamagedPart:
    """Return the error for a file whose size does not match its array."""
    return DamagedPart(f"{where} does not have the size that its array needs: run `featstore verify`")
