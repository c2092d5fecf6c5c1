"""Plans the windows of a clip: start, stop and padded length. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from featstore.errors import UsageError
from featstore.records import Window

if TYPE_CHECKING:
    from featstore.encoders.encoder import Encoder
    from featstore.records import Recipe

__all__ = ["Padding", "Window", "plan_of", "plan_windows"]

MAX_QUANTUM_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Rule for padding windows.

    ``quantum`` rounds the length of a window up to a multiple of `quantum_seconds`; ``exact`` adds no padding;
    ``xares`` pads to the longest window of the batch, as X-ARES does.
    """

    kind: Literal["quantum", "exact", "xares"]
    quantum_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Padding:
        """Parse ``--padding``.

        >>> Padding.parse("0.25")
        Padding(kind='quantum', quantum_seconds=0.25)
        """
        if text == "exact":
            return cls(kind="exact")
        if text == "xares":
            return cls(kind="xares")
        try:
            quantum = float(text)
        except ValueError:
            quantum = math.nan
        if not 0.0 < quantum <= MAX_QUANTUM_SECONDS:
            raise UsageError(
                f"--padding must be 'exact', 'xares', or seconds above 0 and at most {MAX_QUANTUM_SECONDS:g}: "
                f"got {text!r}"
            )
        return cls(kind="quantum", quantum_seconds=quantum)

    def __str__(self) -> str:
        return f"{self.quantum_seconds:.9g}" if self.kind == "quantum" else self.kind


def plan_windows(
    n_samples: int,
    *,
    crop_seconds: float | None,
    padding: Padding,
    sample_rate_hz: int,
    longest_seconds: float | None = None,
    input_seconds: float | None = None,
) -> tuple[Window, ...]:
    """Windows of a clip of `n_samples`, at least 1.

    Without a crop the clip is one window. With a crop, windows are consecutive; a clip shorter than the crop is padded
    to it; the remainder of a longer clip is a window by itself, except under ``xares``, which drops it.

    If `longest_seconds` is shorter than that, a clip is cut into the smallest number of windows of equal length, so
    that there is no short remainder. For an encoder with a fixed `input_seconds`, windows are padded to it, except
    under ``xares``.

    >>> plan_windows(12, crop_seconds=5.0, padding=Padding.parse("exact"), sample_rate_hz=1)
    (Window(start=0, stop=5, padded=5), Window(start=5, stop=10, padded=5), Window(start=10, stop=12, padded=2))
    >>> plan_windows(12, crop_seconds=5.0, padding=Padding.parse("xares"), sample_rate_hz=1)
    (Window(start=0, stop=5, padded=5), Window(start=5, stop=10, padded=5))
    >>> plan_windows(12, crop_seconds=None, padding=Padding.parse("exact"), sample_rate_hz=1, longest_seconds=11)
    (Window(start=0, stop=6, padded=6), Window(start=6, stop=12, padded=6))
    """
    if longest_seconds is not None and (crop_seconds is None or longest_seconds < crop_seconds):
        windows = _even(n_samples, longest=max(1, round(longest_seconds * sample_rate_hz)))
        planned = tuple(Window(start, stop, _padded(stop - start, padding, sample_rate_hz)) for start, stop in windows)
    elif crop_seconds is None:
        planned = (Window(0, n_samples, _padded(n_samples, padding, sample_rate_hz)),)
    else:
        planned = _crops(n_samples, max(1, round(crop_seconds * sample_rate_hz)), padding, sample_rate_hz)
    if input_seconds is None or padding.kind == "xares":
        return planned
    least = round(input_seconds * sample_rate_hz)
    return tuple(replace(window, padded=max(least, window.padded)) for window in planned)


def plan_of(encoder: Encoder, recipe: Recipe, *, crop_seconds: float | None) -> Callable[[int], tuple[Window, ...]]:
    """Return a function from the number of samples of a clip to its windows, as extraction plans them."""
    return partial(
        plan_windows,
        crop_seconds=crop_seconds,
        padding=Padding.parse(recipe.padding),
        sample_rate_hz=recipe.sample_rate_hz,
        longest_seconds=encoder.longest_window_seconds(recipe.max_window_seconds),
        input_seconds=encoder.facts.input_seconds,
    )


def _even(n_samples: int, *, longest: int) -> tuple[tuple[int, int], ...]:
    """The smallest number of ranges of at most `longest`, with lengths that differ by at most one sample."""
    count = -(-n_samples // longest)
    bounds = [number * n_samples // count for number in range(count + 1)]
    return tuple(pairwise(bounds))


def _crops(n_samples: int, crop: int, padding: Padding, sample_rate_hz: int) -> tuple[Window, ...]:
    if n_samples < crop:
        return (Window(0, n_samples, crop),)
    complete = tuple(Window(start, start + crop, crop) for start in range(0, n_samples - crop + 1, crop))
    left = n_samples % crop
    if not left or padding.kind == "xares":
        return complete
    rest = Window(n_samples - left, n_samples, min(crop, _padded(left, padding, sample_rate_hz)))
    return (*complete, rest)


def _padded(n_samples: int, padding: Padding, sample_rate_hz: int) -> int:
    if padding.kind != "quantum":
        return n_samples
    quantum = max(1, round(padding.quantum_seconds * sample_rate_hz))
    return -(-n_samples // quantum) * quantum
