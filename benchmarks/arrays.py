"""The arrays that every contestant of `benchmarks.store` writes and reads, and the batches that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIM", "Ragged", "load_frames", "load_vectors", "make_inputs", "padded", "shuffled_batches", "touch"]

DIM = 768
FRAMES = (25, 400)
_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class Ragged:
    """Frames of clips behind one another, float16 (frames, dim); clip ``i`` has rows ``offsets[i]:offsets[i + 1]``."""

    frames: NDArray[np.float16]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def clip(self, i: int) -> NDArray[np.float16]:
        return self.frames[self.offsets[i] : self.offsets[i + 1]]


def make_inputs(folder: str, *, n_vectors: int, n_clips: int) -> dict[str, int]:
    """Save the arrays as .npy files, which children load into their memory; returns their sizes in bytes."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n_vectors, DIM), dtype=np.float32)
    np.save(Path(folder) / "vectors.npy", vectors)
    offsets = np.cumsum([0, *rng.integers(FRAMES[0], FRAMES[1], n_clips, endpoint=True)])
    np.save(Path(folder) / "offsets.npy", offsets)
    frames = np.lib.format.open_memmap(Path(folder) / "frames.npy", "w+", np.float16, (int(offsets[-1]), DIM))
    for start in range(0, len(frames), _BLOCK):
        piece = frames[start : start + _BLOCK]
        piece[...] = rng.standard_normal(piece.shape, dtype=np.float32)
    return {"vectors": vectors.nbytes, "frames": frames.nbytes}


def load_vectors(folder: Path) -> NDArray[np.float32]:
    return np.load(folder / "vectors.npy")


def load_frames(folder: Path) -> Ragged:
    return Ragged(np.load(folder / "frames.npy"), np.load(folder / "offsets.npy"))


def shuffled_batches(n_clips: int, *, batch_size: int) -> Iterator[list[int]]:
    """One epoch of clip indices, in an order that is the same for all."""
    order = np.random.default_rng(1).permutation(n_clips).tolist()
    return (order[at : at + batch_size] for at in range(0, n_clips, batch_size))


def padded(clips: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """A batch of clips in memory of its own: (batch, the longest, dim), zeros behind each clip."""
    out = np.zeros((len(clips), max(map(len, clips)), clips[0].shape[1]), clips[0].dtype)
    for row, clip in enumerate(clips):
        out[row, : len(clip)] = clip
    return out


def touch(rows: NDArray[Any]) -> int:
    """Read one number of each row, so that a view that was handed out lazily costs what it costs to look at it."""
    return int(rows[..., 0].view(f"u{rows.itemsize}").sum())
