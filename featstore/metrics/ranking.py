"""What the order of scores says of two classes: equal error rate, and d'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.f1 import mean_of_classes
from featstore.metrics.label_sets import as_label_sets

__all__ = ["DPrime", "EqualErrorRate"]


@dataclass(frozen=True, slots=True)
class EqualErrorRate:
    """Error rate at the threshold that misses as often as it raises a false alarm; see `featstore.metrics.Metric`.

    Of two classes, the second is what is looked for. The ROC curve is scikit-learn's, drawn straight from point to
    point: the rate is where it crosses the line of equal errors.
    """

    name: str = "eer"
    higher_is_better: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    libraries: tuple[str, ...] = ("sklearn",)

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Rate of ``y_true`` (n,), class indices 0 and 1. Raises DataError unless both classes, and no other, are."""
        from sklearn.metrics import roc_curve

        positive, scores = _of_two_classes(y_true, y_score)
        false_alarms, found, _ = roc_curve(positive, scores, drop_intermediate=False)
        return _crossing(false_alarms[:, None], found[:, None]).item()

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Rate once per column of ``weights``; NaN where one of the classes weighs nothing."""
        positive, scores = _of_two_classes(y_true, y_score)
        return _crossing(*_rates(positive, scores, weights))

    def deviations(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What each sample adds to the rate beyond the mean, (n,): the rate is no smooth function of the samples.

        At the threshold of equal errors the rate is the mean of misses and false alarms where both classes are as dense
        there, so that a sample contributes its own error. Where they are not, a weighted mean takes its place, whose
        variance is larger or smaller by their share; the mean is the choice that needs no estimate of a density.
        """
        positive, scores = _of_two_classes(y_true, y_score)
        false_alarms, found = _rates(positive, scores, np.ones((len(scores), 1), np.float32))
        rate = _crossing(false_alarms, found).item()
        deviations = np.empty(len(scores))
        for mine, sign in ((positive, 1.0), (~positive, -1.0)):
            # errors as a share of the class are the rate: the samples at the crossing count in part
            order = np.argsort(sign * scores[mine], kind="stable")
            errors = np.clip(rate * len(order) - np.arange(len(order)), 0.0, 1.0)
            own = np.empty(len(order))
            own[order] = errors - rate
            # an error in part has less variance than the yes or no that it stands for
            squares = float(np.square(own).sum())
            scale = np.sqrt(rate * (1.0 - rate) * len(order) / squares) if squares > 0 else 0.0
            deviations[mine] = scale * own / (2.0 * len(order))
        return deviations

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Misses and false alarms are equal, so both classes have the one rate."""
        return np.full(y_score.shape[1], self.score(y_true, y_score))


@dataclass(frozen=True, slots=True)
class DPrime:
    """Distance of two normal distributions of equal spread whose ROC curve has the same area: sqrt(2) Phi^-1(AUC).

    The area is the mean over the classes that have both positive and negative samples, as AudioSet's is (Gemmeke et al.
    2017). A class without a single wrong pair would be infinitely far: its area is held below 1 by half a pair, and
    above 0 likewise.
    """

    name: str = "d_prime"
    higher_is_better: bool = True
    bounds: tuple[float, float] = (-np.inf, np.inf)
    libraries: tuple[str, ...] = ("sklearn", "scipy")

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Distance of the mean area. Raises DataError where no class has both positive and negative samples."""
        areas = self._areas(y_true, y_score)
        if np.isnan(areas).all():
            raise DataError(
                f"d_prime needs a class that some samples have and some have not; got {len(y_true)} samples"
            )
        return _distance(np.array([np.nanmean(areas)])).item()

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Distance once per column of ``weights``; NaN where no class has both positive and negative weight."""
        label_sets = as_label_sets(y_true, y_score.shape[1])
        areas = np.full((y_score.shape[1], weights.shape[1]), np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0) & ~label_sets.all(axis=0)):
            positive = label_sets[:, label]
            false_alarms, found = _rates(positive, y_score[:, label], weights)
            pairs = weights[positive].sum(axis=0, dtype=np.float64) * weights[~positive].sum(axis=0, dtype=np.float64)
            areas[label] = _held(np.asarray(np.trapezoid(found, false_alarms, axis=0)), pairs)
        return _distance(mean_of_classes(areas, absent_class="left out"))

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Distance of each class, NaN for one that all samples have or none."""
        return _distance(self._areas(y_true, y_score))

    def _areas(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        from sklearn.metrics import roc_auc_score

        label_sets = as_label_sets(y_true, y_score.shape[1])
        areas = np.full(y_score.shape[1], np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0) & ~label_sets.all(axis=0)):
            area, n_positive = roc_auc_score(label_sets[:, label], y_score[:, label]), label_sets[:, label].sum()
            areas[label] = _held(np.array([area]), n_positive * (len(y_true) - n_positive)).item()
        return areas


def _of_two_classes(
    y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]:
    """Whether each sample is of the second class, and how much more its score says so than the first's."""
    if y_score.shape[1] != 2 or len(np.unique(y_true)) != 2:
        raise DataError(
            f"eer tells two classes apart, and takes samples of both: the {len(y_true)} here show "
            f"{len(np.unique(y_true))} of {y_score.shape[1]} classes"
        )
    return y_true == 1, y_score[:, 1] - y_score[:, 0]


def _rates(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False alarms and finds at every threshold, from none to all: float64 (thresholds + 1, resamples) each.

    One sort serves all weightings. NaN where a class weighs nothing.
    """
    order = np.argsort(-scores, kind="stable")
    ends_tie = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])

    def share_above(mine: NDArray[np.bool_]) -> NDArray[np.float64]:
        above = np.cumsum(np.where(mine[order, None], weights[order], 0.0), axis=0, dtype=np.float64)[ends_tie]
        above = np.concatenate([np.zeros((1, weights.shape[1])), above])
        total = np.where(above[-1] > 0, above[-1], np.nan)
        return np.asarray(above / total)

    return share_above(~positive), share_above(positive)


def _crossing(false_alarms: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where misses, 1 - ``found``, come down to false alarms (thresholds, columns), between two thresholds."""
    ahead = 1.0 - found - false_alarms
    after = np.argmax(~(ahead > 0), axis=0)[None]
    before = after - 1
    start, stop = (np.take_along_axis(ahead, at, axis=0) for at in (before, after))
    low, high = (np.take_along_axis(false_alarms, at, axis=0) for at in (before, after))
    return np.asarray((low + (high - low) * start / (start - stop))[0])


def _held(area: NDArray[np.float64], pairs: NDArray[np.float64] | np.integer[Any]) -> NDArray[np.float64]:
    """Areas (columns,) at least half a pair from 0 and 1, of so many pairs; NaN stays, where there are none."""
    half_pair = 0.5 / np.maximum(pairs, 1)
    return np.clip(area, half_pair, 1.0 - half_pair)


def _distance(area: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtri

    return np.asarray(np.sqrt(2.0) * ndtri(area), dtype=np.float64)
