"""Maximum length of a clip: lengths are tried in ascending order while time and memory are predicted to suffice."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featstore.encoders.check.bench import Bench, Check, Verdict
from featstore.encoders.memory import free_bytes, is_out_of_memory, peak_bytes
from featstore.errors import EncoderError
from featstore.formatting import spoken_bytes

__all__ = ["Step", "check_long", "foresee", "why_stop"]

NAME = "10 min of audio"
_LENGTHS_SECONDS = (3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MEMORY_SHARE = 0.8
_FRAMES_LOST_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Cost of encoding one window of ``audio_seconds``; ``peak_bytes`` is None if it cannot be measured."""

    audio_seconds: float
    seconds: float
    peak_bytes: int | None
    frames: int


def check_long(bench: Bench, *, budget_seconds: float, on_step: Callable[[str], None]) -> Check:
    """Encode clips of 3 s, 10 s, ... 10 min.

    Parameters
    ----------
    bench : Bench
    budget_seconds : float
        Total time limit; a length that is predicted to exceed it is not tried.
    on_step : callable
        Called with the name of each step before it starts.
    """
    steps: list[Step] = []
    began = time.perf_counter()
    for audio_seconds in _LENGTHS_SECONDS:
        left = budget_seconds - (time.perf_counter() - began)
        stop = why_stop(steps, audio_seconds, left_seconds=left, free_bytes=free_bytes(device=bench.device))
        if stop:
            return _stopped(steps, stop)
        on_step(f"{_spoken(audio_seconds)} of audio")
        try:
            steps.append(_encode(bench, audio_seconds))
        except EncoderError as error:
            return _broke(steps, audio_seconds, error)
    return _went_through(steps)


def _encode(bench: Bench, audio_seconds: float) -> Step:
    wave = bench.tones(audio_seconds)
    frames = 0
    took = 0.0

    def work() -> None:
        nonlocal frames, took
        began = time.perf_counter()
        frames = sum(len(window.frames) for window in bench.clip(wave))
        took = time.perf_counter() - began

    peak = peak_bytes(work, device=bench.device)
    return Step(audio_seconds=audio_seconds, seconds=took, peak_bytes=peak, frames=frames)


def foresee(known: Sequence[tuple[float, float]], at: float) -> float:
    """Extrapolate a growth that is between linear and quadratic: a power law through the last two points.

    >>> foresee([(10.0, 1.0), (30.0, 3.0)], 60.0)
    6.0
    >>> foresee([(10.0, 1.0)], 30.0)
    9.0
    """
    x, y = known[-1]
    exponent = 2.0
    if len(known) > 1 and y > 0 and known[-2][1] > 0:
        before_x, before_y = known[-2]
        exponent = min(2.0, max(1.0, math.log(y / before_y) / math.log(x / before_x)))
    return float(y * (at / x) ** exponent)


def why_stop(steps: Sequence[Step], audio_seconds: float, *, left_seconds: float, free_bytes: int | None) -> str:
    """Return the reason not to try a window of ``audio_seconds`` after these steps, or an empty string."""
    if not steps:
        return ""
    peaks = [(step.audio_seconds, float(step.peak_bytes)) for step in steps if step.peak_bytes is not None]
    if free_bytes is not None and peaks:
        peak = foresee(peaks, audio_seconds)
        if peak > _MEMORY_SHARE * free_bytes:
            return (
                f"{_spoken(audio_seconds)} would take about {spoken_bytes(peak)} of the {spoken_bytes(free_bytes)} "
                "that are free"
            )
    took = foresee([(step.audio_seconds, step.seconds) for step in steps], audio_seconds)
    if took > left_seconds:
        return f"{_spoken(audio_seconds)} would take about {took:,.0f} s, more than the time limit of this check"
    return ""


def _went_through(steps: Sequence[Step]) -> Check:
    first, last = steps[0], steps[-1]
    lost = [step for step in steps if step.frames < (1 - _FRAMES_LOST_SHARE) * _due(first, step)]
    if not lost:
        return _check(steps, verdict="ok", measured=_step_text(last))
    complete = max(step.audio_seconds for step in steps if step not in lost)
    return _check(
        steps,
        verdict="warning",
        measured=f"{_spoken(last.audio_seconds)} give {last.frames:,} frames, {_due(first, last):,.0f} are expected: "
        f"audio after about {_spoken(complete)} is lost",
        advice=_crop(complete),
    )


def _due(first: Step, step: Step) -> float:
    """Return the expected number of frames, by those of the first step; one frame of it can be rounding."""
    return (first.frames - 1) / first.audio_seconds * step.audio_seconds


def _stopped(steps: Sequence[Step], why: str) -> Check:
    last = steps[-1]
    return _check(steps, verdict="warning", measured=f"{_step_text(last)}; {why}", advice=_crop(last.audio_seconds))


def _broke(steps: Sequence[Step], audio_seconds: float, error: EncoderError) -> Check:
    if not steps:
        raise error
    out_of_memory = error.__cause__ is not None and is_out_of_memory(error.__cause__)
    return _check(
        steps,
        verdict="warning" if out_of_memory else "failed",
        measured=f"{_step_text(steps[-1])}; {_spoken(audio_seconds)}: "
        + ("out of memory" if out_of_memory else str(error)),
        advice=_crop(steps[-1].audio_seconds),
    )


def _check(steps: Sequence[Step], *, verdict: Verdict, measured: str, advice: str = "") -> Check:
    figures = {
        "lengths": [
            {
                "audio_seconds": step.audio_seconds,
                "seconds": step.seconds,
                "peak_bytes": step.peak_bytes,
                "frames": step.frames,
            }
            for step in steps
        ]
    }
    return Check(name=NAME, verdict=verdict, measured=measured, advice=advice, figures=figures)


def _step_text(step: Step) -> str:
    memory = "" if step.peak_bytes is None else f", peak memory {spoken_bytes(step.peak_bytes)}"
    return f"{_spoken(step.audio_seconds)} take {step.seconds:.2g} s{memory}"


def _crop(most_seconds: float) -> str:
    return f"cut longer clips with --max-window-seconds {most_seconds:g}, or skip them with --max-clip-seconds"


def _spoken(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"
