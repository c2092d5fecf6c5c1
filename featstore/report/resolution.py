"""What the test clips of a leaderboard can resolve: tie groups, the smallest difference, and how many more clips.

All of it follows from the tests of every pair of encoders (`featstore.report.marks`), after Holm's correction:

- Rank intervals: 1 + the number of significantly better encoders, to the number of encoders - the number of
  significantly worse ones. All of them contain the true ranks at the same time with a chance of 95 % or more
  (Mogstad, Romano, Shaikh and Wilhelm 2024). Percentiles of bootstrapped ranks do not: those of 8 encoders within 6
  points on 5 tasks do so with a chance of 54 % (docs/protocols.md).
- Tie groups: the largest sets of encoders of which no two are significantly different. Each has a letter, and encoders
  that share one are not separated: the compact letter display (Piepho 2004).
- Smallest difference: the true difference that the tests find with a power of 80 % (Bloom 1995). The two-sided level is
  5 % divided by the number of pairs: Bonferroni's, which Holm's procedure never falls below.
- More test clips: the number for which that difference is the observed one. The variance over clips is inversely
  proportional to their number, that over seeds is constant.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featstore.metrics.comparison import ALPHA
from featstore.metrics.power import clip_factors, smallest_differences
from featstore.report.marks import Marks

__all__ = ["Resolution", "Separation", "resolution_of", "tie_groups"]

_LETTERS = string.ascii_lowercase + string.ascii_uppercase


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """Two encoders that follow each other in the order of their scores.

    Attributes
    ----------
    better, worse : int
        Columns.
    difference : float
        Of their scores, 0 or more.
    p : float or None
        After Holm's correction; None if the two cannot be compared.
    separated : bool
        Whether the difference is significant.
    smallest_difference : float or None
        True difference of the two that the tests find with a power of 80 %; None if the two cannot be compared, or the
        difference does not vary over the clips.
    more_clips : int or None
        Number of further test clips with which a true difference as large as the observed one is found with a power of
        80 %, to two significant digits. None if the two are separated or cannot be compared, if they have the same
        score, if the variance over seeds alone is too large, or if tasks are resampled.
    """

    better: int
    worse: int
    difference: float
    p: float | None
    separated: bool
    smallest_difference: float | None
    more_clips: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What one line of a leaderboard can resolve, with a family-wise error rate of 5 % over all pairs of its columns.

    Attributes
    ----------
    over : str
        What is resampled: ``clips``, ``groups`` of clips, or ``tasks``, which includes their clips.
    n : int
        Number of test clips, or of tasks.
    n_pairs : int
        Number of pairs that were tested.
    ranks : tuple of (int, int) or None
        Simultaneous 95 % interval of the rank of each column; None without a score.
    letters : tuple of str
        Letters of the tie groups of each column; empty without a score.
    tie_groups : tuple of tuple of int
        Columns of each tie group, the best first, in the order of the letters.
    smallest_difference : float or None
        True difference that the tests find with a power of 80 %: the median over pairs. None if no difference varies
        over the clips, as between encoders with the same predictions.
    adjacent : tuple of Separation
        Each column with the next one in the order of scores, the best first.
    """

    over: Literal["clips", "groups", "tasks"]
    n: int
    n_pairs: int
    ranks: tuple[tuple[int, int] | None, ...]
    letters: tuple[str, ...]
    tie_groups: tuple[tuple[int, ...], ...]
    smallest_difference: float | None
    adjacent: tuple[Separation, ...]


def resolution_of(
    marks: Marks,
    values: Sequence[float | None],
    *,
    over: Literal["clips", "groups", "tasks"],
    n: int,
) -> Resolution | None:
    """Derive the resolution of one line from the tests of its pairs; None if no pair could be compared.

    Parameters
    ----------
    values : sequence of float or None
        One per column, as for `featstore.report.marks.marks_of`.
    over : str
    n : int
        Number of test clips, or of tasks.
    """
    if not marks.pairs:
        return None
    groups = tie_groups(marks.order, {pair for pair, p in marks.adjusted.items() if p <= ALPHA})
    letters = [""] * len(values)
    for at, group in enumerate(groups):
        for column in group:
            letters[column] += _letter(at)
    found = smallest_differences(list(marks.pairs.values())).tolist()
    smallest = {pair: each for pair, each in zip(marks.pairs, found, strict=True) if each > 0.0}
    neighbours = [(a, b, (min(a, b), max(a, b))) for a, b in zip(marks.order, marks.order[1:], strict=False)]
    close = [key for _, _, key in neighbours if marks.adjusted.get(key, 0.0) > ALPHA and over != "tasks"]
    factors = clip_factors([marks.pairs[key] for key in close], n_tests=len(marks.pairs))
    more = {key: _more_clips(factor, n) for key, factor in zip(close, factors.tolist(), strict=True)}
    return Resolution(
        over=over,
        n=n,
        n_pairs=len(marks.pairs),
        ranks=tuple(marks.ranks.get(column) for column in range(len(values))),
        letters=tuple(letters),
        tie_groups=groups,
        smallest_difference=float(np.median(list(smallest.values()))) if smallest else None,
        adjacent=tuple(
            Separation(
                better=a,
                worse=b,
                difference=abs((values[a] or 0.0) - (values[b] or 0.0)),
                p=marks.adjusted.get(key),
                separated=marks.adjusted.get(key, 1.0) <= ALPHA,
                smallest_difference=smallest.get(key),
                more_clips=more.get(key),
            )
            for a, b, key in neighbours
        ),
    )


def tie_groups(order: Sequence[int], separated: set[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Find the largest sets of columns of which no two are separated, sorted by their members.

    These are the maximal cliques of the graph of pairs that are not separated (Bron and Kerbosch 1973), which the
    insert-and-absorb algorithm of Piepho (2004) finds too.

    Parameters
    ----------
    order : sequence of int
        Columns, the best first.
    separated : set of (int, int)
        Pairs, the lower column first.

    >>> tie_groups([0, 1, 2], {(0, 2)})
    ((0, 1), (1, 2))
    """
    place = {column: at for at, column in enumerate(order)}
    tied: dict[int, set[int]] = {at: {*range(len(order))} - {at} for at in range(len(order))}
    for a, b in separated:
        tied[place[a]].discard(place[b])
        tied[place[b]].discard(place[a])
    found: list[tuple[int, ...]] = []

    def extend(members: tuple[int, ...], candidates: set[int], done: set[int]) -> None:
        if not candidates and not done:
            found.append(tuple(sorted(members)))
            return
        pivot = max(candidates | done, key=lambda each: len(candidates & tied[each]))
        for each in sorted(candidates - tied[pivot]):
            extend((*members, each), candidates & tied[each], done & tied[each])
            candidates = candidates - {each}
            done = done | {each}

    extend((), set(tied), set())
    return tuple(tuple(order[at] for at in group) for group in sorted(found))


def _letter(at: int) -> str:
    turn, place = divmod(at, len(_LETTERS))
    return _LETTERS[place] + (str(turn) if turn else "")


def _more_clips(factor: float, n: int) -> int | None:
    if not np.isfinite(factor):
        return None
    return max(1, int(float(f"{(factor - 1.0) * n:.1e}")))
