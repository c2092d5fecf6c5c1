"""How damage is told: what is wrong where, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

from featstore.errors import DamagedPart

__all__ = ["damaged", "gone"]


def damaged(url: str, where: str, says: str) -> DamagedPart:
    """What to raise of an object or a group at `where` in the store at `url`.

    >>> str(damaged("e.zarr", "zarr.json", "is missing"))
    'e.zarr/zarr.json is missing; `featstore verify --store e.zarr --repair` drops or mends what is damaged'
    """
    return DamagedPart(
        f"{url}/{where} {says}; `featstore verify --store {url} --repair` drops or mends what is damaged"
    )


def gone(where: Path | str) -> DamagedPart:
    """What to raise of an object that the store had when it was opened: most often a writer has replaced its part."""
    return DamagedPart(
        f"{where} is missing: the store changed while it was open, or is damaged; open it again, and run "
        "`featstore verify` if it is still missing"
    )
