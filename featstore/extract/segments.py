"""Segments of recordings, cut at the sample and stored without loss."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from featstore.errors import UnusableClip
from featstore.extract.audio import cut_file

__all__ = ["Span", "read_segment", "span_from_duration", "span_from_end"]

MAX_OVERSHOOT_SECONDS = 0.5
"""How far a segment may end after its recording: it is then cut there, as in Kaldi's extract-segments."""

Span = Callable[[int], tuple[int, int | None]]
"""Takes a sample rate and returns the first sample and the one after the last; None is the end of the recording."""


def _samples(seconds: float, rate_hz: int) -> int:
    """Seconds in samples, rounded to the nearest and halves up, which is lhotse's rule.

    >>> _samples(0.25, 16_000), _samples(0.00003125, 16_000)
    (4000, 1)
    """
    return int(Decimal(round(seconds * rate_hz, ndigits=8)).quantize(0, rounding=ROUND_HALF_UP))


def span_from_end(start: float, end: float | None) -> Span:
    """The span from `start` to `end` in seconds: segments that meet in a time share no sample and lose none."""
    return lambda rate_hz: (_samples(start, rate_hz), None if end is None else _samples(end, rate_hz))


def span_from_duration(start: float, duration: float) -> Span:
    """The span of `duration` seconds from `start`: its length depends on the duration alone, as in lhotse."""

    def span(rate_hz: int) -> tuple[int, int]:
        first = _samples(start, rate_hz)
        return first, first + _samples(duration, rate_hz)

    return span


def read_segment(path: Path, span: Span, *, channels: tuple[int, ...] | None = None) -> tuple[str, bytes]:
    """Cut a segment out of a recording; `channels` are those to keep, by default all.

    Raises
    ------
    UnusableClip
        The recording cannot be read, or the segment is not in it.
    OSError
        There is no such file.
    """
    if not path.is_file():
        with path.open("rb"):  # raises the reason
            raise UnusableClip("its recording is not a regular file")
    return cut_file(path, span=span, channels=channels, max_overshoot_seconds=MAX_OVERSHOOT_SECONDS)
