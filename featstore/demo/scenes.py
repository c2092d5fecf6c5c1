"""Eight synthetic scenes of five seconds: a texture of one kind over a quieter one of another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featstore.demo.sounds import (
    SAMPLE_RATE_HZ,
    Wave,
    add_at,
    as_wave,
    band,
    decay,
    from_db,
    from_table,
    generator,
    harmonic_table,
    harmonics,
    log_uniform,
    phase_of,
    record,
    resonances,
    seconds_of,
    shaped_noise,
    slow_curve,
    syllables,
    tilt,
    unit_power,
)

Texture = Callable[[int, np.random.Generator], Wave]
"""(samples, rng) -> a texture of that length."""

SCENE_SECONDS = 5.0

__all__ = ["SCENES", "SCENE_SECONDS", "record_scene"]


def record_scene(scene: str, *seed: int) -> tuple[Wave, dict[str, Any]]:
    """Record five seconds of a scene, with another scene's texture some decibels below it, and its labels."""
    rng = generator(*seed)
    n = int(SCENE_SECONDS * SAMPLE_RATE_HZ)
    behind = str(rng.choice([name for name in SCENES if name != scene]))
    behind_db, peak_db = float(rng.uniform(-40, -14)), float(rng.uniform(-30, -8))
    dry = unit_power(SCENES[scene](n, rng))
    dry += np.float32(from_db(behind_db)) * np.tile(
        unit_power(SCENES[behind](n // 2, rng)), 2
    )  # half of the length, repeated: faster
    wave = record(dry, rng, snr_db=float(rng.uniform(20, 45)), equaliser_db=3.0, peak_db=peak_db)
    return wave, {"scene": scene, "behind": behind, "behind_db": round(behind_db, 2), "peak_db": round(peak_db, 2)}


def _rain(n: int, rng: np.random.Generator) -> Wave:
    hiss = shaped_noise(n, rng, tilt(rng.uniform(-4, 0), corner_hz=rng.uniform(500, 3000)))
    # Drops near by: sparse impulses that ring, all through one filter.
    drops = np.where(rng.random(n) < rng.uniform(20, 200) / SAMPLE_RATE_HZ, rng.exponential(1.0, n), 0.0).astype(
        np.float32
    )
    ring = decay(2048, seconds=0.01) * shaped_noise(2048, rng, band(1000, rng.uniform(3000, 7000)))
    return hiss + np.float32(rng.uniform(0.2, 2.0)) * _convolved(drops, ring)


def _wind(n: int, rng: np.random.Generator) -> Wave:
    low = shaped_noise(n, rng, tilt(rng.uniform(-9, -5), corner_hz=80))
    howl_hz = rng.uniform(300, 900)
    howl = shaped_noise(n, rng, resonances([howl_hz], [howl_hz * 0.08], floor=0.0))
    gusts = slow_curve(n, rng, rate_hz=rng.uniform(0.5, 2))
    return as_wave(low * (0.3 + gusts) + np.float32(rng.uniform(0.1, 0.6)) * howl * gusts * gusts)


def _surf(n: int, rng: np.random.Generator) -> Wave:
    roar = shaped_noise(n, rng, tilt(rng.uniform(-8, -4), corner_hz=150))
    foam = shaped_noise(n, rng, tilt(rng.uniform(-4, 0), corner_hz=rng.uniform(500, 2000)))
    t = seconds_of(n)
    wave = 0.5 + 0.5 * np.sin(np.float32(2 * np.pi / rng.uniform(3, 8)) * t + np.float32(rng.uniform(0, 6.28)))
    return as_wave(roar * (0.2 + wave) + np.float32(rng.uniform(0.3, 1.2)) * foam * wave**3)


def _engine(n: int, rng: np.random.Generator) -> Wave:
    firing_hz = log_uniform(rng, 25, 110)
    speed = firing_hz * (1 + rng.uniform(0, 0.3) * (slow_curve(n, rng, rate_hz=rng.uniform(0.3, 1.5)) - 0.5))
    table = harmonic_table(harmonics(80, db_per_octave=rng.uniform(-7, -3)), firing_hz, rng)
    rumble = from_table(table, phase_of(speed))
    return rumble + np.float32(rng.uniform(0.1, 0.8)) * shaped_noise(n, rng, tilt(rng.uniform(-8, -4), corner_hz=100))


def _crickets(n: int, rng: np.random.Generator) -> Wave:
    t = seconds_of(n)
    wave = shaped_noise(n, rng, tilt(-5)) * np.float32(rng.uniform(0.02, 0.1))
    for _ in range(int(rng.integers(1, 5))):
        pulse_hz, chirp_hz = rng.uniform(20, 50), rng.uniform(0.8, 3)
        gate = np.mod(t * chirp_hz + rng.uniform(), 1.0) < rng.uniform(0.2, 0.9)
        pulses = np.square(np.sin(np.float32(np.pi * pulse_hz) * t))
        wave += (
            np.sin(np.float32(2 * np.pi * rng.uniform(3600, 5200)) * t)
            * pulses
            * gate
            * np.float32(rng.uniform(0.3, 1))
        )
    return wave


def _babble(n: int, rng: np.random.Generator) -> Wave:
    wave = np.zeros(n, dtype=np.float32)
    for _ in range(int(rng.integers(2, 6))):
        wave += syllables(n, rng) * np.float32(from_db(rng.uniform(-9, 0)))
    return wave


def _footsteps(n: int, rng: np.random.Generator) -> Wave:
    wave = shaped_noise(n, rng, tilt(-6)) * np.float32(rng.uniform(0.005, 0.1))
    low_hz, high_hz = rng.uniform(60, 250), rng.uniform(500, 6000)
    for second in np.arange(rng.uniform(0, 0.5), n / SAMPLE_RATE_HZ, rng.uniform(0.3, 0.75)):
        step = shaped_noise(4000, rng, band(low_hz, high_hz, order=1)) * decay(4000, seconds=rng.uniform(0.06, 0.25))
        add_at(wave, step, int((second + rng.normal(0, 0.02) + 0.1) * SAMPLE_RATE_HZ))
    return wave


def _alarm(n: int, rng: np.random.Generator) -> Wave:
    t = seconds_of(n)
    pitch_hz, rate_hz = rng.uniform(1200, 3200), rng.uniform(1, 6)
    low = rng.uniform(0.6, 1.0)
    frequency = np.where(np.mod(t * rate_hz, 1.0) < 0.5, pitch_hz, pitch_hz * low)
    beep = from_table(
        harmonic_table(harmonics(9, db_per_octave=rng.uniform(-14, -4), even_db=-20), pitch_hz, rng),
        phase_of(frequency),
    )
    gate = np.mod(t * rate_hz / 2, 1.0) < rng.uniform(0.3, 1.0)
    return beep * gate + np.float32(rng.uniform(0.01, 0.1)) * shaped_noise(n, rng, tilt(-5))


def _convolved(wave: Wave, kernel: Wave) -> Wave:
    """Circular convolution at the wave's own length."""
    return np.fft.irfft(np.fft.rfft(wave) * np.fft.rfft(kernel, len(wave)), len(wave)).astype(np.float32)


SCENES: Mapping[str, Texture] = {
    "alarm": _alarm,
    "babble": _babble,
    "crickets": _crickets,
    "engine": _engine,
    "footsteps": _footsteps,
    "rain": _rain,
    "surf": _surf,
    "wind": _wind,
}
