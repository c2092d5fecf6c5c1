"""The one door of zarr: opens arrays of any store, and speaks to stores that are no folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from featstore.errors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from featstore.store.objects import Objects

__all__ = ["ZarrObjects", "create_local_group", "open_array", "zarr_store"]


def zarr_store(objects: Objects) -> Store:
    """The zarr store over the same bytes."""
    if isinstance(objects, ZarrObjects):
        return objects.store
    if objects.root is None:
        raise StoreError(f"zarr cannot open {objects.url}: give a folder or a URL that fsspec knows")
    return LocalStore(objects.root)


def open_array(objects: Objects, path: str) -> zarr.Array[Any]:
    """Open one array for reading, through all of its codecs and checksums."""
    return zarr.open_array(zarr_store(objects), path=path, mode="r", zarr_format=3)


def create_local_group(folder: Path, *, attributes: Mapping[str, Any]) -> zarr.Group:
    """Make a group in a folder that does not exist yet, for arrays that are not a store's."""
    return zarr.create_group(LocalStore(folder), zarr_format=3, attributes=dict(attributes))


class ZarrObjects:
    """Any store that zarr can open by URL: ``memory://``, ``s3://``, ``gs://``, ``https://`` (read-only)."""

    def __init__(self, url: str) -> None:
        from zarr.storage._common import make_store

        self._url = url
        try:
            self.store: Store = sync(make_store(url))
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(f"cannot open the store {url}: {error}") from error

    @property
    def url(self) -> str:
        """The URL as it was given."""
        return self._url

    @property
    def root(self) -> Path | None:
        """None: there is no folder to map files of."""
        return None

    def read(self, key: str) -> bytes | None:
        """Get one object."""
        buffer = sync(self.store.get(key, prototype=default_buffer_prototype()))
        return None if buffer is None else buffer.to_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Put one object: atomic by the contract of object stores."""
        sync(self.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Put one object: joined, for an object store takes it in one piece."""
        self.write(key, b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers))

    def children(self, prefix: str) -> tuple[str, ...]:
        """List one level."""

        async def listing() -> list[str]:
            return [name async for name in self.store.list_dir(prefix)]

        return tuple(sorted(name.rstrip("/") for name in sync(listing())))

    def sizes(self, prefix: str) -> dict[str, int]:
        """List all levels."""

        async def listing() -> dict[str, int]:
            base = prefix.rstrip("/") + "/"
            return {key.removeprefix(base): await self.store.getsize(key) async for key in self.store.list_prefix(base)}

        return sync(listing())

    def settle(self, prefix: str) -> None:
        """Nothing to do: an object store is durable when it answers."""

    def remove(self, key: str) -> None:
        """Delete one object."""
        sync(self.store.delete(key))

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete the objects named in `first`, then the rest."""
        for name in first:
            self.remove(f"{prefix}/{name}")
        sync(self.store.delete_dir(prefix))
