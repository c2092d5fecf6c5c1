"""Minibatch heads of kinds ``clip`` and ``multilabel`` under ``strict``: see `featstore.probe.training`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.probe.clip_bench import Bench, Predict, TrainedRounds, TrainingClasses
from featstore.probe.linear import binary_cross_entropy, cross_entropy
from featstore.probe.selection import selection_details
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import FittedModel, over_seeds, train, zero_layer
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.linear import Loss
    from featstore.tasks import Manifest

__all__ = ["learn_sweep", "loss_of", "sweep_head"]

STEPS_PER_EPOCH, MAX_BATCH = 8, 256
STEPS_PER_LONG_EPOCH, MAX_LONG_BATCH = 128, 1024
"""The sweep enlarges its batches while an epoch has `STEPS_PER_EPOCH` of them, up to `MAX_BATCH`, and while it has
`STEPS_PER_LONG_EPOCH`, up to `MAX_LONG_BATCH`: with 1,251 classes an update of Adam takes as long as 256 windows."""

Module = TypeVar("Module", bound=nn.Module)


def learn_sweep(bench: Bench) -> TrainedRounds:
    """Train minibatches on standardised features, once per round and seed."""
    task = bench.task
    found = [
        over_seeds(bench.seeds, partial(_sweep_round, bench, number, each)) for number, each in enumerate(task.rounds)
    ]
    return TrainedRounds(
        rounds=[[each.model for each in of] for of in found],
        details=selection_details(task.rounds, found),
        seeds=bench.seeds,
        settings=task.manifest.probe.model_dump(exclude_none=True, include={"batch_size", "pos_weight"}),
    )


def _sweep_round(bench: Bench, number: int, each: Round, *, seed: int, rates: Sequence[float]) -> FittedModel[Predict]:
    """Train a head; its model is a function from windows to logits."""
    task = bench.task
    classes = TrainingClasses.of(task, each)
    windows = task.windows_of(each.train)
    standardisation = Standardisation.of(task.X[windows])
    found = sweep_head(
        bench,
        number,
        each,
        build=lambda: zero_layer(dim=task.X.shape[1], n_classes=len(classes.labels)),
        windows=windows,
        rows_of=lambda some: standardisation(task.X[some]),
        seed=seed,
        rates=rates,
    )

    @torch.no_grad()
    def logits(some: NDArray[np.int64]) -> NDArray[np.float32]:
        return classes.expand(found.model(standardisation(task.X[some])).numpy())

    return found.using(logits)


def sweep_head(
    bench: Bench,
    number: int,
    each: Round,
    *,
    build: Callable[[], Module],
    windows: NDArray[np.int64],
    rows_of: Callable[[NDArray[np.int64]], Tensor],
    seed: int,
    rates: Sequence[float],
) -> FittedModel[Module]:
    """Train a module of one round.

    Parameters
    ----------
    number : int
        Number of the round.
    build : callable
        Makes the module, which returns logits (n, classes in training).
    windows : int64 (n,)
        Training windows.
    rows_of : callable
        Returns the inputs (..., n, dim) of some windows.
    """
    task, probe = bench.task, bench.task.manifest.probe
    classes = TrainingClasses.of(task, each)
    X = rows_of(windows)
    y = torch.from_numpy(classes.targets(task)[task.clip[windows]])
    batch_size = max(
        probe.batch_size,
        min(MAX_BATCH, len(windows) // STEPS_PER_EPOCH),
        min(MAX_LONG_BATCH, len(windows) // STEPS_PER_LONG_EPOCH),
    )
    validated = bench.validated(each)
    X_valid = rows_of(windows[:0] if validated is None else validated.windows)
    loss = loss_of(task.manifest)

    def batches(rng: np.random.Generator) -> Iterable[Tensor]:
        return torch.split(torch.from_numpy(rng.permutation(len(windows))), batch_size)

    @torch.no_grad()
    def score(model: Module) -> tuple[float, float]:
        return (0.0, 0.0) if validated is None else validated.score(classes.expand(model(X_valid).numpy()))

    return train(
        lambda _: build(),
        seed=(seed, number),
        batches=batches,
        loss=lambda model, rows: loss(model(X.index_select(-2, rows)), y[rows]).mean(),
        score=None if validated is None else score,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
        rates=rates,
    )


def loss_of(manifest: Manifest) -> Loss:
    """Loss of minibatch heads of a task."""
    if manifest.kind == "multilabel":
        return binary_cross_entropy(manifest.probe.pos_weight or 1.0)
    return cross_entropy
