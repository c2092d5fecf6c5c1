"""How damage is told: what is wrong where, and the command that mends it."""

from __future__ import annotations

from featstore.errors import DamagedPart

__all__ = ["damaged"]


def damaged(url: str, where: str, says: str) -> DamagedPart:
    """What to raise of an object or a group at `where` in the store at `url`.

    >>> str(damaged("e.zarr", "zarr.json", "is missing"))
    'e.zarr/zarr.json is missing; `featstore verify --store e.zarr --repair` drops or mends what is damaged'
    """
    return DamagedPart(
        f"{url}/{where} {says}; `featstore verify --store {url} --repair` drops or mends what is damaged"
    )
