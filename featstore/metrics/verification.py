"""Verification metrics of scored pairs: equal error rate, minimum detection cost, average precision and d'.

The clips of the pairs are the independent units, not the pairs: a clip is in many pairs. The delete-one jackknife
removes all pairs of a clip or group together, as for U-statistics (Arvesen 1969).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.ranking import crossing, distance_of, limited

__all__ = ["PAIR_METRICS", "TARGET_PRIOR", "PairScores", "score_pairs"]

TARGET_PRIOR = 0.01
"""Share of same pairs that the detection cost assumes; a miss and a false alarm cost the same."""

PAIR_METRICS = ("eer", "min_dcf", "average_precision", "roc_area")

N_CUTS = 512
"""Number of thresholds of the curves without a unit: at equal steps of both rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Scores of pairs, and what each unit contributes.

    Attributes
    ----------
    values : mapping
        By name of `PAIR_METRICS`.
    deviations : mapping
        By name: float64 (units,), score - score without the pairs of the unit, on curves of `N_CUTS` thresholds. NaN if
        the pairs without a unit are all of one kind.
    n_same, n_different : float
        Numbers of pairs that the scored ones stand for.
    """

    values: Mapping[str, float]
    deviations: Mapping[str, NDArray[np.float64]]
    n_same: float
    n_different: float

    @property
    def d_prime(self) -> float:
        """sqrt(2) times the normal quantile of the area under the ROC curve, half a pair away from 0 and 1."""
        return self.distance(self.values["roc_area"])

    def distance(self, area: float) -> float:
        """Return d' for an area under the ROC curve of these pairs."""
        return float(distance_of(limited(np.array([area]), np.array([self.n_same * self.n_different])))[0])


def score_pairs(
    similarities: NDArray[np.float32],
    same: NDArray[np.bool_],
    units: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    n_units: int,
    totals: tuple[float, float] | None = None,
) -> PairScores:
    """Score pairs by their similarity.

    Parameters
    ----------
    similarities : float32 (pairs,)
    same : bool (pairs,)
        Whether a pair is of the same class.
    units : two arrays int64 (pairs,)
        Unit of each member of a pair, from 0 to ``n_units`` - 1.
    totals : (float, float), optional
        Numbers of same and of different pairs of which these are samples; by default they are all. Only the average
        precision depends on their ratio.

    Raises
    ------
    DataError
        All pairs are of one kind.
    """
    n_same = int(np.count_nonzero(same))
    if not 0 < n_same < len(same):
        raise DataError(f"pairs of the same and of different classes are needed: {n_same} of {len(same)} are the same")
    total_same, total_different = totals or (float(n_same), float(len(same) - n_same))
    per_pair = (total_same / n_same, total_different / (len(same) - n_same))
    order = np.argsort(-similarities)
    ranked = similarities[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = np.cumsum(same[order], dtype=np.float64)[ends]
    false_alarms = ends + 1.0 - hits
    rises = np.diff(hits, prepend=0.0) > 0
    corner = rises | np.r_[rises[1:], True]  # between these points the curve is a straight line
    values = _scores(hits[corner][:, None], false_alarms[corner][:, None], per_pair)

    cuts = ends[_cuts(hits, false_alarms)]
    n_cuts = len(cuts)
    place = np.empty(len(order), np.int64)  # of each pair, its place between cuts; different pairs behind same ones
    place[order] = np.repeat(np.arange(n_cuts), np.diff(cuts, prepend=-1))
    place[~same] += n_units * n_cuts
    n_cells = 2 * n_units * n_cuts
    cells = [place + unit * n_cuts for unit in units]
    inside = np.flatnonzero(units[0] == units[1])  # a pair of two clips of one unit counts once
    counts = sum(np.bincount(each, minlength=n_cells) for each in cells)
    counts = (counts - np.bincount(cells[0][inside], minlength=n_cells)).reshape(2, n_units, n_cuts)
    total = np.bincount(place, minlength=n_cells)
    whole = np.stack([total[:n_cuts], total[n_units * n_cuts :][:n_cuts]])
    curves = np.cumsum(whole[:, :, None], axis=1, dtype=np.float64)
    without = curves - np.cumsum(counts, axis=2).transpose(0, 2, 1)
    coarse, left = _scores(curves[0], curves[1], per_pair), _scores(without[0], without[1], per_pair)
    return PairScores(
        values={name: float(each[0]) for name, each in values.items()},
        deviations={name: coarse[name] - left[name] for name in PAIR_METRICS},
        n_same=total_same,
        n_different=total_different,
    )


def _cuts(hits: NDArray[np.float64], false_alarms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of thresholds: equal steps of both rates, and finer ones of the lowest false alarm rates."""
    steps = np.linspace(0.0, 1.0, N_CUTS // 2)
    low = np.geomspace(1e-5, 1.0, N_CUTS // 4)
    found = [
        np.searchsorted(hits, steps * hits[-1]),
        np.searchsorted(false_alarms, np.r_[steps, low] * false_alarms[-1]),
        [len(hits) - 1],
    ]
    return np.unique(np.concatenate(found))


def _scores(
    hits: NDArray[np.float64], false_alarms: NDArray[np.float64], per_pair: tuple[float, float]
) -> dict[str, NDArray[np.float64]]:
    """Score curves of counts, (thresholds, columns) each, from the highest threshold; NaN without pairs of a kind."""
    zero = np.zeros((1, hits.shape[1]))
    hits, false_alarms = np.concatenate([zero, hits]), np.concatenate([zero, false_alarms])
    with np.errstate(invalid="ignore"):
        found, alarms = hits / hits[-1], false_alarms / false_alarms[-1]
        found_weight, alarm_weight = hits * per_pair[0], false_alarms * per_pair[1]
        precision = found_weight[1:] / np.maximum(found_weight[1:] + alarm_weight[1:], np.finfo(np.float64).tiny)
    cost = (TARGET_PRIOR * (1.0 - found) + (1.0 - TARGET_PRIOR) * alarms) / min(TARGET_PRIOR, 1.0 - TARGET_PRIOR)
    return {
        "eer": crossing(alarms, found),
        "min_dcf": cost.min(axis=0),
        "average_precision": np.asarray((np.diff(found, axis=0) * precision).sum(axis=0)),
        "roc_area": np.asarray(np.trapezoid(found, alarms, axis=0)),
    }
