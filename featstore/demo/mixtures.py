"""Mixtures: zero to four events of ten kinds, each with onset and offset, over room noise."""

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
    fast_length,
    filtered,
    frequency_modulated,
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
    swell,
    syllables,
    tilt,
    unit_power,
)

EventSound = Callable[[int, np.random.Generator], Wave]
"""(samples, rng) -> one event of that length."""

__all__ = ["EVENTS", "mix"]


def mix(*seed: int) -> tuple[Wave, dict[str, Any]]:
    """Mix a clip of 3 to 6 s, with its labels: events in order of onset. The same seed gives the same mixture."""
    rng = generator(*seed)
    n = fast_length(int(rng.uniform(3.02, 6.0) * SAMPLE_RATE_HZ))
    n_events = int(rng.choice(5, p=[0.08, 0.24, 0.28, 0.24, 0.16]))
    labels = rng.choice(list(EVENTS), size=n_events, replace=False).tolist()
    dry = shaped_noise(n, rng, tilt(rng.uniform(-5, -3)))
    events = []
    for label in labels:
        length = fast_length(min(n, int(log_uniform(rng, 0.6, 3.0) * SAMPLE_RATE_HZ)))
        start = int(rng.integers(0, n - length + 1))
        add_at(dry, unit_power(EVENTS[label](length, rng)) * np.float32(from_db(rng.uniform(12, 30))), start)
        onset, offset = round(start / SAMPLE_RATE_HZ, 4), round((start + length) / SAMPLE_RATE_HZ, 4)
        events.append({"label": label, "onset": onset, "offset": offset})
    peak_db = float(rng.uniform(-28, -8))
    wave = record(dry, rng, snr_db=60.0, equaliser_db=2.0, peak_db=peak_db)
    return wave, {
        "labels": ";".join(sorted(labels)),
        "events": sorted(events, key=lambda event: (event["onset"], event["label"])),
        "peak_db": round(peak_db, 2),
    }


def _alarm(n: int, rng: np.random.Generator) -> Wave:
    pitch_hz = rng.uniform(2600, 3300)
    beep = from_table(
        harmonic_table(harmonics(7, db_per_octave=-9, even_db=-20), pitch_hz, rng), phase_of(np.full(n, pitch_hz))
    )
    return as_wave(beep * (np.mod(seconds_of(n) * rng.uniform(3, 8), 1.0) < rng.uniform(0.4, 0.7)))


def _bark(n: int, rng: np.random.Generator) -> Wave:
    wave = np.zeros(n, dtype=np.float32)
    pitch_hz, length = rng.uniform(250, 650), fast_length(min(n, int(rng.uniform(0.12, 0.25) * SAMPLE_RATE_HZ)))
    arc = 1 + 0.35 * np.sin(np.pi * np.linspace(0, 1, length))
    throat = resonances([rng.uniform(600, 1100), rng.uniform(1400, 2200)], [200.0, 300.0], floor=0.05)
    for start in range(0, n, int(rng.uniform(0.3, 0.6) * SAMPLE_RATE_HZ)):
        voiced = from_table(harmonic_table(harmonics(30, db_per_octave=-6), pitch_hz, rng), phase_of(pitch_hz * arc))
        rough = filtered(voiced + 0.5 * shaped_noise(length, rng, tilt(-3)), throat)
        add_at(wave, rough * swell(length, attack_seconds=0.02, release_seconds=0.08), start)
    return wave


def _bell(n: int, rng: np.random.Generator) -> Wave:
    fading = decay(n, seconds=rng.uniform(1, 4))
    phase = phase_of(np.full(n, log_uniform(rng, 500, 1000)))
    return frequency_modulated(phase, ratio=3.5, index=rng.uniform(2, 4) * fading, rng=rng) * fading


def _bird(n: int, rng: np.random.Generator) -> Wave:
    centre_hz = rng.uniform(3500, 6000)
    trill = np.sin(np.float32(2 * np.pi * rng.uniform(5, 25)) * seconds_of(n))
    glide = slow_curve(n, rng, rate_hz=rng.uniform(2, 8)) - 0.5
    frequency = centre_hz * (1 + rng.uniform(0.02, 0.2) * trill + rng.uniform(0, 0.5) * glide)
    song = np.sin((2 * np.pi) * np.mod(phase_of(frequency), 1.0).astype(np.float32))
    return as_wave(song * (slow_curve(n, rng, rate_hz=8.0) > 0.35))


def _engine(n: int, rng: np.random.Generator) -> Wave:
    firing_hz = log_uniform(rng, 30, 110)
    speed = firing_hz * (1 + rng.uniform(0, 0.5) * slow_curve(n, rng, rate_hz=1.0))
    rumble = from_table(
        harmonic_table(harmonics(60, db_per_octave=rng.uniform(-7, -3)), firing_hz, rng), phase_of(speed)
    )
    return (rumble + 0.3 * shaped_noise(n, rng, tilt(-6))) * swell(n, attack_seconds=0.2, release_seconds=0.2)


def _footsteps(n: int, rng: np.random.Generator) -> Wave:
    wave = np.zeros(n, dtype=np.float32)
    low_hz, high_hz = rng.uniform(50, 100), rng.uniform(300, 900)
    for start in range(0, n, int(rng.uniform(0.3, 0.6) * SAMPLE_RATE_HZ)):
        add_at(
            wave,
            shaped_noise(3200, rng, band(low_hz, high_hz, order=1)) * decay(3200, seconds=rng.uniform(0.08, 0.2)),
            start,
        )
    return wave


def _hiss(n: int, rng: np.random.Generator) -> Wave:
    steam = shaped_noise(n, rng, band(rng.uniform(1500, 4500), 7800, order=2))
    return steam * swell(n, attack_seconds=rng.uniform(0.01, 0.2), release_seconds=0.2)


def _knock(n: int, rng: np.random.Generator) -> Wave:
    wave = np.zeros(n, dtype=np.float32)
    wood = resonances(rng.uniform([300, 900, 1600], [450, 1300, 2400]).tolist(), [25.0, 50.0, 90.0], floor=0.02)
    for start in range(0, n, int(rng.uniform(0.15, 0.4) * SAMPLE_RATE_HZ)):
        add_at(wave, shaped_noise(3200, rng, wood) * decay(3200, seconds=rng.uniform(0.1, 0.25)), start)
    return wave


def _siren(n: int, rng: np.random.Generator) -> Wave:
    sweep = 0.5 + 0.5 * np.sin(
        np.float32(2 * np.pi * rng.uniform(0.25, 2)) * seconds_of(n) + np.float32(rng.uniform(0, 6.28))
    )
    pitch_hz = rng.uniform(450, 750)
    frequency = pitch_hz * (1 + rng.uniform(0.5, 1.2) * sweep)
    return from_table(harmonic_table(harmonics(9, db_per_octave=-10), 2 * pitch_hz, rng), phase_of(frequency))


EVENTS: Mapping[str, EventSound] = {
    "alarm": _alarm,
    "bark": _bark,
    "bell": _bell,
    "bird": _bird,
    "engine": _engine,
    "footsteps": _footsteps,
    "hiss": _hiss,
    "knock": _knock,
    "siren": _siren,
    "speech": syllables,
}
