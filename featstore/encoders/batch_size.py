"""Choice of the batch size: large enough to keep the device busy, and small enough to fit in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featstore.encoders.memory import free_bytes, peak_bytes
from featstore.errors import EncoderError

if TYPE_CHECKING:
    from featstore.encoders.runner import EncoderRun

__all__ = ["MEMORY_SHARE", "BatchSpeed", "find_batch_seconds", "suggest_batch_seconds"]

MEMORY_SHARE = 0.5  # of the free memory: decoding clips and writing parts need the rest
_GOOD_ENOUGH = 0.95
_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpeed:
    """Speed of one batch size, in seconds of padded audio as in ``--batch-seconds``.

    ``times_real_time`` counts audio without padding; ``peak_bytes`` is None if it cannot be measured.
    """

    batch_seconds: float
    times_real_time: float
    peak_bytes: int | None


def suggest_batch_seconds(speeds: Sequence[BatchSpeed], *, free_bytes: int | None) -> float | None:
    """Return the smallest batch within 5 % of the best speed, among those that use at most half of the free memory.

    Returns None if even the smallest batch uses more.
    """
    fit = [
        each
        for each in speeds
        if free_bytes is None or each.peak_bytes is None or each.peak_bytes <= MEMORY_SHARE * free_bytes
    ]
    best = max((each.times_real_time for each in fit), default=0.0)
    return min((each.batch_seconds for each in fit if each.times_real_time >= _GOOD_ENOUGH * best), default=None)


def find_batch_seconds(
    run: EncoderRun, *, sample_rate_hz: int, window_seconds: float, most_seconds: float
) -> float | None:
    """Measure batches of 1, 2, 4, ... windows of noise until a larger batch is not faster, and suggest a size.

    Returns None if a single window cannot be encoded, or uses more than half of the free memory.
    """
    free = free_bytes(device=run.device)
    noise = np.random.default_rng(0).standard_normal(round(window_seconds * sample_rate_hz)).astype(np.float32) / 10
    speeds: list[BatchSpeed] = []
    n_windows = 1
    while n_windows * window_seconds <= most_seconds or not speeds:
        batch = np.tile(noise, (n_windows, 1)), np.full(n_windows, len(noise))
        try:
            peak = peak_bytes(lambda batch=batch: run(*batch), device=run.device)  # type: ignore[misc]
        except EncoderError:
            break
        speeds.append(
            BatchSpeed(
                batch_seconds=n_windows * window_seconds,
                times_real_time=n_windows * window_seconds / min(_seconds(run, *batch) for _ in range(_RUNS)),
                peak_bytes=peak,
            )
        )
        too_large = free is not None and peak is not None and 2 * peak > MEMORY_SHARE * free
        if too_large or (len(speeds) > 1 and speeds[-1].times_real_time * _GOOD_ENOUGH < speeds[-2].times_real_time):
            break
        n_windows *= 2
    return suggest_batch_seconds(speeds, free_bytes=free)


def _seconds(run: EncoderRun, audio: np.ndarray, n_samples: np.ndarray) -> float:
    began = time.perf_counter()
    run(audio, n_samples)
    return time.perf_counter() - began
