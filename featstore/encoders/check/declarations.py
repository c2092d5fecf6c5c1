"""Checks of what an encoder declares (contract, hop, identity), and of the inputs that it accepts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from featstore.encoders.canary import cosine
from featstore.encoders.check.bench import Bench, Check, Embedding, Verdict, clipped
from featstore.errors import EncoderContractError, EncoderError
from featstore.records import sha256_of

__all__ = [
    "broken_contract",
    "check_clipped",
    "check_contract",
    "check_float16_range",
    "check_hop",
    "check_short",
    "check_silence",
    "identity_check",
]


CONTRACT = "contract"


def check_contract(bench: Bench) -> Check:
    """Encode one second, and report the encoder's declarations and output."""
    facts, recipe = bench.encoder.facts, bench.recipe
    seen: list[torch.dtype] = []
    handle = bench.encoder.module.register_forward_hook(lambda _, __, output: seen.extend(_dtypes(output)))
    try:
        embedding = bench.alone(bench.window(1.0))
    finally:
        handle.remove()
    returned = str(seen[0]).removeprefix("torch.") if seen else "unknown"
    own = "no" if embedding.is_pooled else "yes"
    return Check(
        name=CONTRACT,
        verdict="ok",
        measured=(
            f"1 s at {facts.sample_rate_hz:,} Hz gives {len(embedding.frames)} {returned} frames, {recipe.dim} wide; "
            f"takes lengths: {'yes' if facts.takes_lengths else 'no'}; own utterance vector: {own}"
        ),
        figures={
            "encoder": bench.encoder.name,
            "fingerprint": recipe.fingerprint,
            "device": bench.device,
            "precision": recipe.precision,
            "padding": recipe.padding,
            "frame_dtype": recipe.frame_dtype,
            "sample_rate_hz": facts.sample_rate_hz,
            "dim": recipe.dim,
            "hop_seconds": recipe.hop_seconds,
            "takes_lengths": facts.takes_lengths,
            "own_utterance": not embedding.is_pooled,
            "returned_dtype": returned,
        },
    )


def broken_contract(error: EncoderContractError) -> Check:
    """Return the failed check of an encoder that could not be loaded."""
    return Check(
        name=CONTRACT,
        verdict="failed",
        measured=str(error),
        advice="fix this first: the other checks need an encoder that keeps the contract",
    )


def _dtypes(output: object) -> Iterator[torch.dtype]:
    """Yield the dtypes of the tensors in the output of a forward pass."""
    if isinstance(output, torch.Tensor):
        yield output.dtype
    elif isinstance(output, (tuple, list, dict)):
        for each in output.values() if isinstance(output, dict) else output:
            yield from _dtypes(each)


HOP = "hop"
_HOP_SECONDS = (1.0, 2.25, 3.25, 4.75, 6.0, 8.25, 10.25, 20.0)  # irregular, so that rounding errors do not align
_FEWEST_LENGTHS = 3
_MOST_FRAMES_OFF_IN_10_S = 1.0


def check_hop(bench: Bench) -> Check:
    """Count the frames of inputs of several lengths, and fit a line by least squares.

    Rounding to complete frames changes the slope over these lengths by less than the tolerance of one frame in ten
    seconds.
    """
    declared = bench.recipe.hop_seconds
    frames_by_length = _frames_by_length(bench)
    lengths, counts = list(frames_by_length), list(frames_by_length.values())
    figures: dict[str, object] = {
        "declared_hop_seconds": declared,
        "frames_by_seconds": {f"{length / bench.rate_hz:g}": count for length, count in frames_by_length.items()},
    }
    if len(lengths) == 1:  # the recipe pads every window to the encoder's fixed input
        frames_per_second = counts[0] * bench.rate_hz / lengths[0]
    elif min(counts) == max(counts):
        return _same_for_every_length(counts[0], declared, figures)
    else:
        frames_per_second = float(np.polyfit(np.array(lengths) / bench.rate_hz, counts, 1)[0])
    if frames_per_second <= 0:
        return _same_for_every_length(max(counts), declared, figures)
    off = 10 * (frames_per_second - 1 / declared)
    measured = 1000 / frames_per_second
    figures |= {"measured_hop_seconds": measured / 1000, "frames_off_in_10_s": off}
    # over shorter lengths, rounding by a frame changes the slope more
    wrong = abs(off) > _MOST_FRAMES_OFF_IN_10_S * _HOP_SECONDS[-1] / min(_HOP_SECONDS[-1], lengths[-1] / bench.rate_hz)
    return Check(
        name=HOP,
        verdict="failed" if wrong else "ok",
        measured=f"declared {1000 * declared:g} ms, measured {measured:.4g} ms: {abs(off):.2f} frames off in 10 s",
        advice=f"events and trimming would be wrong: hop_size_in_ms must be {measured:.4g}" if wrong else "",
        figures=figures,
    )


def _same_for_every_length(count: int, declared: float, figures: dict[str, object]) -> Check:
    many = f"{count:,} frames" if count > 1 else "one frame"
    return Check(
        name=HOP,
        verdict="warning",
        measured=f"declared {1000 * declared:g} ms, but forward returns {many} for every length: not measured",
        advice="frames do not follow time: do not use it for tasks that score frames"
        if count == 1
        else "it pads or cuts its input to one length: check that the hop is correct, and crop clips to that length",
        figures=figures,
    )


def _frames_by_length(bench: Bench) -> dict[int, int]:
    """Count frames by number of samples, for lengths of one window; raises its error if it accepts fewer than three."""
    found: dict[int, int] = {}
    rejected: EncoderError | None = None
    lengths = sorted(
        {bench.pad(round(seconds * bench.rate_hz)) for seconds in filter(bench.is_one_window, _HOP_SECONDS)}
    )
    for length in lengths:
        try:
            found[length] = len(bench.untrimmed_to(bench.tones(length / bench.rate_hz), padded=length).frames)
        except EncoderError as error:  # too long for the encoder: the check of long audio reports it
            rejected = error
    if rejected is not None and len(found) < _FEWEST_LENGTHS:
        raise rejected
    return found


def identity_check(bench: Bench) -> Check:
    """List the parts of the fingerprint."""
    identity, code = bench.recipe.encoder_identity, bench.encoder.code
    if code:
        names = ", ".join(module.name or "its own file" for module in code)
        made_of = f"{len(code)} modules of code ({names})" if len(code) > 1 else "its own file of code"
    elif "model_sha256" in identity:
        made_of = "the model's file and featstore's own code"
    else:
        made_of = identity.get("distribution") or "featstore's own code"
    n_weights = len(bench.encoder.module.state_dict())
    arguments = ", ".join(sorted(identity.get("arguments", {}))) or "no arguments"
    return Check(
        name="identity",
        verdict="ok",
        measured=f"the fingerprint covers {made_of}; {n_weights} weights and buffers; {arguments}",
        figures={
            "modules": [{"name": each.name, "sha256": each.sha256, "path": each.path} for each in code],
            "identity": dict(identity),
            "identity_sha256": sha256_of(identity),
        },
    )


_SHORT_SECONDS = 0.01
_INPUT_SECONDS = (1.0, 5.0)
_FLOAT16_LARGEST = 65504.0
_NEAR_SHARE = 0.25  # other audio can have frame values a few times as large as these test signals


def check_short(bench: Bench) -> Check:
    """Encode 10 ms padded by the recipe's rule, and without padding."""
    wave = bench.window(_SHORT_SECONDS)
    padded = bench.pad(len(wave)) / bench.rate_hz
    added = f", padded to {padded:g} s," if padded > _SHORT_SECONDS else ""
    n_frames = len(bench.alone(wave).frames)
    note = ""
    if added:
        try:
            bench.exactly(wave)
        except EncoderError:
            note = "; without padding forward fails: do not use --padding exact for such short clips"
    return Check(
        name="10 ms of audio",
        verdict="ok",
        measured=f"10 ms{added} give {n_frames} frame{'s' * (n_frames != 1)}{note}",
        figures={"frames": n_frames, "padded_seconds": padded, "takes_it_unpadded": not note},
    )


def check_silence(bench: Bench) -> Check:
    """Encode digital silence."""
    embeddings = [bench.alone(np.zeros_like(bench.window(seconds))) for seconds in _INPUT_SECONDS]
    zero = not any(each.utterance.any() for each in embeddings)
    varies = max(_varies(each) for each in embeddings)
    over_time = "the same frame throughout" if varies < 1e-4 else f"frames vary by {varies:.2g} of their size over time"
    return Check(
        name="silence",
        verdict="warning" if zero else "ok",
        measured=f"{_listed()} s of it: finite, {'all zeros' if zero else over_time}",
        advice="a zero vector has no direction: the neighbours of a silent clip are random" if zero else "",
        figures={"frames_vary_by": varies, "is_zero": zero},
    )


def _varies(embedding: Embedding) -> float:
    mean = embedding.frames.mean(axis=0)
    size = float(np.linalg.norm(mean)) or 1.0
    return float(np.linalg.norm(embedding.frames - mean, axis=1).max()) / size


def check_clipped(bench: Bench) -> Check:
    """Encode audio that was recorded far too loud."""
    waves = [bench.window(seconds) for seconds in _INPUT_SECONDS]
    clean, loud = [[bench.alone(wave) for wave in those] for those in (waves, [clipped(wave) for wave in waves])]
    near = min(cosine(a.utterance, b.utterance) for a, b in zip(clean, loud, strict=True))
    return Check(
        name="clipped audio",
        verdict="ok",
        measured=f"{_listed()} s at full scale: finite, cosine with the same unclipped {near:.3f}",
        figures={"min_cosine": near},
    )


def _listed() -> str:
    return " and ".join(f"{seconds:g}" for seconds in _INPUT_SECONDS)


def check_float16_range(bench: Bench) -> Check:
    """Find the largest frame value for audio of several levels and for silence; the limit of float16 is 65,504."""
    wave = bench.window(4.0)
    sounds = [0.01 * wave, wave, 1.9 * wave, clipped(wave), np.zeros_like(wave)]
    largest = 0.0
    for sound in sounds:
        try:
            frames = bench.alone(sound.astype(np.float32)).frames
        except EncoderError:  # on silence or clipped audio: their own checks report it
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
