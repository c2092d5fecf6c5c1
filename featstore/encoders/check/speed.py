"""Speed and memory of an encoder by batch size, and the suggested ``--batch-seconds``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.batch_size import MEMORY_SHARE, BatchSpeed, suggest_batch_seconds
from featstore.encoders.check.bench import Bench, Check
from featstore.encoders.memory import free_bytes, peak_bytes
from featstore.formatting import spoken_bytes

__all__ = ["check_speed", "times"]

NAME = "speed"
_WINDOW_SECONDS = 4.0
_MOST_WINDOWS = {"cpu": 64, "cuda": 512}
_TIMED_SECONDS = 0.2
_TIMED_RUNS = (2, 10)


def check_speed(bench: Bench, *, budget_seconds: float, on_step: Callable[[str], None]) -> Check:
    """Measure batches of increasing numbers of four-second windows, and suggest a size.

    Parameters
    ----------
    bench : Bench
    budget_seconds : float
        Total time limit; a size that is predicted to exceed it is not tried, except the first.
    on_step : callable
        Called with the name of each step before it starts.
    """
    free = free_bytes(device=bench.device)
    window_seconds = len(bench.window(_WINDOW_SECONDS)) / bench.rate_hz
    speeds = _speeds(bench, budget_seconds=budget_seconds, free=free, on_step=on_step)
    suggested = suggest_batch_seconds(speeds, free_bytes=free)
    best = max(speeds, key=lambda each: each.times_real_time)
    memory = "" if best.peak_bytes is None else f", peak memory {spoken_bytes(best.peak_bytes)}"
    left = "" if free is None else f"; {spoken_bytes(free)} are free"
    figures = {
        "batches": [asdict(each) for each in speeds],
        "window_seconds": window_seconds,
        "free_bytes": free,
        "suggested_batch_seconds": suggested,
    }
    measured = (
        f"up to {times(best.times_real_time)} x real time, with {best.batch_seconds:g} s in a batch{memory}{left}"
    )
    if suggested is None:
        return Check(
            name=NAME,
            verdict="warning",
            measured=measured,
            advice=f"one window of {window_seconds:g} s uses more than half of the free memory: crop, or use a lower "
            "--precision",
            figures=figures,
        )
    slow = best.times_real_time < 1
    return Check(
        name=NAME,
        verdict="warning" if slow else "ok",
        measured=measured,
        advice=f"--batch-seconds {suggested:g}" + (", on a GPU: it is slower than real time" if slow else ""),
        figures=figures,
    )


def _speeds(
    bench: Bench, *, budget_seconds: float, free: int | None, on_step: Callable[[str], None]
) -> list[BatchSpeed]:
    speeds: list[BatchSpeed] = []
    waves = [bench.window(_WINDOW_SECONDS, seed=seed) for seed in range(4)]
    began = last_began = time.perf_counter()
    n_windows = 1
    while n_windows <= _MOST_WINDOWS[bench.device.partition(":")[0]]:
        on_step(f"speed of {n_windows * _WINDOW_SECONDS:g} s in a batch")
        speeds.append(_time_batch(bench, [waves[row % len(waves)] for row in range(n_windows)]))
        now = time.perf_counter()
        peak = speeds[-1].peak_bytes
        too_slow = now - began + 2 * (now - last_began) > budget_seconds
        too_large = free is not None and peak is not None and 2 * peak > MEMORY_SHARE * free
        if too_slow or too_large:
            break
        last_began, n_windows = now, 2 * n_windows
    return speeds


def _time_batch(bench: Bench, waves: list[NDArray[np.float32]]) -> BatchSpeed:
    """Time a batch. The first run warms up and measures memory; the fastest of the others counts."""
    peak = peak_bytes(lambda: bench.together(waves), device=bench.device)
    fewest, most = _TIMED_RUNS
    took: list[float] = []
    while len(took) < fewest or (sum(took) < _TIMED_SECONDS and len(took) < most):
        began = time.perf_counter()
        bench.together(waves)
        took.append(time.perf_counter() - began)
    samples = sum(map(len, waves))
    padded = sum(bench.pad(len(wave)) for wave in waves)
    return BatchSpeed(
        batch_seconds=padded / bench.rate_hz, times_real_time=samples / bench.rate_hz / min(took), peak_bytes=peak
    )


def times(factor: float) -> str:
    """Format a real-time factor with three significant digits, or as a whole number from 100.

    >>> times(12345.6), times(12.345), times(0.01234)
    ('12,346', '12.3', '0.0123')
    """
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"
