"""Public functions on labelled audio: `pack` and `fetch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from featstore.api.arguments import StrPath
from featstore.errors import UsageError

if TYPE_CHECKING:
    from featstore.extract.pack import PackRecord
    from featstore.extract.sources import SourceSettings

__all__ = ["pack"]


def pack(
    out: StrPath,
    *,
    manifest: StrPath | None = None,
    shard_size: int = 1024,
    split: str | None = None,
    progress: Callable[[], object] | None = None,
    **source: Unpack[SourceSettings],
) -> PackRecord:
    """Pack labelled audio into shards, with a draft manifest. Nothing is overwritten.

    Parameters
    ----------
    out : str or os.PathLike
        Folder of the shards; its name is the name of the data set.
    manifest : str or os.PathLike, optional
        Output file of the manifest; ``OUT.toml`` by default.
    shard_size : int
        Clips per shard.
    split : str, optional
        Split of all clips: no column of splits is used.
    progress : callable, optional
        Is called for each clip that is packed.
    **source
        Fields of `featstore.extract.sources.Source`. Where the audio is: ``audio`` (a folder of a folder for each
        label), ``csv``, ``jsonl``, ``hf``, ``lhotse`` or ``kaldi``. And ``label``, ``key``, ``path``, ``kind``,
        ``separator``, ``split_column``, ``split_by``, ``folds``, ``group``.

    Returns
    -------
    PackRecord
        ``clips`` and ``shards`` by split, ``skipped`` files, ``manifest``, and what the label was found to be.

    Raises
    ------
    featstore.errors.UsageError
        The call is wrong, or the shards or the manifest exist.
    featstore.errors.DataError
        A table cannot be read, or no clip can be packed. Nothing is left.
    """
    from featstore.extract.pack import pack as pack_source
    from featstore.extract.sources import Source

    if shard_size < 1:
        raise UsageError(f"shard_size must be 1 or more, got {shard_size}")
    return pack_source(
        Path(out),
        Source(split=split, **source),
        manifest=None if manifest is None else Path(manifest),
        clips_per_shard=shard_size,
        on_clip=progress or (lambda: None),
    )
