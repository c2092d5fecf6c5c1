"""Syllables without words: a pulse train through the formants of random vowels, in the rhythm of speech."""

from __future__ import annotations

import numpy as np

from featstore.demo.sounds import (
    SAMPLE_RATE_HZ,
    Wave,
    add_at,
    band,
    decay,
    fast_length,
    filtered,
    from_table,
    harmonic_table,
    harmonics,
    log_uniform,
    phase_of,
    resonances,
    shaped_noise,
    swell,
    unit_power,
)

VOWELS_HZ = (
    (730.0, 1090.0, 2440.0),
    (270.0, 2290.0, 3010.0),
    (300.0, 870.0, 2240.0),
    (530.0, 1840.0, 2480.0),
    (570.0, 840.0, 2410.0),
)
"""First three formants of five vowels (Peterson and Barney 1952, men)."""


def random_vowel(rng: np.random.Generator, *, throat: float) -> tuple[float, float, float]:
    """Formants in hertz of one of the vowels, in a throat that is so many times shorter than a man's."""
    first, second, third = VOWELS_HZ[int(rng.integers(len(VOWELS_HZ)))]
    return first * throat, second * throat, third * throat


def syllables(n: int, rng: np.random.Generator) -> Wave:
    """One talker for `n` samples: about four syllables a second, some begun by a burst of noise."""
    wave = np.zeros(n, dtype=np.float32)
    pitch_hz, throat, rate_hz = log_uniform(rng, 85, 260), rng.uniform(0.95, 1.25), rng.uniform(3, 5.5)
    glottis = harmonic_table(harmonics(60, db_per_octave=-9), pitch_hz, rng)
    start = 0
    while start < n:
        length = fast_length(int(SAMPLE_RATE_HZ / rate_hz * rng.uniform(0.6, 1.2)))
        if rng.random() < 0.85:  # the rest are pauses
            add_at(wave, _syllable(length, glottis, pitch_hz * rng.uniform(0.85, 1.25), throat, rng), start)
        start += length
    return wave


def _syllable(n: int, glottis: Wave, pitch_hz: float, throat: float, rng: np.random.Generator) -> Wave:
    frequency = pitch_hz * np.linspace(1.0, rng.uniform(0.8, 1.15), n)
    buzz = from_table(glottis, phase_of(frequency))
    spoken = filtered(buzz, resonances(random_vowel(rng, throat=throat), (80.0, 100.0, 150.0), floor=0.02))
    voiced = unit_power(spoken) * swell(n, attack_seconds=0.03, release_seconds=0.06)
    if rng.random() < 0.5:
        consonant = shaped_noise(n, rng, band(rng.uniform(1000, 3500), 7500)) * decay(n, seconds=rng.uniform(0.05, 0.2))
        voiced += np.float32(rng.uniform(0.2, 0.8)) * consonant
    return voiced
