"""Ridge regression over a path of penalties that validation chooses from, by one SVD of each training set.

The objective is scikit-learn's, and so is the penalty ``alpha``: |y - X w - b|^2 + alpha |w|^2, on features that are
standardised per dimension; the intercept is not penalised. With X = U S V^T every penalty has its solution in closed
form, w = V (S^2 + alpha)^-1 V^T X^T y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.probe.selection import strengths_beyond
from featstore.probe.standardisation import Standardisation

__all__ = ["GRID", "RidgePath", "fit_ridge"]

GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-2, 11))
LOWEST_ALPHA, HIGHEST_ALPHA = 1e-6, 1e10
"""Where the best penalty is the first or the last, the grid goes on, to here at most."""

ALPHA_UNSELECTED = 1.0
"""scikit-learn's default, where there is no validation clip to choose by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgePath:
    """The chosen model, and all penalties in rising order, each with its validation score.

    Attributes
    ----------
    gradient_norm : float
        Of the objective, as a share of that of the penalty: what rounding leaves.
    """

    standardisation: Standardisation
    weight: Tensor
    bias: float
    alpha: float
    alphas: tuple[float, ...]
    scores: tuple[float | None, ...]
    extended: bool
    at_edge: bool
    gradient_norm: float

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Numbers (n, 1) of embeddings as they are."""
        return _predicted(self.standardisation(X), self.weight[:, None], self.bias)


def fit_ridge(
    X: NDArray[np.float32],
    y: NDArray[np.float64],
    *,
    X_valid: NDArray[np.float32] | None,
    score: Callable[[NDArray[np.float64]], tuple[float, float]] | None,
    grid: Sequence[float] = GRID,
) -> RidgePath:
    """Fit every penalty and choose by validation.

    Parameters
    ----------
    X : float32 (n, dim)
    y : float64 (n,)
    X_valid : float32 (m, dim) or None
    score : callable or None
        From numbers (m, 1) to the validation score, higher is better, and what decides between equals. Without it the
        penalty is `ALPHA_UNSELECTED`.
    """
    standardisation = Standardisation.of(X)
    rows = standardisation(X).double()
    bias = float(y.mean())
    products = rows.T @ torch.from_numpy(y - bias)
    # Of more rows than columns, R of a QR decomposition has the same S and V.
    _, s, Vt = torch.linalg.svd(
        torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows, full_matrices=False
    )
    along = Vt @ products
    valid = None if X_valid is None else standardisation(X_valid).double() @ Vt.T

    found: dict[float, tuple[float, float] | None] = {}
    pending = list(grid) if score is not None else [ALPHA_UNSELECTED]
    extended = False
    while pending:
        for alpha in pending:
            solution = along / (s.square() + alpha)
            found[alpha] = None
            if score is not None and valid is not None:
                found[alpha] = score(_predicted(valid, solution[:, None], bias))
        alphas = sorted(found)
        # Of equals, the strongest penalty.
        best = max(reversed(alphas), key=lambda alpha: found[alpha] or (0.0, 0.0))
        pending = strengths_beyond(alphas, best, bounds=(LOWEST_ALPHA, HIGHEST_ALPHA)) if score is not None else []
        extended |= bool(pending)
    solution = along / (s.square() + best)
    weight = Vt.T @ solution
    gradient = rows.T @ (rows @ weight) - products + best * weight
    scores = [found[alpha] for alpha in alphas]
    return RidgePath(
        standardisation=standardisation,
        weight=weight,
        bias=bias,
        alpha=best,
        alphas=tuple(alphas),
        scores=tuple(None if each is None else each[0] for each in scores),
        extended=extended,
        at_edge=len(alphas) > 1 and best in (alphas[0], alphas[-1]),
        gradient_norm=float(gradient.norm() / (best * weight).norm().clamp(min=1e-300)),
    )


def _predicted(rows: Tensor, weights: Tensor, bias: float) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = (rows.double() @ weights).numpy() + bias
    return numbers
