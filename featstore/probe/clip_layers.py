"""``--head layer-mix`` of kinds ``clip``, ``multilabel`` and ``regression``: see `featstore.probe.layer_mix`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.evaluation.layers import LayeredTask
from featstore.probe import layer_mix
from featstore.probe.clip_bench import Bench, TrainedRounds, TrainingClasses
from featstore.probe.clip_sweep import sweep_head
from featstore.probe.layer_mix import LayerMix, MixHead, MixSet, layer_products, standardised
from featstore.probe.logistic import GRID
from featstore.probe.selection import fit_details, selection_details, weight_details
from featstore.probe.training import FittedModel, over_seeds
from featstore.tasks.splits import Round

__all__ = ["learn_layer_mix"]


def learn_layer_mix(bench: Bench, task: LayeredTask, *, grid: Sequence[float] = GRID) -> TrainedRounds:
    """Fit a mix for each round by L-BFGS; fall back to minibatches where a round of classes is too large."""
    n_windows = max(len(task.windows_of(each.train)) for each in task.rounds)
    fits = task.manifest.kind == "regression" or layer_mix.fits_full_batch(
        n_windows, task.X.shape[1], n_layers=len(task.X_of_layer), n_classes=len(task.classes)
    )
    found = _full_batch(bench, task, grid) if fits else _minibatches(bench, task)
    solver = {"solver": "lbfgs" if fits else "minibatch"}
    return replace(found, settings={**solver, **found.settings, "layers": list(task.family.layers)})


def _full_batch(bench: Bench, task: LayeredTask, grid: Sequence[float]) -> TrainedRounds:
    paths = [layer_mix.fit_layer_mix(_mix_set(bench, task, each), grid=grid) for each in task.rounds]
    return TrainedRounds(
        rounds=[[partial(_outputs, task, path.model)] for path in paths],
        details={
            **fit_details(task.rounds, [[path.as_json()] for path in paths]),
            "layer_weights": weight_details(task.family.layers, [path.model.layer_weights for path in paths]),
        },
        seeds=(),
        settings=task.manifest.probe.model_dump(exclude_none=True, include={"pos_weight"}),
    )


def _mix_set(bench: Bench, task: LayeredTask, each: Round) -> MixSet:
    windows = task.windows_of(each.train)
    y = task.targets.values[task.clip[windows]]
    if task.manifest.kind == "regression":
        objective = layer_mix.objective_of_numbers(y)
    else:
        pos_weight = task.manifest.probe.pos_weight or 1.0
        objective = layer_mix.objective_of_classes(y, n_classes=len(task.classes), pos_weight=pos_weight)
    validated = bench.validated(each)
    return MixSet(
        layers=task.X_of_layer,
        windows=windows,
        objective=objective,
        valid=None if validated is None else validated.windows,
        score=None if validated is None else validated.score,
    )


def _outputs(task: LayeredTask, model: LayerMix, windows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
    return model([X[windows] for X in task.X_of_layer])


def _minibatches(bench: Bench, task: LayeredTask) -> TrainedRounds:
    found = [
        over_seeds(bench.seeds, partial(_sweep_round, bench, task, number, each))
        for number, each in enumerate(task.rounds)
    ]
    return TrainedRounds(
        rounds=[[partial(_outputs, task, each.model) for each in of] for of in found],
        details={
            **selection_details(task.rounds, found),
            "layer_weights": weight_details(task.family.layers, [each.layer_weights for of in found for each in of]),
        },
        seeds=bench.seeds,
        settings=task.manifest.probe.model_dump(exclude_none=True, include={"batch_size", "pos_weight"}),
    )


def _sweep_round(
    bench: Bench, task: LayeredTask, number: int, each: Round, *, seed: int, rates: Sequence[float]
) -> FittedModel[LayerMix]:
    classes = TrainingClasses.of(task, each)
    windows = task.windows_of(each.train)
    Z, statistics = standardised(task.X_of_layer, windows)
    products = layer_products(Z)

    def rows_of(some: NDArray[np.int64]) -> torch.Tensor:
        if some is windows:
            return Z
        return torch.stack([by(X[some]) for by, X in zip(statistics, task.X_of_layer, strict=True)])

    found = sweep_head(
        bench,
        number,
        each,
        build=lambda: MixHead(products, dim=task.X.shape[1], n_outputs=len(classes.labels)),
        windows=windows,
        rows_of=rows_of,
        seed=seed,
        rates=rates,
    )

    def expand(logits: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(classes.expand(logits.numpy()))

    mix = found.model.mix(statistics, expand)
    return found.using(mix, layer_weights=mix.layer_weights)
