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

__all__ = [
    "ALPHA",
    "Paired",
    "difference_over_tasks",
    "effective_number",
    "holm",
    "mcnemar",
    "paired_difference",
    "weighted_difference",
]

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
    unit_df : float
        Degrees of freedom of the part of the variance that more units would reduce.
    seed_variance, seed_df : float
        The part of the variance that is due to seeds, and its degrees of freedom.
    exact_p : float or None
        p value of McNemar's test, if it applies.
    """

    difference: float
    variance: float
    df: float
    lump: float
    unit_df: float
    seed_variance: float = 0.0
    seed_df: float = 1.0
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
        unit_df=n - 1.0,
        seed_variance=sum(variance for variance, _ in seed_variances),
        seed_df=degrees_of_freedom(seed_variances) if seed_variances else 1.0,
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
    seeds = [(square * each.seed_variance, each.seed_df) for square, each in zip(squares, pairs, strict=True)]
    units = [
        (square * (each.variance - each.lump - each.seed_variance), each.unit_df)
        for square, each in zip(squares, pairs, strict=True)
    ]
    return Paired(
        difference=sum(weight * each.difference for weight, each in zip(weights, pairs, strict=True)),
        variance=sum(variance for variance, _ in parts),
        df=degrees_of_freedom(parts),
        lump=lump,
        unit_df=degrees_of_freedom(units),
        seed_variance=sum(variance for variance, _ in seeds),
        seed_df=degrees_of_freedom(seeds),
    )


def difference_over_tasks(differences: NDArray[np.float64], weights: Sequence[float]) -> Paired:
    """Average differences over tasks that are a sample of other tasks, by the delete-one jackknife over tasks.

    The difference of each task includes its test clips and seeds, so that their variance is part of that over tasks
    (Davison and Hinkley 1997, section 3.8). The degrees of freedom are those of equal variances with these weights.

    Parameters
    ----------
    differences : float64 (tasks,)
        At least two.
    weights : sequence of float
        Their sum is 1.
    """
    shares = np.array(weights, np.float64)
    n = len(differences)
    mean = float(shares @ differences)
    without = shares * (differences - mean) / (1.0 - shares)
    df = effective_number(weights) - 1.0
    return Paired(
        difference=mean,
        variance=(n - 1) / n * float(np.square(without).sum()),
        df=df,
        lump=0.0,
        unit_df=df,
    )


def effective_number(weights: Sequence[float]) -> float:
    """Number of equally weighted tasks that determine a variance as well as tasks of these weights.

    >>> effective_number([0.25] * 4)
    4.0
    """
    squares = np.square(np.array(weights, np.float64))
    return float(squares.sum() ** 2 / np.square(squares).sum())


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
