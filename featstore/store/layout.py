"""Layouts of a part's arrays: their array documents, and the rows of each file. This module does no I/O.

There are three layouts, all standard Zarr v3:

- *plain*: chunks of complete rows, little-endian bytes, each followed by its CRC-32C;
- *sharded*: files of many such chunks (``sharding_indexed``), with an index at the end;
- *strings*: one chunk, vlen-utf8, zstd, CRC-32C.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = [
    "FILE_BYTES",
    "ArrayLayout",
    "one_file_layout",
    "parse_layout",
    "plain_layout",
    "rows_per_block",
    "sharded_layout",
    "strings_document",
]

PLAIN_CHUNK_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
FILE_BYTES = 64 << 20
ZSTD_LEVEL = 3
_MOST_BLOCK_BYTES = 1 << 30  # a block has at least one row, and a row is one vector
_MOST_BLOCKS_A_FILE = 1 << 20

_LITTLE: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: dict[str, Any] = {"name": "crc32c"}
_NUMBERS = ("float16", "float32", "float64", "int64")


def rows_per_block(row_bytes: int, *, block_bytes: int) -> int:
    """Number of complete rows in a block of about `block_bytes`, at least one.

    >>> rows_per_block(1536, block_bytes=1 << 20)
    682
    """
    return max(1, block_bytes // max(1, row_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """A numeric array in blocks of complete rows.

    Attributes
    ----------
    shape : tuple of int
        The first dimension is rows.
    dtype : numpy.dtype
        Little-endian.
    block_rows : int
        Rows per block; the last block is padded.
    file_rows : int
        Rows per file: a plain array has one block per file, a sharded array many.
    kind : "plain" or "sharded"
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block_rows: int
    file_rows: int
    kind: Literal["plain", "sharded"]

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes per block, without its checksum."""
        return self.block_rows * self.row_bytes

    @property
    def blocks_per_file(self) -> int:
        """Blocks per file."""
        return self.file_rows // self.block_rows

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes

    @property
    def n_files(self) -> int:
        """Number of files."""
        return -(-self.shape[0] // self.file_rows)

    @property
    def n_blocks(self) -> int:
        """Number of blocks with rows."""
        return -(-self.shape[0] // self.block_rows)

    def file_key(self, number: int) -> str:
        """Key of a file, relative to the array: ``c/3/0``."""
        return "/".join(["c", str(number), *("0" for _ in self.shape[1:])])

    def files(self) -> Iterator[tuple[str, int, int]]:
        """Yield the key of each file and its rows [start, stop)."""
        for number in range(self.n_files):
            start = number * self.file_rows
            yield self.file_key(number), start, min(start + self.file_rows, self.shape[0])

    def document(self) -> bytes:
        """Encode the array's ``zarr.json``."""
        inner = [_LITTLE, _CRC]
        codecs: list[Any] = inner
        if self.kind == "sharded":
            chunk = [self.block_rows, *self.shape[1:]]
            sharding = {"chunk_shape": chunk, "codecs": inner, "index_codecs": [_LITTLE, _CRC], "index_location": "end"}
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        fill = 0 if self.dtype.kind == "i" else 0.0
        return _document(self.shape, self.dtype.name, (self.file_rows, *self.shape[1:]), fill, codecs)


def plain_layout(shape: tuple[int, ...], dtype: Any) -> ArrayLayout:
    """Layout in chunks of equal size, at most about 16 MiB, with minimal padding."""
    dtype = np.dtype(dtype).newbyteorder("<")
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    chunks = max(1, -(-shape[0] // rows_per_block(row_bytes, block_bytes=PLAIN_CHUNK_BYTES)))
    rows = max(1, -(-shape[0] // chunks))
    return ArrayLayout(shape=shape, dtype=dtype, block_rows=rows, file_rows=rows, kind="plain")


def sharded_layout(shape: tuple[int, ...], dtype: Any) -> ArrayLayout:
    """Layout in files of about 64 MiB with blocks of about 1 MiB."""
    dtype = np.dtype(dtype).newbyteorder("<")
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    rows = rows_per_block(row_bytes, block_bytes=BLOCK_BYTES)
    blocks = max(1, FILE_BYTES // (rows * row_bytes))
    return ArrayLayout(shape=shape, dtype=dtype, block_rows=rows, file_rows=rows * blocks, kind="sharded")


def one_file_layout(shape: tuple[int, ...], dtype: Any) -> ArrayLayout:
    """Layout of an array that fits into one file, in blocks of equal size with minimal padding."""
    usual = sharded_layout(shape, dtype)
    blocks = max(1, usual.n_blocks)
    rows = max(1, -(-shape[0] // blocks))
    return ArrayLayout(shape=shape, dtype=usual.dtype, block_rows=rows, file_rows=rows * blocks, kind="sharded")


def strings_document(n: int) -> bytes:
    """Encode the ``zarr.json`` of an array of `n` strings in one chunk."""
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    codecs = [{"name": "vlen-utf8", "configuration": {}}, zstd, _CRC]
    return _document((n,), "string", (max(1, n),), "", codecs)


def parse_layout(raw: bytes) -> ArrayLayout | None:
    """Read an array document; None if the array has another layout, which zarr must read.

    Raises
    ------
    ValueError
        It is not an array document, or the sizes of its chunks are not plausible.
    """
    try:
        meta = json.loads(raw)
        shape = tuple(int(n) for n in meta["shape"])
        grid = tuple(int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, inner, index = meta["codecs"], grid, [_LITTLE, _CRC]
        kind: Literal["plain", "sharded"] = "plain"
        if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
            kind, sharding = "sharded", codecs[0]["configuration"]
            inner = tuple(int(n) for n in sharding["chunk_shape"])
            codecs, index = sharding["codecs"], sharding["index_codecs"]
            if sharding.get("index_location", "end") != "end":
                return None
        encoding = meta["chunk_key_encoding"]
        standard_keys = encoding["name"] == "default" and encoding["configuration"]["separator"] == "/"
        data_type = meta["data_type"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an array document ({type(error).__name__})") from error
    if not len(shape) == len(grid) == len(inner) or min((*shape, *grid, *inner), default=0) < 0 or 0 in (*grid, *inner):
        raise ValueError(f"not an array document (shape {shape} in chunks {grid} of {inner})")
    complete_rows = bool(shape) and grid[1:] == shape[1:] == inner[1:]
    is_format_1 = all(each == [_LITTLE, _CRC] or _without_defaults(each) == [_LITTLE, _CRC] for each in (codecs, index))
    if not (complete_rows and is_format_1 and standard_keys and data_type in _NUMBERS) or grid[0] % inner[0]:
        return None
    dtype = np.dtype(data_type).newbyteorder("<")
    layout = ArrayLayout(shape=shape, dtype=dtype, block_rows=inner[0], file_rows=grid[0], kind=kind)
    if layout.block_bytes > _MOST_BLOCK_BYTES or layout.blocks_per_file > _MOST_BLOCKS_A_FILE:
        raise ValueError(f"its chunks are not plausible: {grid} of {inner} {data_type}")
    return layout


def _without_defaults(codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in codec.items() if value != {}} for codec in codecs]


def _document(
    shape: tuple[int, ...], data_type: str, chunk: tuple[int, ...], fill_value: object, codecs: list[Any]
) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }
    return json.dumps(document, indent=1).encode()
