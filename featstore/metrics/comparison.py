"""Whether two scores of one test set differ, and which of several: one method for every report. Pure.

- Proportions of clips: McNemar's exact test (1947) of the clips that only one of the two has right.
- Everything else: a t test of the paired deviations of the units (`featstore.metrics.jackknife`), to which two units
  are added, the largest difference with either sign. That is Agresti and Min's (2005) adjustment of the paired
  interval: without it a difference that one or two clips make would be sure of itself. Seeds add their variance.
- Several encoders: every pair is tested, and Holm's (1979) rule keeps the chance of any wrong "different" in a row of a
  table at 5 % or less, whichever of them turns out best.
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
        Of the difference, and the degrees of freedom of that variance; it includes what ``lump`` adds.
    lump : float
        Variance that the two added units have.
    exact_p : float or None
        By McNemar's test, where it applies.
    """

    difference: float
    variance: float
    df: float
    lump: float
    exact_p: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        half = student(self.df) * float(np.sqrt(self.variance))
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Chance of a difference as large, in either direction, where there is none."""
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
        First less second score.
    deviations : float64 (units,)
        First less second, what each unit adds to the score beyond the mean.
    seed_variances : sequence of (variance, degrees of freedom)
        Of either mean over seeds.
    least_lump : float
        What one clip can change at most, where that is known: the added units are at least as large.
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
    weights : sequence of float
        They add up to 1.
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
    """Exact two-sided p of the clips that one of two has right and the other has not.

    >>> mcnemar(3, 0), mcnemar(6, 0), mcnemar(0, 0)
    (0.25, 0.03125, 1.0)
    """
    from scipy.special import bdtr

    n = only_first + only_second
    return min(1.0, 2.0 * float(bdtr(min(only_first, only_second), n, 0.5)))


def holm(p: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Adjust the p of several tests, so that rejecting what is at most alpha is wrong anywhere with at most alpha.

    >>> holm({(0, 1): 0.01, (0, 2): 0.04, (1, 2): 0.03})
    {(0, 1): 0.03, (1, 2): 0.06, (0, 2): 0.06}
    """
    adjusted: dict[tuple[int, int], float] = {}
    largest = 0.0
    for rank, pair in enumerate(sorted(p, key=lambda pair: p[pair])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[pair]))
        adjusted[pair] = largest
    return adjusted
