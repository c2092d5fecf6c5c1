"""Exports to Parquet and Hugging Face `datasets`: feature sets as tables of windows.

No other module imports pyarrow or datasets.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from featstore.store.export_contents import Contents

__all__ = ["write_datasets_folder", "write_parquet"]


def write_parquet(contents: Contents, path: Path) -> None:
    """Write one row per window; ``utterance`` is a list of fixed size, ``frames`` a list of such lists.

    Text is compressed, numbers are not, as in a store. The file's metadata contains the provenance as JSON.
    """
    schema = _schema(contents).with_metadata({"featstore": json.dumps(contents.provenance)})
    texts = list(contents.strings)
    with pyarrow.parquet.ParquetWriter(
        path, schema, compression=dict.fromkeys(texts, "zstd"), use_dictionary=texts, write_statistics=texts
    ) as writer:
        for batch in _batches(contents, schema):
            writer.write_batch(batch, row_group_size=max(1, len(batch)))


def write_datasets_folder(contents: Contents, folder: Path) -> None:
    """Write a folder for ``datasets.load_from_disk`` with the same columns; a text label becomes a ClassLabel."""
    import datasets

    codes, features = _features(contents)
    schema = features.arrow_schema
    folder.mkdir()
    scratch = folder / ".stream.arrow"
    with pa.OSFile(str(scratch), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for batch in _batches(contents, schema, codes=codes):
            stream.write_batch(batch)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        saved = folder / ".saved"
        datasets.Dataset.from_file(str(scratch)).save_to_disk(str(saved))
    finally:
        if shown:
            datasets.enable_progress_bars()
    scratch.unlink()
    for path in saved.iterdir():
        shutil.move(path, folder / path.name)
    saved.rmdir()


def _schema(contents: Contents) -> Any:
    dim = contents.fs.recipe.dim
    fields = [("key", pa.string()), ("meta", pa.string()), ("start_seconds", pa.float64()), ("seconds", pa.float64())]
    if contents.label is not None:
        kind = pa.string() if contents.label.dtype == object else pa.from_numpy_dtype(contents.label.dtype)
        fields.append(("label", pa.list_(kind, contents.label.shape[1]) if contents.label.ndim == 2 else kind))
    fields.append(("utterance", pa.list_(pa.float32(), dim)))
    if contents.with_frames:
        fields.append(("frames", pa.list_(pa.list_(pa.from_numpy_dtype(contents.frame_dtype), dim))))
    return pa.schema(fields)


def _features(contents: Contents) -> tuple[NDArray[np.int64] | None, Any]:
    """Return text labels as class codes (else None), and the `datasets` features of all columns."""
    import datasets

    label = contents.label
    codes = None
    features = datasets.Features.from_arrow_schema(_schema(contents))
    if label is not None and label.dtype == object:
        names = sorted(set(label.tolist()))
        numbers = {name: code for code, name in enumerate(names)}
        codes = np.fromiter((numbers[name] for name in label.tolist()), np.int64, len(label))
        features["label"] = datasets.ClassLabel(names=names)
    return codes, features


def _batches(contents: Contents, schema: Any, *, codes: NDArray[np.int64] | None = None) -> Iterator[Any]:
    small = {**contents.strings, **contents.numbers, **({} if codes is None else {"label": codes})}
    for piece in contents.pieces():
        rows = {name: values[piece] for name, values in small.items()}
        columns = {name: _rows_of_vectors(of) if of.ndim == 2 else pa.array(of) for name, of in rows.items()}
        columns["utterance"] = _rows_of_vectors(contents.utterance(piece))
        if contents.with_frames:
            columns["frames"] = _rows_of_frames(contents, piece)
        yield pa.record_batch([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _rows_of_vectors(vectors: NDArray[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _rows_of_frames(contents: Contents, piece: slice) -> Any:
    lengths = contents.fs.frames.lengths[piece]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)  # a piece is far below 2**31 frames
    return pa.ListArray.from_arrays(pa.array(offsets), _rows_of_vectors(contents.frames(piece)))
