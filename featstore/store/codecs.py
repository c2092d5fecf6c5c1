"""Chunk codecs (numcodecs, google_crc32c) and the byte ranges of the blocks of an object."""

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
    "check_strings",
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

MOST_STRING_BYTES = (4 << 20) + 4  # of one string and its length: a clip's JSON may have 4 MiB, see `extract.tars`
MOST_CHUNK_BYTES = 256 << 20  # of what a chunk expands to, where it is not itself large:
MOST_EXPANSION = 64
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPED = range(0x184D2A50, 0x184D2A60)
_ZSTD_BLOCK_BYTES = 128 << 10

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


def decode_strings(chunk: bytes, *, n: int) -> NDArray[np.object_]:
    """Read the `n` strings that `encode_strings` made a chunk of.

    Nothing is allocated that the chunk claims and `n` does not account for: neither what its frame expands to, nor how
    many strings it has.

    Raises
    ------
    ValueError
        The checksum does not match, the bytes are no such chunk, or there are not `n` strings in it.
    """
    if len(chunk) < CRC_BYTES or struct.pack("<I", crc32c(chunk[:-CRC_BYTES])) != chunk[-CRC_BYTES:]:
        raise ValueError("its checksum does not match")
    packed = memoryview(chunk)[:-CRC_BYTES]
    plain = decode_zstd(packed, most_bytes=_most_string_bytes(packed, n))
    count = struct.unpack_from("<I", plain)[0] if len(plain) >= 4 else 0
    if count != n or len(plain) < 4 + 4 * n:
        raise ValueError(f"it has {count:,} rows in {len(plain):,} bytes, and {n:,} were committed")
    return np.asarray(VLenUTF8().decode(plain), dtype=object)


def check_strings(chunk: bytes, *, n: int) -> None:
    """Raise ValueError where a chunk of `n` strings claims more than `decode_strings` allocates; expand nothing."""
    packed = memoryview(chunk)[: max(0, len(chunk) - CRC_BYTES)]
    _require_small(packed, most_bytes=_most_string_bytes(packed, n))


def _most_string_bytes(packed: memoryview, n: int) -> int:
    return min(4 + n * MOST_STRING_BYTES, max(MOST_CHUNK_BYTES, MOST_EXPANSION * len(packed)))


def decode_zstd(packed: Any, *, most_bytes: int) -> bytes:
    """Decompress zstd frames; ValueError where they are none, or claim more than `most_bytes`, before anything is."""
    _require_small(packed, most_bytes=most_bytes)
    try:
        return bytes(Zstd().decode(packed))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _require_small(packed: Any, *, most_bytes: int) -> None:
    expanded = _zstd_bytes(packed)
    if expanded > most_bytes:
        raise ValueError(f"it expands to {expanded:,} bytes, and {most_bytes:,} are the most that it may")


def _zstd_bytes(packed: Any) -> int:
    """What frames expand to, by their headers (RFC 8878); of frames that do not state it, at most.

    A frame of an unknown size is decoded as a stream, which grows by at most 128 KiB with each block.
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
                    raise ValueError("a zstd frame breaks off")
                at += 3 + (1 if kind == 1 else length)  # a block that repeats one byte stores it once
                blocks += length if kind < 2 else _ZSTD_BLOCK_BYTES
            at += checksum
    except struct.error as error:
        raise ValueError("a zstd frame breaks off") from error
    return stated if all_stated else max(stated, blocks)


def _zstd_header(view: memoryview, at: int) -> tuple[int, int | None, int]:
    """Where the blocks of a frame begin, the size it states or None, and bytes of the checksum behind them."""
    (descriptor,) = struct.unpack_from("<B", view, at)
    single = descriptor >> 5 & 1
    at += 1 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    kind = descriptor >> 6
    checksum = 4 if descriptor & 4 else 0
    if kind == 0 and not single:
        return at, None, checksum
    form, more = (("<B", 0), ("<H", 256), ("<I", 0), ("<Q", 0))[kind]
    return at + struct.calcsize(form), struct.unpack_from(form, view, at)[0] + more, checksum


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
