"""Checks that an embedding does not depend on its batch or on padding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.check.bench import Bench, Check, Difference, Verdict, cosine, difference, furthest
from featstore.errors import EncoderError

__all__ = [
    "check_batch_invariance",
    "check_determinism",
    "check_padding",
    "check_padding_beside_a_longer_clip",
    "numeric_limit",
]


# The share of a vector's length that arithmetic alone may move it by: a kernel that is picked by the batch's shape adds
# up in another order. TF32 keeps as many digits of a factor as float16. Ten times as much is a failure.
_LIMITS: Mapping[str, float] = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
_FAILS_AT = 10.0
_SECONDS = (1.0, 4.0)
_GAINS = (1.0, 0.1, 0.001, 1.8, 0.5, 0.02)


def numeric_limit(precision: str) -> float:
    """Relative difference that is put down to arithmetic in this precision."""
    return _LIMITS[precision]


def check_determinism(bench: Bench) -> Check:
    """Encode a batch again and again, and once more after another batch."""
    waves = [bench.window(1.0, seed=seed) for seed in range(4)]
    others = [bench.window(2.0, seed=seed) for seed in range(10, 12)]
    bench.together(waves)  # so that both of the next two come after the same
    first, second = bench.together(waves), bench.together(waves)
    bench.together(others)
    third = bench.together(waves)
    in_a_row = furthest(map(difference, first, second))
    later = furthest(map(difference, second, third))
    found = furthest([in_a_row, later])
    verdict = _verdict(found.largest, bench)
    remembers = in_a_row.largest * 10 < later.largest
    return Check(
        name="determinism",
        verdict=verdict,
        measured=f"one batch three times, another between: {_apart(found)}",
        advice="" if verdict == "ok" else _why_random(bench, remembers=remembers),
        figures={"max_relative_difference": found.largest, "min_cosine": found.cosine},
    )


def _why_random(bench: Bench, *, remembers: bool) -> str:
    training = [name or "the encoder" for name, module in bench.encoder.module.named_modules() if module.training]
    if training:
        return f"{', '.join(training[:3])} is in training mode, so dropout is on: see that eval() reaches it"
    if remembers:
        return "it remembers the batch before: keep no state from one forward to the next"
    return "dropout left on (functional.dropout without training=self.training), or random numbers in forward: take out"


def check_batch_invariance(bench: Bench, *, noise_floor: float) -> Check:
    """Encode windows of one padded length alone and in a batch; they are of different lengths and levels.

    Parameters
    ----------
    noise_floor : float
        Relative difference between two runs of the same.
    """
    name = "batch invariance"
    if noise_floor > numeric_limit(bench.recipe.precision):
        return Check(
            name=name,
            verdict="warning",
            measured=f"cannot be told: two runs of the same differ by {noise_floor:.2g} of their size",
            advice="fix determinism first",
        )
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
        else "something reaches across the batch (BatchNorm on batch statistics, audio scaled by the batch's peak): "
        "compute it for each row by itself",
        figures={"max_relative_difference": found.largest, "min_cosine": found.cosine},
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
    limit = numeric_limit(bench.recipe.precision)
    return "ok" if relative <= limit else "warning" if relative <= _FAILS_AT * limit else "failed"


_PADDING_SECONDS = (
    0.31,
    0.51,
    1.01,
    2.01,
    5.01,
    10.01,
)  # just above a multiple of the usual quantum: nearly all of it is added
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
    """Encode windows as they are, and padded by the recipe's rule; compare what both have.

    Frames are compared as far as both have them: the padded window often has one more at its end.
    """
    name = "padding"
    if bench.recipe.padding in ("exact", "xares"):
        rule = "nothing is added to a window" if bench.recipe.padding == "exact" else "as X-ARES does: see the next"
        return Check(name=name, verdict="ok", measured=f"{rule} (--padding {bench.recipe.padding})")
    limit = numeric_limit(bench.recipe.precision)
    if noise_floor > limit:
        return Check(
            name=name,
            verdict="warning",
            measured=f"cannot be told: two runs of the same differ by {noise_floor:.2g} of their size",
            advice="fix determinism first",
        )
    found, unread = _by_length(bench)
    if not found:
        return Check(
            name=name,
            verdict="ok",
            measured="cannot be told: forward fails on every window that is not padded; --padding exact is not for it",
        )
    told = ", ".join(f"{100 * moved:.2g} % at {seconds:g} s" for seconds, moved in found.items())
    verdict = _padding_verdict(found, limit)
    note = f" (forward fails without at {', '.join(f'{each:g}' for each in unread)} s)" if unread else ""
    return Check(
        name=name,
        verdict=verdict,
        measured=f"up to a multiple of {bench.recipe.padding} s, it moves the utterance vector by "
        f"{told if max(found.values()) > _ROUNDING else 'no more than rounding does'}{note}",
        advice="" if verdict == "ok" else _LEAKS,
        figures={"relative_difference_by_seconds": {f"{seconds:g}": moved for seconds, moved in found.items()}},
    )


def _by_length(bench: Bench) -> tuple[dict[float, float], list[float]]:
    """How far padding moves the utterance vector by seconds of the window, and lengths that cannot do without."""
    found, unread = {}, []
    for seconds in filter(bench.is_one_window, _PADDING_SECONDS):
        wave = bench.window(seconds)
        try:
            exact = bench.exactly(wave)
        except EncoderError:  # too short or too long for it: other checks tell
            unread.append(seconds)
            continue
        padded = bench.alone(wave)
        n_frames = min(len(exact.frames), len(padded.frames))
        found[seconds] = difference(exact.first(n_frames), padded.first(n_frames)).utterance
    return found, unread


def _padding_verdict(found: dict[float, float], limit: float) -> Verdict:
    """Of a window shorter than a second much may be padding: it warns, and does not fail."""
    longer = max((moved for seconds, moved in found.items() if seconds >= _FAILS_FROM_SECONDS), default=0.0)
    if longer > max(_PADDING_FAILS_AT, limit):
        return "failed"
    return "warning" if max(found.values()) > max(_WARNS_AT, limit) else "ok"


def check_padding_beside_a_longer_clip(bench: Bench) -> Check:
    """Encode a short window padded to the length of a longer one, and pool over all of it, as X-ARES does.

    It is not what this project does unless it is asked to, so it fails nothing.
    """
    wave = bench.window(_SHORT_SECONDS)
    alone = bench.untrimmed_to(wave, padded=len(wave))
    cosines: dict[float, float] = {}
    for seconds in filter(bench.is_one_window, _NEIGHBOURS_SECONDS):
        try:
            beside = bench.untrimmed_to(wave, padded=bench.pad(round(seconds * bench.rate_hz)))
        except EncoderError:  # too long for it: the check of long audio tells
            continue
        cosines[seconds] = cosine(alone.utterance, beside.utterance)
    told = " and ".join(f"{each:.3f} beside one of {seconds:g} s" for seconds, each in cosines.items())
    is_used = bench.recipe.padding == "xares"
    moved = is_used and min(cosines.values(), default=1.0) < 1 - _WARNS_AT
    return Check(
        name="padding of X-ARES",
        verdict="warning" if moved else "ok",
        measured=f"a window of {_SHORT_SECONDS:g} s, padded and pooled as X-ARES does: cosine with itself {told}"
        + ("" if is_used else "; not so under this --padding"),
        advice="an embedding depends on its neighbours: --padding xares is for reproducing X-ARES's scores alone"
        if moved
        else "",
        figures={"cosine_by_seconds": {f"{seconds:g}": each for seconds, each in cosines.items()}},
    )
