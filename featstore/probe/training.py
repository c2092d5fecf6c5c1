"""Minibatch training: one loop for every head, and two schedules.

A head is an `nn.Module`, differentiated by autograd and updated by `AdamW`.

**The schedule of X-ARES** (``--head linear``): Adam, a cosine learning rate per epoch, and the earliest of the best
epochs by validation score.

**The sweep** (``--head sweep``), used under ``strict`` where full-batch training does not apply: frames, sequences, two
towers, and sets that are too large (see `featstore.probe.logistic.fits_full_batch`).

1. Each learning rate of a logarithmic grid is trained for a few epochs. If the best rate is the first or the last, the
   grid is extended.
2. Training continues at the best rate. After `PATIENCE` epochs without improvement it returns to its best epoch and
   continues at a tenth of the rate. After `N_DROPS` reductions, the next plateau ends training.

An improvement is a better metric, or an equal metric with a lower loss: a word error rate can stay at 1 or at 0 while
the head still improves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from featstore.errors import DataError

__all__ = [
    "RATES",
    "Fitted",
    "FittedModel",
    "Score",
    "cosine_rate",
    "fixed_schedule",
    "initialised",
    "over_seeds",
    "sweep_rates",
    "train",
    "unselected",
    "zero_layer",
]

FINAL_FRACTION = 0.1

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
SLACK = 1.0 + 1e-9
TRIAL_EPOCHS = 3
PATIENCE = 3
N_DROPS = 2
MAX_EPOCHS = 200
WEIGHT_DECAY = 0.01

Batch = TypeVar("Batch")
Module = TypeVar("Module", bound=nn.Module)
Model = TypeVar("Model")
OtherModel = TypeVar("OtherModel")

Score = tuple[float, float]
"""Metric and tie-breaker; higher is better for both."""

DIVERGED: Score = (-math.inf, -math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Training record of a head.

    Attributes
    ----------
    epoch : int
        The best epoch, counted from 1.
    history : tuple of float
        Validation score after each epoch; empty without validation.
    fit : mapping or None
        How the learning rate was found, an entry of the record's ``details["fit"]``; None for a fixed schedule.
    layer_weights : float64 (layers,) or None
        Weights of the layers of a mix: see `featstore.probe.layer_mix`.
    """

    epoch: int
    history: tuple[float, ...]
    fit: Mapping[str, Any] | None = None
    layer_weights: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedModel(Fitted, Generic[Model]):
    """A head as it was after its best epoch, and its training record."""

    model: Model

    def using(self, model: OtherModel, *, layer_weights: NDArray[np.float64] | None = None) -> FittedModel[OtherModel]:
        """Return the record with the model that the head is part of."""
        return FittedModel(
            model=model, epoch=self.epoch, history=self.history, fit=self.fit, layer_weights=layer_weights
        )


def train(
    build: Callable[[np.random.Generator], Module],
    *,
    seed: tuple[int, int],
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    loss: Callable[[Module, Batch], Tensor],
    score: Callable[[Module], Score] | None,
    epochs: int,
    learning_rate: float,
    rates: Sequence[float] | None,
) -> FittedModel[Module]:
    """Train a head and return it as it was after its best epoch.

    Parameters
    ----------
    build : callable
        Makes the module from a generator, which then shuffles the batches.
    seed : pair of int
        Seed of the run and number of the round.
    batches : callable
        Yields the batches of an epoch.
    loss : callable
        Loss of the module on a batch.
    score : callable or None
        Validation score of the module. None: use the last epoch.
    epochs, learning_rate
        Settings of the X-ARES schedule; also of a sweep without validation.
    rates : sequence of float or None
        Learning rates of a sweep. None: the schedule of X-ARES.

    Raises
    ------
    DataError
        The parameters are not finite; in a sweep, at every rate.
    """
    if rates is not None and score is not None:
        return sweep_rates(build, seed=seed, batches=batches, loss=loss, score=score, rates=rates)
    rng = np.random.default_rng(seed)
    model = build(rng)
    best: dict[str, Tensor] | None = None
    best_score, best_epoch = -math.inf, epochs
    history: list[float] = []
    for epoch in fixed_schedule(
        model, batches=lambda: batches(rng), loss=loss, epochs=epochs, learning_rate=learning_rate
    ):
        if score is None:
            continue
        history.append(score(model)[0])
        if history[-1] > best_score:
            best, best_score, best_epoch = _copied_state(model), history[-1], epoch
    if best is not None:
        model.load_state_dict(best)
    fit = None if rates is None else unselected(epochs, learning_rate)
    return FittedModel(model=model, epoch=best_epoch, history=tuple(history), fit=fit)


def fixed_schedule(
    model: Module,
    *,
    batches: Callable[[], Iterable[Batch]],
    loss: Callable[[Module, Batch], Tensor],
    epochs: int,
    learning_rate: float,
) -> Iterator[int]:
    """Train by the schedule of X-ARES; yields the number of each epoch, counted from 1, when it ends.

    Raises
    ------
    DataError
        The parameters are not finite.
    """
    optimizer = AdamW(model, weight_decay=0.0)
    for epoch in range(epochs):
        rate = cosine_rate(learning_rate, epoch=epoch, epochs=epochs)
        for batch in batches():
            optimizer.step(loss(model, batch), learning_rate=rate)
        if not _is_finite(model):
            raise DataError(
                "the parameters became non-finite in training: lower [probe] learning_rate in the manifest, or rescale "
                "the labels; `featstore verify` finds damaged embeddings"
            )
        yield epoch + 1


def cosine_rate(learning_rate: float, *, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, counted from 0: a cosine from the full rate towards a tenth of it.

    The tenth would be reached in the epoch after the last, as in X-ARES, which uses ignite's
    ``CosineAnnealingScheduler`` with a cycle of ``epochs``.

    >>> [round(cosine_rate(1.0, epoch=epoch, epochs=3), 4) for epoch in range(3)]
    [1.0, 0.775, 0.325]
    """
    final = learning_rate * FINAL_FRACTION
    return final + (learning_rate - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def sweep_rates(
    build: Callable[[np.random.Generator], Module],
    *,
    seed: tuple[int, int],
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    loss: Callable[[Module, Batch], Tensor],
    score: Callable[[Module], Score],
    rates: Sequence[float],
) -> FittedModel[Module]:
    """Train at the best of some rates until validation stops improving: see `train`.

    ``rates`` is an ascending grid, which is extended while its best value is at an edge; a single rate is used as it
    is.
    """
    runs: dict[float, _Run[Module, Batch]] = {}
    pending = list(rates)
    while pending:
        for rate in pending:
            runs[rate] = _Run(build, seed=seed, batches=batches, loss=loss, score=score, learning_rate=rate)
            for _ in range(TRIAL_EPOCHS if len(rates) > 1 else 0):
                runs[rate].step()
        best = max(sorted(runs), key=lambda rate: runs[rate].best_score)
        beyond = {min(runs): min(runs) / math.sqrt(10), max(runs): max(runs) * math.sqrt(10)}
        pending = [
            rate
            for rate in ([beyond[best]] if best in beyond and len(rates) > 1 else [])
            if LOWEST_RATE / SLACK <= rate <= HIGHEST_RATE * SLACK
        ]
    grid = sorted(runs)
    run = runs[best]
    while not run.stalled and len(run.history) < MAX_EPOCHS:
        run.step()
    if run.best_score == DIVERGED:
        raise DataError("the parameters became non-finite in training at every learning rate: rescale the embeddings")
    run.model.load_state_dict(run.best)
    fit = {
        "learning_rate": best,
        "grid": grid,
        "extended": len(grid) > len(rates),
        "at_edge": len(grid) > 1 and best in (grid[0], grid[-1]),
        "epochs": len(run.history),
        "gradient_norm": run.gradient_norm if math.isfinite(run.gradient_norm) else None,
        "converged": run.stalled,
    }
    return FittedModel(model=run.model, epoch=run.best_epoch, history=tuple(run.history), fit=fit)


class _Run(Generic[Module, Batch]):
    """A training run from one learning rate, with its plateau state."""

    def __init__(
        self,
        build: Callable[[np.random.Generator], Module],
        *,
        seed: tuple[int, int],
        batches: Callable[[np.random.Generator], Iterable[Batch]],
        loss: Callable[[Module, Batch], Tensor],
        score: Callable[[Module], Score],
        learning_rate: float,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self.model = build(self._rng)
        self._batches, self._loss, self._score = batches, loss, score
        self._optimizer, self._rate = AdamW(self.model, weight_decay=WEIGHT_DECAY), learning_rate
        self.history: list[float] = []
        self.best, self.best_score, self.best_epoch = _copied_state(self.model), DIVERGED, 1
        self._waited, self._drops = 0, 0
        self.stalled = False
        self.gradient_norm = math.inf

    def step(self) -> None:
        """Train for one epoch, score the model, and lower the rate on a plateau."""
        if self.stalled:
            return
        total = [torch.zeros_like(each) for each in self._optimizer.parameters]
        n_batches = 0
        for batch in self._batches(self._rng):
            gradients = self._optimizer.step(self._loss(self.model, batch), learning_rate=self._rate)
            torch._foreach_add_(total, list(gradients))
            n_batches += 1
        # Norm of the mean gradient of the epoch.
        self.gradient_norm = math.sqrt(sum(float(each.square().sum()) for each in total)) / n_batches
        score = self._score(self.model) if _is_finite(self.model) else DIVERGED
        if not all(map(math.isfinite, score)):
            score = DIVERGED
        self.history.append(score[0])
        if score > self.best_score:
            self.best, self.best_score, self.best_epoch = _copied_state(self.model), score, len(self.history)
            self._waited = 0
            return
        self._waited += 1
        if self._waited == PATIENCE:
            if not _is_finite(self.model):  # nor are the moments, which would spoil every step to come
                self._optimizer = AdamW(self.model, weight_decay=WEIGHT_DECAY)
            self.model.load_state_dict(self.best)
            self.stalled = self._drops == N_DROPS
            self._rate, self._drops, self._waited = self._rate / 10, self._drops + 1, 0


class AdamW:
    """Adam with decoupled weight decay of matrices (Loshchilov and Hutter 2019).

    Calls the function behind ``torch.optim.Adam``: constructing that class imports ``torch._dynamo``, which takes 0.95
    s of CPU (torch 2.13), more than twice the time of a probe on 2,200 clips.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float) -> None:
        self.parameters = list(model.parameters())
        self._weight_decay = weight_decay
        self._first_moments = [torch.zeros_like(each) for each in self.parameters]
        self._second_moments = [torch.zeros_like(each) for each in self.parameters]
        self._n_steps = [torch.zeros((), device=each.device) for each in self.parameters]

    def step(self, loss: Tensor, *, learning_rate: float) -> Sequence[Tensor]:
        """Take one step along the gradients of a loss; return the gradients."""
        gradients = [each.contiguous() for each in torch.autograd.grad(loss, self.parameters)]
        with torch.no_grad():
            for each in self.parameters:
                if self._weight_decay and each.ndim > 1:  # biases and scales do not decay
                    each.mul_(1.0 - learning_rate * self._weight_decay)
            adam(
                [each.data for each in self.parameters],
                gradients,
                self._first_moments,
                self._second_moments,
                [],
                self._n_steps,
                fused=True,
                amsgrad=False,
                maximize=False,
                weight_decay=0.0,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                lr=learning_rate,
            )
        return gradients


def _is_finite(model: nn.Module) -> bool:
    """Whether all parameters are finite, tested cheaply by their sums."""
    return all(math.isfinite(each.detach().sum().item()) for each in model.parameters())


def _copied_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def initialised(build: Callable[[], Module], rng: np.random.Generator) -> Module:
    """Build a module with initial weights from ``rng``; torch's global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        return build()


def zero_layer(*, dim: int, n_classes: int) -> nn.Linear:
    """Make a linear layer of zeros, for convex losses, whose optimum does not depend on the start."""
    layer = nn.Linear(dim, n_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def unselected(epochs: int, learning_rate: float) -> dict[str, Any]:
    """Build the fit of a record without validation."""
    return {
        "learning_rate": learning_rate,
        "grid": [learning_rate],
        "extended": False,
        "at_edge": False,
        "epochs": epochs,
        "gradient_norm": None,
        "converged": False,
    }


Found = TypeVar("Found", bound=Fitted)


def over_seeds(seeds: Sequence[int], train: Callable[..., Found]) -> list[Found]:
    """Train once per seed with ``seed`` and ``rates``; the first seed selects the rate for the others."""
    first = train(seed=seeds[0], rates=RATES)
    rates = RATES if first.fit is None else (first.fit["learning_rate"],)
    return [first, *(train(seed=seed, rates=rates) for seed in seeds[1:])]
