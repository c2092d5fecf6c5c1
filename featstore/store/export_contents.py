"""The exported columns of a feature set, and pieces of bounded size to read the large ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.store.feature_set import FeatureSet

__all__ = ["Contents", "plan_pieces"]


def plan_pieces(window_bytes: NDArray[np.int64], *, piece_bytes: int) -> Iterator[slice]:
    """Split windows into pieces of at most `piece_bytes`, or one window.

    >>> [(piece.start, piece.stop) for piece in plan_pieces(np.array([4, 4, 4, 9, 1]), piece_bytes=8)]
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.cumsum(window_bytes)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + piece_bytes, side="right")))
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The exported columns of a feature set; the large ones are read in pieces."""

    fs: FeatureSet
    with_frames: bool
    label: NDArray[Any] | None
    provenance: Mapping[str, Any]
    piece_bytes: int

    @property
    def strings(self) -> dict[str, NDArray[np.object_]]:
        """Text columns, object (windows,)."""
        texts = {"key": self.fs.key, "meta": self.fs.meta_json}
        if self.label is not None and self.label.dtype == object:
            texts["label"] = self.label
        return texts

    @property
    def numbers(self) -> dict[str, NDArray[Any]]:
        """Small numeric columns, (windows,); multi-hot labels are (windows, n_classes)."""
        columns: dict[str, NDArray[Any]] = {"start_seconds": self.fs.start_seconds, "seconds": self.fs.seconds}
        if self.label is not None and self.label.dtype != object:
            columns["label"] = self.label
        return columns

    @property
    def frame_offsets(self) -> NDArray[np.int64]:
        """Offset of each window's first frame, int64 (windows + 1,)."""
        return np.concatenate([[0], np.cumsum(self.fs.frames.lengths)]).astype(np.int64)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        label = () if self.label is None else ("label",)
        frames = ("frames",) if self.with_frames else ()
        return ("key", "meta", "start_seconds", "seconds", *label, "utterance", *frames)

    def pieces(self) -> Iterator[slice]:
        """Split the windows into pieces of bounded size."""
        dim = self.fs.recipe.dim
        window_bytes = np.full(len(self.fs), 4 * dim, np.int64)
        if self.with_frames:
            window_bytes += self.fs.frames.lengths * dim * self.frame_dtype.itemsize
        return plan_pieces(window_bytes, piece_bytes=self.piece_bytes)

    def utterance(self, piece: slice) -> NDArray[np.float32]:
        """Utterance vectors of a piece, (windows, dim)."""
        return self.fs.utterance_rows.slice(piece.start, piece.stop)

    def frames(self, piece: slice) -> NDArray[Any]:
        """Concatenated frames of a piece, (frames, dim)."""
        return self.fs.frames.ragged(range(piece.start, piece.stop)).values

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """Type of the frames."""
        return np.dtype(self.fs.recipe.frame_dtype)
