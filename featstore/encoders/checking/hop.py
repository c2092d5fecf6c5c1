"""Whether frames are as far apart as the encoder declares."""

from __future__ import annotations

import numpy as np

from featstore.encoders.checking.bench import Bench
from featstore.encoders.checking.records import Check

__all__ = ["check_hop"]

NAME = "hop"
_SECONDS = (1.0, 2.25, 3.25, 4.75, 6.0, 8.25, 10.25, 20.0)  # irregular: rounding to whole frames must not line up
_MOST_FRAMES_OFF_IN_10_S = 1.0


def check_hop(bench: Bench) -> Check:
    """Count the frames of inputs of several lengths, and lay a line through them by least squares.

    However the encoder rounds to whole frames, over these lengths that moves the line by less than the frame in ten
    seconds that is forgiven.
    """
    declared = bench.recipe.hop_seconds
    lengths = [bench.pad(round(seconds * bench.rate_hz)) for seconds in _SECONDS if bench.is_one_window(seconds)]
    counts = [len(bench.untrimmed_to(bench.window(length / bench.rate_hz), padded=length).frames) for length in lengths]
    figures = {"declared_hop_seconds": declared, "frames_by_seconds": _table(lengths, counts, bench.rate_hz)}
    if len(set(lengths)) == 1:  # the recipe pads every window to what the encoder asks for
        frames_per_second = counts[0] * bench.rate_hz / lengths[0]
    elif min(counts) == max(counts):
        return _same_for_every_length(counts[0], declared, figures)
    else:
        frames_per_second = float(np.polyfit(np.array(lengths) / bench.rate_hz, counts, 1)[0])
    off = 10 * (frames_per_second - 1 / declared)
    measured = 1000 / frames_per_second
    figures |= {"measured_hop_seconds": measured / 1000, "frames_off_in_10_s": off}
    wrong = abs(off) > _MOST_FRAMES_OFF_IN_10_S
    return Check(
        name=NAME,
        verdict="failed" if wrong else "ok",
        measured=f"declared {1000 * declared:g} ms, measured {measured:.4g} ms: {abs(off):.2g} frames off in 10 s",
        advice=f"events and trimming would go wrong: hop_size_in_ms must be {measured:.4g}" if wrong else "",
        figures=figures,
    )


def _same_for_every_length(count: int, declared: float, figures: dict[str, object]) -> Check:
    many = f"{count:,} frames" if count > 1 else "one frame"
    return Check(
        name=NAME,
        verdict="warning",
        measured=f"declared {1000 * declared:g} ms, but forward returns {many} whatever the length: not measured",
        advice="it has no frames in time: leave tasks that score frames out"
        if count == 1
        else "it pads or cuts its input to one length: see that the hop is right, and crop clips to that length",
        figures=figures,
    )


def _table(lengths: list[int], counts: list[int], rate_hz: int) -> dict[str, int]:
    return {f"{length / rate_hz:g}": count for length, count in zip(lengths, counts, strict=True)}
