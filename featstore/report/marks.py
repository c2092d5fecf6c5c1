"""Significance marks and rank ranges of the encoders of one task: one rule for every report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from featstore.metrics.comparison import ALPHA, Paired, holm

__all__ = ["NO_MARKS", "Marks", "marks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Marks of the columns of one row.

    Attributes
    ----------
    best : frozenset of int
        Columns with the best score; empty if fewer than two have a score.
    inside_noise : frozenset of int
        Columns that are not significantly different from the best.
    not_comparable : frozenset of int
        Columns that cannot be compared with the best. All other columns are significantly worse.
    ranks : mapping of int
        Column -> first and last possible rank: 1 + the number of significantly better columns, and the number of
        columns - the number of significantly worse ones.
    order : tuple of int
        The compared columns, the best first.
    pairs : mapping
        Two columns -> test of first - second, without those that cannot be compared.
    adjusted : mapping
        Two columns -> p value after Holm's correction.
    """

    best: frozenset[int]
    inside_noise: frozenset[int]
    not_comparable: frozenset[int]
    ranks: dict[int, tuple[int, int]]
    order: tuple[int, ...] = ()
    pairs: Mapping[tuple[int, int], Paired] = field(default_factory=dict)
    adjusted: Mapping[tuple[int, int], float] = field(default_factory=dict)


NO_MARKS = Marks(best=frozenset(), inside_noise=frozenset(), not_comparable=frozenset(), ranks={})


def marks_of(
    values: Sequence[float | None], *, lower_is_better: bool, pair: Callable[[int, int], Paired | None]
) -> Marks:
    """Test every pair of a row, and mark its columns.

    Holm's correction over all pairs keeps the family-wise error rate of a row at 5 %. Comparisons with the best alone
    would not be enough, because the same scores determine the best.

    Parameters
    ----------
    values : sequence of float or None
        One per column; None for a column that is not compared.
    pair : callable
        Two columns -> test of first - second; None if they cannot be compared.
    """
    there = [column for column, value in enumerate(values) if value is not None]
    if len(there) < 2:
        return NO_MARKS
    sign = -1.0 if lower_is_better else 1.0
    goodness = {column: sign * (values[column] or 0.0) for column in there}
    top = max(goodness.values())
    best = frozenset(column for column in there if goodness[column] == top)
    leader = min(best)
    tested = {(a, b): pair(a, b) for at, a in enumerate(there) for b in there[at + 1 :]}
    pairs = {columns: each for columns, each in tested.items() if each is not None}
    adjusted = holm({columns: each.p for columns, each in pairs.items()})
    better: dict[int, int] = dict.fromkeys(there, 0)
    worse: dict[int, int] = dict.fromkeys(there, 0)
    for (a, b), p in adjusted.items():
        if p <= ALPHA:
            winner, loser = (a, b) if goodness[a] > goodness[b] else (b, a)
            better[loser] += 1
            worse[winner] += 1
    rivals = {column: (min(leader, column), max(leader, column)) for column in there if column not in best}
    return Marks(
        best=best,
        inside_noise=frozenset(column for column, of in rivals.items() if of in adjusted and adjusted[of] > ALPHA),
        not_comparable=frozenset(column for column, of in rivals.items() if of not in adjusted),
        ranks={column: (1 + better[column], len(there) - worse[column]) for column in there},
        order=tuple(sorted(there, key=lambda column: -goodness[column])),
        pairs=pairs,
        adjusted=adjusted,
    )
