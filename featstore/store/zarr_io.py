"""The one door of zarr: opens arrays of any store that are not of format 1's own layouts, and makes groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore
from zarr.storage._common import make_store

from featstore.errors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from featstore.store.objects import Objects

__all__ = ["create_local_group", "open_array", "zarr_store"]


def zarr_store(objects: Objects) -> Store:
    """The zarr store over the same bytes."""
    if objects.root is not None:
        return LocalStore(objects.root)
    remote = getattr(objects, "remote", None)
    if (opened := getattr(remote, "store", None)) is not None:
        return ObjectStore(opened, read_only=True)
    try:
        return sync(make_store(objects.url, mode="r"))
    except (ValueError, ImportError, OSError) as error:
        raise StoreError(f"zarr cannot open {objects.url}: {error}") from error


def open_array(objects: Objects, path: str) -> zarr.Array[Any]:
    """Open one array for reading, through all of its codecs and checksums."""
    return zarr.open_array(zarr_store(objects), path=path, mode="r", zarr_format=3)


def create_local_group(folder: Path, *, attributes: Mapping[str, Any]) -> zarr.Group:
    """Make a group in a folder that does not exist yet, for arrays that are not a store's."""
    return zarr.create_group(LocalStore(folder), zarr_format=3, attributes=dict(attributes))
