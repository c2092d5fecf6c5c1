"""Linear heads, trained many at a time. The one door to torch of the probe.

A head is LayerNorm (epsilon 1e-5, with its affine) and Linear, as in X-ARES. The statistics of LayerNorm do not depend
on what is learned, so features are standardised once; what is left,

    logits = x W_eff^T + b_eff        W_eff = W * gamma        b_eff = W beta + b,

has exact gradients that are written out, from G = dloss/dlogits (batch, classes), M = G^T x and g = G^T 1:

    dW = M * gamma + g beta^T      dgamma = sum over classes of W * M      dbeta = W^T g      db = g

A batch of fewer rows than there are classes is scaled in place of the weights (see `ScaledPass`): one product more, and
no pass over weights that may be millions.

Folds, seeds and learning rates are heads of one batched problem, with a row of one parameter matrix each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.probe.training import adam_step, cosine_rate, require_finite

__all__ = [
    "Bank",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FoldedPass",
    "Job",
    "Loss",
    "ScaledPass",
    "Trained",
    "Validation",
    "predict",
    "standardised",
    "threads",
    "train_heads",
]

LAYER_NORM_EPS = 1e-5

# Below this many multiply-adds in a step, waking a second thread costs more than it saves, and on a busy machine far
# more: two threads that spin for one free core took 3 ms for a step of 0.06 ms.
MIN_WORK_FOR_THREADS = 20_000_000


class Loss(Protocol):
    """How a head is taught: the gradient of a loss."""

    def gradient(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Gradient by the logits.

        ``logits`` (heads, batch, classes), which may be overwritten; ``targets`` (heads, batch, ...);
        ``weights`` (heads, batch, 1) add up to 1 for each head and are 0 where a batch is not full.
        """


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy of class indices, as ``torch.nn.CrossEntropyLoss``."""

    def gradient(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Softmax less one at the target."""
        gradient = torch.softmax(logits, dim=-1)
        gradient.scatter_add_(2, targets.unsqueeze(2), gradient.new_full((1, 1, 1), -1.0).expand(*targets.shape, 1))
        return gradient.mul_(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCrossEntropy:
    """Mean binary cross-entropy of label sets over samples and classes, as ``torch.nn.BCEWithLogitsLoss``."""

    pos_weight: float

    def gradient(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Sigmoid less target, where a positive counts ``pos_weight`` times."""
        odds = torch.add(1.0, targets, alpha=self.pos_weight - 1.0)
        gradient = logits.sigmoid_().mul_(odds).sub_(targets, alpha=self.pos_weight)
        return gradient.mul_(weights / logits.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validation:
    """What selects an epoch: ``score`` of the logits of ``windows`` (higher is better)."""

    windows: NDArray[np.int64]
    score: Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One head to train.

    Attributes
    ----------
    windows : int64 (n,)
        Rows of the features it learns from.
    validation : Validation or None
        Without one, the last epoch is taken.
    rng : numpy Generator
        Initial weights, then the order of each epoch.
    learning_rate : float
    """

    windows: NDArray[np.int64]
    validation: Validation | None
    rng: np.random.Generator
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A head as it was at its best epoch, folded into one affine map of standardised features.

    Attributes
    ----------
    weight : Tensor, float32 (classes, dim)
    bias : Tensor, float32 (classes,)
    epoch : int
        The best one, counted from 1.
    history : tuple of float
        Validation score after each epoch; empty without validation.
    fit : mapping or None
        How its learning rate was found; None where the schedule is fixed.
    """

    weight: Tensor
    bias: Tensor
    epoch: int
    history: tuple[float, ...]
    fit: Mapping[str, Any] | None = None


def standardised(X: NDArray[np.float32]) -> Tensor:
    """Rows of mean 0 and variance 1: what LayerNorm makes of ``X`` before its affine."""
    return torch.nn.functional.layer_norm(torch.from_numpy(X), X.shape[1:], eps=LAYER_NORM_EPS)


def predict(features: Tensor, windows: NDArray[np.int64], heads: Sequence[Trained]) -> tuple[NDArray[np.float32], ...]:
    """Logits of some windows by each head, float32 (n, classes)."""
    rows = features[torch.from_numpy(windows)]
    return tuple(torch.addmm(head.bias, rows, head.weight.T).numpy() for head in heads)


def train_heads(
    features: Tensor,
    targets: NDArray[Any],
    jobs: Sequence[Job],
    *,
    n_classes: int,
    loss: Loss,
    epochs: int,
    batch_size: int,
) -> tuple[Trained, ...]:
    """Train every job's head; a job gives the same head whatever jobs stand beside it, to rounding.

    Adam with the rate of `cosine_rate`; every epoch in a new order, its last batch as small as it comes; the first of
    the best epochs by validation score wins.

    Parameters
    ----------
    features : float32 (windows, dim)
        From `standardised`.
    targets : (windows, ...)
        Of all windows.
    jobs : sequence of Job

    Raises
    ------
    DataError
        A head came to numbers that are not finite.
    """
    # Heads with more steps stand first, so that those still at work in an epoch are always the first rows.
    order = sorted(range(len(jobs)), key=lambda at: (-_steps(jobs[at], batch_size), jobs[at].learning_rate))
    ranked = [jobs[at] for at in order]
    work = len(jobs) * batch_size * n_classes * features.shape[1]
    with torch.no_grad(), threads(1 if work < MIN_WORK_FOR_THREADS else torch.get_num_threads()):
        bank = Bank(ranked, n_classes=n_classes, dim=features.shape[1], batch_size=batch_size)
        best = _Best(bank, ranked)
        known = torch.from_numpy(targets)
        through: Pass = ScaledPass(bank) if n_classes > batch_size else FoldedPass(bank)
        for epoch in range(epochs):
            _run_epoch(
                bank, through, features, known, ranked, loss=loss, batch_size=batch_size, epoch=epoch, epochs=epochs
            )
            best.consider(bank, features, epoch=epoch)
        trained = best.heads()
    by_job = dict(zip(order, trained, strict=True))
    return tuple(by_job[at] for at in range(len(jobs)))


class Bank:
    """Parameters, gradients and Adam's moments of all heads: float32 (heads, parameters) each, with named views."""

    def __init__(self, jobs: Sequence[Job], *, n_classes: int, dim: int, batch_size: int) -> None:
        self.n_classes, self.dim = n_classes, dim
        n_parameters = n_classes * dim + n_classes + 2 * dim
        self.values = torch.zeros(len(jobs), n_parameters)
        self.gradients = torch.zeros_like(self.values)
        self.weight, self.bias, self.gamma, self.beta = self._views(self.values)
        self.d_weight, self.d_bias, self.d_gamma, self.d_beta = self._views(self.gradients)
        self._first_moments = torch.zeros_like(self.values)
        self._second_moments = torch.zeros_like(self.values)
        self._initialise(jobs)
        # Heads that step and decay alike share one call of Adam.
        self._blocks = []
        start = 0
        for (n_steps, rate), group in groupby(jobs, key=lambda job: (_steps(job, batch_size), job.learning_rate)):
            rows = slice(start, start + len(list(group)))
            self._blocks.append(_Block(rows=rows, n_steps=n_steps, learning_rate=rate, taken=torch.zeros(())))
            start = rows.stop

    def _views(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = [self.n_classes * self.dim, self.n_classes, self.dim, self.dim]
        weight, bias, gamma, beta = torch.split(flat, sizes, dim=1)
        return weight.view(len(flat), self.n_classes, self.dim), bias, gamma, beta

    def _initialise(self, jobs: Sequence[Job]) -> None:
        """Uniform weights within 1 / sqrt(dim), as ``torch.nn.Linear``; an affine that does nothing yet."""
        bound = self.dim**-0.5
        self.gamma.fill_(1.0)
        for row, job in enumerate(jobs):
            drawn = job.rng.uniform(-bound, bound, (self.n_classes, self.dim + 1)).astype(np.float32)
            self.weight[row] = torch.from_numpy(drawn[:, :-1])
            self.bias[row] = torch.from_numpy(drawn[:, -1])

    def folded(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Effective weight (heads, classes, dim) and bias (heads, classes)."""
        weight = self.weight[rows]
        return weight * self.gamma[rows].unsqueeze(1), (weight * self.beta[rows].unsqueeze(1)).sum(2) + self.bias[rows]

    def take(self, moments: Tensor, total: Tensor) -> None:
        """Gradients of the first heads, from M (heads, classes, dim), which is overwritten, and g (heads, classes)."""
        rows = slice(len(moments))
        weight = self.weight[rows]
        torch.mul(moments, self.gamma[rows].unsqueeze(1), out=self.d_weight[rows])
        self.d_weight[rows].addcmul_(total.unsqueeze(2), self.beta[rows].unsqueeze(1))
        self.d_gamma[rows] = moments.mul_(weight).sum(1)
        self.d_beta[rows] = torch.bmm(total.unsqueeze(1), weight).squeeze(1)
        self.d_bias[rows] = total

    def step(self, *, at: int, epoch: int, epochs: int) -> None:
        """One step of Adam for the heads that have a batch number ``at``."""
        for block in self._blocks:
            if at >= block.n_steps:
                break
            adam_step(
                [self.values[block.rows]],
                [self.gradients[block.rows]],
                first_moments=[self._first_moments[block.rows]],
                second_moments=[self._second_moments[block.rows]],
                taken=[block.taken],
                learning_rate=cosine_rate(block.learning_rate, epoch=epoch, epochs=epochs),
            )


class Pass(Protocol):
    """Forward and backward through the first heads of a bank, for one batch after another."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Of standardised rows (heads, batch, dim): (heads, batch, classes)."""

    def differentiate(self, inputs: Tensor, d_logits: Tensor) -> None:
        """Gradients of the bank, from the rows of the last `logits` and the gradient by these."""


class FoldedPass:
    """LayerNorm's affine goes into the weights: least work where classes are few."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def logits(self, inputs: Tensor) -> Tensor:
        """Of standardised rows."""
        weight, bias = self._bank.folded(slice(len(inputs)))
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))

    def differentiate(self, inputs: Tensor, d_logits: Tensor) -> None:
        """Gradients of the bank."""
        self._bank.take(torch.bmm(d_logits.transpose(1, 2), inputs), d_logits.sum(1))


class ScaledPass:
    """LayerNorm's affine goes into the rows, as it is written: least work where classes are more than rows.

    With z = x * gamma + beta and Z the rows of a batch: dW = G^T Z, and from dz = G W, dgamma = sum of dz * x and
    dbeta = sum of dz.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._scaled = torch.empty(0)

    def logits(self, inputs: Tensor) -> Tensor:
        """Of standardised rows."""
        bank, rows = self._bank, slice(len(inputs))
        self._scaled = torch.addcmul(bank.beta[rows].unsqueeze(1), inputs, bank.gamma[rows].unsqueeze(1))
        return torch.baddbmm(bank.bias[rows].unsqueeze(1), self._scaled, bank.weight[rows].transpose(1, 2))

    def differentiate(self, inputs: Tensor, d_logits: Tensor) -> None:
        """Gradients of the bank."""
        bank, rows = self._bank, slice(len(inputs))
        torch.bmm(d_logits.transpose(1, 2), self._scaled, out=bank.d_weight[rows])
        bank.d_bias[rows] = d_logits.sum(1)
        d_scaled = torch.bmm(d_logits, bank.weight[rows])
        bank.d_beta[rows] = d_scaled.sum(1)
        bank.d_gamma[rows] = d_scaled.mul_(inputs).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Rows of a bank with one number of steps and one learning rate; ``taken`` counts steps for Adam."""

    rows: slice
    n_steps: int
    learning_rate: float
    taken: Tensor


class _Best:
    """The best epoch of each head so far."""

    def __init__(self, bank: Bank, jobs: Sequence[Job]) -> None:
        self._weight, self._bias = bank.folded(slice(None))
        self._epoch = [0] * len(jobs)
        self._score = [-np.inf] * len(jobs)
        self._history: list[list[float]] = [[] for _ in jobs]
        self._validations: dict[Validation | None, list[int]] = {}
        for row, job in enumerate(jobs):
            self._validations.setdefault(job.validation, []).append(row)

    def consider(self, bank: Bank, features: Tensor, *, epoch: int) -> None:
        weight, bias = bank.folded(slice(None))
        require_finite([bias])  # every weight is in it
        for validation, rows in self._validations.items():
            inputs = None if validation is None else features[torch.from_numpy(validation.windows)]
            for row in rows:
                if validation is not None and inputs is not None:
                    score = validation.score(torch.addmm(bias[row], inputs, weight[row].T).numpy())
                    self._history[row].append(score)
                    if not score > self._score[row]:
                        continue
                    self._score[row] = score
                self._epoch[row] = epoch + 1
                self._weight[row], self._bias[row] = weight[row], bias[row]

    def heads(self) -> list[Trained]:
        return [
            Trained(weight=weight, bias=bias, epoch=epoch, history=tuple(history))
            for weight, bias, epoch, history in zip(self._weight, self._bias, self._epoch, self._history, strict=True)
        ]


def _run_epoch(
    bank: Bank,
    through: Pass,
    features: Tensor,
    targets: Tensor,
    jobs: Sequence[Job],
    *,
    loss: Loss,
    batch_size: int,
    epoch: int,
    epochs: int,
) -> None:
    batches, weights = _shuffled(jobs, batch_size)
    n_steps = [_steps(job, batch_size) for job in jobs]
    gathered = torch.empty(len(jobs) * batch_size, features.shape[1])
    for at in range(n_steps[0]):
        n_active = sum(steps > at for steps in n_steps)
        batch = batches[:n_active, at]
        windows = batch.reshape(-1)
        inputs = torch.index_select(features, 0, windows, out=gathered[: len(windows)]).view(*batch.shape, -1)
        d_logits = loss.gradient(through.logits(inputs), targets[batch], weights[:n_active, at])
        through.differentiate(inputs, d_logits)
        bank.step(at=at, epoch=epoch, epochs=epochs)


def _shuffled(jobs: Sequence[Job], batch_size: int) -> tuple[Tensor, Tensor]:
    """Windows of each head's batches, int64 (heads, steps, batch), and their weights (heads, steps, batch, 1).

    The last batch is filled up with some window of weight 0.
    """
    shape = (len(jobs), max(_steps(job, batch_size) for job in jobs), batch_size)
    batches = np.zeros((shape[0], shape[1] * shape[2]), np.int64)
    weights = np.zeros(batches.shape, np.float32)
    for row, job in enumerate(jobs):
        n_windows = len(job.windows)
        batches[row, :n_windows] = job.rng.permutation(job.windows)
        last = (_steps(job, batch_size) - 1) * batch_size
        weights[row, :last] = 1.0 / batch_size
        weights[row, last:n_windows] = 1.0 / (n_windows - last)
    return torch.from_numpy(batches.reshape(shape)), torch.from_numpy(weights.reshape(*shape, 1))


def _steps(job: Job, batch_size: int) -> int:
    return -(-len(job.windows) // batch_size)


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """So many threads for torch's operations, until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
