"""What the checks of an encoder share: their results, test audio, and an encoder run as extraction runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.encoder import Encoder
from featstore.encoders.runner import EncoderRun
from featstore.records import Recipe

__all__ = [
    "Bench",
    "Check",
    "Difference",
    "Embedding",
    "Planned",
    "Verdict",
    "clipped",
    "cosine",
    "difference",
    "furthest",
    "tones",
]


Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One property of an encoder, measured.

    Attributes
    ----------
    name : str
        Such as ``"batch invariance"``.
    verdict : str
        ``"ok"``; ``"warning"``: fit for use, with a care that `advice` names; ``"failed"``: not fit for use as it is.
    measured : str
        What was measured, with its units.
    advice : str
        What to do; never empty where the verdict is not ``"ok"``.
    figures : mapping
        The same in numbers, for programs; names carry units.
    """

    name: str
    verdict: Verdict
    measured: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict != "ok" and not self.advice:
            raise ValueError(f"check {self.name} is {self.verdict}: it must say what to do")

    def as_json(self) -> dict[str, Any]:
        """The check as plain JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "measured": self.measured,
            "advice": self.advice,
            "figures": dict(self.figures),
        }


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


class Planned(Protocol):
    """A window as extraction plans it: samples [start, stop), to be padded to `padded`."""

    @property
    def start(self) -> int:
        """First sample."""

    @property
    def stop(self) -> int:
        """The sample after its last."""

    @property
    def padded(self) -> int:
        """Samples that are encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What would be stored of one window.

    Attributes
    ----------
    utterance : float32 (dim,)
    frames : float32 (n_frames, dim)
    """

    utterance: NDArray[np.float32]
    frames: NDArray[np.float32]

    @property
    def is_pooled(self) -> bool:
        """Whether the utterance vector is the mean of the frames, and not the encoder's own."""
        mean = self.frames.mean(axis=0)
        return bool(np.linalg.norm(self.utterance - mean) <= 1e-3 * np.linalg.norm(self.utterance))

    def first(self, n_frames: int) -> Embedding:
        """Cut to the first frames, and pooled over them where the utterance vector is pooled."""
        frames = self.frames[:n_frames]
        return Embedding(utterance=frames.mean(axis=0) if self.is_pooled else self.utterance, frames=frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An encoder under a recipe, on a device.

    Attributes
    ----------
    recipe : Recipe
        What extraction would store under.
    plan : callable
        Samples of a clip -> its windows, by the rule of the recipe.
    trimmed : EncoderRun
        As extraction runs it, but frames come back as float32, so that their range can be measured.
    untrimmed : EncoderRun
        As under ``--padding xares``: every frame that the encoder returns.
    """

    encoder: Encoder
    recipe: Recipe
    device: str
    plan: Callable[[int], Sequence[Planned]]
    trimmed: EncoderRun
    untrimmed: EncoderRun

    @classmethod
    def start(cls, encoder: Encoder, *, recipe: Recipe, device: str, plan: Callable[[int], Sequence[Planned]]) -> Bench:
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
        """Samples in a second."""
        return self.recipe.sample_rate_hz

    def pad(self, n_samples: int) -> int:
        """Samples that a clip of so many is padded to; where it is cut into windows, those that its longest is."""
        return max(window.padded for window in self.plan(n_samples))

    def is_one_window(self, seconds: float) -> bool:
        """Whether a clip of so many seconds is encoded as a whole."""
        return len(self.plan(round(seconds * self.rate_hz))) == 1

    def tones(self, seconds: float, *, seed: int = 0) -> NDArray[np.float32]:
        """Audio at the encoder's rate."""
        return tones(seconds, rate_hz=self.rate_hz, seed=seed)

    def window(self, seconds: float, *, seed: int = 0) -> NDArray[np.float32]:
        """Audio of one window: so many seconds, or as many as the recipe leaves in one."""
        first = self.plan(max(1, round(seconds * self.rate_hz)))[0]
        return self.tones(seconds, seed=seed)[first.start : first.stop]

    def alone(self, wave: NDArray[np.float32]) -> Embedding:
        """Encode one window, padded by the rule of the recipe."""
        return self.together([wave])[0]

    def clip(self, wave: NDArray[np.float32]) -> tuple[Embedding, ...]:
        """Encode a clip as extraction does: its windows, one after the other."""
        return tuple(
            _encode(self.trimmed, [wave[window.start : window.stop]], padded=window.padded)[0]
            for window in self.plan(len(wave))
        )

    def exactly(self, wave: NDArray[np.float32]) -> Embedding:
        """Encode one window without any padding."""
        return _encode(self.trimmed, [wave], padded=len(wave))[0]

    def together(self, waves: Sequence[NDArray[np.float32]]) -> tuple[Embedding, ...]:
        """Encode one batch of windows that the rule pads to one length."""
        return _encode(self.trimmed, waves, padded=max(self.pad(len(wave)) for wave in waves))

    def untrimmed_to(self, wave: NDArray[np.float32], *, padded: int) -> Embedding:
        """Encode one window padded to a length, and keep every frame."""
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
    """How far one embedding is from another, as shares of the length of the reference's vectors.

    Attributes
    ----------
    utterance : float
        Length of the difference of the utterance vectors.
    frames : float
        Length of the largest difference of two frames, against the root mean square length of the reference's; 1 where
        there are not as many.
    cosine : float
        Of the utterance vectors.
    """

    utterance: float
    frames: float
    cosine: float

    @property
    def largest(self) -> float:
        """Of the utterance vectors or of a frame."""
        return max(self.utterance, self.frames)


def difference(reference: Embedding, other: Embedding) -> Difference:
    """Compare two embeddings of one window."""
    utterance = _share(np.linalg.norm(other.utterance - reference.utterance), np.linalg.norm(reference.utterance))
    frames = 1.0
    if len(reference.frames) == len(other.frames):
        apart = np.linalg.norm(other.frames - reference.frames, axis=1)
        frames = _share(apart.max(), np.sqrt(np.mean(np.square(reference.frames).sum(axis=1))))
    return Difference(utterance=utterance, frames=frames, cosine=cosine(reference.utterance, other.utterance))


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Cosine of two vectors; 1 for two that are zero."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / norms, -1, 1)) if norms else float(not a.any() and not b.any())


def _share(apart: float | np.floating, size: float | np.floating) -> float:
    return float(apart) / (float(size) or 1.0)


def furthest(differences: Iterable[Difference]) -> Difference:
    """The largest difference, and the smallest cosine, of some."""
    found = tuple(differences)
    return Difference(
        utterance=max(each.utterance for each in found),
        frames=max(each.frames for each in found),
        cosine=min(each.cosine for each in found),
    )
