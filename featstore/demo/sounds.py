"""Synthetic sounds: noise, tones, voices and animals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SAMPLE_RATE_HZ = 16_000
NYQUIST_HZ = SAMPLE_RATE_HZ / 2
TABLE_LENGTH = 4096

Wave = NDArray[np.float32]
Gain = Callable[[Wave], Wave]
"""Linear gain of each frequency: float32 hertz -> float32."""


def generator(*seed: int) -> np.random.Generator:
    """A generator that depends on its seed only: the algorithm is explicit, not the default of NumPy."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform: pitches and times are heard as ratios."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def from_db(decibels: float) -> float:
    """Amplitude ratio of a level in decibels."""
    return float(10 ** (decibels / 20))


def as_wave(samples: ArrayLike) -> Wave:
    """Cast samples to float32."""
    return np.asarray(samples, dtype=np.float32)


def seconds_of(n: int) -> Wave:
    """Time of each sample in seconds."""
    return np.arange(n, dtype=np.float32) / np.float32(SAMPLE_RATE_HZ)


def fast_length(n: int) -> int:
    """The longest length up to `n` with a fast FFT: even, and a product of powers of 2, 3 and 5.

    >>> fast_length(16_001), fast_length(4_001)
    (16000, 4000)
    """
    return int(_FAST_LENGTHS[np.searchsorted(_FAST_LENGTHS, n, side="right") - 1])


_FAST_LENGTHS = np.array(
    sorted(2**a * 3**b * 5**c for a in range(1, 18) for b in range(11) for c in range(8) if 2**a * 3**b * 5**c <= 2**17)
)


def add_at(mix: Wave, part: Wave, start: int) -> None:
    """Add `part` to `mix` from sample `start` on, in place; samples past the end are dropped."""
    n = min(len(part), len(mix) - start)
    if n > 0:
        mix[start : start + n] += part[:n]


# --- noise and filters ------------------------------------------------------------------------------------------------


def shaped_noise(n: int, rng: np.random.Generator, gain: Gain) -> Wave:
    """Noise of unit power whose amplitude spectrum follows `gain`. Drawn as a spectrum, so that it costs one FFT."""
    return unit_power(np.fft.irfft(_noise_spectrum(n // 2 + 1, rng, gain), n))


def _noise_spectrum(n_bins: int, rng: np.random.Generator, gain: Gain) -> NDArray[np.complex64]:
    # Uniform coefficients are faster than normal ones, and a sum of thousands of them is close to normal.
    spectrum = (rng.random(2 * n_bins, dtype=np.float32) - np.float32(0.5)).view(np.complex64)
    return spectrum * gain(_bins_hz(n_bins))


def _magnitude(spectrum: NDArray[np.complexfloating]) -> float:
    # the sum of NumPy, not of BLAS: its order of addition does not depend on the machine
    return float(np.sqrt(np.sum(np.square(spectrum.real) + np.square(spectrum.imag))))


def _bins_hz(n_bins: int) -> Wave:
    return np.arange(n_bins, dtype=np.float32) * np.float32(NYQUIST_HZ / (n_bins - 1))


def filtered(wave: Wave, gain: Gain) -> Wave:
    """Filter a wave: its spectrum multiplied by `gain` (zero phase, circular)."""
    spectrum = np.fft.rfft(wave)
    spectrum *= gain(_bins_hz(len(spectrum)))
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


def unit_power(wave: NDArray[np.floating]) -> Wave:
    """Scale a wave to a root mean square of one; silence stays silence."""
    rms = float(np.sqrt(np.mean(np.square(wave))))
    return (wave / max(rms, 1e-9)).astype(np.float32)


def resonances(centres_hz: Sequence[float], widths_hz: Sequence[float], *, floor: float = 0.02) -> Gain:
    """Gain of several resonances (formants, a body, a can), each a second-order peak."""

    def gain(hz: Wave) -> Wave:
        total = np.full_like(hz, floor)
        for centre, width in zip(centres_hz, widths_hz, strict=True):
            total += 1.0 / (1.0 + np.square((hz - np.float32(centre)) / np.float32(width)))
        return total

    return gain


def tilt(db_per_octave: float, *, corner_hz: float = 200.0) -> Gain:
    """Gain that is flat up to a corner frequency and has a slope in decibels per octave above it."""

    def gain(hz: Wave) -> Wave:
        nepers = np.log(np.maximum(hz / np.float32(corner_hz), np.float32(1.0)))
        return as_wave(np.exp(nepers * np.float32(db_per_octave / 6.0206)))

    return gain


def band(low_hz: float, high_hz: float, *, order: int = 3) -> Gain:
    """Gain of a band with Butterworth-like edges."""

    def gain(hz: Wave) -> Wave:
        log_hz = np.log(np.maximum(hz, np.float32(20.0)))
        below = np.exp(np.float32(2 * order) * (np.float32(np.log(low_hz)) - log_hz))
        above = np.exp(np.float32(2 * order) * (log_hz - np.float32(np.log(high_hz))))
        return as_wave(1.0 / np.sqrt((1.0 + below) * (1.0 + above)))

    return gain


def random_equaliser(rng: np.random.Generator, *, range_db: float) -> Gain:
    """Gain of a random microphone and room: a smooth curve through seven levels spread over the octaves."""
    nodes = np.linspace(np.log(50.0), np.log(NYQUIST_HZ), 7)
    levels_db = rng.uniform(-range_db, range_db, len(nodes))

    def gain(hz: Wave) -> Wave:
        level_db = np.interp(np.log(np.maximum(hz, np.float32(1.0))), nodes, levels_db).astype(np.float32)
        return as_wave(np.exp(level_db * np.float32(np.log(10) / 20)))

    return gain


# --- periodic waves ---------------------------------------------------------------------------------------------------


def phase_of(frequency_hz: NDArray[np.floating]) -> NDArray[np.float64]:
    """Phase in cycles of an oscillator with this frequency at each sample."""
    return np.cumsum(frequency_hz, dtype=np.float64) / SAMPLE_RATE_HZ


def vibrato(n: int, frequency_hz: float, rng: np.random.Generator, *, cents: float, rate_hz: float) -> Wave:
    """Frequency of each sample: a mean with a vibrato of a depth in cents."""
    swing = np.sin(2 * np.pi * (rate_hz * seconds_of(n) + np.float32(rng.uniform())))
    return as_wave(frequency_hz * np.exp2((cents / 1200.0) * swing))


def harmonic_table(levels: NDArray[np.floating], frequency_hz: float, rng: np.random.Generator) -> Wave:
    """One period of a wave with these harmonic levels at random phases, without those above the Nyquist frequency."""
    n_audible = min(len(levels), max(1, int(0.95 * NYQUIST_HZ / frequency_hz)))
    spectrum = np.zeros(TABLE_LENGTH // 2 + 1, dtype=np.complex64)
    phases = rng.uniform(0.0, 2 * np.pi, len(levels))
    spectrum[1 : n_audible + 1] = (levels * np.exp(1j * phases))[:n_audible]
    return unit_power(np.fft.irfft(spectrum, TABLE_LENGTH))


def from_table(table: Wave, phase: NDArray[np.float64]) -> Wave:
    """Read a table along a phase in cycles."""
    return as_wave(table[(phase * TABLE_LENGTH).astype(np.int64) & (TABLE_LENGTH - 1)])


def harmonics(count: int, *, db_per_octave: float, even_db: float = 0.0) -> NDArray[np.float64]:
    """Levels of a harmonic series with a slope in decibels per octave; even harmonics may be weaker."""
    number = np.arange(1, count + 1)
    levels = np.power(number, db_per_octave / 6.0206)
    return np.where(number % 2 == 0, levels * from_db(even_db), levels)


def frequency_modulated(
    phase: NDArray[np.float64], *, ratio: float, index: NDArray[np.floating] | float, rng: np.random.Generator
) -> Wave:
    """One carrier modulated by one sine at `ratio` times its frequency (Chowning 1973)."""
    modulator = np.sin((2 * np.pi) * np.mod(phase * ratio + rng.uniform(), 1.0).astype(np.float32))
    carrier = (2 * np.pi) * np.mod(phase, 1.0).astype(np.float32)
    return as_wave(np.sin(carrier + np.asarray(index, dtype=np.float32) * modulator))


def plucked(n: int, frequency_hz: float, rng: np.random.Generator, *, brightness: float, sustain: float) -> Wave:
    """Pluck a string (Karplus and Strong 1983); a whole period is computed at a time.

    Parameters
    ----------
    brightness : float
        0 to 1: how little of the highest frequencies each round through the string takes away.
    sustain : float
        Below 1: what is left of the string's energy after each round.
    """
    period = max(2, round(SAMPLE_RATE_HZ / frequency_hz))
    rounds = -(-n // period)
    string = rng.uniform(-1.0, 1.0, period).astype(np.float32)
    spectrum = np.fft.rfft(string - string.mean())
    averaging = np.cos(np.linspace(0.0, np.pi / 2, len(spectrum)))  # gain of the mean of two neighbours
    damping = sustain * (brightness + (1 - brightness) * averaging)
    decayed = spectrum[None, :] * np.power(damping[None, :], np.arange(rounds)[:, None])
    return np.fft.irfft(decayed, period, axis=1).astype(np.float32).reshape(-1)[:n]


# --- envelopes --------------------------------------------------------------------------------------------------------


def swell(n: int, *, attack_seconds: float, release_seconds: float) -> Wave:
    """Envelope of a sustained sound: linear attack, sustain and linear release."""
    t = seconds_of(n)
    up = t / np.float32(max(attack_seconds, 1e-3))
    down = (t[-1] - t) / np.float32(max(release_seconds, 1e-3))
    return as_wave(np.clip(np.minimum(up, down), 0.0, 1.0))


def decay(n: int, *, seconds: float, attack_seconds: float = 0.002) -> Wave:
    """Envelope of a struck sound: an exponential decay, by 60 dB in a time in seconds."""
    t = seconds_of(n)
    return as_wave(np.exp(t * np.float32(-6.908 / seconds)) * np.minimum(1.0, t / np.float32(attack_seconds)))


def slow_curve(n: int, rng: np.random.Generator, *, rate_hz: float) -> Wave:
    """Draw a smooth random curve in 0 to 1 that changes direction about `rate_hz` times per second."""
    n_nodes = max(2, int(n / SAMPLE_RATE_HZ * rate_hz) + 2)
    nodes = rng.uniform(0.0, 1.0, n_nodes)
    return np.interp(np.linspace(0.0, n_nodes - 1.0, n), np.arange(n_nodes), nodes).astype(np.float32)


# --- recording --------------------------------------------------------------------------------------------------------


def record(
    dry: Wave,
    rng: np.random.Generator,
    *,
    snr_db: float,
    equaliser_db: float,
    peak_db: float,
) -> Wave:
    """Record a sound: a room's response, background noise and a level are added.

    Parameters
    ----------
    snr_db : float
        Power of the sound over that of the background.
    equaliser_db : float
        Range of the random response, up and down.
    peak_db : float
        Largest sample, below 0 dB of full scale.
    """
    spectrum = np.fft.rfft(dry)
    background = _noise_spectrum(len(spectrum), rng, tilt(rng.uniform(-6.0, 0.0)))
    background *= np.float32(from_db(-snr_db) * _magnitude(spectrum) / _magnitude(background))
    response = random_equaliser(rng, range_db=equaliser_db)(_bins_hz(len(spectrum)))
    wave = np.fft.irfft((spectrum + background) * response, len(dry))
    return (wave * np.float32(from_db(peak_db) / max(float(np.max(np.abs(wave))), 1e-9))).astype(np.float32)


VOWELS_HZ = (
    (730.0, 1090.0, 2440.0),
    (270.0, 2290.0, 3010.0),
    (300.0, 870.0, 2240.0),
    (530.0, 1840.0, 2480.0),
    (570.0, 840.0, 2410.0),
)
"""First three formants of five vowels (Peterson and Barney 1952, men)."""


def random_vowel(rng: np.random.Generator, *, throat: float) -> tuple[float, float, float]:
    """Formants in hertz of one of the vowels, in a vocal tract that is shorter than a man's by a factor."""
    first, second, third = VOWELS_HZ[int(rng.integers(len(VOWELS_HZ)))]
    return first * throat, second * throat, third * throat


def syllables(n: int, rng: np.random.Generator) -> Wave:
    """One talker for `n` samples: about four syllables per second, some with a burst of noise at their onset."""
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
