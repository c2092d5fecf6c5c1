"""Twelve synthetic instruments whose timbres overlap: recorded phrases of one to four notes.

An instrument is a function from a note's length and pitch to its waveform. Some instruments differ in their spectrum,
others only in how it changes over time, which an encoder that averages over time cannot distinguish.
"""

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
    plucked,
    random_vowel,
    record,
    resonances,
    seconds_of,
    shaped_noise,
    swell,
    tilt,
    unit_power,
    vibrato,
)

Instrument = Callable[[int, float, np.random.Generator], Wave]
"""(samples, pitch_hz, rng) -> one note."""

__all__ = ["INSTRUMENTS", "play"]


def play(instrument: str, *seed: int) -> tuple[Wave, dict[str, Any]]:
    """Play one phrase of 0.4 to 4 s, with its labels. The same instrument and seed give the same phrase."""
    rng = generator(*seed)
    note = INSTRUMENTS[instrument]
    n = fast_length(int(log_uniform(rng, 0.41, 4.0) * SAMPLE_RATE_HZ))
    n_notes = int(rng.integers(1, 1 + min(4, max(1, n // 6400))))
    pitches = _melody(rng, n_notes)
    onsets = np.sort(rng.uniform(0.0, 0.9, n_notes - 1)) if n_notes > 1 else np.zeros(0)
    starts = [0, *(int(n * onset) for onset in onsets)]
    dry = np.zeros(n, dtype=np.float32)
    for start, pitch in zip(starts, pitches, strict=True):
        length = fast_length(max(1600, int((n - start) * rng.uniform(0.7, 1.0))))
        add_at(dry, note(length, pitch, rng) * np.float32(from_db(rng.uniform(-6, 0))), start)
    snr_db, peak_db = float(rng.uniform(28, 50)), float(rng.uniform(-30, -8))
    wave = record(dry, rng, snr_db=snr_db, equaliser_db=3.0, peak_db=peak_db)
    return wave, {
        "instrument": instrument,
        "pitch_hz": pitches[0],
        "pitches_hz": list(pitches),
        "snr_db": round(snr_db, 2),
        "peak_db": round(peak_db, 2),
    }


def _melody(rng: np.random.Generator, n_notes: int) -> tuple[float, ...]:
    """Pitches of a phrase: the first from E3 to C5, the others within a sixth of it, all slightly detuned."""
    semitones = rng.integers(-9, 10, n_notes) + rng.normal(0.0, 0.15, n_notes)
    semitones[0] = 0.0
    return tuple(float(round(pitch, 2)) for pitch in log_uniform(rng, 165.0, 523.0) * np.exp2(semitones / 12))


def _organ(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    levels = np.zeros(16)
    levels[[0, 1, 2, 3, 5, 7, 9, 11, 15]] = [from_db(db) for db in rng.uniform(-8, 0, 9)]
    wave = from_table(harmonic_table(levels, pitch, rng), phase_of(np.full(n, pitch)))
    return wave * swell(n, attack_seconds=0.02, release_seconds=0.03)


def _flute(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    frequency = vibrato(n, pitch, rng, cents=rng.uniform(5, 30), rate_hz=rng.uniform(4, 6))
    tone = from_table(
        harmonic_table(harmonics(8, db_per_octave=rng.uniform(-20, -14)), pitch, rng), phase_of(frequency)
    )
    breath = shaped_noise(n, rng, band(pitch, 6 * pitch, order=1))
    return (tone + breath * np.float32(from_db(rng.uniform(-24, -16)))) * swell(
        n, attack_seconds=0.08, release_seconds=0.08
    )


def _clarinet(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    frequency = vibrato(n, pitch, rng, cents=rng.uniform(0, 8), rate_hz=rng.uniform(4, 6))
    levels = harmonics(24, db_per_octave=rng.uniform(-11, -6), even_db=rng.uniform(-30, -18))
    reed = from_table(harmonic_table(levels, pitch, rng), phase_of(frequency))
    bore = resonances([rng.uniform(1400, 1700), rng.uniform(3500, 4200)], [300.0, 600.0], floor=0.4)
    return filtered(reed, bore) * swell(n, attack_seconds=rng.uniform(0.03, 0.08), release_seconds=0.06)


def _brass(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    phase = phase_of(vibrato(n, pitch, rng, cents=rng.uniform(0, 10), rate_hz=rng.uniform(4, 6)))
    dark = from_table(harmonic_table(harmonics(12, db_per_octave=-14), pitch, rng), phase)
    bright = from_table(harmonic_table(harmonics(40, db_per_octave=rng.uniform(-6, -2)), pitch, rng), phase)
    blown = swell(n, attack_seconds=rng.uniform(0.05, 0.2), release_seconds=0.12)
    return blown * (dark + np.float32(rng.uniform(0.3, 1.0)) * blown * blown * bright)


def _bowed(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    frequency = vibrato(n, pitch, rng, cents=rng.uniform(5, 35), rate_hz=rng.uniform(4.5, 6.5))
    saw = from_table(harmonic_table(harmonics(60, db_per_octave=rng.uniform(-8, -4)), pitch, rng), phase_of(frequency))
    body = resonances(rng.uniform([250, 400, 2200], [320, 560, 3200]).tolist(), [80.0, 120.0, 900.0], floor=0.15)
    scrape = shaped_noise(n, rng, band(1500, 6000)) * np.float32(from_db(rng.uniform(-36, -24)))
    return filtered(saw + scrape, body) * swell(n, attack_seconds=rng.uniform(0.06, 0.25), release_seconds=0.1)


def _guitar(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    string = plucked(n, pitch, rng, brightness=rng.uniform(0.3, 0.6), sustain=rng.uniform(0.985, 0.996))
    return filtered(
        unit_power(string), resonances([rng.uniform(95, 125), rng.uniform(190, 240)], [40.0, 60.0], floor=0.5)
    )


def _harpsichord(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    string = plucked(n, pitch, rng, brightness=rng.uniform(0.85, 0.99), sustain=rng.uniform(0.985, 0.998))
    octave = plucked(n, 2 * pitch, rng, brightness=rng.uniform(0.85, 0.99), sustain=rng.uniform(0.985, 0.998))
    return filtered(unit_power(string + np.float32(rng.uniform(0, 0.7)) * octave), tilt(rng.uniform(0, 3)))


def _piano(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    # Three slightly detuned strings beat; high harmonics decay first.
    wave = np.zeros(n, dtype=np.float32)
    for detune_cents in rng.uniform(-3, 3, 2):
        phase = phase_of(np.full(n, pitch * np.exp2(detune_cents / 1200)))
        dark = from_table(harmonic_table(harmonics(10, db_per_octave=-11), pitch, rng), phase)
        bright = from_table(harmonic_table(harmonics(30, db_per_octave=-6), pitch, rng), phase)
        wave += dark * decay(n, seconds=rng.uniform(2, 5)) + bright * decay(n, seconds=rng.uniform(0.5, 1.2))
    thump = shaped_noise(n, rng, band(60, 900)) * decay(n, seconds=0.08)
    return wave + thump * np.float32(from_db(rng.uniform(-16, -6)))


def _bell(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    fading = decay(n, seconds=rng.uniform(1.5, 5))
    index = rng.uniform(2.5, 4) * fading
    return frequency_modulated(phase_of(np.full(n, pitch)), ratio=1.4, index=index, rng=rng) * fading


def _marimba(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    t = seconds_of(n)
    wave = np.zeros(n, dtype=np.float32)
    for ratio, level_db, seconds in ((1.0, 0.0, 0.9), (3.93, -12.0, 0.25), (9.2, -20.0, 0.1)):
        level = np.float32(from_db(level_db + rng.uniform(-5, 5)))
        wave += (
            level
            * np.sin(np.float32(2 * np.pi * pitch * ratio) * t)
            * decay(n, seconds=seconds * rng.uniform(0.7, 1.4))
        )
    return wave + shaped_noise(n, rng, band(300, 3000)) * decay(n, seconds=0.03) * np.float32(0.2)


def _electric_piano(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    phase = phase_of(np.full(n, pitch))
    body = frequency_modulated(phase, ratio=1.0, index=rng.uniform(0.4, 1.8) * decay(n, seconds=1.5), rng=rng)
    tine = frequency_modulated(phase, ratio=14.0, index=0.25 * decay(n, seconds=0.3), rng=rng)
    tremolo = 1 + np.float32(rng.uniform(0, 0.3)) * np.sin(np.float32(2 * np.pi * rng.uniform(3, 6)) * seconds_of(n))
    return as_wave((body + np.float32(rng.uniform(0.1, 0.5)) * tine) * decay(n, seconds=rng.uniform(1.5, 4)) * tremolo)


def _voice(n: int, pitch: float, rng: np.random.Generator) -> Wave:
    frequency = vibrato(n, pitch, rng, cents=rng.uniform(10, 60), rate_hz=rng.uniform(4.5, 6.5))
    glottis = from_table(
        harmonic_table(harmonics(50, db_per_octave=rng.uniform(-12, -8)), pitch, rng), phase_of(frequency)
    )
    breath = shaped_noise(n, rng, tilt(-3)) * np.float32(from_db(rng.uniform(-36, -22)))
    sung = filtered(
        glottis + breath, resonances(random_vowel(rng, throat=rng.uniform(0.95, 1.2)), (70.0, 90.0, 130.0), floor=0.03)
    )
    return sung * swell(n, attack_seconds=rng.uniform(0.04, 0.15), release_seconds=0.1)


INSTRUMENTS: Mapping[str, Instrument] = {
    "bell": _bell,
    "bowed": _bowed,
    "brass": _brass,
    "clarinet": _clarinet,
    "electric_piano": _electric_piano,
    "flute": _flute,
    "guitar": _guitar,
    "harpsichord": _harpsichord,
    "marimba": _marimba,
    "organ": _organ,
    "piano": _piano,
    "voice": _voice,
}
