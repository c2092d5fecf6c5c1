"""Training by minibatches until validation stops improving, at a learning rate that validation chooses.

The rule of ``strict`` for what full-batch passes do not suit: frames, sequences, two towers, and sets that are too
large (see `featstore.probe.logistic.fits_full_batch`).

1. Each rate of a log grid is trained for a few epochs; where the best is the first or the last, the grid goes on.
2. The best one is trained on. After `PATIENCE` epochs without a better validation score it returns to its best epoch
   and goes on at a tenth of the rate; when the rate has fallen `N_DROPS` times and the score stalls once more, training
   has converged.

A better score is a better metric, or an equal one with a lower loss: a head that has not spelled a word yet, or has
spelled all of them, may still be improving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from featstore.errors import DataError
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import Fitted, adam_step, fit

__all__ = [
    "DIVERGED",
    "RATES",
    "WEIGHT_DECAY",
    "Plateau",
    "Score",
    "Standardise",
    "Trainee",
    "over_seeds",
    "sweep_module",
    "train_to_plateau",
    "unselected",
]

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1.0
SLACK = 1.0 + 1e-9
TRIAL_EPOCHS = 3
PATIENCE = 3
N_DROPS = 2
MAX_EPOCHS = 200
WEIGHT_DECAY = 0.01


Score = tuple[float, float]
"""The metric, and what decides between equals; higher is better for both."""

DIVERGED: Score = (-math.inf, -math.inf)


class Trainee(Protocol):
    """A model in training."""

    def epoch(self, learning_rate: float) -> float:
        """Take every batch once; returns the norm of the mean gradient."""

    def score(self) -> Score:
        """Validation score; `DIVERGED` where the model has numbers that are not finite."""

    def state(self) -> Any:
        """What it has learned, owned by the caller."""

    def restore(self, state: Any) -> None:
        """Return to what `state` gave."""


T = TypeVar("T", bound=Trainee)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau(Generic[T]):
    """A model at its best epoch.

    Attributes
    ----------
    epoch : int
        The best one, counted from 1.
    history : tuple of float
        Validation score after each epoch.
    fit : mapping
        How it was found: the part of a record's ``details["fit"]``.
    """

    trainee: T
    epoch: int
    history: tuple[float, ...]
    fit: Mapping[str, Any]


def train_to_plateau(start: Callable[[], T], *, rates: Sequence[float] = RATES) -> Plateau[T]:
    """Train at the best of some rates until validation stops improving.

    Parameters
    ----------
    start : callable
        Makes a trainee that has not learned anything yet, the same each time.
    rates : sequence of float
        A grid, rising, which is extended where its best is at an edge; a single one is taken as it is.

    Raises
    ------
    DataError
        No rate gives finite numbers.
    """
    runs: dict[float, _Run[T]] = {}
    pending = list(rates)
    while pending:
        for rate in pending:
            runs[rate] = _Run(start(), rate)
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
        raise DataError("training came to numbers that are not finite at every learning rate: scale the embeddings")
    run.trainee.restore(run.best)
    at_edge = len(grid) > 1 and best in (grid[0], grid[-1])
    return Plateau(
        trainee=run.trainee,
        epoch=run.best_epoch,
        history=tuple(run.history),
        fit={
            "learning_rate": best,
            "grid": grid,
            "extended": len(grid) > len(rates),
            "at_edge": at_edge,
            "epochs": len(run.history),
            "gradient_norm": run.gradient_norm if math.isfinite(run.gradient_norm) else None,
            "converged": run.stalled,
        },
    )


class _Run(Generic[T]):
    """One trainee on its way: its best epoch, and how long ago that was."""

    def __init__(self, trainee: T, rate: float) -> None:
        self.trainee, self._rate = trainee, rate
        self.history: list[float] = []
        self.best, self.best_score, self.best_epoch = trainee.state(), DIVERGED, 1
        self._waited, self._drops = 0, 0
        self.stalled = False
        self.gradient_norm = math.inf

    def step(self) -> None:
        """One epoch."""
        if self.stalled:
            return
        self.gradient_norm = self.trainee.epoch(self._rate)
        score = self.trainee.score()
        self.history.append(score[0])
        if score > self.best_score:
            self.best, self.best_score, self.best_epoch = self.trainee.state(), score, len(self.history)
            self._waited = 0
            return
        self._waited += 1
        if self._waited == PATIENCE:
            self.trainee.restore(self.best)
            self.stalled = self._drops == N_DROPS
            self._rate, self._drops, self._waited = self._rate / 10, self._drops + 1, 0


Batch = TypeVar("Batch")
Module = TypeVar("Module", bound=nn.Module)


class Standardise(nn.Module):
    """`Standardisation` as the first layer of a model, where X-ARES has LayerNorm."""

    mean: Tensor
    scale: Tensor

    def __init__(self, by: Standardisation) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(by.mean.astype(np.float32)))
        self.register_buffer("scale", torch.from_numpy(by.scale.astype(np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        """Rows (..., dim)."""
        return (features - self.mean) / self.scale


def sweep_module(
    build: Callable[[np.random.Generator], Module],
    *,
    seed: tuple[int, int],
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    loss: Callable[[Module, Batch], Tensor],
    score: Callable[[Module], Score] | None,
    rates: Sequence[float],
    without_validation: tuple[int, float],
) -> tuple[Module, Fitted]:
    """Train a module by the rule of this file.

    Parameters
    ----------
    build : callable
        Makes the module, from the generator that then orders the batches.
    score : callable or None
        Validation score; without one the schedule of `featstore.probe.training.fit` is taken.
    without_validation : (int, float)
        Its epochs and learning rate.
    """
    if score is None:
        epochs, rate = without_validation
        rng = np.random.default_rng(seed)
        model = build(rng)
        fit(
            model,
            batches=lambda: batches(rng),
            loss=lambda batch: loss(model, batch),
            score=None,
            epochs=epochs,
            learning_rate=rate,
        )
        return model, Fitted(epoch=epochs, history=(), fit=unselected(epochs, rate))

    def start() -> ModuleTrainee[Module, Batch]:
        rng = np.random.default_rng(seed)
        model = build(rng)
        return ModuleTrainee(
            model,
            batches=lambda: batches(rng),
            loss=lambda batch: loss(model, batch),
            score=lambda: score(model),
        )

    found = train_to_plateau(start, rates=rates)
    return found.trainee.model, Fitted(epoch=found.epoch, history=found.history, fit=found.fit)


def unselected(epochs: int, learning_rate: float) -> dict[str, Any]:
    """Build the fit of a record where there was no validation to choose by, or to stop by."""
    return {
        "learning_rate": learning_rate,
        "grid": [learning_rate],
        "extended": False,
        "at_edge": False,
        "epochs": epochs,
        "gradient_norm": None,
        "converged": False,
    }


class _HasFit(Protocol):
    @property
    def fit(self) -> Mapping[str, Any] | None:
        """How a learning rate was found."""


Found = TypeVar("Found")


def over_seeds(seeds: Sequence[int], train: Callable[..., Found], *, fit_of: Callable[[Found], _HasFit]) -> list[Found]:
    """Train once for each seed, given ``seed`` and ``rates``: the first one chooses the rate, which the others take."""
    first = train(seed=seeds[0], rates=RATES)
    fit = fit_of(first).fit
    rates = RATES if fit is None else (fit["learning_rate"],)
    return [first, *(train(seed=seed, rates=rates) for seed in seeds[1:])]


class ModuleTrainee(Generic[Module, Batch]):
    """A module, by autograd and AdamW (Loshchilov and Hutter 2019).

    Parameters
    ----------
    batches : callable
        Gives the batches of an epoch, one by one.
    loss : callable
        Of a batch.
    score : callable
        Of the module as it is, higher is better.
    """

    def __init__(
        self,
        model: Module,
        *,
        batches: Callable[[], Iterable[Batch]],
        loss: Callable[[Batch], Tensor],
        score: Callable[[], Score],
    ) -> None:
        self.model, self._batches, self._loss, self._score = model, batches, loss, score
        self._parameters = list(model.parameters())
        self._first = [torch.zeros_like(each) for each in self._parameters]
        self._second = [torch.zeros_like(each) for each in self._parameters]
        self._taken = [torch.zeros((), device=each.device) for each in self._parameters]

    def epoch(self, learning_rate: float) -> float:
        """Take every batch once."""
        total = [torch.zeros_like(each) for each in self._parameters]
        n_batches = 0
        for batch in self._batches():
            gradients = torch.autograd.grad(self._loss(batch), self._parameters)
            with torch.no_grad():
                torch._foreach_add_(total, list(gradients))
                for each in self._parameters:
                    if each.ndim > 1:  # biases and scales are not decayed
                        each.mul_(1.0 - learning_rate * WEIGHT_DECAY)
                adam_step(
                    [each.data for each in self._parameters],
                    [each.contiguous() for each in gradients],
                    first_moments=self._first,
                    second_moments=self._second,
                    taken=self._taken,
                    learning_rate=learning_rate,
                )
            n_batches += 1
        return math.sqrt(sum(float(each.square().sum()) for each in total)) / max(n_batches, 1)

    def score(self) -> Score:
        """Validation score."""
        finite = all(math.isfinite(each.detach().sum().item()) for each in self._parameters)
        score = self._score() if finite else DIVERGED
        return score if all(map(math.isfinite, score)) else DIVERGED

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load them."""
        self.model.load_state_dict(state)
