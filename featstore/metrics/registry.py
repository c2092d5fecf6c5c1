"""The interface of a metric, and the metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.metrics.classification import Accuracy, CountF1, MacroF1
from featstore.metrics.ranking import DPrime, EqualErrorRate, MeanAveragePrecision
from featstore.metrics.regression import Correlation, MeanError
from featstore.records import Protocol as EvaluationProtocol

__all__ = ["Metric", "find_metric"]


class Metric(Protocol):
    """A score of predictions, and the same score with sample weights."""

    @property
    def name(self) -> str:
        """Name in manifests."""

    @property
    def higher_is_better(self) -> bool:
        """Direction of model selection."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Modules that it uses besides NumPy; records store their versions."""

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Score targets (n, ...) against scores ``(n, n_classes)``. Raises DataError if it is undefined."""

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Score for each column of ``weights`` (n, resamples), the number of times that each sample counts."""

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Score of each class ``(n_classes,)``; NaN for an absent class."""


def _absent(protocol: EvaluationProtocol) -> Literal["skip", "zero"]:
    return "zero" if protocol == "xares" else "skip"


METRICS: Mapping[str, Callable[[EvaluationProtocol], Metric]] = {
    "accuracy": lambda _: Accuracy(),
    # X-ARES averages over every class, and scikit-learn gives a class without a positive sample 0.
    "mAP": lambda protocol: MeanAveragePrecision(absent_class=_absent(protocol)),
    # Scores are probabilities under strict, and logits under xares; see `find_metric` for log-odds.
    "macro_f1": lambda protocol: MacroF1(threshold=0.0 if protocol == "xares" else 0.5),
    "eer": lambda _: EqualErrorRate(),
    "d_prime": lambda _: DPrime(),
    "segment_f1_macro": lambda protocol: CountF1(
        name="segment_f1_macro", average="macro", absent_class=_absent(protocol)
    ),
    "segment_f1_micro": lambda protocol: CountF1(
        name="segment_f1_micro", average="micro", absent_class=_absent(protocol)
    ),
    "event_f1": lambda protocol: CountF1(name="event_f1", average="macro", absent_class=_absent(protocol)),
    "mae": lambda _: MeanError(name="mae"),
    "mse": lambda _: MeanError(name="mse"),
    "pearson": lambda _: Correlation(name="pearson"),
    "spearman": lambda _: Correlation(name="spearman"),
}


def find_metric(name: str, protocol: EvaluationProtocol, *, log_odds: bool = False) -> Metric:
    """Return the metric of that name as a protocol defines it. Raises UsageError for an unknown name.

    Parameters
    ----------
    name : str
    protocol : "strict" or "xares"
    log_odds : bool
        Whether scores are log-odds, 0 at a probability of 0.5. Probabilities in float32 saturate near 1 and cannot rank
        such samples.
    """
    if name not in METRICS:
        raise UsageError(f"metric {name!r} is not available here; there are {', '.join(sorted(METRICS))}")
    metric = METRICS[name](protocol)
    return replace(metric, threshold=0.0) if log_odds and isinstance(metric, MacroF1) else metric
