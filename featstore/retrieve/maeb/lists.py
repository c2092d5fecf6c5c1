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

__all__ = ["N_DIFFERENT", "N_SAME", "Pairs", "candidates_of", "draw_others", "pairs_of", "sameness"]

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


def pairs_of(drawn: NDArray[np.int64]) -> Pairs:
    """Pair each clip with one that is the same and one that is different: the first of each kind in `draw_others`.

    mteb's audio tasks have as many pairs of one kind as of the other (CREMADPairClassification: 3,714 each).
    """
    others = drawn[:, [0, N_SAME]]
    first, kind = np.nonzero(others >= 0)
    return Pairs(first=first, second=others[first, kind], same=kind == 0)


def candidates_of(drawn: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the clips of `draw_others` with another that is the same as queries.

    Returns
    -------
    int64 (queries,), int64 (queries, 21)
        The queries, and their candidates.
    """
    queries = np.flatnonzero((drawn[:, :N_SAME] >= 0).any(axis=1))
    return queries, drawn[queries]


def draw_others(values: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
    """Draw for each clip five that are the same, and behind them 16 that are different, or all there are.

    Returns
    -------
    int64 (clips, 21)
        -1 where there are fewer of a kind.
    """
    order, rng = name_order(names), np.random.default_rng(SEED)
    drawn = np.full((len(order), N_SAME + N_DIFFERENT), -1)
    for rows, same in sameness(values[order]):
        keys = rng.random(same.shape)  # of several clips, those with the lowest keys are drawn
        other = ~same
        other[np.arange(len(same)), np.arange(rows.start, rows.stop)] = False
        for kind, n, first in ((same, N_SAME, 0), (other, N_DIFFERENT, N_SAME)):
            key = np.where(kind, keys, np.inf)
            n_drawn = min(n, len(order))
            place = np.argpartition(key, n_drawn - 1, axis=1)[:, :n_drawn]
            lowest = np.take_along_axis(key, place, axis=1)
            by_key = np.argsort(lowest, axis=1)
            place, lowest = (np.take_along_axis(each, by_key, axis=1) for each in (place, lowest))
            drawn[order[rows], first : first + n_drawn] = np.where(np.isfinite(lowest), order[place], -1)
    return drawn
