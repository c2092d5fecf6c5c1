"""The only module that imports zarr: opens arrays with layouts that format 1 does not define, and creates groups."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.core.array import AsyncArray
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore, StorePath

from featstore.store.codecs import CRC_BYTES, decode_zstd

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype

    from featstore.store.filesystem import Objects

__all__ = ["create_local_group", "open_array"]


class _ObjectsStore(Store):
    """A zarr store that reads objects with featstore's client: with its limits, timeouts and errors."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(read_only=True)
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ObjectsStore) and other._objects is self._objects

    def __hash__(self) -> int:
        return id(self._objects)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        remote: Any = getattr(self._objects, "remote", None)
        if byte_range is None:
            return self._objects.read(key)
        found = remote.head(key)
        if found is None or found.size is None:
            return None
        span = _span(byte_range, found.size)
        data: bytes = remote.get_range(key, span.start, span.stop)
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._objects.read, key, most_bytes=0) is not None

    supports_writes = supports_deletes = False
    supports_listing = True

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(self._objects.sizes, ""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(self._objects.children, prefix.rstrip("/")):
            yield name


def _span(requested: ByteRequest, size: int) -> slice:
    if isinstance(requested, RangeByteRequest):
        return slice(requested.start, min(requested.end, size))
    return (
        slice(requested.offset, size)
        if isinstance(requested, OffsetByteRequest)
        else slice(max(0, size - requested.suffix), size)
    )


class _BoundedZstd(ZstdCodec):
    """zstd codec that decompresses a chunk to at most the size in the array document."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        most = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize + 4 * CRC_BYTES
        plain = decode_zstd(chunk_bytes.as_numpy_array(), most_bytes=most)
        return chunk_spec.prototype.buffer.from_bytes(plain)


def _bounded(codecs: Iterable[Any]) -> tuple[Any, ...]:
    """Return codecs whose allocations are bounded by the chunk size. Other codecs are rejected."""
    found: list[Any] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            inner, index = _bounded(codec.codecs), _bounded(codec.index_codecs)
            found.append(replace(codec, codecs=inner, index_codecs=index))
        elif isinstance(codec, ZstdCodec):
            found.append(_BoundedZstd(level=codec.level, checksum=codec.checksum))
        elif isinstance(codec, BytesCodec | Crc32cCodec | TransposeCodec):
            found.append(codec)
        else:
            raise TypeError(f"its codec must be bytes, crc32c, transpose, zstd or sharding: got {type(codec).__name__}")
    return tuple(found)


def open_array(objects: Objects, path: str) -> zarr.Array[Any]:
    """Open one array for reading. Only codecs with bounded memory use are supported."""
    store: Store = _ObjectsStore(objects) if objects.root is None else LocalStore(objects.root, read_only=True)
    array = zarr.open_array(store, path=path, mode="r", zarr_format=3)
    metadata = array.metadata
    if not isinstance(metadata, ArrayV3Metadata):
        raise TypeError("it is not a Zarr v3 array")
    metadata = replace(metadata, codecs=_bounded(metadata.codecs))
    return zarr.Array(AsyncArray(metadata=metadata, store_path=StorePath(store, path)))


def create_local_group(folder: Path, *, attributes: Mapping[str, Any]) -> zarr.Group:
    """Create a group in a new folder, for exports."""
    return zarr.create_group(LocalStore(folder), zarr_format=3, attributes=dict(attributes))
