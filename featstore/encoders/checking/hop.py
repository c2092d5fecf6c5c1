"""Whether frames are as far apart as the encoder declares."""

from __future__ import annotations

import numpy as np

from featstore.encoders.checking.bench import Bench
from featstore.encoders.checking.records import Check
from featstore.errors import EncoderError

__all__ = ["check_hop"]

NAME = "hop"
_SECONDS = (1.0, 2.25, 3.25, 4.75, 6.0, 8.25, 10.25, 20.0)  # irregular: rounding to whole frames must not line up
_FEWEST_LENGTHS = 3
_MOST_FRAMES_OFF_IN_10_S = 1.0


def check_hop(bench: Bench) -> Check:
    """Count the frames of inputs of several lengths, and lay a line through them by least squares.

    However the encoder rounds to whole frames, over these lengths that moves the line by less than the frame in ten
    seconds that is forgiven.
    """
    declared = bench.recipe.hop_seconds
    frames_by_length = _frames_by_length(bench)
    lengths, counts = list(frames_by_length), list(frames_by_length.values())
    figures: dict[str, object] = {
        "declared_hop_seconds": declared,
        "frames_by_seconds": {f"{length / bench.rate_hz:g}": count for length, count in frames_by_length.items()},
    }
    if len(lengths) == 1:  # the recipe pads every window to what the encoder asks for
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
    # over shorter lengths a frame of rounding moves the line by more
    wrong = abs(off) > _MOST_FRAMES_OFF_IN_10_S * _SECONDS[-1] / min(_SECONDS[-1], lengths[-1] / bench.rate_hz)
    return Check(
        name=NAME,
        verdict="failed" if wrong else "ok",
        measured=f"declared {1000 * declared:g} ms, measured {measured:.4g} ms: {abs(off):.2f} frames off in 10 s",
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


def _frames_by_length(bench: Bench) -> dict[int, int]:
    """Frames by samples, of lengths that are one window and that the encoder takes: three at least, or its error."""
    found: dict[int, int] = {}
    refused: EncoderError | None = None
    lengths = sorted({bench.pad(round(seconds * bench.rate_hz)) for seconds in filter(bench.is_one_window, _SECONDS)})
    for length in lengths:
        try:
            found[length] = len(bench.untrimmed_to(bench.tones(length / bench.rate_hz), padded=length).frames)
        except EncoderError as error:  # too long for it: the check of long audio tells
            refused = error
    if refused is not None and len(found) < _FEWEST_LENGTHS:
        raise refused
    return found
