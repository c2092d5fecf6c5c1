"""The pairs and the candidate lists that a labelled task yields, as in mteb's audio tasks.

Clips are drawn with a fixed seed in the order of the SHA-256 of their names, so that lists depend neither on the order
of clips in a store nor on the encoder. Two clips are the same if they have the same class or share a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.jackknife import name_order
from featstore.retrieve.maeb.definitions import SEED

__all__ = ["N_DIFFERENT", "N_SAME", "Pairs", "draw_candidates", "draw_pairs", "sameness"]

N_SAME, N_DIFFERENT = 5, 16
"""Candidates of a query, as in ESC50AudioReranking."""

CLIPS_PER_BLOCK = 256
"""Clips that are compared with all clips at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of clips: ``first`` and ``second`` int64 (pairs,), and whether they are the ``same``, bool (pairs,)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]


def sameness(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """Yield blocks of clips with whether all clips are the same as each of them, bool (block, clips); itself is not.

    Parameters
    ----------
    values : (clips,) or (clips, n_classes)
        Class indices, or label sets.
    """
    for start in range(0, len(values), CLIPS_PER_BLOCK):
        some = values[start : start + CLIPS_PER_BLOCK]
        same = some[:, None] == values if values.ndim == 1 else some @ values.T > 0
        rows = np.arange(len(some))
        same[rows, start + rows] = False
        yield slice(start, start + len(some)), np.asarray(same)


def draw_pairs(values: NDArray[Any], names: Sequence[str]) -> Pairs:
    """Draw for each clip one that is the same and one that is different.

    mteb's audio tasks have as many pairs of one kind as of the other (CREMADPairClassification: 3,714 each).
    """
    drawn = _draw(values, names, n_same=1, n_different=1)
    first, kind = np.nonzero(drawn >= 0)
    return Pairs(first=first, second=drawn[first, kind], same=kind == 0)


def draw_candidates(values: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw for each clip, as a query, 5 candidates that are the same and 16 that are different, or all there are.

    Returns
    -------
    int64 (queries,)
        Clips with a candidate that is the same.
    int64 (queries, 21)
        Candidates, first those that are the same; -1 where there are fewer of a kind.
    """
    drawn = _draw(values, names, n_same=N_SAME, n_different=N_DIFFERENT)
    queries = np.flatnonzero((drawn[:, :N_SAME] >= 0).any(axis=1))
    return queries, drawn[queries]


def _draw(values: NDArray[Any], names: Sequence[str], *, n_same: int, n_different: int) -> NDArray[np.int64]:
    """Draw for each clip some that are the same, and behind them some that are different; -1 where there are fewer."""
    order, rng = name_order(names), np.random.default_rng(SEED)
    drawn = np.full((len(order), n_same + n_different), -1)
    for rows, same in sameness(values[order]):
        keys = rng.random(same.shape)  # of several clips, those with the lowest keys are drawn
        other = ~same
        other[np.arange(len(same)), np.arange(rows.start, rows.stop)] = False
        for kind, n, first in ((same, n_same, 0), (other, n_different, n_same)):
            key = np.where(kind, keys, np.inf)
            n_drawn = min(n, len(order))
            place = np.argpartition(key, n_drawn - 1, axis=1)[:, :n_drawn]
            lowest = np.take_along_axis(key, place, axis=1)
            by_key = np.argsort(lowest, axis=1)
            place, lowest = (np.take_along_axis(each, by_key, axis=1) for each in (place, lowest))
            drawn[order[rows], first : first + n_drawn] = np.where(np.isfinite(lowest), order[place], -1)
    return drawn
