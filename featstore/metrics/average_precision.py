"""Macro average precision: the mean over classes of the area under a precision-recall curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.f1 import mean_of_classes
from featstore.metrics.label_sets import as_label_sets

__all__ = ["MeanAveragePrecision", "chance_corrected"]


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
