"""Tests whether two or more scores of one test set differ. Every report uses these methods.

- Proportions of clips: McNemar's exact test (1947) on the clips that exactly one of the two encoders classifies
  correctly.
- All other metrics: a t test of the paired deviations of the units (`featstore.metrics.jackknife`). Two units are
  added: the largest difference, with either sign. This is the adjustment of the paired interval by Agresti and Min
  (2005); without it, a difference due to one or two clips would be significant. The variance over seeds is added.
- Several encoders: every pair is tested. Holm's (1979) procedure keeps the chance of any false "different" in a row of
  a table at 5 % or less, whichever encoder is best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.intervals import degrees_of_freedom, student

__all__ = ["ALPHA", "Paired", "holm", "mcnemar", "paired_difference", "weighted_difference"]

ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A difference of two scores, or of their averages over tasks.

    Attributes
    ----------
    difference : float
    variance, df : float
        Variance of the difference, including ``lump``, and its degrees of freedom.
    lump : float
        Variance of the two added units.
    exact_p : float or None
        p value of McNemar's test, if it applies.
    """

    difference: float
    variance: float
    df: float
    lump: float
    exact_p: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval."""
        half = student(self.df) * float(np.sqrt(self.variance))
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Two-sided p value: the chance of a difference at least as large if there is none."""
        if self.exact_p is not None:
            return self.exact_p
        if self.variance <= 0:
            return 1.0
        from scipy.special import stdtr

        return float(2.0 * stdtr(self.df, -abs(self.difference) / np.sqrt(self.variance)))


def paired_difference(
    difference: float,
    deviations: NDArray[np.float64],
    *,
    seed_variances: Sequence[tuple[float, float]] = (),
    least_lump: float = 0.0,
    exact_p: float | None = None,
) -> Paired:
    """Compare two scores of the same units.

    Parameters
    ----------
    difference : float
        First score - second score.
    deviations : float64 (units,)
        First - second, of the amount by which each unit raises the score above the mean.
    seed_variances : sequence of (variance, degrees of freedom)
        Of the mean over seeds of each score.
    least_lump : float
        Largest change that one clip can cause, if it is known: a lower bound of the added units.
    exact_p : float, optional
        p value of McNemar's test.
    """
    n = len(deviations)
    lump = 2.0 * max(float(np.abs(deviations + difference / n).max()), least_lump) ** 2
    clips = n / (n - 1) * float(np.square(deviations).sum())
    parts = [(clips + lump, n - 1.0), *seed_variances]
    return Paired(
        difference=difference,
        variance=sum(variance for variance, _ in parts),
        df=degrees_of_freedom(parts),
        lump=lump,
        exact_p=exact_p,
    )


def weighted_difference(pairs: Sequence[Paired], weights: Sequence[float]) -> Paired:
    """Average differences over independent tasks; only the largest of their added units is kept.

    Parameters
    ----------
    pairs : sequence of Paired
    weights : sequence of float
        Their sum is 1.
    """
    squares = [weight**2 for weight in weights]
    lump = max(square * each.lump for square, each in zip(squares, pairs, strict=True))
    parts = [(square * (each.variance - each.lump), each.df) for square, each in zip(squares, pairs, strict=True)]
    parts.append((lump, max(each.df for each in pairs)))
    return Paired(
        difference=sum(weight * each.difference for weight, each in zip(weights, pairs, strict=True)),
        variance=sum(variance for variance, _ in parts),
        df=degrees_of_freedom(parts),
        lump=lump,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p value, from the numbers of clips that only the first and only the second classifies correctly.

    >>> mcnemar(3, 0), mcnemar(6, 0), mcnemar(0, 0)
    (0.25, 0.03125, 1.0)
    """
    from scipy.special import bdtr

    n = only_first + only_second
    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), n, 0.5)))


def holm(p: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Adjust the p values of several tests: rejecting those below alpha is wrong anywhere with chance at most alpha.

    >>> holm({(0, 1): 0.01, (0, 2): 0.04, (1, 2): 0.03})
    {(0, 1): 0.03, (1, 2): 0.06, (0, 2): 0.06}
    """
    adjusted: dict[tuple[int, int], float] = {}
    largest = 0.0
    for rank, pair in enumerate(sorted(p, key=lambda pair: p[pair])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[pair]))
        adjusted[pair] = largest
    return adjusted
