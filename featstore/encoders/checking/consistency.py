"""Whether the answer about a window is the same twice, and the same alone as in a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.checking.bench import Bench, Difference, difference, furthest
from featstore.encoders.checking.records import Check, Verdict

__all__ = ["check_batch_invariance", "check_determinism", "numeric_limit"]

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
            advice="mend determinism first",
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
