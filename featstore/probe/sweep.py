"""A grid of learning rates by weight decays, trained side by side and chosen by validation.

All heads of a grid see the same batches, so that a step is one product of a batch (batch, dim) with the weights of a
group of heads (heads x classes, dim), and back. A head is Linear over standardised features: LayerNorm's affine would
only say the same maps in other words. Weight decay is that of AdamW (Loshchilov and Hutter 2019).

A grid that is trained to its end costs what its heads cost. Most of them are far behind after an epoch, so the field
is cut by validation score as it goes (successive halving, Jamieson and Talwalkar 2016): see `CUTS`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.probe.adam import adam_step
from featstore.probe.heads import Job, Loss, Trained, threads
from featstore.probe.schedule import cosine_rate

__all__ = ["GRID", "Candidate", "Swept", "Tried", "sweep_heads"]

STEPS_PER_EPOCH = 8
"""Batches grow until an epoch has this many, or `MAX_BATCH` is reached: few large products are what makes it fast."""

MAX_BATCH = 128

HEADS_PER_GROUP = 6

CUTS = ((0.1, 24), (0.3, 12), (0.5, 6))
"""After this share of the epochs, so many heads go on. The cosine schedule is that of the whole run for each.

What weight decay does shows late, so all but the last cut compare learning rates, by the mean of their heads.
"""

MIN_EPOCHS_TO_CUT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One point of a grid."""

    learning_rate: float
    weight_decay: float


LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)
WEIGHT_DECAYS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)

GRID: tuple[Candidate, ...] = tuple(
    Candidate(learning_rate=rate, weight_decay=decay) for rate, decay in product(LEARNING_RATES, WEIGHT_DECAYS)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What became of one candidate: its best validation score, and the epochs that it was trained for."""

    candidate: Candidate
    score: float | None
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The chosen head, its candidate, and what every candidate came to, in the order of the grid."""

    head: Trained
    chosen: Candidate
    tried: tuple[Tried, ...]


def sweep_heads(
    features: Tensor,
    targets: NDArray[Any],
    job: Job,
    *,
    grid: Sequence[Candidate],
    n_classes: int,
    loss: Loss,
    epochs: int,
    batch_size: int,
) -> Swept:
    """Train a head for each candidate and choose by the job's validation.

    The best epoch of the best head is taken; of equals the one that
    was trained longest, then the first in the order of the grid. Without
    validation nothing can be chosen: the candidate at the job's own learning rate, or the only one, is trained to the
    last epoch.

    Parameters
    ----------
    features : float32 (windows, dim)
        From `featstore.probe.heads.standardised`.
    targets : (windows, ...)
    job : Job
        Its learning rate counts only where there is no validation.
    grid : sequence of Candidate
    batch_size : int
        The least; see `STEPS_PER_EPOCH`.
    """
    if job.validation is None and len(grid) > 1:
        grid = [Candidate(learning_rate=job.learning_rate, weight_decay=0.0)]
    batch = max(batch_size, min(MAX_BATCH, len(job.windows) // STEPS_PER_EPOCH))
    # Threads of Python over groups of heads, one core each: torch's own would wait for one another after every small
    # product, on a busy machine for longer than the product takes.
    n_threads = torch.get_num_threads()
    with torch.no_grad(), threads(1), ThreadPoolExecutor(n_threads) as pool:
        field = _Field(grid, dim=features.shape[1], n_classes=n_classes, job=job)
        known = torch.from_numpy(targets)
        for epoch in range(epochs):
            field.train(features, known, loss=loss, batch_size=batch, epoch=epoch, epochs=epochs, pool=pool)
            field.judge(features)
            field.cut(_places(epoch + 1, epochs=epochs, n_heads=len(grid)))
        return field.result()


def _places(epochs_done: int, *, epochs: int, n_heads: int) -> int:
    """How many heads go on after some epochs."""
    if epochs < MIN_EPOCHS_TO_CUT:
        return n_heads
    return min([n_heads, *(places for share, places in CUTS if epochs_done >= math.ceil(share * epochs))])


class _Group:
    """Some heads of a field, views of their rows: few enough for a processor's cache, and for one thread."""

    def __init__(
        self,
        *,
        weight: Tensor,
        bias: Tensor,
        moments: Sequence[Tensor],
        n_classes: int,
        rates: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        self._weight, self._bias, self._moments = weight, bias, moments
        self._n_classes, self._rates = n_classes, rates
        self._d_weight, self._d_bias = torch.empty_like(weight), torch.empty_like(bias)
        # As many rows of a matrix as there are classes of heads: one product serves all.
        self._rows = weight.view(len(rates) * n_classes, -1)
        self._d_rows = self._d_weight.view(self._rows.shape)
        self._kept = (1.0 - torch.tensor(rates) * torch.tensor(decays)).unsqueeze(1) if any(decays) else None

    def step(self, inputs: Tensor, targets: Tensor, *, loss: Loss, taken: int) -> None:
        """One step of AdamW on one batch, after ``taken`` steps."""
        n_inputs, n_heads = len(inputs), len(self._rates)
        with torch.no_grad():
            logits = torch.addmm(self._bias.reshape(-1), inputs, self._rows.T)
            # A loss takes (heads, batch, classes) and treats both leading axes alike: here the batch stands first.
            d_logits = loss.gradient(
                logits.view(n_inputs, n_heads, self._n_classes),
                targets.unsqueeze(1).expand(-1, n_heads, *targets.shape[1:]),
                torch.full((n_inputs, 1, 1), 1.0 / n_inputs),
            ).view(n_inputs, -1)
            torch.mm(d_logits.T, inputs, out=self._d_rows)
            torch.sum(d_logits.view(n_inputs, n_heads, -1), 0, out=self._d_bias)
            if self._kept is not None:
                self._weight.mul_(self._kept)
            self._adam(taken)

    def _adam(self, taken: int) -> None:
        """One call for the heads of one learning rate."""
        first_weight, second_weight, first_bias, second_bias = self._moments
        start = 0
        for rate, alike in groupby(self._rates):
            rows = slice(start, start + len(list(alike)))
            adam_step(
                [self._weight[rows], self._bias[rows]],
                [self._d_weight[rows], self._d_bias[rows]],
                first_moments=[first_weight[rows], first_bias[rows]],
                second_moments=[second_weight[rows], second_bias[rows]],
                taken=[torch.tensor(float(taken)) for _ in range(2)],
                learning_rate=rate,
            )
            start = rows.stop


class _Field:
    """The heads that are still at it: parameters float32 (heads, classes x dim), with Adam's moments."""

    def __init__(self, grid: Sequence[Candidate], *, dim: int, n_classes: int, job: Job) -> None:
        self._grid, self._job = grid, job
        self._dim, self._n_classes = dim, n_classes
        self._at_work = sorted(range(len(grid)), key=lambda at: (grid[at].learning_rate, at))
        bound = dim**-0.5
        drawn = torch.from_numpy(job.rng.uniform(-bound, bound, (n_classes, dim + 1)).astype(np.float32))
        n_heads = len(grid)
        self._weight = drawn[:, :-1].reshape(1, -1).repeat(n_heads, 1)
        self._bias = drawn[:, -1].repeat(n_heads, 1)
        self._moments = [torch.zeros_like(each) for each in (self._weight, self._bias) for _ in range(2)]
        self._taken = 0
        self._best: dict[int, Trained] = {}
        self._scores: list[list[float]] = [[] for _ in grid]
        self._epochs = [0] * n_heads

    def train(
        self, features: Tensor, targets: Tensor, *, loss: Loss, batch_size: int, epoch: int, epochs: int, pool: Executor
    ) -> None:
        """One epoch of every head at work, in one order of the windows, a group of heads at a time on each thread."""
        shuffled = torch.from_numpy(self._job.rng.permutation(self._job.windows))

        def train_group(first: int) -> None:
            group = self._group(slice(first, first + HEADS_PER_GROUP), epoch=epoch, epochs=epochs)
            for number, rows in enumerate(torch.split(shuffled, batch_size)):
                group.step(features[rows], targets[rows], loss=loss, taken=self._taken + number)

        list(pool.map(train_group, range(0, len(self._at_work), HEADS_PER_GROUP)))
        self._taken += math.ceil(len(shuffled) / batch_size)
        for at in self._at_work:
            self._epochs[at] += 1

    def _group(self, rows: slice, *, epoch: int, epochs: int) -> _Group:
        candidates = [self._grid[at] for at in self._at_work[rows]]
        return _Group(
            weight=self._weight[rows],
            bias=self._bias[rows],
            moments=[moment[rows] for moment in self._moments],
            n_classes=self._n_classes,
            rates=[cosine_rate(each.learning_rate, epoch=epoch, epochs=epochs) for each in candidates],
            decays=[each.weight_decay for each in candidates],
        )

    def judge(self, features: Tensor) -> None:
        """Score the heads at work, and keep each as it is where it has never been better."""
        validation = self._job.validation
        logits = None
        if validation is not None:
            inputs = features[torch.from_numpy(validation.windows)]
            weight = self._weight.view(-1, self._dim)
            logits = torch.addmm(self._bias.view(-1), inputs, weight.T).view(len(inputs), -1, self._n_classes)
        for row, at in enumerate(self._at_work):
            if validation is not None and logits is not None:
                score = validation.score(np.ascontiguousarray(logits[:, row].numpy()))
                behind = not score > max(self._scores[at], default=-math.inf)
                self._scores[at].append(score)
                if behind:
                    continue
            self._best[at] = Trained(
                weight=self._weight[row].view(self._n_classes, self._dim).clone(),
                bias=self._bias[row].clone(),
                epoch=self._epochs[at],
                history=(),
            )

    def cut(self, places: int) -> None:
        """Let the best go on, in the order that they stand in."""
        if len(self._at_work) <= places:
            return
        best = [max(self._scores[at]) for at in self._at_work]
        rates = [self._grid[at].learning_rate for at in self._at_work]
        rivals = best
        if places > CUTS[-1][1]:
            rivals = [
                statistics.fmean(score for score, other in zip(best, rates, strict=True) if other == rate)
                for rate in rates
            ]
        ranked = sorted(range(len(best)), key=lambda row: (-rivals[row], -best[row], row))
        rows = sorted(ranked[:places])
        self._at_work = [self._at_work[row] for row in rows]
        self._weight, self._bias = self._weight[rows], self._bias[rows]
        self._moments = [moment[rows] for moment in self._moments]

    def result(self) -> Swept:
        """Choose."""
        best = max(
            range(len(self._grid)),
            key=lambda at: (max(self._scores[at], default=-math.inf), self._epochs[at], -at),
        )
        head = self._best[best]
        return Swept(
            head=Trained(weight=head.weight, bias=head.bias, epoch=head.epoch, history=tuple(self._scores[best])),
            chosen=self._grid[best],
            tried=tuple(
                Tried(candidate=candidate, score=max(scores, default=None), epochs=epochs)
                for candidate, scores, epochs in zip(self._grid, self._scores, self._epochs, strict=True)
            ),
        )
