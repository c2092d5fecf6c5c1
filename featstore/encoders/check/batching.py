"""Checks that an embedding of audio or of a text does not depend on its batch or on padding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.canary import cosine
from featstore.encoders.check.bench import Bench, Check, Difference, Embedding, Verdict, difference, furthest
from featstore.errors import EncoderError

__all__ = [
    "check_batch_invariance",
    "check_determinism",
    "check_padding",
    "check_padding_beside_a_longer_clip",
    "check_text",
]


# Relative change of a vector that arithmetic alone can cause: kernels are selected by the shape of the batch and add in
# another order. Factors have as many significant digits in TF32 as in float16. Ten times as much is a failure.
_LIMITS: Mapping[str, float] = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
_FAILS_AT = 10.0
_SECONDS = (1.0, 4.0)
_GAINS = (1.0, 0.1, 0.001, 1.8, 0.5, 0.02)


def check_determinism(bench: Bench) -> Check:
    """Encode a batch twice, and once more after another batch."""
    waves = [bench.window(1.0, seed=seed) for seed in range(4)]
    others = [bench.window(2.0, seed=seed) for seed in range(10, 12)]
    bench.together(waves)  # so that both of the next runs follow the same batch
    first, second = bench.together(waves), bench.together(waves)
    bench.together(others)
    third = bench.together(waves)
    consecutive = furthest(map(difference, first, second))
    later = furthest(map(difference, second, third))
    found = furthest([consecutive, later])
    verdict = _verdict(found.largest, bench)
    is_stateful = consecutive.largest * 10 < later.largest
    return Check(
        name="determinism",
        verdict=verdict,
        measured=f"one batch three times, with another in between: {_apart(found)}",
        advice="" if verdict == "ok" else _why_random(bench, is_stateful=is_stateful),
        figures={"max_relative_difference": found.largest, "min_cosine": found.cosine},
    )


def _why_random(bench: Bench, *, is_stateful: bool) -> str:
    training = [name or "the encoder" for name, module in bench.encoder.module.named_modules() if module.training]
    if training:
        return f"{', '.join(training[:3])} is in training mode, so dropout is active: make eval() apply to it"
    if is_stateful:
        return "the output depends on the previous batch: keep no state from one forward to the next"
    return "dropout left on (functional.dropout without training=self.training), or random numbers in forward: remove"


def check_batch_invariance(bench: Bench, *, noise_floor: float) -> Check:
    """Encode windows of one padded length, with different lengths and levels, alone and in a batch.

    Parameters
    ----------
    bench : Bench
    noise_floor : float
        Relative difference between two identical runs.
    """
    name = "batch invariance"
    if noise_floor > _LIMITS[bench.recipe.precision]:
        return _too_noisy(name, noise_floor)
    found: Difference = furthest(_alone_and_batched(bench, seconds) for seconds in _SECONDS)
    verdict = _verdict(found.largest, bench)
    return Check(
        name=name,
        verdict=verdict,
        measured=(
            f"{len(_GAINS)} windows of {' and '.join(f'{each:g}' for each in _SECONDS)} s alone and in a batch: "
            f"{_apart(found)}"
        ),
        advice=""
        if verdict == "ok"
        else "rows of a batch affect each other (BatchNorm on batch statistics, audio scaled by the batch's peak): "
        "compute it for each row by itself",
        figures={"max_relative_difference": found.largest, "min_cosine": found.cosine},
    )


def _too_noisy(name: str, noise_floor: float) -> Check:
    return Check(
        name=name,
        verdict="warning",
        measured=f"not measurable: two identical runs differ by {noise_floor:.2g} of their size",
        advice="fix determinism first",
    )


def _alone_and_batched(bench: Bench, seconds: float) -> Difference:
    waves = _of_one_padded_length(bench, seconds)
    pairs = zip(waves, bench.together(waves), strict=True)
    return furthest(difference(bench.alone(wave), batched) for wave, batched in pairs)


def _of_one_padded_length(bench: Bench, seconds: float) -> list[NDArray[np.float32]]:
    longest = len(bench.window(seconds))
    waves = []
    for number, gain in enumerate(_GAINS):
        shorter = longest - round(0.03 * number * bench.rate_hz)
        n_samples = shorter if bench.pad(shorter) == bench.pad(longest) else longest
        waves.append(np.float32(gain) * bench.window(seconds, seed=number)[:n_samples])
    return waves


def _apart(found: Difference) -> str:
    if found.largest == 0:
        return "the same, bit for bit"
    return f"they differ by {found.largest:.2g} of their size, cosine {found.cosine:.6f}"


def _verdict(relative: float, bench: Bench) -> Verdict:
    limit = _LIMITS[bench.recipe.precision]
    return "ok" if relative <= limit else "warning" if relative <= _FAILS_AT * limit else "failed"


_PADDING_SECONDS = (
    0.31,
    0.51,
    1.01,
    2.01,
    5.01,
    10.01,
)  # just above multiples of the usual quantum, so that nearly all of it is padding
_ROUNDING = 1e-5
_WARNS_AT = 0.01
_PADDING_FAILS_AT = 0.05
_FAILS_FROM_SECONDS = 1.0
_SHORT_SECONDS = 1.0
_NEIGHBOURS_SECONDS = (2.0, 10.0)
_LEAKS = (
    "padding leaks into real frames (a mean, norm, attention or stride over all of the input): extract with --padding "
    "exact, or take `lengths` in forward and mask"
)


def check_padding(bench: Bench, *, noise_floor: float) -> Check:
    """Encode windows without padding and padded by the recipe's rule, and compare the frames that both have.

    The padded window often has one more frame at its end, which is ignored.
    """
    name = "padding"
    if bench.recipe.padding in ("exact", "xares"):
        rule = "windows are not padded" if bench.recipe.padding == "exact" else "as in X-ARES: see the next check"
        return Check(name=name, verdict="ok", measured=f"{rule} (--padding {bench.recipe.padding})")
    limit = _LIMITS[bench.recipe.precision]
    if noise_floor > limit:
        return _too_noisy(name, noise_floor)
    found, unread = _by_length(bench)
    if not found:
        return Check(
            name=name,
            verdict="ok",
            measured="not measurable: forward fails on every window without padding; do not use --padding exact",
        )
    changes = ", ".join(f"{100 * moved:.2g} % at {seconds:g} s" for seconds, moved in found.items())
    verdict = _padding_verdict(found, limit)
    note = f" (forward fails without it at {', '.join(f'{each:g}' for each in unread)} s)" if unread else ""
    return Check(
        name=name,
        verdict=verdict,
        measured=f"padding to a multiple of {bench.recipe.padding} s changes the utterance vector by "
        f"{changes if max(found.values()) > _ROUNDING else 'no more than rounding'}{note}",
        advice="" if verdict == "ok" else _LEAKS,
        figures={"relative_difference_by_seconds": {f"{seconds:g}": moved for seconds, moved in found.items()}},
    )


def _by_length(bench: Bench) -> tuple[dict[float, float], list[float]]:
    """Return the change of the utterance vector by window length in seconds, and the lengths that need padding."""
    found, unread = {}, []
    for seconds in filter(bench.is_one_window, _PADDING_SECONDS):
        wave = bench.window(seconds)
        try:
            exact = bench.exactly(wave)
        except EncoderError:  # too short or too long for the encoder: other checks report it
            unread.append(seconds)
            continue
        padded = bench.alone(wave)
        n_frames = min(len(exact.frames), len(padded.frames))
        found[seconds] = difference(exact.first(n_frames), padded.first(n_frames)).utterance
    return found, unread


def _padding_verdict(found: dict[float, float], limit: float) -> Verdict:
    """Return the verdict; windows below a second, which can be mostly padding, cause a warning and no failure."""
    longer = max((moved for seconds, moved in found.items() if seconds >= _FAILS_FROM_SECONDS), default=0.0)
    if longer > max(_PADDING_FAILS_AT, limit):
        return "failed"
    return "warning" if max(found.values()) > max(_WARNS_AT, limit) else "ok"


def check_padding_beside_a_longer_clip(bench: Bench) -> Check:
    """Encode a short window padded to the length of a longer one, and pool over all frames, as X-ARES does.

    featstore does so only under ``--padding xares``, so the check never fails.
    """
    wave = bench.window(_SHORT_SECONDS)
    alone = bench.untrimmed_to(wave, padded=len(wave))
    cosines: dict[float, float] = {}
    for seconds in filter(bench.is_one_window, _NEIGHBOURS_SECONDS):
        try:
            beside = bench.untrimmed_to(wave, padded=bench.pad(round(seconds * bench.rate_hz)))
        except EncoderError:  # too long for the encoder: the check of long audio reports it
            continue
        cosines[seconds] = cosine(alone.utterance, beside.utterance)
    similarities = " and ".join(f"{each:.3f} beside one of {seconds:g} s" for seconds, each in cosines.items())
    is_used = bench.recipe.padding == "xares"
    moved = is_used and min(cosines.values(), default=1.0) < 1 - _WARNS_AT
    return Check(
        name="padding of X-ARES",
        verdict="warning" if moved else "ok",
        measured=f"a window of {_SHORT_SECONDS:g} s, padded and pooled as in X-ARES: cosine with itself {similarities}"
        + ("" if is_used else "; not under this --padding"),
        advice="an embedding depends on its neighbours: use --padding xares only to reproduce scores of X-ARES"
        if moved
        else "",
        figures={"cosine_by_seconds": {f"{seconds:g}": each for seconds, each in cosines.items()}},
    )


_TEXTS = (
    "dog",
    "this is a sound of rain",
    "a car passes by",
    "an orchestra plays a slow waltz while the audience coughs",
)


def check_text(bench: Bench) -> Check:
    """Encode texts together, in another order, and alone."""
    name = "text"
    try:
        together = _of_texts(bench, _TEXTS)
        backwards = _of_texts(bench, _TEXTS[::-1])[::-1]
        alone = [vector for text in _TEXTS for vector in _of_texts(bench, (text,))]
    except EncoderError as error:
        return Check(
            name=name, verdict="failed", measured=str(error), advice="zero-shot scores need it: fix encode_text"
        )
    found = furthest(
        difference(one, other) for others in (backwards, alone) for one, other in zip(together, others, strict=True)
    )
    figures = {"max_relative_difference": found.largest, "min_cosine": found.cosine, "dim": bench.recipe.dim}
    if all(np.array_equal(together[0].utterance, other.utterance) for other in together[1:]):
        measured = f"{len(_TEXTS)} different texts have the same vector"
        return Check(
            name=name, verdict="failed", measured=measured, advice="encode_text ignores the text", figures=figures
        )
    verdict = _verdict(found.largest, bench)
    return Check(
        name=name,
        verdict=verdict,
        measured=f"{len(_TEXTS)} texts together, in reverse order and alone: {_apart(found)}",
        advice=""
        if verdict == "ok"
        else "texts of a batch affect each other, or padding does: pass the attention mask to the text tower",
        figures=figures,
    )


def _of_texts(bench: Bench, texts: tuple[str, ...]) -> list[Embedding]:
    return [Embedding(utterance=each, frames=each[None]) for each in bench.trimmed.encode_texts(texts)]
