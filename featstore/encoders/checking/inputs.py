"""How it takes inputs that data sets do hold: a click of 10 ms, silence, clipping; and whether float16 holds it all."""

from __future__ import annotations

import numpy as np

from featstore.encoders.checking.audio import clipped
from featstore.encoders.checking.bench import Bench, Embedding, cosine
from featstore.encoders.checking.records import Check, Verdict
from featstore.errors import EncoderError

__all__ = ["check_clipped", "check_float16_range", "check_short", "check_silence"]

_SHORT_SECONDS = 0.01
_SECONDS = (1.0, 5.0)
_FLOAT16_LARGEST = 65504.0
_NEAR_SHARE = 0.25  # an encoder has heard little here: what it says of other audio may be a few times as large


def check_short(bench: Bench) -> Check:
    """Encode 10 ms under the padding rule, and, to tell, as they are."""
    wave = bench.window(_SHORT_SECONDS)
    padded = bench.pad(len(wave)) / bench.rate_hz
    added = f", padded to {padded:g} s," if padded > _SHORT_SECONDS else ""
    n_frames = len(bench.alone(wave).frames)
    note = ""
    if added:
        try:
            bench.exactly(wave)
        except EncoderError:
            note = "; without padding forward fails: --padding exact is not for clips as short"
    return Check(
        name="10 ms of audio",
        verdict="ok",
        measured=f"10 ms{added} give {n_frames} frame{'s' * (n_frames != 1)}{note}",
        figures={"frames": n_frames, "padded_seconds": padded, "takes_it_unpadded": not note},
    )


def check_silence(bench: Bench) -> Check:
    """Encode digital silence by itself."""
    embeddings = [bench.alone(np.zeros_like(bench.window(seconds))) for seconds in _SECONDS]
    zero = not any(each.utterance.any() for each in embeddings)
    varies = max(_varies(each) for each in embeddings)
    over_time = "the same frame throughout" if varies < 1e-4 else f"frames vary by {varies:.2g} of their size over time"
    return Check(
        name="silence",
        verdict="warning" if zero else "ok",
        measured=f"{_listed()} s of it: finite, {'all zeros' if zero else over_time}",
        advice="a vector of zeros has no direction: the neighbours of a silent clip are chance" if zero else "",
        figures={"frames_vary_by": varies, "is_zero": zero},
    )


def _varies(embedding: Embedding) -> float:
    mean = embedding.frames.mean(axis=0)
    size = float(np.linalg.norm(mean)) or 1.0
    return float(np.linalg.norm(embedding.frames - mean, axis=1).max()) / size


def check_clipped(bench: Bench) -> Check:
    """Encode audio that was recorded far too loud."""
    waves = [bench.window(seconds) for seconds in _SECONDS]
    clean, loud = [[bench.alone(wave) for wave in those] for those in (waves, [clipped(wave) for wave in waves])]
    near = min(cosine(a.utterance, b.utterance) for a, b in zip(clean, loud, strict=True))
    return Check(
        name="clipped audio",
        verdict="ok",
        measured=f"{_listed()} s at full scale: finite, cosine with the same unclipped {near:.3f}",
        figures={"min_cosine": near},
    )


def _listed() -> str:
    return " and ".join(f"{seconds:g}" for seconds in _SECONDS)


def check_float16_range(bench: Bench) -> Check:
    """Find the largest frame value over audio of all levels, and silence; float16 ends at 65,504."""
    wave = bench.window(4.0)
    sounds = [0.01 * wave, wave, 1.9 * wave, clipped(wave), np.zeros_like(wave)]
    largest = 0.0
    for sound in sounds:
        try:
            frames = bench.alone(sound.astype(np.float32)).frames
        except EncoderError:  # of silence or clipping: their own checks tell
            continue
        largest = max(largest, float(np.abs(frames).max()))
    verdict = _range_verdict(largest, bench.recipe.frame_dtype)
    return Check(
        name="float16 range",
        verdict=verdict,
        measured=f"largest frame value {largest:,.4g} of the {_FLOAT16_LARGEST:,.0f} that float16 holds; "
        f"frames are stored as {bench.recipe.frame_dtype}",
        advice="" if verdict == "ok" else "store frames with --dtype float32, or scale them down in forward",
        figures={"largest_frame_value": largest, "share_of_float16": largest / _FLOAT16_LARGEST},
    )


def _range_verdict(largest: float, frame_dtype: str) -> Verdict:
    if frame_dtype != "float16" or largest <= _NEAR_SHARE * _FLOAT16_LARGEST:
        return "ok"
    return "failed" if largest > _FLOAT16_LARGEST else "warning"
