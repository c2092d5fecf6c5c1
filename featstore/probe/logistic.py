"""Logistic regression to convergence, over a path of regularisation strengths from which validation selects.

The objective and the strength ``C`` are those of scikit-learn: the sum of the log losses of the training windows plus
|W|^2 / (2 C), on features standardised per dimension; intercepts are not penalised. Single-label tasks have one
multinomial model (binomial for two classes, as in scikit-learn); multi-label tasks have one binary model per class.

Features are rotated into the eigenbasis of their covariance, whose rank is at most the number of training windows. The
rotation does not change the objective or its minimum, but makes the Hessian nearly diagonal: L-BFGS scaled by that
diagonal needs few passes, where correlated features need hundreds. All folds and classes are one batch (see
`featstore.probe.lbfgs`). Strengths are solved from strong to weak regularisation. Each starts from the linear
extrapolation, in log C, of its two nearest solutions (the predictor step of path-following methods: Allgower and Georg
1990). Rows are processed in chunks of a fixed size, one per thread, and added in order: the result does not depend on
the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.probe.class_models import ClassModels
from featstore.probe.lbfgs import minimise
from featstore.probe.linear import torch_threads
from featstore.probe.selection import GridSearch, Path, Tried
from featstore.probe.standardisation import Standardisation

__all__ = ["GRID", "HIGHEST_C", "LOWEST_C", "Affine", "TrainingSet", "fit_paths", "fits_full_batch"]

GRID = tuple(10.0**exponent for exponent in (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0))
LOWEST_C, HIGHEST_C = 1e-6, 1e6
"""Bounds of the search, the range of CLIP's (Radford et al. 2021, appendix A.3). If the best strength is at an edge of
the grid, the grid is extended by a decade, repeatedly while that improves the metric."""

C_UNSELECTED = 1.0
"""Strength without validation clips: scikit-learn's default."""

TOLERANCE, PATH_TOLERANCE = 1e-3, 3e-3
"""Convergence criterion of the selected model and of the others: norm of the gradient as a fraction of the penalty's
(see `featstore.probe.lbfgs`). The relative error of logits is of the same order."""

LARGEST_FLOAT32_C = 3.0
"""Fits with a weaker penalty use float64: float32 does not resolve their gradients."""

VARIANCE_FLOOR = 0.3
"""Added to the variance (mean 1) of each eigenvector when scaling L-BFGS. With a weak penalty a few samples near the
boundary dominate the Hessian, and small variances predict little of it."""

MAX_ITERATIONS = 1000

MAX_PASS = 10_000_000_000
MAX_VALUES = 2**29
MAX_RANK = 8192
"""Limits of full-batch training: multiply-adds per pass (windows x dim x classes), number of feature values (four
float32 copies are in memory at most), and rows of the eigenproblem. Larger problems use minibatches."""

MAX_BATCH_BYTES = 2**30
CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Affine model: logits are ``standardisation(X) @ weight.T + bias``; float32 (classes, dim) and (classes,)."""

    standardisation: Standardisation
    weight: Tensor
    bias: Tensor

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (n, classes) of raw embeddings."""
        logits: NDArray[np.float32] = torch.addmm(self.bias, self.standardisation(X), self.weight.T).numpy()
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Training and validation data of one round.

    Attributes
    ----------
    X : float32 (n, dim)
        Raw embeddings.
    y : int64 (n,) or float32 (n, n_classes)
        Class indices, or multi-hot labels.
    X_valid : float32 (m, dim) or None
        Embeddings that select the strength.
    score : callable or None
        Maps logits of ``X_valid`` to the validation score and a tie-breaker, higher is better.
    """

    X: NDArray[np.float32]
    y: NDArray[Any]
    X_valid: NDArray[np.float32] | None = None
    score: Callable[[NDArray[np.float32]], tuple[float, float]] | None = None


def fits_full_batch(n: int, dim: int, n_classes: int) -> bool:
    """Whether full-batch training is feasible for a training set of this size.

    >>> fits_full_batch(289_205, 768, 11), fits_full_batch(138_000, 768, 1251)
    (True, False)
    """
    return n * dim * n_classes <= MAX_PASS and n * dim <= MAX_VALUES and min(n, dim) <= MAX_RANK


def fit_paths(sets: Sequence[TrainingSet], *, n_classes: int, pos_weight: float = 1.0) -> tuple[Path[Affine], ...]:
    """Fit every training set at each strength, and select a strength by validation.

    Parameters
    ----------
    sets : sequence of TrainingSet
        All have the same dim. Sets without validation are fitted at `C_UNSELECTED` only.
    pos_weight : float
        Weight of positives in multi-label losses.
    """
    paths: dict[int, Path[Affine]] = {}
    folds = [_Fold(each, at, n_classes=n_classes, pos_weight=pos_weight) for at, each in enumerate(sets)]
    n_threads = torch.get_num_threads()
    with torch.no_grad(), torch_threads(1), ThreadPoolExecutor(n_threads) as pool:
        for batch in _batches(folds):
            list(pool.map(_Fold.reduce, batch))
            width = max(each.width for each in batch)
            for each in batch:
                each.pad(width)
            while wave := [(each, C) for each in batch if (C := each.next_strength()) is not None]:
                _solve(wave, pool, tolerance=PATH_TOLERANCE)
            _solve([(each, each.best_strength()) for each in batch], pool, tolerance=TOLERANCE)
            paths |= {each.at: each.path() for each in batch}
            for each in batch:
                each.release()
    return tuple(paths[at] for at in range(len(sets)))


def _batches(folds: Iterable[_Fold]) -> Iterable[list[_Fold]]:
    """Batches of folds with models of one shape, limited by memory."""

    def shape(fold: _Fold) -> tuple[bool, int]:
        return fold.per_class, fold.n_models if not fold.per_class else 0

    for _, alike in groupby(sorted(folds, key=shape), key=shape):
        batch: list[_Fold] = []
        for each in alike:
            if batch and sum(fold.n_bytes for fold in [*batch, each]) > MAX_BATCH_BYTES:
                yield batch
                batch = []
            batch.append(each)
        yield batch


class _Fold:
    """One training set: its features in the eigenbasis plus a column of ones, and the solved part of its path."""

    def __init__(self, of: TrainingSet, at: int, *, n_classes: int, pos_weight: float) -> None:
        self.at, self._of, self.pos_weight = at, of, pos_weight
        self.models = ClassModels.of(of.y, n_classes=n_classes)
        self.n_models, self.per_class, self.y = self.models.n_models, self.models.per_class, self.models.y
        self._pending = list(GRID) if of.score is not None else [C_UNSELECTED]
        self._search = GridSearch(bounds=(LOWEST_C, HIGHEST_C))
        self._solved: dict[float, tuple[Tensor, Tried]] = {}
        self._Z_of: dict[torch.dtype, Tensor] = {}
        self.n_bytes = of.X.nbytes

    def reduce(self) -> None:
        """Rotate the features into the eigenbasis and drop null dimensions."""
        self._standardisation = Standardisation.of(self._of.X)
        rows = self._standardisation(self._of.X)
        n, dim = rows.shape
        basis = torch.linalg.qr(rows.T).Q if n < dim else None
        if basis is not None:
            rows = rows @ basis
        eigenvectors = torch.linalg.eigh(rows.T @ rows).eigenvectors
        self._basis = eigenvectors if basis is None else basis @ eigenvectors
        self.Z = torch.cat([rows @ eigenvectors, torch.ones(n, 1)], dim=1)
        self.width = self.Z.shape[1]
        self._Z_valid = None
        if self._of.X_valid is not None:
            valid = self._standardisation(self._of.X_valid)
            self._Z_valid = torch.cat([valid @ self._basis, torch.ones(len(valid), 1)], dim=1)

    def pad(self, width: int) -> None:
        """Pad the features with zero columns to a width shared with other folds."""
        spare = width - self.width
        if spare:
            self.Z = torch.nn.functional.pad(self.Z, (spare, 0))
            self._Z_valid = None if self._Z_valid is None else torch.nn.functional.pad(self._Z_valid, (spare, 0))
            self._basis = torch.nn.functional.pad(self._basis, (spare, 0))
            self.width = width

    def features(self, dtype: torch.dtype) -> Tensor:
        """Return `Z` in a precision, converted once."""
        if dtype not in self._Z_of:
            self._Z_of[dtype] = self.Z.to(dtype)
        return self._Z_of[dtype]

    def release(self) -> None:
        """Release the memory of the features."""
        self._Z_of.clear()
        del self.Z, self._Z_valid, self._basis

    def next_strength(self) -> float | None:
        """Return the strength to solve next, or None where the path is complete."""
        if not self._pending and self._of.score is not None:
            self._pending = self._search.beyond({tried.strength: tried.score or (0.0, 0.0) for tried in self._tried()})
        return self._pending.pop(0) if self._pending else None

    def start(self, C: float) -> Tensor:
        """Initial weights (n_models, width): extrapolated in log C from the two nearest solutions."""
        if not self._solved:
            return torch.zeros(self.n_models, self.width)
        nearest, *others = sorted(self._solved, key=lambda other: abs(np.log(other / C)))
        weights = self._solved[nearest][0]
        if nearest == C or not others:
            return weights
        share = np.log(C / nearest) / np.log(others[0] / nearest)
        return torch.lerp(weights, self._solved[others[0]][0], share)

    def add(self, C: float, weights: Tensor, *, iterations: int, gradient_norm: float) -> None:
        """Add a solution (n_models, width) and its validation score."""
        score = None
        if self._of.score is not None and self._Z_valid is not None:
            score = self._of.score(self.models.expand(self._Z_valid @ weights.T).numpy())
        if C in self._solved:  # the selected strength, refined: the scores of the comparison stay
            before = self._solved[C][1]
            iterations, score = iterations + before.iterations, before.score
        self._solved[C] = weights, Tried(strength=C, score=score, iterations=iterations, gradient_norm=gradient_norm)

    def best_strength(self) -> float:
        """The selected strength."""
        return self._best(self._tried()).strength

    def path(self) -> Path[Affine]:
        """Choose."""
        tried = self._tried()
        chosen = self._best(tried)
        weights = self._solved[chosen.strength][0]
        return Path(
            model=Affine(
                standardisation=self._standardisation,
                weight=self.models.expand(self._basis @ weights[:, :-1].T, missing=0.0).T.contiguous(),
                bias=self.models.expand(weights[None, :, -1])[0],
            ),
            chosen=chosen,
            tried=tuple(tried),
            extended=self._search.extended,
            at_edge=self._search.at_edge,
            converged=chosen.gradient_norm <= TOLERANCE,
        )

    def _tried(self) -> list[Tried]:
        return [tried for _, (_, tried) in sorted(self._solved.items())]

    def _best(self, tried: Sequence[Tried]) -> Tried:
        return max(tried, key=lambda each: each.score or (0.0, 0.0))


def _solve(wave: Sequence[tuple[_Fold, float]], pool: Executor, *, tolerance: float) -> None:
    """Solve strengths of some folds, those of a fold consecutive: one batch per precision."""
    for dtype in (torch.float32, torch.float64):
        batch = [(fold, C) for fold, C in wave if (C > LARGEST_FLOAT32_C) == (dtype == torch.float64)]
        if batch:
            _solve_batch(batch, pool, tolerance=tolerance, dtype=dtype)


def _solve_batch(wave: Sequence[tuple[_Fold, float]], pool: Executor, *, tolerance: float, dtype: torch.dtype) -> None:
    per_class = wave[0][0].per_class
    problems = _PerClass(wave, pool, dtype) if per_class else _Multinomial(wave, pool, dtype)
    start = torch.cat([fold.start(C).reshape(-1, problems.n_variables) for fold, C in wave]).to(dtype)
    found = minimise(
        problems,
        start,
        penalty=problems.penalty,
        curvature=problems.curvature(),
        tolerance=tolerance,
        max_iterations=MAX_ITERATIONS,
    )
    first = 0
    for fold, C in wave:
        rows = slice(first, first + fold.n_models if per_class else first + 1)
        first = rows.stop
        fold.add(
            C,
            found.x[rows].float().view(fold.n_models, -1),
            iterations=int(found.iterations[rows].max()) if rows.stop > rows.start else 0,
            gradient_norm=float(found.gradient_norm[rows].max()) if rows.stop > rows.start else 0.0,
        )


class _Problems(ABC):
    """Objectives of a wave of problems, in the order of its folds; each problem has ``n_variables``."""

    n_variables: int

    def __init__(
        self, wave: Sequence[tuple[_Fold, float]], counts: Sequence[int], pool: Executor, dtype: torch.dtype
    ) -> None:
        self._pool = pool
        self._fold_of_strength = [fold for fold, _ in wave]
        self._folds = list(dict.fromkeys(self._fold_of_strength))
        self._Z = {fold: fold.features(dtype) for fold in self._folds}
        number = {fold: at for at, fold in enumerate(self._folds)}
        each = torch.tensor(counts)
        self._fold = torch.tensor([number[fold] for fold, _ in wave]).repeat_interleave(each)
        penalty = torch.tensor([1.0 / (C * len(fold.Z)) for fold, C in wave], dtype=dtype).repeat_interleave(each)
        self._width = self._folds[0].width
        self.penalty = penalty[:, None].repeat(1, self.n_variables)
        self.penalty.view(len(penalty), -1, self._width)[..., -1] = 0.0

    def __call__(self, x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Mean log loss and its gradient: see `featstore.probe.lbfgs.minimise`."""
        values = torch.zeros(len(x), dtype=torch.float64)
        gradients = torch.zeros_like(x)
        bounds = torch.searchsorted(self._fold[problems], torch.arange(len(self._folds) + 1)).tolist()
        work = [
            (fold, slice(start, stop), slice(row, row + CHUNK_ROWS))
            for fold, start, stop in zip(self._folds, bounds[:-1], bounds[1:], strict=True)
            if start < stop
            for row in range(0, len(fold.Z), CHUNK_ROWS)
        ]

        def of_chunk(item: tuple[_Fold, slice, slice]) -> tuple[Tensor, Tensor]:
            fold, own, rows = item
            with torch.no_grad():
                return self._of_chunk(fold, rows, x[own], problems[own])

        found = map(of_chunk, work) if len(work) == 1 else self._pool.map(of_chunk, work)  # a thread would cost more
        for (_, own, _), (value, gradient) in zip(work, found, strict=True):
            values[own] += value
            gradients[own] += gradient
        return values, gradients

    def curvature(self) -> Tensor:
        """Estimate of the Hessian diagonals: predicts class frequencies for every sample.

        Uses the variances of the eigenvectors plus `VARIANCE_FLOOR`.
        """
        variances = {fold: fold.Z.square().mean(0).to(Z.dtype) + VARIANCE_FLOOR for fold, Z in self._Z.items()}
        h = {fold: torch.outer(self._spread(fold).to(of.dtype), of) for fold, of in variances.items()}
        return torch.cat([h[fold] for fold in self._fold_of_strength]).view(len(self.penalty), -1) + self.penalty

    @abstractmethod
    def _spread(self, fold: _Fold) -> Tensor:
        """Second derivative of the loss with respect to the logit of each model of the fold."""

    @abstractmethod
    def _of_chunk(self, fold: _Fold, rows: slice, x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (p,) and gradients (p, n_variables) of some problems over some rows."""


class _Multinomial(_Problems):
    """One problem per strength and fold: the weights (n_models, width) of all its classes."""

    def __init__(self, wave: Sequence[tuple[_Fold, float]], pool: Executor, dtype: torch.dtype) -> None:
        self._n_classes = wave[0][0].n_models
        self.n_variables = self._n_classes * wave[0][0].width
        super().__init__(wave, [1] * len(wave), pool, dtype)

    def _spread(self, fold: _Fold) -> Tensor:
        """Upper bound of diag(p) - p p^T by diag(p) (Böhning 1992)."""
        return torch.bincount(fold.y, minlength=self._n_classes) / len(fold.y)

    def _of_chunk(self, fold: _Fold, rows: slice, x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        Z, n = self._Z[fold][rows], len(fold.Z)
        log_shares = torch.log_softmax((Z @ x.view(-1, self._width).T).view(len(Z), len(x), -1), dim=2)
        true = fold.y[rows, None, None].expand(-1, len(x), 1)
        values = -log_shares.gather(2, true).squeeze(2).double().sum(0) / n
        slopes = log_shares.exp_().scatter_add_(2, true, Z.new_full((1, 1, 1), -1.0).expand(true.shape)).div_(n)
        return values, (slopes.view(len(Z), -1).T @ Z).view(len(x), -1)


class _PerClass(_Problems):
    """One problem per class, strength and fold: its weights (width,)."""

    def __init__(self, wave: Sequence[tuple[_Fold, float]], pool: Executor, dtype: torch.dtype) -> None:
        self.n_variables = wave[0][0].width
        super().__init__(wave, [fold.n_models for fold, _ in wave], pool, dtype)
        self._label = torch.cat([torch.arange(fold.n_models) for fold, _ in wave])
        self._pos_weight = wave[0][0].pos_weight

    def _spread(self, fold: _Fold) -> Tensor:
        share = fold.y.mean(0)
        positive, negative = self._pos_weight * share, 1.0 - share
        return positive * negative / (positive + negative)

    def _of_chunk(self, fold: _Fold, rows: slice, x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        Z, n = self._Z[fold][rows], len(fold.Z)
        y = fold.y[rows][:, self._label[problems]].to(Z.dtype)
        logits = Z @ x.T
        weights = torch.add(1.0, y, alpha=self._pos_weight - 1.0)
        losses = torch.nn.functional.softplus(logits).mul_(weights).addcmul_(y, logits, value=-self._pos_weight)
        slopes = logits.sigmoid_().mul_(weights).sub_(y, alpha=self._pos_weight).div_(n)
        return losses.double().sum(0) / n, slopes.T @ Z
