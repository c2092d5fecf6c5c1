"""featstore: run an audio encoder once, keep its embeddings, answer every later question from the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featstore.store import Store

__version__ = "0.2.0"
__all__ = ["__version__", "open"]


def open(url: str | os.PathLike[str], *, verify: bool = False) -> Store:  # the name users type: featstore.open(...)
    """Open a store for reading.

    Parameters
    ----------
    url : str or os.PathLike
        A folder, or ``s3://``, ``gs://``, ``az://``, ``hf://`` or ``https://``.
    verify : bool
        Read everything through its checksums first. Without it, numbers are read through a memory map, unchecked.

    Raises
    ------
    featstore.errors.StoreNotFound
        There is no store there.
    featstore.errors.StoreVersionError
        A newer featstore wrote it.
    featstore.errors.DamagedPart
        `verify` found damage.
    """
    url = os.fspath(url)
    if verify:
        from featstore.store.verify import require_sound

        require_sound(url)
    from featstore.store import open_store

    return open_store(url)
