"""Power of paired tests: the smallest difference that they find, and the number of clips that a difference takes.

A true difference of t(1 - 0.05 / 2m) s + t(0.8) s' is found with a power of 80 % (Bloom 1995), for m pairs, the
standard error s of the test and s' of the difference. The level is Bonferroni's; Holm's procedure rejects whatever it
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.comparison import ALPHA, Paired
from featstore.metrics.jackknife import MAX_UNITS

__all__ = ["MAX_FACTOR", "POWER", "clip_factors", "smallest_differences"]

POWER = 0.8
MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class _Tests:
    """The tests of several pairs as arrays float64 (pairs,)."""

    difference: NDArray[np.float64]
    units: NDArray[np.float64]
    lump: NDArray[np.float64]
    seeds: NDArray[np.float64]
    unit_df: NDArray[np.float64]
    seed_df: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: Sequence[Paired]) -> _Tests:
        columns = np.array(
            [
                (abs(each.difference), each.variance, each.lump, each.seed_variance, each.unit_df, each.seed_df)
                for each in pairs
            ],
            np.float64,
        ).reshape(len(pairs), 6)
        difference, variance, lump, seeds, unit_df, seed_df = columns.T
        return cls(difference, np.maximum(variance - lump - seeds, 0.0), lump, seeds, unit_df, seed_df)

    def smallest_difference(self, factor: float | NDArray[np.float64], *, n_tests: int) -> NDArray[np.float64]:
        """Difference that is found with the power, with `factor` times the test clips.

        The test compares with a variance that includes its two added units; the difference itself varies without them.
        More units have a smaller part in it, until there are `MAX_UNITS`, which then contain more clips each.
        """
        from scipy.special import stdtrit

        n_units = self.unit_df + 1.0
        growth = np.maximum(1.0, np.minimum(factor, MAX_UNITS / n_units))
        clips = (self.units + self.lump / growth) / factor
        df = n_units * growth - 1.0
        both = clips**2 / df + self.seeds**2 / self.seed_df
        df = np.where(both > 0, (clips + self.seeds) ** 2 / np.where(both > 0, both, 1.0), df)
        critical = stdtrit(df, 1.0 - ALPHA / (2.0 * n_tests)) * np.sqrt(clips + self.seeds)
        found: NDArray[np.float64] = critical + stdtrit(df, POWER) * np.sqrt(self.units / factor + self.seeds)
        return found


def smallest_differences(pairs: Sequence[Paired]) -> NDArray[np.float64]:
    """True differences that are found with the power, float64 (pairs,), at 5 % over all of the pairs."""
    return _Tests.of(pairs).smallest_difference(1.0, n_tests=len(pairs))


def clip_factors(pairs: Sequence[Paired], *, n_tests: int) -> NDArray[np.float64]:
    """How many times the test clips find the observed differences with the power, float64 (pairs,).

    Infinite where the difference is 0, or where it takes more than `MAX_FACTOR` times the clips, as it does if the
    variance over seeds alone is too large.
    """
    tests = _Tests.of(pairs)
    low, high = np.zeros(len(pairs)), np.full(len(pairs), np.log(MAX_FACTOR))
    reached = tests.smallest_difference(MAX_FACTOR, n_tests=n_tests) <= tests.difference
    for _ in range(40):
        middle = (low + high) / 2
        enough = tests.smallest_difference(np.exp(middle), n_tests=n_tests) <= tests.difference
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reached & (tests.difference > 0), np.exp(high), np.inf)
