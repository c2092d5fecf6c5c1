"""Logistic regression with a sweep of its regularisation. The one door to scikit-learn of the probe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

__all__ = ["C_GRID", "Affine", "Tried", "regress"]

C_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
MAX_ITERATIONS = 500

# What a class that training never shows, or always shows, is given as a logit: its probability is 0 or 1 to float32.
CERTAIN = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Logits are ``X @ weight.T + bias``, of embeddings as they are: float32 (classes, dim) and (classes,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (n, classes)."""
        return X @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One strength of regularisation, its validation score, and whether the solver reached its end."""

    C: float
    model: Affine
    score: float | None
    converged: bool


def regress(
    X: NDArray[np.float32],
    y: NDArray[Any],
    *,
    n_classes: int,
    pos_weight: float,
    score: Callable[[Affine], float] | None,
    grid: Sequence[float] = C_GRID,
) -> tuple[Tried, ...]:
    """Fit scikit-learn's logistic regression for each C, from strong regularisation to weak, each from the last.

    Features are standardised by the mean and deviation of ``X``; the result takes embeddings as they are.

    Parameters
    ----------
    X : float32 (n, dim)
        Training embeddings.
    y : int64 (n,) or float32 (n, n_classes)
        Class indices: one multinomial model. Label sets of 0 and 1: one model for each class, one versus rest.
    pos_weight : float
        How often a positive of a label set counts.
    score : callable or None
        Validation score of a model, higher is better.
    """
    scaler = StandardScaler(copy=True).fit(X)
    scaled = scaler.transform(X)
    columns = _OneModel(y, n_classes) if y.ndim == 1 else _ModelPerClass(y, pos_weight)
    tried = []
    for C in sorted(grid):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            weight, bias = columns.fit(scaled, C)
        weight /= scaler.scale_
        model = Affine(weight=weight.astype(np.float32), bias=(bias - weight @ scaler.mean_).astype(np.float32))
        stopped = any(issubclass(each.category, ConvergenceWarning) for each in caught)
        tried.append(Tried(C=C, model=model, score=None if score is None else score(model), converged=not stopped))
    return tuple(tried)


class _OneModel:
    """Multinomial regression over the classes that training shows."""

    def __init__(self, y: NDArray[np.int64], n_classes: int) -> None:
        self._y, self._n_classes = y, n_classes
        self._model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS)

    def fit(self, X: NDArray[np.float32], C: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        model = self._model.set_params(C=C).fit(X, self._y)
        weight, bias = np.zeros((self._n_classes, X.shape[1])), np.full(self._n_classes, -CERTAIN)
        if len(model.classes_) == 2:  # scikit-learn keeps the logit of the second class only
            bias[model.classes_] = 0.0
            weight[model.classes_[1]], bias[model.classes_[1]] = model.coef_[0], model.intercept_[0]
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        return weight, bias


class _ModelPerClass:
    """One versus rest."""

    def __init__(self, y: NDArray[np.float32], pos_weight: float) -> None:
        self._y = y.astype(np.int64)
        self._models = [
            LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, class_weight={0: 1.0, 1: pos_weight})
            for _ in self._y.T
        ]

    def fit(self, X: NDArray[np.float32], C: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weight, bias = np.zeros((self._y.shape[1], X.shape[1])), np.zeros(self._y.shape[1])
        for label, (model, column) in enumerate(zip(self._models, self._y.T, strict=True)):
            if column.min() == column.max():
                bias[label] = CERTAIN if column[0] else -CERTAIN
                continue
            model.set_params(C=C).fit(X, column)
            weight[label], bias[label] = model.coef_[0], model.intercept_[0]
        return weight, bias
