"""A linear model of a weighted sum of the layers of an encoder, fitted jointly with the weights of the layers.

The weights are a softmax over layers, as in SUPERB (Yang et al. 2021, section 3.1) and ELMo (Peters et al. 2018). Each
layer is standardised per dimension on training windows. The sum is divided by its root mean square, so that a
regularisation strength has the same meaning for every mix; if one layer has all the weight, the model is that of
`featstore.probe.logistic` on this layer. The objective is the log loss of that module (or half the squared error) plus
|W|^2 / (2 C) over the head's weights; the weights of layers are not penalised.

The problem is not convex. The weakest penalty of the grid starts from equal weights and a head of zeros; every other
strength starts from the nearest solution, with its weights moved halfway to equal ones. Each is solved by L-BFGS
(`featstore.probe.lbfgs`). Rows are processed in chunks of a fixed size and added in order: the result does not depend
on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.probe.class_models import ClassModels
from featstore.probe.lbfgs import minimise
from featstore.probe.linear import torch_threads
from featstore.probe.logistic import (
    C_UNSELECTED,
    GRID,
    HIGHEST_C,
    LARGEST_FLOAT32_C,
    LOWEST_C,
    PATH_TOLERANCE,
    TOLERANCE,
    VARIANCE_FLOOR,
)
from featstore.probe.selection import GridSearch, Path, Tried
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import zero_layer

__all__ = [
    "LayerMix",
    "LayerSum",
    "MixHead",
    "MixSet",
    "Objective",
    "fit_layer_mix",
    "fits_full_batch",
    "frame_products",
    "layer_products",
    "learned_weights",
    "objective_of_classes",
    "objective_of_numbers",
    "standardised",
]

MAX_ITERATIONS = 1000
MIX_CURVATURE = 1.0
"""Second derivative of the loss with respect to the logit of a layer, times the number of layers, in the scaling of
L-BFGS. A lower value lets the first steps overshoot to a single layer, from where no gradient leads back."""

MAX_PASS = 2_000_000_000
MAX_VALUES = 2**29
"""Limits of full-batch training: windows x dim x (classes + layers), and values of all layers in memory (2 GiB; there
are two copies of the training windows). Larger problems use minibatches."""

CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What the head of a mix is trained for.

    Attributes
    ----------
    y : (n, ...)
        Targets of the training windows.
    loss : callable
        Maps logits (..., rows, outputs) and the targets of the rows to losses (...), summed over rows.
    spread : float32 (outputs,)
        Estimate of the second derivative of the loss of a row with respect to each logit.
    expand : callable
        Maps logits (n, outputs) to the predictions of the task, (n, n_classes) or (n, 1).
    """

    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    spread: Tensor
    expand: Callable[[Tensor], Tensor]


def objective_of_classes(y: NDArray[Any], *, n_classes: int, pos_weight: float = 1.0) -> Objective:
    """Log loss of class indices (n,), or of multi-hot labels (n, n_classes) summed over classes."""
    models = ClassModels.of(y, n_classes=n_classes)
    weight = torch.tensor(pos_weight)

    def binary(logits: Tensor, targets: Tensor) -> Tensor:
        targets = targets.to(logits.dtype).expand(logits.shape)
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=weight.to(logits.dtype)
        )
        return losses.sum((-2, -1), dtype=torch.float64)

    def multinomial(logits: Tensor, targets: Tensor) -> Tensor:
        every = targets.expand(logits.shape[:-1])
        losses = functional.cross_entropy(logits.flatten(0, -2), every.flatten(), reduction="none")
        return losses.view(every.shape).sum(-1, dtype=torch.float64)

    if models.per_class:
        share = models.y.mean(0)
        spread = pos_weight * share * (1.0 - share) / (pos_weight * share + 1.0 - share)
    else:
        spread = torch.bincount(models.y, minlength=models.n_models) / len(models.y)
    return Objective(y=models.y, loss=binary if models.per_class else multinomial, spread=spread, expand=models.expand)


def objective_of_numbers(y: NDArray[np.float64]) -> Objective:
    """Half the squared error of standardised numbers (n,); predictions have the unit of the numbers."""
    mean, std = float(y.mean()), float(y.std()) or 1.0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (logits.squeeze(-1) - targets).square().sum(-1, dtype=torch.float64)

    return Objective(
        y=torch.from_numpy(((y - mean) / std).astype(np.float32)),
        loss=loss,
        spread=torch.ones(1),
        expand=lambda logits: logits.double() * std + mean,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMix:
    """A fitted mix: logits are the weighted sum, divided by ``scale``, times ``weight.T``, plus ``bias``.

    Attributes
    ----------
    standardisations : tuple of Standardisation
        One per layer.
    layer_weights : float64 (layers,)
        Positive, with sum 1.
    scale : float
        Root mean square of the weighted sum of the standardised layers on training windows.
    weight, bias : float32 (outputs, dim) and (outputs,)
    expand : callable
        See `Objective`.
    """

    standardisations: tuple[Standardisation, ...]
    layer_weights: NDArray[np.float64]
    scale: float
    weight: Tensor
    bias: Tensor
    expand: Callable[[Tensor], Tensor]

    def __call__(self, layers: Sequence[NDArray[np.float32]]) -> NDArray[np.floating[Any]]:
        """Predictions (n, n_classes) or (n, 1) for raw embeddings: (n, dim) for each layer."""
        mixed = torch.zeros(layers[0].shape)
        for weight, by, X in zip(self.layer_weights.tolist(), self.standardisations, layers, strict=True):
            mixed.add_(by(X), alpha=weight / self.scale)
        predicted: NDArray[np.floating[Any]] = self.expand(torch.addmm(self.bias, mixed, self.weight.T)).numpy()
        return predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class MixSet:
    """Training and validation data of one round.

    Attributes
    ----------
    layers : sequence of float32 (windows, dim)
        Raw embeddings of all windows of the task, by layer.
    windows : int64 (n,)
        Training windows.
    objective : Objective
    valid : int64 (m,) or None
        Windows that select the strength.
    score : callable or None
        Maps predictions for the windows ``valid`` to the validation score and a tie-breaker, higher is better.
    """

    layers: Sequence[NDArray[np.float32]]
    windows: NDArray[np.int64]
    objective: Objective
    valid: NDArray[np.int64] | None = None
    score: Callable[[NDArray[np.floating[Any]]], tuple[float, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TriedMix(Tried):
    """Result for one strength, with the mix and the variables that it was found at."""

    model: LayerMix
    x: Tensor


def fits_full_batch(n: int, dim: int, *, n_layers: int, n_classes: int) -> bool:
    """Whether full-batch training is feasible for a training set of this size.

    >>> fits_full_batch(1_600, 768, n_layers=13, n_classes=50)
    True
    >>> fits_full_batch(138_000, 768, n_layers=13, n_classes=1251)
    False
    """
    return n * dim * (n_classes + n_layers) <= MAX_PASS and n * dim * n_layers <= MAX_VALUES


def standardised(
    layers: Sequence[NDArray[np.float32]], windows: NDArray[np.int64]
) -> tuple[Tensor, tuple[Standardisation, ...]]:
    """Standardise some windows of each layer by themselves: float32 (layers, n, dim), and the statistics."""
    Z = torch.empty(len(layers), len(windows), layers[0].shape[1])
    statistics = []
    for at, X in enumerate(layers):
        rows = X[windows]
        statistics.append(Standardisation.of(rows))
        Z[at] = statistics[-1](rows)
    return Z, tuple(statistics)


def layer_products(Z: Tensor) -> Tensor:
    """Mean product of each pair of standardised layers, float64 (layers, layers): ``w @ K @ w`` is a mix's square."""
    return _mean_products(torch.split(Z, CHUNK_ROWS, dim=1))


def frame_products(frames: Iterable[NDArray[np.floating]], by: Standardisation, *, n_layers: int) -> Tensor:
    """`layer_products` of frames (n, layers x dim) that are read in pieces, standardised by ``by``."""
    return _mean_products(by(each).view(len(each), n_layers, -1).movedim(1, 0) for each in frames)


def _mean_products(chunks: Iterable[Tensor]) -> Tensor:
    total: Tensor | float = 0.0
    n_values = 0
    for chunk in chunks:
        flat = chunk.flatten(1)
        total = total + (flat @ flat.T).double()
        n_values += flat.shape[1]
    return torch.as_tensor(total) / n_values


def fit_layer_mix(of: MixSet, *, grid: Sequence[float] = GRID) -> Path[LayerMix]:
    """Fit every strength and select one by validation; without validation, `C_UNSELECTED` is used.

    Parameters
    ----------
    of : MixSet
    grid : sequence of float
        Strengths; extended while the best is at an edge.
    """
    valid = None if of.valid is None else [X[of.valid] for X in of.layers]
    search = GridSearch(bounds=(LOWEST_C, HIGHEST_C))
    tried: dict[float, _TriedMix] = {}
    with torch_threads(1), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        problem = _Problem(of, pool)
        pending = sorted(grid) if of.score is not None else [C_UNSELECTED]
        while pending:
            for C in sorted(pending, reverse=not tried):
                nearest = min(tried.values(), key=lambda each: abs(math.log(each.strength / C)), default=None)
                found = problem.solve(C, problem.start(nearest), tolerance=PATH_TOLERANCE)
                score = None if of.score is None or valid is None else of.score(found.model(valid))
                tried[C] = replace(found, score=score)
            ordered = [tried[C] for C in sorted(tried)]
            chosen = max(ordered, key=lambda each: each.score or (0.0, 0.0))  # ties: the strongest penalty
            scores = {each.strength: each.score for each in ordered if each.score is not None}
            pending = search.beyond(scores) if scores else []
        refined = problem.solve(chosen.strength, chosen.x, tolerance=TOLERANCE)
    chosen = replace(refined, score=chosen.score, iterations=chosen.iterations + refined.iterations)
    return Path(
        model=chosen.model,
        chosen=chosen,
        tried=tuple(ordered),
        extended=search.extended,
        at_edge=search.at_edge,
        converged=chosen.gradient_norm <= TOLERANCE,
    )


class _Problem:
    """The joint problem of a training set: variables are the logits of layers, then weights and bias of each output.

    The head's weights are in the eigenbasis of the equal mix, in which the Hessian is nearly diagonal.
    """

    def __init__(self, of: MixSet, pool: Executor) -> None:
        self._objective, self._pool = of.objective, pool
        self._Z, self._standardisations = standardised(of.layers, of.windows)
        self._products = layer_products(self._Z)
        self._n_layers, self._n, self._dim = self._Z.shape
        equal = self._Z.mean(0)
        equal /= equal.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        self._variances, self._basis = torch.linalg.eigh(equal.T @ equal / self._n)

    def start(self, nearest: _TriedMix | None) -> Tensor:
        """Start of a strength: the nearest solution, with its weights of layers moved halfway to equal weights.

        A layer without weight has no gradient, and would never get weight again.
        """
        if nearest is None:
            return torch.zeros(self._n_layers + len(self._objective.spread) * (self._dim + 1))
        weights = torch.from_numpy(nearest.model.layer_weights)
        return torch.cat([((weights + 1.0 / len(weights)) / 2.0).log().float(), nearest.x[self._n_layers :]])

    def solve(self, C: float, start: Tensor, *, tolerance: float) -> _TriedMix:
        """Minimise the objective of a strength, in float64 where float32 does not resolve its gradients."""
        dtype = torch.float64 if C > LARGEST_FLOAT32_C else torch.float32
        penalty = self._penalty(C).to(dtype)
        found = minimise(
            self._losses,
            start[None].to(dtype),
            penalty=penalty[None],
            curvature=(self._curvature().to(dtype) + penalty)[None],
            tolerance=tolerance,
            max_iterations=MAX_ITERATIONS,
        )
        return _TriedMix(
            strength=C,
            model=self._model(found.x[0]),
            x=found.x[0].float(),
            score=None,
            iterations=int(found.iterations[0]),
            gradient_norm=float(found.gradient_norm[0]),
        )

    def _penalty(self, C: float) -> Tensor:
        """Penalty (variables,) of the mean loss: of the head's weights only."""
        penalised = torch.ones(len(self._objective.spread), self._dim + 1)
        penalised[:, -1] = 0.0
        return torch.cat([torch.zeros(self._n_layers), penalised.flatten()]) / (C * self._n)

    def _curvature(self) -> Tensor:
        """Estimate of the Hessian's diagonal (variables,)."""
        of_head = torch.outer(self._objective.spread, torch.cat([self._variances + VARIANCE_FLOOR, torch.ones(1)]))
        of_layers = torch.full((self._n_layers,), MIX_CURVATURE / self._n_layers)
        return torch.cat([of_layers, of_head.flatten()])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of layers (p, layers), weights (p, outputs, dim) and biases (p, outputs) of variables (p, n)."""
        weights = torch.softmax(x[:, : self._n_layers], dim=1)
        scale = ((weights @ self._products.to(x.dtype)) * weights).sum(1, keepdim=True).sqrt()
        head = x[:, self._n_layers :].view(len(x), -1, self._dim + 1)
        return weights / scale, head[..., :-1] @ self._basis.T.to(x.dtype), head[..., -1]

    def _losses(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of each point and its gradient: see `featstore.probe.lbfgs.minimise`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            parts = self._parts(leaf)
        values = torch.zeros(len(x), dtype=torch.float64)
        slopes = [torch.zeros_like(each) for each in parts]
        detached = [each.detach() for each in parts]
        chunks = [slice(start, start + CHUNK_ROWS) for start in range(0, self._n, CHUNK_ROWS)]
        for value, gradients in self._pool.map(lambda rows: self._of_chunk(detached, rows), chunks):
            values += value
            for slope, of_chunk in zip(slopes, gradients, strict=True):
                slope.add_(of_chunk)
        (gradient,) = torch.autograd.grad(parts, leaf, [each / self._n for each in slopes])
        return values / self._n, gradient

    def _of_chunk(self, parts: Sequence[Tensor], rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            factors, weight, bias = leaves = [each.clone().requires_grad_() for each in parts]
            Z = self._Z[:, rows].flatten(1).to(factors.dtype)
            mixed = (factors @ Z).view(len(factors), -1, self._dim)
            logits = torch.baddbmm(bias[:, None], mixed, weight.transpose(1, 2))
            losses = self._objective.loss(logits, self._objective.y[rows])
        return losses.detach(), torch.autograd.grad(losses.sum(), leaves)

    def _model(self, x: Tensor) -> LayerMix:
        weights = torch.softmax(x[: self._n_layers].double(), dim=0)
        _, weight, bias = self._parts(x[None])
        return LayerMix(
            standardisations=self._standardisations,
            layer_weights=weights.numpy(),
            scale=math.sqrt(float(weights @ self._products @ weights)),
            weight=weight[0].float(),
            bias=bias[0].float(),
            expand=self._objective.expand,
        )


class LayerSum(nn.Module):
    """Weighted sum of standardised layers, for minibatches; the float32 logits of its weights are learned.

    Parameters
    ----------
    products : float64 (layers, layers)
        From `layer_products` or `frame_products`.
    """

    products: Tensor

    def __init__(self, products: Tensor) -> None:
        super().__init__()
        self.layer_logits = nn.Parameter(torch.zeros(len(products)))
        self.register_buffer("products", products.float())

    @property
    def layer_weights(self) -> Tensor:
        """Positive, with sum 1: float32 (layers,)."""
        return torch.softmax(self.layer_logits, dim=0)

    @property
    def scale(self) -> Tensor:
        """Root mean square of the weighted sum on training windows or frames."""
        return (self.layer_weights @ self.products @ self.layer_weights).sqrt()

    @property
    def factors(self) -> Tensor:
        """Factor of each layer in the sum, (layers,)."""
        return self.layer_weights / self.scale

    def forward(self, rows: Tensor) -> Tensor:
        """Mix (n, dim) of standardised rows (n, layers x dim)."""
        return self.factors @ rows.view(len(rows), len(self.products), -1)


def learned_weights(model: nn.Module) -> NDArray[np.float64] | None:
    """Weights (layers,) of the layer sum in a model, or None if it has none."""
    found = next((each for each in model.modules() if isinstance(each, LayerSum)), None)
    return None if found is None else found.layer_weights.detach().double().cpu().numpy()


class MixHead(nn.Module):
    """A linear layer, of zeros at the start, on the weighted sum: the model of `LayerMix`."""

    def __init__(self, products: Tensor, *, dim: int, n_outputs: int) -> None:
        super().__init__()
        self.layers = LayerSum(products)
        self.head = zero_layer(dim=dim, n_classes=n_outputs)

    def forward(self, Z: Tensor) -> Tensor:
        """Logits (n, outputs) of standardised rows (layers, n, dim)."""
        logits: Tensor = self.head(torch.tensordot(self.layers.factors, Z, dims=1))
        return logits

    def affine(self) -> tuple[Tensor, Tensor]:
        """The model as one map of standardised rows (n, layers x dim): weight (outputs, layers x dim), and bias."""
        return (self.layers.factors[:, None] * self.head.weight[:, None]).flatten(1), self.head.bias

    @torch.no_grad()
    def mix(self, of: Sequence[Standardisation], expand: Callable[[Tensor], Tensor]) -> LayerMix:
        """The model as it is now, of layers with these statistics."""
        return LayerMix(
            standardisations=tuple(of),
            layer_weights=self.layers.layer_weights.double().numpy(),
            scale=float(self.layers.scale),
            weight=self.head.weight.detach().clone(),
            bias=self.head.bias.detach().clone(),
            expand=expand,
        )
