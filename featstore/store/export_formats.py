"""Exports without optional libraries: npz, and a Zarr group of dense arrays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.formatting import spoken_bytes
from featstore.store.export_contents import Contents

__all__ = ["write_npz", "write_zarr"]


_CHUNK_BYTES = 16 << 20
_STRINGS_PER_CHUNK = 1 << 16


def write_zarr(contents: Contents, folder: Path) -> None:
    """Write a group of dense, uncompressed, little-endian arrays, which every Zarr v3 reader can read."""
    from featstore.store.zarr_io import create_local_group

    fs = contents.fs
    group = create_local_group(folder, attributes={"featstore_export": contents.provenance})

    def create(name: str, shape: tuple[int, ...], dtype: Any, chunk_rows: int) -> Any:
        chunks = (max(1, min(shape[0], chunk_rows)), *shape[1:])
        return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, compressors=None)

    for name, texts in contents.strings.items():
        array = create(name, texts.shape, str, _STRINGS_PER_CHUNK)
        if len(texts):
            array[...] = texts
    small = contents.numbers | ({"frame_offsets": contents.frame_offsets} if contents.with_frames else {})
    for name, values in small.items():
        array = create(name, values.shape, values.dtype, _CHUNK_BYTES // max(1, values[:1].nbytes))
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
    """Append blocks of rows, in multiples of the chunk size, so that each chunk is written once."""
    chunk = array.chunks[0]
    at, pending = 0, np.empty((0, *array.shape[1:]), array.dtype)
    for block in blocks:
        pending = np.concatenate([pending, block])
        ready = len(pending) // chunk * chunk
        if ready:
            array[at : at + ready] = pending[:ready]
            at, pending = at + ready, pending[ready:]
    if len(pending):
        array[at:] = pending


_STRINGS_PER_PIECE = 4096
_MAX_STRINGS_BYTES = 2 << 30


def write_npz(contents: Contents, path: Path) -> None:
    """Write the arrays key, meta, start_seconds, seconds, utterance, and optionally label, frames, frame_offsets.

    Text has a fixed width, so that NumPy loads it without pickle, and is deflated. ``featstore`` is the provenance as
    JSON text.

    Raises
    ------
    UsageError
        A text column exceeds 2 GiB when all entries are padded to the longest.
    """
    fs = contents.fs
    with zipfile.ZipFile(path, "w") as archive:
        provenance = np.array(json.dumps(contents.provenance))
        _put(archive, "featstore", provenance.shape, provenance.dtype, [provenance])
        for name, texts in contents.strings.items():
            _put_texts(archive, name, texts)
        for name, values in contents.numbers.items():
            _put(archive, name, values.shape, values.dtype, [values])
        dim = fs.recipe.dim
        vectors = (contents.utterance(piece) for piece in contents.pieces())
        _put(archive, "utterance", (len(fs), dim), np.dtype(np.float32), vectors)
        if contents.with_frames:
            offsets = contents.frame_offsets
            _put(archive, "frame_offsets", offsets.shape, offsets.dtype, [offsets])
            frames = (contents.frames(piece) for piece in contents.pieces())
            _put(archive, "frames", (int(offsets[-1]), dim), contents.frame_dtype, frames)


def _put_texts(archive: zipfile.ZipFile, name: str, texts: NDArray[np.object_]) -> None:
    width = max((len(text) for text in texts), default=1) or 1
    dtype = np.dtype(("<U", width))
    if dtype.itemsize * len(texts) > _MAX_STRINGS_BYTES:
        raise UsageError(
            f"npz pads text to the longest entry, and a {name} of {width:,} characters needs "
            f"{spoken_bytes(dtype.itemsize * len(texts))}: export to parquet, zarr or hf"
        )
    pieces = (texts[at : at + _STRINGS_PER_PIECE].astype(dtype) for at in range(0, len(texts), _STRINGS_PER_PIECE))
    _put(archive, name, texts.shape, dtype, pieces, deflated=True)


def _put(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    pieces: Iterable[NDArray[Any]],
    *,
    deflated: bool = False,
) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # with the default date of 1980: equal contents make equal files
    entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(entry, "w", force_zip64=True) as file:
        npy.write_array_header_1_0(file, header)
        for piece in pieces:
            if piece.size:
                file.write(np.ascontiguousarray(piece, dtype).reshape(-1).view(np.uint8).data)
