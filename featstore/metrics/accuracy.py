"""Share of samples whose highest-scored class is their class (the lowest class of a tie)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Accuracy"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of class indices ``y_true`` int64 (n,); see `featstore.metrics.Metric`.

    A mean, so NumPy takes it: scikit-learn would take a second to import.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Share of right samples."""
        return float(np.mean(y_score.argmax(axis=1) == y_true))

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Share of right weight, one number per column of ``weights``."""
        right = (y_score.argmax(axis=1) == y_true).astype(np.float32)
        return np.asarray((right @ weights) / weights.sum(axis=0), dtype=np.float64)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Recall of each class, NaN where the class has no sample."""
        n_classes = y_score.shape[1]
        right = y_score.argmax(axis=1) == y_true
        samples = np.bincount(y_true, minlength=n_classes)
        hits = np.bincount(y_true[right], minlength=n_classes)
        return np.asarray(np.divide(hits, samples, out=np.full(n_classes, np.nan), where=samples > 0))
