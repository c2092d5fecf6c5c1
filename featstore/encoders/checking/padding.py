"""How much of a window's embedding is its padding."""

from __future__ import annotations

from featstore.encoders.checking.bench import Bench, cosine, difference
from featstore.encoders.checking.consistency import numeric_limit
from featstore.encoders.checking.records import Check, Verdict
from featstore.errors import EncoderError

__all__ = ["check_padding", "check_padding_beside_a_longer_clip"]

_SECONDS = (
    0.31,
    0.51,
    1.01,
    2.01,
    5.01,
    10.01,
)  # just above a multiple of the usual quantum: nearly all of it is added
_ROUNDING = 1e-5
_WARNS_AT = 0.01
_FAILS_AT = 0.05
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
            advice="mend determinism first",
        )
    found, unread = _by_length(bench)
    if not found:
        return Check(
            name=name,
            verdict="ok",
            measured="cannot be told: forward fails on every window that is not padded; --padding exact is not for it",
        )
    told = ", ".join(f"{100 * moved:.2g} % at {seconds:g} s" for seconds, moved in found.items())
    verdict = _verdict(found, limit)
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
    for seconds in filter(bench.is_one_window, _SECONDS):
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


def _verdict(found: dict[float, float], limit: float) -> Verdict:
    """Of a window shorter than a second much may be padding: it warns, and does not fail."""
    longer = max((moved for seconds, moved in found.items() if seconds >= _FAILS_FROM_SECONDS), default=0.0)
    if longer > max(_FAILS_AT, limit):
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
