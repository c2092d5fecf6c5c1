"""Windows for models that have no mask: rows of a batch grouped by their true length, so that nothing is padded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["WHOLE_WINDOW_MS", "in_row_order", "noise", "rows_by_length", "shortest_window"]

_SHORTEST_SECONDS = (0.1, 0.5, 1.0)

WHOLE_WINDOW_MS = 3_600_000.0
"""Declared hop of an encoder that returns one vector for a window of any length: an hour, the longest clip."""


def rows_by_length(audio: Tensor, lengths: Tensor | None, *, least: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the row numbers of each length and their audio without padding, (rows, samples).

    Rows of fewer than `least` samples are padded to that number with silence.
    """
    counts = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
    groups: dict[int, list[int]] = defaultdict(list)
    for row, count in enumerate(counts):
        groups[count].append(row)
    for count, rows in groups.items():
        yield rows, nn.functional.pad(audio[rows, :count], (0, max(0, least - count)))


def shortest_window(encode: Callable[[Tensor], object], *, rate_hz: int) -> int:
    """Return the number of samples of the shortest window that a model accepts: 0.1, 0.5 or 1 s."""
    for seconds in _SHORTEST_SECONDS[:-1]:
        try:
            with torch.inference_mode():
                encode(noise(seconds, rate_hz=rate_hz))
        except Exception:  # noqa: BLE001 - of any library: too short for a kernel or window
            continue
        return round(seconds * rate_hz)
    return round(_SHORTEST_SECONDS[-1] * rate_hz)


def noise(seconds: float, *, rate_hz: int) -> Tensor:
    """Return the same noise in each call, float32 (1, samples)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((1, round(seconds * rate_hz)), generator=generator) - 0.5


def in_row_order(found: dict[int, Tensor]) -> Tensor:
    """Stack the tensors of rows; shorter ones are padded with zeros at the end."""
    return nn.utils.rnn.pad_sequence([found[row] for row in range(len(found))], batch_first=True)
