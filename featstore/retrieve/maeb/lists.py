"""The pairs and the candidate lists that a labelled task yields, as in mteb's audio tasks.

Clips are drawn with a fixed seed in the order of the SHA-256 of their names, so that lists depend neither on the order
of clips in a store nor on the encoder. Two clips are the same if they have the same class or share a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.jackknife import name_order
from featstore.retrieve.maeb.definitions import SEED

__all__ = ["N_DIFFERENT", "N_SAME", "Pairs", "draw_candidates", "draw_pairs", "sameness"]

N_SAME, N_DIFFERENT = 5, 16
"""Candidates of a query, as in ESC50AudioReranking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of clips: ``first`` and ``second`` int64 (pairs,), and whether they are the ``same``, bool (pairs,)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]


def sameness(values: NDArray[Any]) -> Callable[[int], NDArray[np.bool_]]:
    """Return a function of a clip that gives the clips that are the same, bool (clips,), itself excluded.

    Parameters
    ----------
    values : (clips,) or (clips, n_classes)
        Class indices, or label sets.
    """

    def same_as(clip: int) -> NDArray[np.bool_]:
        same = values == values[clip] if values.ndim == 1 else values @ values[clip] > 0
        same[clip] = False
        return np.asarray(same)

    return same_as


def draw_pairs(values: NDArray[Any], names: Sequence[str]) -> Pairs:
    """Draw for each clip one that is the same and one that is different.

    mteb's audio tasks have as many pairs of one kind as of the other (CREMADPairClassification: 3,714 each).
    """
    first, second, same = [], [], []
    for clip, kinds in _draw(values, names, n_same=1, n_different=1):
        for is_same, drawn in zip((True, False), kinds, strict=True):
            first += [clip] * len(drawn)
            second += drawn
            same += [is_same] * len(drawn)
    return Pairs(first=np.array(first, np.int64), second=np.array(second, np.int64), same=np.array(same, bool))


def draw_candidates(values: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw for each clip, as a query, 5 candidates that are the same and 16 that are different, or all there are.

    Returns
    -------
    int64 (queries,)
        Clips with a candidate that is the same.
    int64 (queries, 21)
        Candidates, first those that are the same; -1 where there are fewer of a kind.
    """
    queries, lists = [], []
    for clip, (same, different) in _draw(values, names, n_same=N_SAME, n_different=N_DIFFERENT):
        if same:
            queries.append(clip)
            missing = [-1] * (N_SAME - len(same)), [-1] * (N_DIFFERENT - len(different))
            lists.append([*same, *missing[0], *different, *missing[1]])
    return np.array(queries, np.int64), np.array(lists, np.int64).reshape(len(queries), N_SAME + N_DIFFERENT)


def _draw(
    values: NDArray[Any], names: Sequence[str], *, n_same: int, n_different: int
) -> list[tuple[int, tuple[list[int], list[int]]]]:
    """Draw for each clip, in the order of its name, some clips that are the same and some that are different."""
    order = name_order(names)
    rng = np.random.default_rng(SEED)
    same_as, ranked = sameness(values[order]), order
    found = []
    for place in range(len(order)):
        same = same_as(place)
        other = ~same
        other[place] = False
        kinds = []
        for members, n in ((np.flatnonzero(same), n_same), (np.flatnonzero(other), n_different)):
            kinds.append(ranked[rng.choice(members, min(n, len(members)), replace=False)].tolist())
        found.append((int(order[place]), (kinds[0], kinds[1])))
    return sorted(found)
