"""Writes one Zarr group of dense arrays over all windows. Imports zarr, by `zarr_io`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.store.export.contents import Contents
from featstore.store.zarr_io import create_local_group

__all__ = ["write_zarr"]

_CHUNK_BYTES = 16 << 20
_STRINGS_A_CHUNK = 1 << 16


def write_zarr(contents: Contents, folder: Path) -> None:
    """One group of dense arrays, of plain little-endian bytes: no codec that some reader may lack."""
    fs = contents.fs
    group = create_local_group(folder, attributes={"featstore_export": contents.provenance})

    def create(name: str, shape: tuple[int, ...], dtype: Any, chunk_rows: int) -> Any:
        chunks = (max(1, min(shape[0], chunk_rows)), *shape[1:])
        return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, compressors=None)

    for name, texts in contents.strings.items():
        array = create(name, texts.shape, str, _STRINGS_A_CHUNK)
        if len(texts):
            array[...] = texts
    small = contents.numbers | ({"frame_offsets": contents.frame_offsets} if contents.with_frames else {})
    for name, values in small.items():
        array = create(name, values.shape, values.dtype, _CHUNK_BYTES // values.dtype.itemsize)
        if len(values):
            array[...] = values
    dim = fs.recipe.dim
    vectors = create("utterance", (len(fs), dim), np.float32, _CHUNK_BYTES // (4 * dim))
    _fill(vectors, (contents.utterance(piece) for piece in contents.pieces()))
    if contents.with_frames:
        dtype = contents.frame_dtype
        total = int(contents.frame_offsets[-1])
        frames = create("frames", (total, dim), dtype, _CHUNK_BYTES // (dtype.itemsize * dim))
        _fill(frames, (contents.frames(piece) for piece in contents.pieces()))


def _fill(array: Any, blocks: Iterator[NDArray[Any]]) -> None:
    """Append blocks of rows, in strides of whole chunks so that each chunk is written once."""
    chunk = array.chunks[0]
    at, waiting = 0, np.empty((0, *array.shape[1:]), array.dtype)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        whole = len(waiting) // chunk * chunk
        if whole:
            array[at : at + whole] = waiting[:whole]
            at, waiting = at + whole, waiting[whole:]
    if len(waiting):
        array[at:] = waiting
