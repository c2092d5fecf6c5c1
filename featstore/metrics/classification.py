"""Accuracy and F1 of classes, segments and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Accuracy", "CountF1", "MacroF1", "as_label_sets"]


def as_label_sets(y_true: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    """Convert label sets of 0 and 1, or class indices (n,), to bool (n, n_classes)."""
    return y_true.astype(bool) if y_true.ndim == 2 else y_true[:, None] == np.arange(n_classes)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of class indices ``y_true`` int64 (n,); see `featstore.metrics.Metric`.

    Computed with NumPy, since importing scikit-learn takes a second.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Share of correct samples."""
        return float(np.mean(y_score.argmax(axis=1) == y_true))

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Share of the weight of correct samples, for each column of ``weights``."""
        right = (y_score.argmax(axis=1) == y_true).astype(np.float32)
        return np.asarray((right @ weights) / weights.sum(axis=0), dtype=np.float64)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Recall of each class; NaN for a class without samples."""
        n_classes = y_score.shape[1]
        right = y_score.argmax(axis=1) == y_true
        samples = np.bincount(y_true, minlength=n_classes)
        hits = np.bincount(y_true[right], minlength=n_classes)
        return np.asarray(np.divide(hits, samples, out=np.full(n_classes, np.nan), where=samples > 0))


Average = Literal["micro", "macro"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountF1:
    """F1 of counts by clip and class, such as segments and events; see `featstore.metrics.Metric`.

    ``y_true`` (n, n_classes) is the number of true items. ``y_score`` (n, n_classes, 2) is the number of predicted
    items, and the number of those that are correct.

    Parameters
    ----------
    average : "micro" or "macro"
        F1 of the total counts, or mean of the F1 of each class.
    absent_class : "skip" or "zero"
        Contribution of a class that is neither true nor predicted to the macro mean. scikit-learn uses 0.
    """

    name: str
    average: Average
    absent_class: Literal["skip", "zero"]
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[Any]) -> float:
        """F1 of all samples; 0 if nothing is true and nothing is predicted."""
        return float(np.nan_to_num(self.weighted(y_true, y_score, np.ones((len(y_true), 1), np.float32))).item())

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[Any], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """F1 for each column of ``weights``; NaN if a column has no counts."""
        true, predicted, hits = (
            counts.T.astype(np.float64) @ weights for counts in (y_true, y_score[..., 0], y_score[..., 1])
        )
        if self.average == "micro":
            return f1(true.sum(axis=0), predicted.sum(axis=0), hits.sum(axis=0))
        return mean_of_classes(f1(true, predicted, hits), absent_class=self.absent_class)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[Any]) -> NDArray[np.float64]:
        """F1 of each class; NaN if it is neither true nor predicted."""
        return f1(y_true.sum(axis=0), y_score[..., 0].sum(axis=0), y_score[..., 1].sum(axis=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroF1:
    """Mean F1 of the classes that are true or predicted; see `featstore.metrics.Metric`.

    ``y_true`` is class indices (n,), predicted by the highest score (the lowest class in a tie), or label sets
    (n, n_classes) of 0 and 1, predicted by scores above ``threshold``.
    """

    threshold: float
    name: str = "macro_f1"
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Mean over classes; 0 if nothing is true and nothing is predicted."""
        per_class = self.per_class(y_true, y_score)
        return float(np.nan_to_num(mean_of_classes(per_class[:, None], absent_class="skip")).item())

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Mean over classes, for each column of ``weights``."""
        true, predicted = self._decided(y_true, y_score)
        counts = (each.T.astype(np.float32) @ weights for each in (true, predicted, true & predicted))
        return mean_of_classes(f1(*counts), absent_class="skip")

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """F1 of each class; NaN if it is neither true nor predicted."""
        true, predicted = self._decided(y_true, y_score)
        return f1(*(each.sum(axis=0) for each in (true, predicted, true & predicted)))

    def _decided(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        if y_true.ndim == 2:
            return y_true.astype(bool), y_score > self.threshold
        classes = np.arange(y_score.shape[1])
        return y_true[:, None] == classes, y_score.argmax(axis=1)[:, None] == classes


def f1(true: NDArray[Any], predicted: NDArray[Any], hits: NDArray[Any]) -> NDArray[np.float64]:
    """F1 from counts of equal shape; NaN if all counts are 0.

    >>> f1(np.array([3, 0, 2]), np.array([1, 0, 0]), np.array([1, 0, 0]))
    array([0.5, nan, 0. ])
    """
    total = np.asarray(true + predicted, np.float64)
    return np.asarray(np.divide(2.0 * hits, total, out=np.full_like(total, np.nan), where=total > 0))


def mean_of_classes(per_class: NDArray[np.float64], *, absent_class: Literal["skip", "zero"]) -> NDArray[np.float64]:
    """Mean over the first axis (n_classes, ...); NaN if every class is absent."""
    known = ~np.isnan(per_class)
    n_known = known.sum(axis=0)
    n_classes = np.where(n_known > 0, len(per_class), 0) if absent_class == "zero" else n_known
    total = np.where(known, per_class, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, n_classes, out=np.full_like(total, np.nan), where=n_classes > 0))
