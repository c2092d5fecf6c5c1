"""npz, npy and arrays in memory, read in blocks of rows. Nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError
from featstore.extract.embedding_files.rows import (
    FRAME_COUNTS,
    VECTORS,
    Columns,
    EmbeddingFile,
    Rows,
    block_rows,
    check_matrix,
    frame_counts,
    pick,
    ragged_blocks,
)
from featstore.extract.table_rows import readable

__all__ = ["ArrayEmbeddings", "NpyFile", "NpzFile"]


@dataclass(slots=True, kw_only=True)
class _NpyStream:
    """An array in npy format that is read in rows, from the first to the last."""

    name: str
    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    at: int = 0
    _all: NDArray[Any] | None = None

    @classmethod
    def open(cls, file: IO[bytes], *, name: str, size: int) -> _NpyStream:
        """Read the header. Raises DataError for an array that would be unpickled, or is larger than its file."""
        version = npy.read_magic(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{name} has npy format {version[0]}.{version[1]}: save plain arrays of numbers or text")
        shape, fortran, dtype = readers[version](file)
        wanted, found = math.prod(shape) * dtype.itemsize, size - file.tell()
        if found < wanted and not dtype.hasobject:
            raise DataError(f"{name} is truncated: {shape} {dtype} are {wanted:,} bytes, and it has {found:,}")
        return cls(name=name, file=file, shape=shape, dtype=dtype, fortran=fortran and len(shape) > 1)

    def take(self, n: int) -> NDArray[Any]:
        """Read the next `n` rows."""
        stop = min(self.shape[0], self.at + n)
        if self.fortran:
            if self._all is None:
                flat = self._read(int(np.prod(self.shape)))
                self._all = flat.reshape(self.shape, order="F")
            rows = self._all[self.at : stop]
        else:
            width = int(np.prod(self.shape[1:], dtype=np.int64))
            rows = self._read((stop - self.at) * width).reshape(stop - self.at, *self.shape[1:])
        self.at = stop
        return rows

    def _read(self, n: int) -> NDArray[Any]:
        data = self.file.read(n * self.dtype.itemsize)
        if len(data) < n * self.dtype.itemsize:
            raise DataError(f"{self.name} is truncated after row {self.at:,} of {self.shape[0]:,}")
        return np.frombuffer(data, self.dtype, count=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyFile(EmbeddingFile):
    """One array (n, dim)."""

    path: Path

    @classmethod
    def open(cls, path: str | Path, columns: Columns) -> NpyFile:
        """Check the header. Raises DataError for other arrays."""
        path = Path(path)
        if columns.vector or columns.frames:
            raise UsageError(f"{path.name} is one array: --vector and --frames name arrays of other formats")
        found = cls(path=path, name=path.name, stem=path.stem)
        with path.open("rb") as file:
            check_matrix(found.name, found._stream(file))
        return found

    def _stream(self, file: IO[bytes]) -> _NpyStream:
        return _NpyStream.open(file, name=self.name, size=self.path.stat().st_size)

    def rows(self) -> Iterator[Rows]:
        """Yield all rows; see `EmbeddingFile`."""
        with readable(self.name), self.path.open("rb") as file:
            stream = self._stream(file)
            yield from _matrix_blocks(stream, {})


def _matrix_blocks(stream: _NpyStream, others: Mapping[str, Sequence[Any]]) -> Iterator[Rows]:
    step = block_rows(stream.dtype.itemsize * stream.shape[1])
    for start in range(0, stream.shape[0], step):
        vectors = stream.take(step)
        columns = {name: values[start : start + len(vectors)] for name, values in others.items()}
        yield Rows(vectors=vectors, frames=None, frame_counts=None, columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzFile(EmbeddingFile):
    """Arrays by name: vectors (n, dim), frames (total, dim) with counts or offsets, and columns (n,)."""

    path: Path
    vector: str | None
    frames: str | None
    counts: str | None
    n: int

    @classmethod
    def open(cls, path: str | Path, columns: Columns) -> NpzFile:
        """Find the vectors, the frames and the columns, by the headers of the arrays."""
        path = Path(path)
        name = path.name
        with zipfile.ZipFile(path) as archive:
            arrays = {each.removesuffix(".npy"): _array_in(archive, each, name) for each in archive.namelist()}
        usable = {each: array for each, array in arrays.items() if array.shape}
        matrices = [each for each, array in usable.items() if len(array.shape) == 2 and array.dtype.kind == "f"]
        counts = next((each for each in FRAME_COUNTS if each in usable), None)
        frames = columns.frames or ("frames" if "frames" in usable and (counts or columns.frames_wanted) else None)
        if frames is not None:
            if frames not in usable:
                raise UsageError(f"{name} has no array {frames!r}: it has {', '.join(usable) or 'none'}")
            check_matrix(f"{frames!r} of {name}", usable[frames], what="frames")
            if counts is None:
                raise UsageError(
                    f"{name} has frames {usable[frames].shape} and no array that divides them into clips: add "
                    "'n_frames' (n,) or 'offsets' (n + 1,)"
                )
        named = columns.vector
        if named is not None and named in usable:
            check_matrix(f"{named!r} of {name}", usable[named])
        candidates = [each for each in matrices if each != frames]
        vector = pick(name, "array of embeddings", asked=named, candidates=candidates, usual=VECTORS, option="--vector")
        if vector is None and not (frames and columns.frames_wanted):
            for each in VECTORS:
                if each in usable:
                    check_matrix(f"{each!r} of {name}", usable[each])
            found = ", ".join(f"{each} {array.shape} {array.dtype}" for each, array in arrays.items())
            hint = "; frames need --hop SECONDS" if frames else ""
            raise DataError(f"{name} has no embeddings, floating-point numbers (n, dim): it has {found}{hint}")
        n = usable[vector].shape[0] if vector else _n_clips(usable[counts or ""], counts or "")
        others = columns.other(usable, vector, frames, counts)
        for each in others:
            if usable[each].dtype.hasobject:
                check_matrix(f"{each!r} of {name}", usable[each])
            if usable[each].shape[0] != n:
                raise DataError(
                    f"{name} has {n:,} embeddings and {usable[each].shape[0]:,} rows in {each!r}: lengths must agree; "
                    "--columns names the arrays to store"
                )
        used = frames if columns.frames_wanted else None
        return cls(
            path=path,
            name=name,
            stem=path.stem,
            columns=tuple(others),
            vector=vector,
            frames=used,
            counts=counts if used else None,
            n=n,
            ignored=tuple(each for each in arrays if each not in (*others, vector, used, counts)),
        )

    def rows(self) -> Iterator[Rows]:
        """Yield all rows; see `EmbeddingFile`."""
        with readable(self.name), zipfile.ZipFile(self.path) as archive:
            others = {each: _read_column(archive, each, self.name) for each in self.columns}
            if self.frames is None:
                with archive.open(f"{self.vector}.npy") as file:
                    yield from _matrix_blocks(self._stream(archive, file, self.vector or ""), others)
                return
            counts = self._frame_counts(archive)
            with archive.open(f"{self.frames}.npy") as of_frames:
                frames = self._stream(archive, of_frames, self.frames)
                if counts.sum() != frames.shape[0]:
                    raise DataError(
                        f"{self.name}: {self.counts!r} has {int(counts.sum()):,} frames in total, and {self.frames!r} "
                        f"has {frames.shape[0]:,}"
                    )
                if self.vector is None:
                    yield from _frame_blocks(frames, counts, None, others)
                    return
                with archive.open(f"{self.vector}.npy") as file:
                    yield from _frame_blocks(frames, counts, self._stream(archive, file, self.vector), others)

    def _stream(self, archive: zipfile.ZipFile, file: IO[bytes], array: str) -> _NpyStream:
        size = archive.getinfo(f"{array}.npy").file_size
        return _NpyStream.open(file, name=f"{array!r} of {self.name}", size=size)

    def _frame_counts(self, archive: zipfile.ZipFile) -> NDArray[np.int64]:
        name = self.counts or ""
        with archive.open(f"{name}.npy") as file:
            values = npy.read_array(file, allow_pickle=False)
        return frame_counts(values, name, file=self.name, n=self.n)


def _n_clips(array: _NpyStream, name: str) -> int:
    return array.shape[0] - (name != "n_frames")


def _frame_blocks(
    frames: _NpyStream, counts: NDArray[np.int64], vectors: _NpyStream | None, others: Mapping[str, Sequence[Any]]
) -> Iterator[Rows]:
    row_bytes = frames.dtype.itemsize * frames.shape[1]
    for start, stop in ragged_blocks(counts, row_bytes):
        yield Rows(
            vectors=None if vectors is None else vectors.take(stop - start),
            frames=frames.take(int(counts[start:stop].sum())),
            frame_counts=counts[start:stop],
            columns={name: values[start:stop] for name, values in others.items()},
        )


def _array_in(archive: zipfile.ZipFile, member: str, name: str) -> _NpyStream:
    if not member.endswith(".npy"):
        raise DataError(f"{name} is not an npz file: it contains {member!r}")
    with archive.open(member) as file:
        array = member.removesuffix(".npy")
        return _NpyStream.open(file, name=f"{array!r} of {name}", size=archive.getinfo(member).file_size)


def _read_column(archive: zipfile.ZipFile, array: str, name: str) -> list[Any]:
    with archive.open(f"{array}.npy") as file:
        values = npy.read_array(file, allow_pickle=False)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "biufU":
        raise DataError(f"{array!r} of {name} is {values.dtype}: columns are text or numbers")
    column: list[Any] = values.tolist()
    return column


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayEmbeddings(EmbeddingFile):
    """Arrays of the caller: vectors (n, dim), and columns of n values."""

    vectors: NDArray[Any]
    values: Mapping[str, Sequence[Any]]
    name: str = "the array"
    stem: str = ""

    def __post_init__(self) -> None:
        check_matrix(self.name, self.vectors)
        for name, values in self.values.items():
            if len(values) != len(self.vectors):
                raise DataError(f"there are {len(self.vectors):,} embeddings and {len(values):,} of {name!r}")

    def rows(self) -> Iterator[Rows]:
        """Yield all rows; see `EmbeddingFile`."""
        step = block_rows(self.vectors.itemsize * self.vectors.shape[1])
        for start in range(0, len(self.vectors), step):
            columns = {name: values[start : start + step] for name, values in self.values.items()}
            yield Rows(vectors=self.vectors[start : start + step], frames=None, frame_counts=None, columns=columns)
