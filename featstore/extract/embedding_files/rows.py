"""Rows of a file of embeddings: the record, the roles of its columns, and the checks that all formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError

__all__ = [
    "FRAME_COUNTS",
    "VECTORS",
    "Columns",
    "EmbeddingFile",
    "Rows",
    "block_rows",
    "check_matrix",
    "frame_counts",
    "pick",
    "ragged_blocks",
]

VECTORS = ("embedding", "embeddings", "vector", "vectors", "utterance", "X")
"""Names under which utterance vectors are found in a file that has several candidates."""

FRAME_COUNTS = ("n_frames", "offsets", "frame_offsets")
"""Names of the array that divides ``frames`` (total, dim) into clips: numbers of frames (n,), or offsets (n + 1,)."""

BLOCK_BYTES = 16 << 20
MAX_BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns, arrays or tensors of a file; None: found by type and name.

    Attributes
    ----------
    vector, frames : str or None
        Utterance vectors, and frames.
    key, split : str or None
        The clip's key (default: the name of the file and the number of the row) and its split.
    kept : tuple of str or None
        Columns of the clip's JSON; None: all others that can be JSON.
    frames_wanted : bool
        Whether frames are stored; otherwise a file needs vectors, and its frames are ignored.
    """

    vector: str | None = None
    frames: str | None = None
    key: str | None = None
    split: str | None = None
    kept: tuple[str, ...] | None = None
    frames_wanted: bool = False

    def other(self, names: Iterable[str], *used: str | None) -> list[str]:
        """Return the names of the columns to read besides the numbers in `used`, in the order of the file."""
        wanted = None if self.kept is None else {*self.kept, self.key, self.split}
        return [name for name in names if name not in used and (wanted is None or name in wanted)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of a file.

    Attributes
    ----------
    vectors : floating (n, dim) or None
        A missing vector or number is NaN.
    frames : floating (total, dim) or None
        Frames of all rows, concatenated.
    frame_counts : int64 (n,) or None
    columns : mapping
        Name to n values of JSON types.
    """

    vectors: NDArray[np.floating[Any]] | None
    frames: NDArray[np.floating[Any]] | None
    frame_counts: NDArray[np.int64] | None
    columns: Mapping[str, Sequence[Any]]

    @property
    def n(self) -> int:
        """Number of rows."""
        if self.vectors is not None:
            return len(self.vectors)
        return 0 if self.frame_counts is None else len(self.frame_counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile(ABC):
    """A source of rows.

    Attributes
    ----------
    name : str
        For messages.
    stem : str
        Start of the keys of rows without a key.
    columns : tuple of str
        Columns of its rows.
    ignored : tuple of str
        Columns that are not read: other embeddings, and data that JSON cannot hold.
    key_column, split_column : str or None
        Columns of keys and of splits that the format itself has: names of tensors, splits of a `datasets.DatasetDict`.
    """

    name: str
    stem: str
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    key_column: str | None = None
    split_column: str | None = None

    @abstractmethod
    def rows(self) -> Iterator[Rows]:
        """Yield all rows in blocks, from the start. Raises DataError for a row that has another shape."""


def block_rows(row_bytes: int) -> int:
    """Number of rows of a block."""
    return max(1, min(MAX_BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes)))


def pick(
    file: str, what: str, *, asked: str | None, candidates: Sequence[str], usual: Sequence[str], option: str
) -> str | None:
    """Return the column for a role: the one that was asked for, the only candidate, or one with a usual name.

    Raises
    ------
    UsageError
        It is missing, or there are several.
    """
    if asked is not None:
        if asked not in candidates:
            raise UsageError(f"{file} has no {what} {asked!r}: it has {', '.join(candidates) or 'none'}")
        return asked
    usually = [name for name in usual if name in candidates]
    if len(candidates) > 1 and len(usually) != 1:
        raise UsageError(f"{file} has more than one {what}: name one of {', '.join(candidates)} with {option}")
    return usually[0] if usually else next(iter(candidates), None)


def check_matrix(name: str, array: Any, *, what: str = "embeddings") -> None:
    """Raise DataError unless an array or tensor is (n, dim) of floating-point numbers."""
    dtype, shape = array.dtype, tuple(array.shape)
    if getattr(dtype, "hasobject", False):
        raise DataError(
            f"{name} has Python objects, which are only read by unpickling: save {what} as one array of numbers; "
            "frames of different lengths as (total, dim) with 'n_frames'"
        )
    if np.dtype(dtype).kind != "f":
        raise DataError(f"{name} is {dtype}: {what} are float16, float32 or float64")
    if len(shape) != 2 or shape[-1] < 1:
        raise DataError(f"{name} has shape {shape}: {what} are (n, dim)")


def frame_counts(values: NDArray[Any], name: str, *, file: str, n: int) -> NDArray[np.int64]:
    """Return the number of frames of each clip, from numbers or offsets. Raises DataError if they are invalid."""
    wanted = n + (name != "n_frames")
    if values.dtype.kind not in "iu" or values.shape != (wanted,):
        raise DataError(f"{name!r} of {file} must be whole numbers ({wanted},): got {values.dtype} {values.shape}")
    numbers = values.astype(np.int64)
    if name != "n_frames":
        if wanted and numbers[0] != 0:
            raise DataError(f"{name!r} of {file} must start at 0: got {numbers[0]}")
        numbers = np.diff(numbers)
    if (numbers < 0).any():
        raise DataError(f"{name!r} of {file}, row {int(np.argmax(numbers < 0)):,}: a clip has fewer than 0 frames")
    return numbers


def ragged_blocks(counts: NDArray[np.int64], row_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the rows [start, stop) of blocks of clips whose frames take about `BLOCK_BYTES`."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + block_rows(row_bytes) * 4, side="right"))
        stop = min(max(stop, start + 1), start + MAX_BLOCK_ROWS)
        yield start, stop
        start = stop
