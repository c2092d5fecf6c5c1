"""Ranking metrics: average precision, equal error rate and d'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.classification import as_label_sets, mean_of_classes

__all__ = ["DPrime", "EqualErrorRate", "MeanAveragePrecision", "chance_corrected"]


@dataclass(frozen=True, slots=True)
class MeanAveragePrecision:
    """Macro average precision; see `featstore.metrics.Metric`.

    ``y_true`` holds label sets (n, n_classes) of 0 and 1, or class indices (n,), which are sets of one label.

    Parameters
    ----------
    absent_class : "left out" or "zero"
        What a class without a positive sample gives to the mean.
    """

    absent_class: Literal["left out", "zero"]
    name: str = "mAP"
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    libraries: tuple[str, ...] = ("sklearn",)

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Mean over classes. Raises DataError where no class has a positive sample."""
        per_class = self.per_class(y_true, y_score)
        if np.isnan(per_class).all():
            raise DataError(f"mAP needs a sample with a label; none of {len(y_true)} samples has one")
        return float(np.nanmean(per_class) if self.absent_class == "left out" else np.nan_to_num(per_class).mean())

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Mean over classes, one number per column of ``weights``; NaN where a column has no positive sample at all."""
        label_sets = as_label_sets(y_true, y_score.shape[1])
        per_class = np.full((y_score.shape[1], weights.shape[1]), np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0)):
            per_class[label] = weighted_average_precision(label_sets[:, label], y_score[:, label], weights)
        return mean_of_classes(per_class, absent_class=self.absent_class)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Average precision of each class by scikit-learn, NaN where the class has no positive sample."""
        from sklearn.metrics import average_precision_score

        label_sets = as_label_sets(y_true, y_score.shape[1])
        per_class = np.full(y_score.shape[1], np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0)):
            per_class[label] = average_precision_score(label_sets[:, label], y_score[:, label])
        return per_class


def chance_corrected(y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
    """Mean over classes of (AP - chance) / (1 - chance), with the AP that random scores have on average for chance.

    Average precision of few positives is too high, the more so the fewer they are: random scores have 1.0 with one clip
    in one. This is 0 for random scores and 1 for perfect ones however many clips and positives there are. The chance of
    m positives among n is ((m - 1) / (n - 1) (n - H) + H) / n, where H is 1 + 1/2 + ... + 1/n (Bestgen 2015). Classes
    that no sample or every sample has are skipped; 0 where no class is left.
    """
    label_sets = as_label_sets(y_true, y_score.shape[1])
    n, positives = len(label_sets), label_sets.sum(axis=0)
    usable = (positives > 0) & (positives < n)
    if not usable.any():
        return 0.0
    once = np.ones((n, 1), np.float32)
    found = np.array(
        [
            weighted_average_precision(label_sets[:, label], y_score[:, label], once).item()
            for label in np.flatnonzero(usable)
        ]
    )
    harmonic = float(np.sum(1.0 / np.arange(1, n + 1)))
    chance = ((positives[usable] - 1) / (n - 1) * (n - harmonic) + harmonic) / n
    return float(np.mean((found - chance) / (1.0 - chance)))


def weighted_average_precision(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Average precision of one class under many weightings at once, as scikit-learn's ``sample_weight`` defines it.

    The order of the samples is the same for every weighting, so one sort serves all. Precision is needed only at the
    scores where recall rises, those of positive samples; the weight between two of them is a sum of rows of
    ``weights``, and all sums together are one product with a sparse matrix of ones.

    Parameters
    ----------
    positive : bool (n,)
    scores : float (n,)
    weights : float32 (n, resamples)

    Returns
    -------
    float64 (resamples,)
        NaN where the positive samples weigh nothing.
    """
    from scipy.sparse import csr_array

    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], positive[order]
    ends_tie = np.r_[ranked[1:] != ranked[:-1], True]
    tie = np.cumsum(ends_tie) - ends_tie
    rises = np.zeros(tie[-1] + 1, bool)
    rises[tie[hit]] = True
    stops = np.flatnonzero(ends_tie)[rises] + 1

    def weight_between_stops(keep: NDArray[np.bool_]) -> NDArray[np.float64]:
        kept = np.r_[0, np.cumsum(keep)][np.r_[0, stops]]
        columns = order[: stops[-1]][keep[: stops[-1]]]
        ones = csr_array((np.ones(len(columns), np.float32), columns, kept), shape=(len(stops), len(order)))
        return np.asarray(ones @ weights, dtype=np.float64)

    hits = weight_between_stops(hit)
    seen = np.cumsum(weight_between_stops(np.ones_like(hit)), axis=0)
    precision = np.divide(np.cumsum(hits, axis=0), seen, out=np.zeros_like(seen), where=seen > 0)
    total = hits.sum(axis=0)
    area = (hits * precision).sum(axis=0)
    return np.asarray(np.divide(area, total, out=np.full_like(total, np.nan), where=total > 0))


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
