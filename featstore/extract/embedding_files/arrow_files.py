"""Parquet files and data sets of Hugging Face, read batch by batch as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError, missing_extra
from featstore.extract.embedding_files.rows import VECTORS, Columns, EmbeddingFile, Rows, pick
from featstore.extract.table_rows import readable

__all__ = ["SPLIT_COLUMN", "open_dataset", "open_parquet"]

SPLIT_COLUMN = "split"
"""Column of the names of the splits of a `datasets.DatasetDict`."""

BATCH_ROWS, BATCH_ROWS_WITH_FRAMES = 1024, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArrowFile(EmbeddingFile):
    """Record batches with a column of lists of numbers.

    Attributes
    ----------
    batches : callable
        Takes names of columns and a number of rows; yields Arrow record batches or tables from the start.
    class_names : mapping
        Column of class indices -> names of the classes, as `datasets.ClassLabel` has them.
    """

    batches: Callable[[Sequence[str], int], Iterator[Any]]
    vector: str | None
    frames: str | None
    class_names: Mapping[str, Sequence[str]]

    def rows(self) -> Iterator[Rows]:
        first, dim = 0, None
        wanted = [name for name in (self.vector, self.frames, *self.columns) if name is not None]
        with readable(self.name):
            n = BATCH_ROWS if self.frames is None else BATCH_ROWS_WITH_FRAMES
            for batch in self.batches(list(dict.fromkeys(wanted)), n):
                vectors = None if self.vector is None else _vectors(self, batch, self.vector, first=first, dim=dim)
                frames, counts = None, None
                if self.frames is not None:
                    frames, counts = _frames(self, batch, self.frames, first=first, dim=dim)
                dim = vectors.shape[1] if vectors is not None else frames.shape[1] if frames is not None else dim
                columns = {name: self._values(batch, name) for name in self.columns}
                yield Rows(vectors=vectors, frames=frames, frame_counts=counts, columns=columns)
                first += batch.num_rows

    def _values(self, batch: Any, name: str) -> list[Any]:
        values: list[Any] = batch.column(name).to_pylist()
        names = self.class_names.get(name)
        if names is None:
            return values
        return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]


def open_parquet(path: str | Path, columns: Columns) -> _ArrowFile:
    """Open a parquet file."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("the import of parquet", error, "import") from error
    path = Path(path)
    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow

    def batches(names: Sequence[str], n: int) -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=n, columns=list(names))

    class_names = _class_names(schema.metadata or {})
    return _found(path.name, schema, columns, stem=path.stem, class_names=class_names, batches=batches)


def open_dataset(path: str | Path, columns: Columns) -> _ArrowFile:
    """Open a folder of `datasets.Dataset.save_to_disk`, or a data set of the hub, which is downloaded."""
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise missing_extra("the import of a data set", error, "import") from error
    name, stem = str(path), Path(path).name
    if Path(path).is_dir():
        if not any((Path(path) / each).is_file() for each in ("state.json", "dataset_dict.json")):
            raise UsageError(f"{path} is not a folder of datasets' save_to_disk: name the files in it")
        found = datasets.load_from_disk(str(path))
    else:
        found = datasets.load_dataset(str(path))
    parts = dict(found) if isinstance(found, dict) else {None: found}
    first = next(iter(parts.values()))
    is_divided = isinstance(found, dict)
    if is_divided and SPLIT_COLUMN in first.column_names:
        raise UsageError(f"{name} has both splits and a column {SPLIT_COLUMN!r}: rename the column")

    def batches(names: Sequence[str], n: int) -> Iterator[Any]:
        for split, part in parts.items():
            of_part = part.select_columns([each for each in names if each in part.column_names]).with_format("arrow")
            for table in of_part.iter(batch_size=n):
                rows = pyarrow.array([split] * table.num_rows, pyarrow.string())
                yield table.append_column(SPLIT_COLUMN, rows) if is_divided else table

    schema = first.features.arrow_schema
    if is_divided:
        schema = schema.append(pyarrow.field(SPLIT_COLUMN, pyarrow.string()))
    classes = {
        each: tuple(feature.names)
        for each, feature in first.features.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }
    file = _found(name, schema, columns, stem=stem, class_names=classes, batches=batches)
    if not is_divided:
        return file
    others = tuple(each for each in file.columns if each != SPLIT_COLUMN)
    return replace(file, columns=(*others, SPLIT_COLUMN), split_column=SPLIT_COLUMN)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of the classes of columns, from the metadata that `datasets` writes to parquet files."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _found(
    name: str,
    schema: Any,
    columns: Columns,
    *,
    stem: str,
    class_names: Mapping[str, Sequence[str]],
    batches: Callable[[Sequence[str], int], Iterator[Any]],
) -> _ArrowFile:
    """Find the vectors and the frames by their types: lists of floats, and lists of these."""
    depth = {each.name: _depth(each.type) for each in schema}
    vectors = [each for each, levels in depth.items() if levels == 1]
    ragged = [each for each, levels in depth.items() if levels == 2]
    for asked, option in ((columns.vector, "--vector"), (columns.frames, "--frames")):
        if asked is not None and asked in depth and not depth[asked]:
            raise DataError(f"{asked!r} of {name} is {schema.field(asked).type}: {option} is a list of floats")
    vector = pick(
        name, "column of embeddings", asked=columns.vector, candidates=vectors, usual=VECTORS, option="--vector"
    )
    frames = None
    if columns.frames_wanted:
        frames = pick(
            name, "column of frames", asked=columns.frames, candidates=ragged, usual=("frames",), option="--frames"
        )
    if vector is None and frames is None:
        types = ", ".join(f"{each.name} {each.type}" for each in schema)
        hint = f"; the frames in {ragged[0]!r} need --hop SECONDS" if ragged else ""
        raise DataError(f"{name} has no embeddings, a column of lists of floats: it has {types}{hint}")
    plain = [each.name for each in schema if not depth[each.name] and _is_json(each.type)]
    kept = columns.other(plain, vector, frames)
    if unusable := [each for each in columns.kept or () if each in depth and each not in plain]:
        raise UsageError(f"{unusable[0]!r} of {name} is {schema.field(unusable[0]).type}, which JSON cannot hold")
    return _ArrowFile(
        name=name,
        stem=stem,
        batches=batches,
        columns=tuple(kept),
        ignored=tuple(each for each in depth if each not in (*kept, vector, frames)),
        vector=vector,
        frames=frames,
        class_names=class_names,
    )


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)  # of the Array2D of datasets


def _depth(kind: Any) -> int:
    """Number of levels of lists around floats; 0 for every other type."""
    from pyarrow import types

    kind, levels = _storage(kind), 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, levels = kind.value_type, levels + 1
    return levels if types.is_floating(kind) else 0


def _is_json(kind: Any) -> bool:
    """Whether values of a type are JSON, or are written as text: all but binary data."""
    from pyarrow import types

    kind = _storage(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(at).type) for at in range(kind.num_fields))
    if types.is_dictionary(kind):
        return _is_json(kind.value_type)
    return any(
        is_kind(kind)
        for is_kind in (
            *(types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean),
            *(types.is_null, types.is_temporal, types.is_decimal),
        )
    )


def _lists(batch: Any, name: str) -> Any:
    """A list column of a batch as one array of lists with 64-bit offsets."""
    import pyarrow

    column = batch.column(name)
    if isinstance(column, pyarrow.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pyarrow.array([], column.type)
    return _as_large(getattr(column, "storage", column))


def _as_large(column: Any) -> Any:
    """Convert list, fixed-size list and large list to large list: null lists have no values."""
    import pyarrow

    return (
        column if pyarrow.types.is_large_list(column.type) else column.cast(pyarrow.large_list(column.type.value_type))
    )


def _lengths(lists: Any) -> NDArray[np.int64]:
    import pyarrow.compute

    return np.asarray(pyarrow.compute.fill_null(pyarrow.compute.list_value_length(lists), 0), np.int64)


def _vectors(file: _ArrowFile, batch: Any, name: str, *, first: int, dim: int | None) -> NDArray[np.floating[Any]]:
    """Vectors (n, dim) of a batch; a null vector, or a null in a vector, is NaN."""
    lists = _lists(batch, name)
    lengths = _lengths(lists)
    present = np.asarray(lists.is_valid())
    values = _numbers(lists.flatten())
    if dim is None:
        dim = int(lengths[present][0]) if present.any() else 0
    wrong = np.flatnonzero(present & (lengths != dim))
    if len(wrong) or not dim:
        row = int(wrong[0]) if len(wrong) else 0
        raise DataError(
            f"{file.name}, row {first + row:,}: {name!r} has {int(lengths[row]):,} numbers, the first row {dim:,}: "
            "embeddings have the same length"
        )
    vectors = np.full((len(lengths), dim), np.nan, values.dtype)
    vectors[present] = values.reshape(-1, dim)
    return vectors


def _frames(
    file: _ArrowFile, batch: Any, name: str, *, first: int, dim: int | None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Frames (total, dim) of a batch, and their numbers (n,)."""
    clips = _lists(batch, name)
    counts = _lengths(clips)
    inner = clips.flatten()
    frames = _as_large(getattr(inner, "storage", inner))
    lengths = _lengths(frames)
    values = _numbers(frames.flatten())
    dim = int(lengths[0]) if dim is None and len(lengths) else dim or 0
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong) or (len(lengths) and not dim):
        row = int(np.searchsorted(np.cumsum(counts), wrong[0] if len(wrong) else 0, side="right"))
        raise DataError(
            f"{file.name}, row {first + row:,}: a frame of {name!r} has {int(lengths[wrong[0]]) if len(wrong) else 0} "
            f"numbers, others {dim:,}: frames have the same length"
        )
    return values.reshape(len(lengths), dim), counts


def _numbers(values: Any) -> NDArray[np.floating[Any]]:
    return np.asarray(values.to_numpy(zero_copy_only=False))
