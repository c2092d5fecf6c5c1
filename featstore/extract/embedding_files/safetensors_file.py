"""Safetensors: one tensor of embeddings, or a tensor for each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError, missing_extra
from featstore.extract.embedding_files.rows import (
    FRAME_COUNTS,
    VECTORS,
    Columns,
    EmbeddingFile,
    Rows,
    block_rows,
    frame_counts,
    pick,
    ragged_blocks,
)
from featstore.extract.table_rows import readable

__all__ = ["open_safetensors"]

KEY_COLUMN = "key"
_FLOATS = ("F16", "F32", "F64", "BF16")
_TENSORS_PER_BLOCK = 256


def open_safetensors(path: str | Path, columns: Columns) -> EmbeddingFile:
    """Open a file of one tensor (n, dim), of ``frames`` (total, dim) with counts, or of a tensor for each key."""
    path = Path(path)
    with _opened(path, {}) as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        kinds = {name: tensor.get_dtype() for name, tensor in tensors.items()}
        shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    if not tensors:
        raise DataError(f"{path.name} has no tensors")
    counts = next((name for name in FRAME_COUNTS if name in kinds), None)
    named = columns.vector or next((name for name in VECTORS if len(shapes.get(name, ())) == 2), None)
    matrices = [name for name in shapes if len(shapes[name]) == 2]
    if named is None and counts is None and columns.frames is None and not (len(kinds) == len(matrices) == 1):
        return _tensors_by_key(path, kinds, shapes, columns)
    frames = columns.frames or ("frames" if "frames" in kinds and counts else None)
    if frames is not None and (frames not in matrices or counts is None):
        raise UsageError(
            f"{path.name} must have {frames!r} (total, dim), and 'n_frames' (n,) or 'offsets' (n + 1,): it has "
            f"{', '.join(shapes)}"
        )
    candidates = [name for name in matrices if name != frames]
    vector = pick(
        path.name, "tensor of embeddings", asked=columns.vector, candidates=candidates, usual=VECTORS, option="--vector"
    )
    used = frames if columns.frames_wanted else None
    if vector is None and used is None:
        hint = "; frames need --hop SECONDS" if frames else ""
        found = ", ".join(f"{name} {shapes[name]}" for name in shapes)
        raise DataError(f"{path.name} has no embeddings, a tensor (n, dim): it has {found}{hint}")
    for each in (vector, used):
        if each is not None and kinds[each] not in _FLOATS:
            raise DataError(f"{each!r} of {path.name} is {kinds[each]}: embeddings are F16, BF16, F32 or F64")
    return _MatrixTensors(
        path=path,
        name=path.name,
        stem=path.stem,
        kinds=kinds,
        vector=vector,
        frames=used,
        counts=counts if used else None,
        n=shapes[vector][0] if vector else shapes[counts or ""][0] - (counts != "n_frames"),
        ignored=tuple(name for name in kinds if name not in (vector, used, counts)),
    )


def _opened(path: Path, kinds: Mapping[str, str]) -> Any:
    """Open a file; BF16, which NumPy does not have, is read by PyTorch."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise missing_extra("the import of safetensors", error, "import") from error
    return safe_open(str(path), framework="pt" if "BF16" in kinds.values() else "np")


def _array(tensor: Any) -> NDArray[Any]:
    if isinstance(tensor, np.ndarray):
        return tensor
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatrixTensors(EmbeddingFile):
    """Vectors (n, dim), and frames (total, dim) with counts; a table has the other columns."""

    path: Path
    kinds: Mapping[str, str]
    vector: str | None
    frames: str | None
    counts: str | None
    n: int

    def rows(self) -> Iterator[Rows]:
        with readable(self.name), _opened(self.path, self.kinds) as file:
            vectors: Any = None if self.vector is None else file.get_slice(self.vector)
            if self.frames is None:
                step = block_rows(8 * vectors.get_shape()[1])
                for start in range(0, self.n, step):
                    block = _array(vectors[start : min(start + step, self.n)])
                    yield Rows(vectors=block, frames=None, frame_counts=None, columns={})
                return
            frames, name = file.get_slice(self.frames), self.counts or ""
            numbers = frame_counts(_array(file.get_tensor(name)), name, file=self.name, n=self.n)
            if numbers.sum() != frames.get_shape()[0]:
                raise DataError(
                    f"{self.name}: {name!r} has {int(numbers.sum()):,} frames in total, and {self.frames!r} has "
                    f"{frames.get_shape()[0]:,}"
                )
            ends = np.cumsum([0, *numbers])
            for start, stop in ragged_blocks(numbers, 8 * frames.get_shape()[1]):
                yield Rows(
                    vectors=None if vectors is None else _array(vectors[start:stop]),
                    frames=_array(frames[int(ends[start]) : int(ends[stop])]),
                    frame_counts=numbers[start:stop],
                    columns={},
                )


def _tensors_by_key(
    path: Path, kinds: Mapping[str, str], shapes: Mapping[str, Sequence[int]], columns: Columns
) -> EmbeddingFile:
    wrong = [name for name in kinds if kinds[name] not in _FLOATS]
    if wrong:
        raise DataError(f"{wrong[0]!r} of {path.name} is {kinds[wrong[0]]}: embeddings are F16, BF16, F32 or F64")
    n_dims, dim = {len(shape) for shape in shapes.values()}, {shape[-1] for shape in shapes.values() if shape}
    if len(n_dims) > 1 or len(dim) != 1 or n_dims - {1, 2} or 0 in dim:
        some = ", ".join(f"{name} {tuple(shape)}" for name, shape in islice(shapes.items(), 4))
        raise DataError(
            f"{path.name} has neither one tensor of embeddings (n, dim) nor tensors of one shape for each key, (dim,) "
            f"or (frames, dim): it has {some}"
        )
    if n_dims == {2} and not columns.frames_wanted:
        raise DataError(f"{path.name} has a tensor of frames for each key: they need --hop SECONDS")
    return _KeyedTensors(path=path, name=path.name, stem=path.stem, kinds=kinds, ragged=n_dims == {2})


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyedTensors(EmbeddingFile):
    """A tensor for each key: vectors (dim,), or frames (frames, dim)."""

    path: Path
    kinds: Mapping[str, str]
    ragged: bool
    columns: tuple[str, ...] = (KEY_COLUMN,)
    key_column: str | None = KEY_COLUMN

    def rows(self) -> Iterator[Rows]:
        with readable(self.name), _opened(self.path, self.kinds) as file:
            names = iter(self.kinds)
            while some := list(islice(names, _TENSORS_PER_BLOCK)):
                arrays = [_array(file.get_tensor(name)) for name in some]
                yield Rows(
                    vectors=None if self.ragged else np.stack(arrays),
                    frames=np.concatenate(arrays) if self.ragged else None,
                    frame_counts=np.array(list(map(len, arrays)), np.int64) if self.ragged else None,
                    columns={KEY_COLUMN: some},
                )
