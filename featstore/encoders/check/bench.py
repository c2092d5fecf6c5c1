"""Shared parts of the checks: results, test audio, and an encoder that runs as in extraction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.canary import cosine
from featstore.encoders.encoder import Encoder
from featstore.encoders.runner import EncoderRun
from featstore.records import Recipe, Window

__all__ = [
    "Bench",
    "Check",
    "Difference",
    "Embedding",
    "Verdict",
    "clipped",
    "difference",
    "furthest",
    "tones",
]


Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measured property of an encoder.

    Attributes
    ----------
    name : str
        For example ``"batch invariance"``.
    verdict : str
        ``"ok"``; ``"warning"``: usable, with the precaution in `advice`; ``"failed"``: not usable as it is.
    measured : str
        What was measured, with units.
    advice : str
        What to do; not empty unless the verdict is ``"ok"``.
    figures : mapping
        The measurements as numbers; names carry units.
    """

    name: str
    verdict: Verdict
    measured: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict != "ok" and not self.advice:
            raise ValueError(f"check {self.name} is {self.verdict}: advice is required")

    def as_json(self) -> dict[str, Any]:
        """Return the check as plain JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "measured": self.measured,
            "advice": self.advice,
            "figures": dict(self.figures),
        }


_REPEATS_AFTER_SECONDS = 20.0


@lru_cache(maxsize=128)
def tones(seconds: float, *, rate_hz: int, seed: int) -> NDArray[np.float32]:
    """Generate a harmonic tone with vibrato and a slow envelope, in faint noise: float32 (samples,) with peak 0.5.

    Signals longer than 20 s repeat. The array is cached, and therefore read-only.
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
    made = np.resize(wave[:n_made].astype(np.float32), n_samples)
    made.flags.writeable = False
    return made


def clipped(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a wave recorded far too loud: most samples are -1 or 1."""
    return np.clip(40 * wave, -1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The stored values of one window.

    Attributes
    ----------
    utterance : float32 (dim,)
    frames : float32 (n_frames, dim)
    """

    utterance: NDArray[np.float32]
    frames: NDArray[np.float32]

    @property
    def is_pooled(self) -> bool:
        """Whether the utterance vector is the mean of the frames, rather than the encoder's own."""
        mean = self.frames.mean(axis=0)
        return bool(np.linalg.norm(self.utterance - mean) <= 1e-3 * np.linalg.norm(self.utterance))

    def first(self, n_frames: int) -> Embedding:
        """Return the first frames, with their mean as the utterance vector if it is pooled."""
        frames = self.frames[:n_frames]
        return Embedding(utterance=frames.mean(axis=0) if self.is_pooled else self.utterance, frames=frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An encoder under a recipe, on a device.

    Attributes
    ----------
    recipe : Recipe
        Recipe that extraction would store under.
    plan : callable
        Takes a number of samples and returns the windows of such a clip, under the recipe.
    trimmed : EncoderRun
        Runs as in extraction, but returns frames as float32, so that their range can be measured.
    untrimmed : EncoderRun
        Runs as under ``--padding xares``: returns every frame of the encoder.
    """

    encoder: Encoder
    recipe: Recipe
    device: str
    plan: Callable[[int], Sequence[Window]]
    trimmed: EncoderRun
    untrimmed: EncoderRun

    @classmethod
    def start(cls, encoder: Encoder, *, recipe: Recipe, device: str, plan: Callable[[int], Sequence[Window]]) -> Bench:
        """Move an encoder to its device."""
        wide = replace(recipe, frame_dtype="float32")
        return cls(
            encoder=encoder,
            recipe=recipe,
            device=device,
            plan=plan,
            trimmed=EncoderRun(encoder, wide, device=device, keep_frames=True),
            untrimmed=EncoderRun(encoder, replace(wide, padding="xares"), device=device, keep_frames=True),
        )

    @property
    def rate_hz(self) -> int:
        """Sample rate in Hz."""
        return self.recipe.sample_rate_hz

    def pad(self, n_samples: int) -> int:
        """Return the padded length of a clip of `n_samples`; for several windows, that of the longest."""
        return max(window.padded for window in self.plan(n_samples))

    def is_one_window(self, seconds: float) -> bool:
        """Return whether a clip of this duration is encoded as one window."""
        return len(self.plan(round(seconds * self.rate_hz))) == 1

    def tones(self, seconds: float, *, seed: int = 0) -> NDArray[np.float32]:
        """Generate audio at the encoder's sample rate."""
        return tones(seconds, rate_hz=self.rate_hz, seed=seed)

    def window(self, seconds: float, *, seed: int = 0) -> NDArray[np.float32]:
        """Generate audio of one window: of this duration, or as long as the recipe allows."""
        first = self.plan(max(1, round(seconds * self.rate_hz)))[0]
        return self.tones(seconds, seed=seed)[first.start : first.stop]

    def alone(self, wave: NDArray[np.float32]) -> Embedding:
        """Encode one window, padded by the recipe's rule."""
        return self.together([wave])[0]

    def clip(self, wave: NDArray[np.float32]) -> tuple[Embedding, ...]:
        """Encode the windows of a clip sequentially, as extraction does."""
        return tuple(
            _encode(self.trimmed, [wave[window.start : window.stop]], padded=window.padded)[0]
            for window in self.plan(len(wave))
        )

    def exactly(self, wave: NDArray[np.float32]) -> Embedding:
        """Encode one window without padding."""
        return _encode(self.trimmed, [wave], padded=len(wave))[0]

    def together(self, waves: Sequence[NDArray[np.float32]]) -> tuple[Embedding, ...]:
        """Encode one batch of windows that the rule pads to the same length."""
        return _encode(self.trimmed, waves, padded=max(self.pad(len(wave)) for wave in waves))

    def untrimmed_to(self, wave: NDArray[np.float32], *, padded: int) -> Embedding:
        """Encode one window padded to a given length, and keep every frame."""
        return _encode(self.untrimmed, [wave], padded=padded)[0]


def _encode(run: EncoderRun, waves: Sequence[NDArray[np.float32]], *, padded: int) -> tuple[Embedding, ...]:
    audio = np.zeros((len(waves), padded), np.float32)
    for row, wave in enumerate(waves):
        audio[row, : len(wave)] = wave
    encoded = run(audio, np.array([len(wave) for wave in waves], np.int64))[0]
    frames = encoded.frames or ()
    return tuple(Embedding(utterance=u, frames=f) for u, f in zip(encoded.utterance, frames, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Difference of two embeddings, relative to the length of the reference's vectors.

    Attributes
    ----------
    utterance : float
        Length of the difference of the utterance vectors.
    frames : float
        Length of the largest difference of two frames, relative to the root mean square length of the reference's; 1
        if the numbers of frames differ.
    cosine : float
        Cosine of the utterance vectors.
    """

    utterance: float
    frames: float
    cosine: float

    @property
    def largest(self) -> float:
        """The larger of the utterance and frame differences."""
        return max(self.utterance, self.frames)


def difference(reference: Embedding, other: Embedding) -> Difference:
    """Compare two embeddings of the same window."""
    utterance = _share(np.linalg.norm(other.utterance - reference.utterance), np.linalg.norm(reference.utterance))
    frames = 1.0
    if len(reference.frames) == len(other.frames):
        apart = np.linalg.norm(other.frames - reference.frames, axis=1)
        frames = _share(apart.max(), np.sqrt(np.mean(np.square(reference.frames).sum(axis=1))))
    return Difference(utterance=utterance, frames=frames, cosine=cosine(reference.utterance, other.utterance))


def _share(apart: float | np.floating, size: float | np.floating) -> float:
    return float(apart) / (float(size) or 1.0)


def furthest(differences: Iterable[Difference]) -> Difference:
    """Return the largest differences and the smallest cosine."""
    found = tuple(differences)
    return Difference(
        utterance=max(each.utterance for each in found),
        frames=max(each.frames for each in found),
        cosine=min(each.cosine for each in found),
    )
