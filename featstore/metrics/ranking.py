"""Ranking metrics: average precision, equal error rate and d'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.classification import as_label_sets, mean_of_classes

__all__ = [
    "DPrime",
    "EqualErrorRate",
    "MeanAveragePrecision",
    "chance_corrected",
    "crossing",
    "distance_of",
    "limited",
]


@dataclass(frozen=True, slots=True)
class MeanAveragePrecision:
    """Macro average precision; see `featstore.metrics.Metric`.

    ``y_true`` is label sets (n, n_classes) of 0 and 1, or class indices (n,), which are sets of one label.

    Parameters
    ----------
    absent_class : "skip" or "zero"
        Contribution of a class without a positive sample to the mean.
    """

    absent_class: Literal["skip", "zero"]
    name: str = "mAP"
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Mean over classes. Raises DataError if no class has a positive sample."""
        per_class = self.per_class(y_true, y_score)
        if np.isnan(per_class).all():
            raise DataError(f"mAP needs a sample with a label; none of {len(y_true)} samples has one")
        return float(np.nanmean(per_class) if self.absent_class == "skip" else np.nan_to_num(per_class).mean())

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Mean over classes, for each column of ``weights``; NaN if a column has no positive sample."""
        label_sets = as_label_sets(y_true, y_score.shape[1])
        per_class = np.full((y_score.shape[1], weights.shape[1]), np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0)):
            per_class[label] = weighted_average_precision(label_sets[:, label], y_score[:, label], weights)
        return mean_of_classes(per_class, absent_class=self.absent_class)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Average precision of each class; NaN for a class without a positive sample."""
        label_sets = as_label_sets(y_true, y_score.shape[1])
        per_class = np.full(y_score.shape[1], np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0)):
            per_class[label] = average_precision(label_sets[:, label], y_score[:, label])
        return per_class


def chance_corrected(y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
    """Mean over classes of (AP - chance) / (1 - chance), where chance is the mean AP of random scores.

    Average precision is biased upwards, more so with few positives: random scores have AP 1.0 for one clip out of one.
    This value is 0 for random scores and 1 for perfect scores, whatever the numbers of clips and positives. The chance
    of m positives among n is ((m - 1) / (n - 1) (n - H) + H) / n, where H is 1 + 1/2 + ... + 1/n (Bestgen 2015).
    Classes that no sample or every sample has are skipped; the result is 0 if no class is left.
    """
    label_sets = as_label_sets(y_true, y_score.shape[1])
    n, positives = len(label_sets), label_sets.sum(axis=0)
    usable = (positives > 0) & (positives < n)
    if not usable.any():
        return 0.0
    found = MeanAveragePrecision(absent_class="skip").per_class(y_true, y_score)[usable]
    harmonic = float(np.sum(1.0 / np.arange(1, n + 1)))
    chance = ((positives[usable] - 1) / (n - 1) * (n - harmonic) + harmonic) / n
    return float(np.mean((found - chance) / (1.0 - chance)))


def average_precision(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Average precision of one class as defined by scikit-learn, whose function takes a millisecond for its checks.

    Parameters
    ----------
    positive : bool (n,)
        At least one.
    scores : float (n,)
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order])[ends_tie]
    return float(np.diff(hits, prepend=0) @ (hits / (ends_tie + 1.0)) / hits[-1])


def weighted_average_precision(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Average precision of one class for many weightings at once, as defined by scikit-learn's ``sample_weight``.

    The order of the samples does not depend on the weights, so they are sorted once. Precision is needed only at the
    scores of positive samples, where recall rises. The weight between two of them is a sum of rows of ``weights``; all
    sums are computed by one product with a sparse matrix of ones.

    Parameters
    ----------
    positive : bool (n,)
    scores : float (n,)
    weights : float32 (n, resamples)

    Returns
    -------
    float64 (resamples,)
        NaN if the positive samples have no weight.
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
    """Error rate at the threshold where the miss rate equals the false alarm rate; see `featstore.metrics.Metric`.

    The second of two classes is the positive one. The ROC curve is scikit-learn's, interpolated linearly: the rate is
    its intersection with the line of equal errors.
    """

    name: str = "eer"
    higher_is_better: bool = False
    libraries: tuple[str, ...] = ("sklearn",)

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Rate for ``y_true`` (n,), class indices 0 and 1. Raises DataError unless exactly these two occur."""
        from sklearn.metrics import roc_curve

        positive, scores = _of_two_classes(y_true, y_score)
        false_alarms, found, _ = roc_curve(positive, scores, drop_intermediate=False)
        return crossing(false_alarms[:, None], found[:, None]).item()

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Rate for each column of ``weights``; NaN if one of the classes has no weight."""
        positive, scores = _of_two_classes(y_true, y_score)
        return crossing(*_rates(positive, scores, weights))

    def deviations(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Contribution of each sample to the rate, (n,), in closed form: the rate is not a smooth function of samples.

        At the threshold of equal errors, if both classes have the same density there, the rate is the mean of misses
        and false alarms, and a sample contributes its own error. With different densities it is a weighted mean, whose
        variance is larger or smaller accordingly; the plain mean needs no density estimate.
        """
        positive, scores = _of_two_classes(y_true, y_score)
        false_alarms, found = _rates(positive, scores, np.ones((len(scores), 1), np.float32))
        rate = crossing(false_alarms, found).item()
        deviations = np.empty(len(scores))
        for mine, sign in ((positive, 1.0), (~positive, -1.0)):
            # errors as a share of the class are the rate: samples at the crossing count fractionally
            order = np.argsort(sign * scores[mine], kind="stable")
            errors = np.clip(rate * len(order) - np.arange(len(order)), 0.0, 1.0)
            own = np.empty(len(order))
            own[order] = errors - rate
            # a fractional error has less variance than the binary error that it replaces
            squares = float(np.square(own).sum())
            scale = np.sqrt(rate * (1.0 - rate) * len(order) / squares) if squares > 0 else 0.0
            deviations[mine] = scale * own / (2.0 * len(order))
        return deviations

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Both classes have the same rate, since misses and false alarms are equal."""
        return np.full(y_score.shape[1], self.score(y_true, y_score))


@dataclass(frozen=True, slots=True)
class DPrime:
    """Distance d' of two normal distributions of equal variance with the same area under the ROC: sqrt(2) Phi^-1(AUC).

    The area is the mean over the classes that have both positive and negative samples, as for AudioSet (Gemmeke et al.
    2017). A class without a wrong pair would be at an infinite distance: its area is limited to half a pair below 1,
    and likewise to half a pair above 0.
    """

    name: str = "d_prime"
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ("sklearn", "scipy")

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Distance of the mean area. Raises DataError if no class has both positive and negative samples."""
        areas = self._areas(y_true, y_score)
        if np.isnan(areas).all():
            raise DataError(
                f"d_prime needs a class that some samples have and some have not; got {len(y_true)} samples"
            )
        return distance_of(np.array([np.nanmean(areas)])).item()

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Distance for each column of ``weights``; NaN if no class has both positive and negative weight."""
        label_sets = as_label_sets(y_true, y_score.shape[1])
        areas = np.full((y_score.shape[1], weights.shape[1]), np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0) & ~label_sets.all(axis=0)):
            positive = label_sets[:, label]
            false_alarms, found = _rates(positive, y_score[:, label], weights)
            pairs = weights[positive].sum(axis=0, dtype=np.float64) * weights[~positive].sum(axis=0, dtype=np.float64)
            areas[label] = limited(np.asarray(np.trapezoid(found, false_alarms, axis=0)), pairs)
        return distance_of(mean_of_classes(areas, absent_class="skip"))

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Distance of each class; NaN for a class that all samples have or none."""
        return distance_of(self._areas(y_true, y_score))

    def _areas(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        from sklearn.metrics import roc_auc_score

        label_sets = as_label_sets(y_true, y_score.shape[1])
        areas = np.full(y_score.shape[1], np.nan)
        for label in np.flatnonzero(label_sets.any(axis=0) & ~label_sets.all(axis=0)):
            area, n_positive = roc_auc_score(label_sets[:, label], y_score[:, label]), label_sets[:, label].sum()
            areas[label] = limited(np.array([area]), n_positive * (len(y_true) - n_positive)).item()
        return areas


def _of_two_classes(
    y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]:
    """Return whether each sample is of the second class, and the score of the second class - that of the first."""
    if y_score.shape[1] != 2 or len(np.unique(y_true)) != 2:
        raise DataError(
            f"eer needs samples of both of two classes: the {len(y_true)} samples have "
            f"{len(np.unique(y_true))} of {y_score.shape[1]} classes"
        )
    return y_true == 1, y_score[:, 1] - y_score[:, 0]


def _rates(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False alarm rate and hit rate at every threshold, ascending: float64 (thresholds + 1, resamples) each.

    The samples are sorted once for all weightings. NaN if a class has no weight.
    """
    order = np.argsort(-scores, kind="stable")
    ends_tie = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])

    def share_above(mine: NDArray[np.bool_]) -> NDArray[np.float64]:
        above = np.cumsum(np.where(mine[order, None], weights[order], 0.0), axis=0, dtype=np.float64)[ends_tie]
        above = np.concatenate([np.zeros((1, weights.shape[1])), above])
        total = np.where(above[-1] > 0, above[-1], np.nan)
        return np.asarray(above / total)

    return share_above(~positive), share_above(positive)


def crossing(false_alarms: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the rate at which misses, 1 - ``found``, equal false alarms; both are (thresholds, columns)."""
    ahead = 1.0 - found - false_alarms
    after = np.argmax(~(ahead > 0), axis=0)[None]
    before = after - 1
    start, stop = (np.take_along_axis(ahead, at, axis=0) for at in (before, after))
    low, high = (np.take_along_axis(false_alarms, at, axis=0) for at in (before, after))
    return np.asarray((low + (high - low) * start / (start - stop))[0])


def limited(area: NDArray[np.float64], pairs: NDArray[np.float64] | np.integer[Any]) -> NDArray[np.float64]:
    """Limit areas (columns,) to at least half a pair from 0 and 1; NaN stays NaN."""
    half_pair = 0.5 / np.maximum(pairs, 1)
    return np.clip(area, half_pair, 1.0 - half_pair)


def distance_of(area: NDArray[np.float64]) -> NDArray[np.float64]:
    """D' of areas under the ROC curve."""
    from scipy.special import ndtri

    return np.asarray(np.sqrt(2.0) * ndtri(area), dtype=np.float64)
