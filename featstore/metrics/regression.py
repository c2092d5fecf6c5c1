"""Errors and correlations of numbers: ``y_true`` (n,) and predictions ``y_score`` (n, 1) or (n,)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Correlation", "MeanError"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanError:
    """Mean absolute or squared error; see `featstore.metrics.Metric`."""

    name: Literal["mae", "mse"]
    higher_is_better: bool = False
    libraries: tuple[str, ...] = ()

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Mean over samples."""
        return float(self._errors(y_true, y_score).mean())

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Weighted mean, for each column of ``weights``."""
        return np.asarray(self._errors(y_true, y_score) @ weights / weights.sum(axis=0), dtype=np.float64)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # noqa: ARG002
        """Return an empty array (0,): numbers have no classes."""
        return np.zeros(0)

    def _errors(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        errors = np.asarray(y_true - y_score.reshape(len(y_true)), np.float64)
        return np.abs(errors) if self.name == "mae" else np.square(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Pearson correlation of the numbers, or of their ranks (Spearman); see `featstore.metrics.Metric`.

    The correlation of constant predictions is 0.
    """

    name: Literal["pearson", "spearman"]
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ("scipy",)

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Correlation by SciPy."""
        from scipy.stats import pearsonr, spearmanr

        true, predicted = _columns(y_true, y_score)
        if len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
            return 0.0
        correlate = pearsonr if self.name == "pearson" else spearmanr
        return float(correlate(true, predicted).statistic)

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Correlation for each column of ``weights``, the number of times that each sample was drawn."""
        times = weights.astype(np.float64)
        total = times.sum(axis=0)

        def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
            columns = _weighted_ranks(values, times) if self.name == "spearman" else values[:, None]
            return np.asarray(columns - (times * columns).sum(axis=0) / total)

        true, predicted = (centred(values) for values in _columns(y_true, y_score))
        shared = (times * true * predicted).sum(axis=0)
        spread = np.sqrt((times * true**2).sum(axis=0) * (times * predicted**2).sum(axis=0))
        # A repeated constant has a spread of rounding errors.
        scale = np.max(np.abs(true), axis=0, initial=0) * np.max(np.abs(predicted), axis=0, initial=0)
        usable = spread > 1e-12 * total * scale
        return np.asarray(np.divide(shared, spread, out=np.zeros_like(shared), where=usable))

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # noqa: ARG002
        """Return an empty array (0,): numbers have no classes."""
        return np.zeros(0)


def _columns(
    y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(y_true, np.float64), np.asarray(y_score.reshape(len(y_true)), np.float64)


def _weighted_ranks(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rank of each value in a sample that repeats it ``times`` times: float64 (n, resamples)."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    ends_tie = np.r_[ranked[1:] != ranked[:-1], True]
    upto = np.cumsum(times[order], axis=0)[ends_tie]
    below = np.concatenate([np.zeros((1, times.shape[1])), upto[:-1]])
    tie = np.empty(len(values), np.int64)
    tie[order] = np.cumsum(ends_tie) - ends_tie
    return np.asarray(((below + upto + 1.0) / 2.0)[tie])
