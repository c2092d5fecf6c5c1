"""Linear heads on utterance vectors, trained in parallel by the schedule of X-ARES.

A head is LayerNorm (epsilon 1e-5, with affine parameters) and Linear, as in X-ARES. The statistics of LayerNorm do not
depend on the parameters, so features are normalised once; the affine parameters are trained with the layer
(`LinearHeads`). Folds and seeds are heads of one module, as in DINOv2's evaluation: the sum of their losses gives each
head its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.probe.training import Fitted, fixed_schedule

__all__ = [
    "Job",
    "LinearHeads",
    "Loss",
    "Trained",
    "Validation",
    "binary_cross_entropy",
    "cross_entropy",
    "layer_normalised",
    "predict",
    "torch_threads",
    "train_heads",
]

LAYER_NORM_EPS = 1e-5

# Below this number of multiply-adds per step, a second thread costs more than it saves; on a busy machine, two threads
# that compete for one free core took 3 ms for a step of 0.06 ms.
MIN_WORK_FOR_THREADS = 20_000_000

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss (...) of each sample, averaged over classes for multi-hot targets, from logits (..., classes) and
targets: (...) class indices or numbers, or (..., classes) multi-hot labels."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of class indices, as ``torch.nn.CrossEntropyLoss``."""
    losses = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def binary_cross_entropy(pos_weight: float) -> Loss:
    """Binary cross-entropy of multi-hot labels, averaged over classes, as ``torch.nn.BCEWithLogitsLoss``."""
    weight = torch.tensor(pos_weight)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
        return losses.mean(-1)

    return loss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validation:
    """Validation of a head: ``score`` of the logits of ``windows``, higher is better; selects the epoch."""

    windows: NDArray[np.int64]
    score: Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One head to train.

    Attributes
    ----------
    windows : int64 (n,)
        Training rows of the features.
    validation : Validation or None
        None: use the last epoch.
    rng : numpy Generator
        Seeds the initial weights, then the order of each epoch.
    """

    windows: NDArray[np.int64]
    validation: Validation | None
    rng: np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(Fitted):
    """A head after its best epoch, as one affine map of normalised features.

    Attributes
    ----------
    weight : Tensor, float32 (classes, dim)
    bias : Tensor, float32 (classes,)
    """

    weight: Tensor
    bias: Tensor


class LinearHeads(nn.Module):
    """Affine parameters of LayerNorm and Linear, for several heads: parameters are float32 (heads, ...).

    Initial weights are uniform in +-1 / sqrt(dim), as in ``torch.nn.Linear``, drawn from the generator of each head.
    """

    def __init__(self, rngs: Sequence[np.random.Generator], *, n_classes: int, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        drawn = np.stack([rng.uniform(-bound, bound, (n_classes, dim + 1)).astype(np.float32) for rng in rngs])
        # (heads, dim, classes) avoids copies of matrices in the forward and backward passes.
        self.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(drawn[:, :, :-1].transpose(0, 2, 1))))
        self.bias = nn.Parameter(torch.from_numpy(drawn[:, None, :, -1].copy()))
        self.gamma = nn.Parameter(torch.ones(len(rngs), 1, dim))
        self.beta = nn.Parameter(torch.zeros(len(rngs), 1, dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (heads, batch, classes) of normalised rows (heads, batch, dim)."""
        return torch.baddbmm(self.bias, inputs * self.gamma + self.beta, self.weight)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (heads, classes, dim) and bias (heads, classes) of each head as one affine map."""
        weight = (self.weight * self.gamma.transpose(1, 2)).transpose(1, 2).contiguous()
        return weight, torch.baddbmm(self.bias, self.beta, self.weight).squeeze(1)


def layer_normalised(inputs: Tensor) -> Tensor:
    """Normalise rows (n, dim) to mean 0 and variance 1: LayerNorm without its affine parameters."""
    return functional.layer_norm(inputs, inputs.shape[1:], eps=LAYER_NORM_EPS)


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
    learning_rate: float,
) -> tuple[Trained, ...]:
    """Train the head of every job by the schedule of X-ARES.

    A head does not depend on the other jobs, except for rounding. Every epoch shuffles the windows; its last batch may
    be smaller. The earliest epoch with the best validation score is selected.

    Parameters
    ----------
    features : float32 (windows, dim)
        From `layer_normalised`.
    targets : (windows, ...)
        Targets of all windows.
    jobs : sequence of Job

    Raises
    ------
    DataError
        The parameters of a head are not finite.
    """

    def n_steps(at: int) -> int:
        return -(-len(jobs[at].windows) // batch_size)

    known = torch.from_numpy(targets)

    def loss_of(model: LinearHeads, batch: tuple[Tensor, Tensor]) -> Tensor:
        windows, weights = batch
        inputs = features.index_select(0, windows.flatten()).view(*windows.shape, -1)
        return (loss(model(inputs), known[windows]) * weights).sum()

    work = len(jobs) * batch_size * n_classes * features.shape[1]
    trained: dict[int, Trained] = {}
    with torch_threads(1 if work < MIN_WORK_FOR_THREADS else torch.get_num_threads()):
        # Heads with the same number of steps share a module and an optimiser.
        for _, group in groupby(sorted(range(len(jobs)), key=n_steps), key=n_steps):
            numbers = list(group)
            alike = [jobs[at] for at in numbers]
            model = LinearHeads([job.rng for job in alike], n_classes=n_classes, dim=features.shape[1])
            best: list[Trained | None] = [None] * len(alike)
            for epoch in fixed_schedule(
                model,
                batches=partial(_batches, alike, batch_size),
                loss=loss_of,
                epochs=epochs,
                learning_rate=learning_rate,
            ):
                best = _best_heads(model, features, alike, best, epoch=epoch)
            trained |= {at: head for at, head in zip(numbers, best, strict=True) if head is not None}
    return tuple(trained[at] for at in range(len(jobs)))


def _batches(jobs: Sequence[Job], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an epoch: windows int64 (heads, batch), and their weights in the mean loss of a head.

    The last batch is padded with windows of weight 0 for heads with fewer windows than others.
    """
    longest = max(len(job.windows) for job in jobs)
    last = (longest - 1) // batch_size * batch_size
    order = np.zeros((len(jobs), longest), np.int64)
    weights = np.zeros((len(jobs), longest), np.float32)
    for row, job in enumerate(jobs):
        n_windows = len(job.windows)
        order[row, :n_windows] = job.rng.permutation(job.windows)
        weights[row, :last] = 1.0 / batch_size
        weights[row, last:n_windows] = 1.0 / (n_windows - last)
    batches = (torch.split(torch.from_numpy(each), batch_size, dim=1) for each in (order, weights))
    yield from zip(*batches, strict=True)


@torch.no_grad()
def _best_heads(
    model: LinearHeads, features: Tensor, jobs: Sequence[Job], best: Sequence[Trained | None], *, epoch: int
) -> list[Trained | None]:
    """The heads after an epoch, or the previous best where the validation score has not improved."""
    found: list[Trained | None] = []
    for job, before, weight, bias in zip(jobs, best, *model.folded(), strict=True):
        history: tuple[float, ...] = ()
        if job.validation is not None:
            inputs = features[torch.from_numpy(job.validation.windows)]
            score = job.validation.score(torch.addmm(bias, inputs, weight.T).numpy())
            history = (score,) if before is None else (*before.history, score)
            if before is not None and not score > max(before.history):
                found.append(replace(before, history=history))
                continue
        found.append(Trained(weight=weight.clone(), bias=bias.clone(), epoch=epoch, history=history))
    return found


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Set the number of threads of torch's operations inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
