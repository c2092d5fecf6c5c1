"""Canary: the encoder's output for reference signals, stored with a recipe and compared by later extractions.

A fingerprint covers only what can be hashed. Versions of libraries and drivers, a data file that is read into a plain
attribute, an unset seed or active dropout are visible in the numbers only. A store therefore keeps the encoder's output
for signals that are generated here, and later extractions encode them again.

There are three signals, each at most one window: noise of 0.3 s, a sweep of 1 s and speech-like pulses of 3 s. Noise at
-46 dB of full scale is added to the last two, since the logarithm of an empty band's rounding errors differs between
machines. The samples are 16-bit numbers, made from SHAKE-128 and from sines that are rounded far more coarsely than
machines differ.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.encoders.encoder import Encoder
from featstore.encoders.runner import EncoderRun
from featstore.errors import EncoderError
from featstore.records import Recipe, Window

__all__ = [
    "TOLERANCES",
    "CanaryReading",
    "Drift",
    "cosine",
    "decimals",
    "furthest_drift",
    "read_canary",
    "read_canary_of",
    "reference_signals",
]

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative change of a vector that arithmetic can cause on another machine or with another number of threads.

The rounding error of a product is u, half a unit in the last place: 6e-8 in float32, 5e-4 in TF32 and float16, 4e-3 in
bfloat16. In float32, sums of some thousand terms in another order are expected to accumulate about 1,000 u over the
layers, with which the first tolerance agrees. In lower precisions, sums are kept in float32, and the errors of single
products average out over terms and frames: 20 u and 13 u.
"""

_SAME_PROCESS = 0.1  # of a tolerance: same device and shape, one after the other
_FLOOR = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Change of an output, relative to the length of the first vector, and the cosine of the two vectors."""

    signal: str
    relative: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryReading:
    """Outputs of an encoder for the reference signals, as plain JSON.

    Attributes
    ----------
    outputs : tuple of mapping
        For each output of the encoder, signal to ``{"utterance": [...], "frames": {"count", "mean", "std"} or None}``,
        or to None if the encoder fails on the signal. Numbers are the shortest decimals that round to the same float32.
    unsteady : Drift or None
        Set if the first signal, encoded again after the others, gave a different output.
    made_by : mapping
        The device, and versions of the software.
    """

    outputs: tuple[Mapping[str, Any], ...]
    unsteady: Drift | None
    made_by: Mapping[str, Any]


@lru_cache(maxsize=8)
def reference_signals(sample_rate_hz: int) -> Mapping[str, NDArray[np.float32]]:
    """Generate the signals by name, float32 (samples,), identical to the last bit on every machine, and read-only."""
    sweep_at = np.arange(sample_rate_hz) / sample_rate_hz
    top_hz = 0.45 * sample_rate_hz
    sweep = 0.5 * np.sin(2 * math.pi * (50.0 * sweep_at + (top_hz - 50.0) / 2 * sweep_at**2))
    at = np.arange(3 * sample_rate_hz) / sample_rate_hz
    pitch_hz = 120.0
    glottis = sum(
        np.cos(2 * math.pi * pitch_hz * k * at) / k for k in range(1, 12) if pitch_hz * k < sample_rate_hz / 2
    )
    syllables = np.clip(np.sin(2 * math.pi * 4.0 * at), 0, None)  # 4 Hz
    pulses = 0.15 * glottis * syllables
    return {
        "noise-0.3s": _sixteen_bits(0.3 * _noise(round(0.3 * sample_rate_hz), seed=0)),
        "sweep-1s": _sixteen_bits(sweep + _FLOOR * _noise(len(sweep), seed=1)),
        "pulses-3s": _sixteen_bits(pulses + _FLOOR * _noise(len(pulses), seed=2)),
    }


def _noise(n_samples: int, *, seed: int) -> NDArray[np.float64]:
    drawn = hashlib.shake_128(f"featstore canary {seed}".encode()).digest(2 * n_samples)
    return np.frombuffer(drawn, "<i2") / 32768.0


def _sixteen_bits(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    rounded = (np.rint(np.clip(samples, -1, 1) * 32767) / 32768).astype(np.float32)
    rounded.flags.writeable = False
    return rounded


def read_canary(
    encoder: Encoder,
    recipe: Recipe,
    *,
    device: str,
    plan: Callable[[int], Sequence[Window]],
    versions: Mapping[str, str],
) -> CanaryReading:
    """Encode the reference signals, each in a separate batch, and the first of them once more.

    Parameters
    ----------
    encoder : Encoder
    recipe : Recipe
        Recipe of any output; its padding and precision are used.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    plan : callable
        Takes a number of samples and returns the windows of such a clip, as planned by extraction; the first is
        encoded.
    versions : mapping
        Versions of the software that affect the numbers.
    """
    run = EncoderRun(encoder, replace(recipe, frame_dtype="float32"), device=device, keep_frames=True)
    with run.at_work():
        return read_canary_of(
            lambda wave: _encoded(run, wave, plan),
            n_outputs=len(encoder.outputs),
            sample_rate_hz=recipe.sample_rate_hz,
            precision=recipe.precision,
            made_by={"device": _named(device), "versions": dict(versions)},
        )


def read_canary_of(
    encode: Callable[[NDArray[np.float32]], tuple[dict[str, Any], ...] | None],
    *,
    n_outputs: int,
    sample_rate_hz: int,
    precision: str,
    made_by: Mapping[str, Any],
) -> CanaryReading:
    """Encode the reference signals one after the other, and the first that can be encoded once more.

    Parameters
    ----------
    encode : callable
        Takes a signal, and returns ``{"utterance", "frames"}`` for each output, or None if it cannot be encoded.
    """
    signals = reference_signals(sample_rate_hz)
    found = {name: encode(wave) for name, wave in signals.items()}
    works = next((name for name, outputs in found.items() if outputs is not None), None)
    again = None if works is None else encode(signals[works])
    outputs = tuple(
        {name: None if each is None else each[at] for name, each in found.items()} for at in range(n_outputs)
    )
    drifts = []
    if works is not None and (first := found[works]) is not None:
        drifts = [_drift(works, each, None if again is None else again[at]) for at, each in enumerate(first)]
    limit = _SAME_PROCESS * TOLERANCES[precision]
    return CanaryReading(
        outputs=outputs,
        unsteady=max((drift for drift in drifts if not drift.relative <= limit), key=_by_size, default=None),
        made_by=made_by,
    )


def _named(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _encoded(
    run: EncoderRun, wave: NDArray[np.float32], plan: Callable[[int], Sequence[Window]]
) -> tuple[dict[str, Any], ...] | None:
    window = plan(len(wave))[0]
    n_samples = window.stop - window.start
    audio = run.blank((1, window.padded))
    audio[0, :n_samples] = wave[window.start : window.stop]
    try:
        encoded = run(audio, np.array([n_samples], np.int64))
    except EncoderError:  # for example, the signal is too short; extraction reports clips that are too short
        return None
    return tuple({"utterance": decimals(each.utterance[0]), "frames": _summary(each.frames)} for each in encoded)


def _summary(frames: tuple[NDArray[Any], ...] | None) -> dict[str, Any] | None:
    if frames is None:
        return None
    values = frames[0].astype(np.float64)
    return {"count": len(values), "mean": _decimal(values.mean()), "std": _decimal(values.std())}


def decimals(vector: NDArray[np.floating[Any]]) -> list[float]:
    """Return the numbers of a vector as the shortest decimals that round to the same float32."""
    return [_decimal(value) for value in vector]


def _decimal(value: Any) -> float:
    return float(str(np.float32(value)))


def furthest_drift(stored: Mapping[str, Any], now: Mapping[str, Any], *, precision: str) -> Drift | None:
    """Return the largest drift between two readings of one output if it exceeds the tolerance of the precision."""
    drifts = [_drift(name, stored[name], now.get(name)) for name in stored if stored[name] is not None]
    found = max(drifts, key=_by_size, default=None)
    return found if found is not None and not found.relative <= TOLERANCES[precision] else None


def _by_size(drift: Drift) -> float:
    return drift.relative


def _drift(signal: str, first: Mapping[str, Any], second: Mapping[str, Any] | None) -> Drift:
    if second is None or len(first["utterance"]) != len(second["utterance"]):
        return Drift(signal=signal, relative=math.inf, cosine=0.0)
    one, other = (np.array(each["utterance"], np.float64) for each in (first, second))
    relative = _share(float(np.linalg.norm(other - one)), float(np.linalg.norm(one)))
    return Drift(
        signal=signal,
        relative=max(relative, _between_frames(first["frames"], second["frames"])),
        cosine=cosine(one, other),
    )


def cosine(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Cosine of two vectors, computed in float64; 1 if both are zero, 0 if one is."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / norms, -1, 1)) if norms else float(not a.any() and not b.any())


def _between_frames(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> float:
    if first is None or second is None:
        return 0.0 if first == second else math.inf
    if first["count"] != second["count"]:
        return math.inf
    size = math.hypot(first["mean"], first["std"])
    return _share(max(abs(first[name] - second[name]) for name in ("mean", "std")), size)


def _share(apart: float, size: float) -> float:
    return apart / size if size else math.inf if apart else 0.0
