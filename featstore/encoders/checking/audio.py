"""Audio to check an encoder with, made in code: the same numbers for the same seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clipped", "tones"]

_REPEATS_AFTER_SECONDS = 20.0


def tones(seconds: float, *, rate_hz: int, seed: int) -> NDArray[np.float32]:
    """A harmonic tone with vibrato and a slow envelope, in faint noise; float32 (samples,), its peak at 0.5.

    What is longer than twenty seconds repeats.
    """
    n_samples = max(1, round(seconds * rate_hz))
    n_made = min(n_samples, round(_REPEATS_AFTER_SECONDS * rate_hz))
    rng = np.random.default_rng(seed)
    at = np.arange(max(2, n_made)) / rate_hz
    fundamental_hz = rate_hz * rng.uniform(0.006, 0.02)  # 96 to 320 Hz at 16 kHz
    vibrato = 0.02 * np.sin(2 * np.pi * rng.uniform(4, 7) * at)
    phase = 2 * np.pi * fundamental_hz * np.cumsum(1 + vibrato) / rate_hz
    harmonics = range(1, int(0.45 * rate_hz / fundamental_hz / 1.02))
    wave = sum(np.sin(number * phase + rng.uniform(0, 6)) / number for number in harmonics[:12])
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * at + rng.uniform(0, 6))
    wave = wave * envelope + 0.03 * rng.standard_normal(len(at))
    wave *= 0.5 / np.abs(wave).max()
    return np.resize(wave[:n_made].astype(np.float32), n_samples)


def clipped(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same recorded far too loud: most samples stand at -1 or 1."""
    return np.clip(40 * wave, -1, 1)
