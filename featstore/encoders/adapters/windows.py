"""Windows for models that have no mask: rows of a batch grouped by their true length, so that nothing is padded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["WHOLE_WINDOW_MS", "in_row_order", "rows_by_length"]

WHOLE_WINDOW_MS = 3_600_000.0
"""Declared hop of an encoder that returns one vector for a window of any length: an hour, the longest clip."""


def rows_by_length(audio: Tensor, lengths: Tensor | None) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the row numbers of each length and their audio without padding, (rows, samples)."""
    counts = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
    groups: dict[int, list[int]] = defaultdict(list)
    for row, count in enumerate(counts):
        groups[count].append(row)
    for count, rows in groups.items():
        yield rows, audio[rows, :count]


def in_row_order(found: dict[int, Tensor]) -> Tensor:
    """Stack the tensors of rows; shorter ones are padded with zeros at the end."""
    return nn.utils.rnn.pad_sequence([found[row] for row in range(len(found))], batch_first=True)
