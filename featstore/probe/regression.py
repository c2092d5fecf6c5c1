"""Kind ``regression``: ridge regression, or a linear head with the schedule of X-ARES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.errors import LabelError
from featstore.evaluation import Stopwatch, TaskData, load_task, score_outcomes, score_record
from featstore.evaluation.layers import LayeredTask, load_layered_task, record_of_family
from featstore.metrics import Metric, TestSet, find_metric
from featstore.probe import linear
from featstore.probe.clip_bench import (
    Bench,
    TrainedRounds,
    head_outputs,
    is_at_or_below_constant,
    linear_jobs,
    outcome_of,
)
from featstore.probe.clip_layers import learn_layer_mix
from featstore.probe.selection import GridSearch, Path, Tried, fit_details, selection_details
from featstore.probe.standardisation import Standardisation
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round, SplitBy

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["GRID", "Ridge", "SquaredError", "fit_ridge", "score_regression"]


GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-2, 11))
LOWEST_ALPHA, HIGHEST_ALPHA = 1e-6, 1e10
"""Bounds of the search: the grid is extended while the best penalty is at its edge."""

ALPHA_UNSELECTED = 1.0
"""Penalty without validation clips: scikit-learn's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridge:
    """A ridge regression: weight float64 (dim,) of standardised features, and bias."""

    standardisation: Standardisation
    weight: Tensor
    bias: float

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Predictions (n, 1) for raw embeddings."""
        return _predicted(self.standardisation(X), self.weight[:, None], self.bias)


def fit_ridge(
    X: NDArray[np.float32],
    y: NDArray[np.float64],
    *,
    X_valid: NDArray[np.float32] | None,
    score: Callable[[NDArray[np.float64]], tuple[float, float]] | None,
) -> Path[Ridge]:
    """Fit every penalty and select one by validation.

    Parameters
    ----------
    X : float32 (n, dim)
    y : float64 (n,)
    X_valid : float32 (m, dim) or None
    score : callable or None
        Maps predictions (m, 1) to the validation score and a tie-breaker, higher is better. None: use
        `ALPHA_UNSELECTED`.
    """
    standardisation = Standardisation.of(X)
    rows = standardisation(X).double()
    bias = float(y.mean())
    products = rows.T @ torch.from_numpy(y - bias)
    # With more rows than columns, R of a QR decomposition has the same S and V.
    _, s, Vt = torch.linalg.svd(
        torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows, full_matrices=False
    )
    along = Vt @ products
    valid = None if X_valid is None else standardisation(X_valid).double() @ Vt.T

    found: dict[float, tuple[float, float] | None] = {}
    pending = list(GRID) if score is not None else [ALPHA_UNSELECTED]
    search = GridSearch(bounds=(LOWEST_ALPHA, HIGHEST_ALPHA))
    while pending:
        for alpha in pending:
            solution = along / (s.square() + alpha)
            found[alpha] = None
            if score is not None and valid is not None:
                found[alpha] = score(_predicted(valid, solution[:, None], bias))
        alphas = sorted(found)
        # Ties go to the strongest penalty.
        best = max(reversed(alphas), key=lambda alpha: found[alpha] or (0.0, 0.0))
        pending = search.beyond({alpha: found[alpha] or (0.0, 0.0) for alpha in reversed(alphas)})
    solution = along / (s.square() + best)
    weight = Vt.T @ solution
    gradient = rows.T @ (rows @ weight) - products + best * weight
    gradient_norm = float(gradient.norm() / (best * weight).norm().clamp(min=1e-300))  # nonzero by rounding only
    return Path(
        model=Ridge(standardisation=standardisation, weight=weight, bias=bias),
        chosen=Tried(strength=best, score=found[best], gradient_norm=gradient_norm),
        tried=tuple(Tried(strength=alpha, score=found[alpha]) for alpha in alphas),
        extended=search.extended,
        at_edge=search.at_edge,
        converged=True,
    )


def _predicted(rows: Tensor, weights: Tensor, bias: float) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = (rows.double() @ weights).numpy() + bias
    return numbers


METRICS = ("mae", "mse", "pearson", "spearman")
LARGEST_NUMBER = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaredError:
    """Squared error of standardised targets, as ``torch.nn.MSELoss``; a `featstore.probe.linear.Loss`.

    A head that starts near 0 would need its epochs to reach targets of a different magnitude. It predicts
    (target - mean) / std instead, and `scores` inverts the transform.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error of logits (..., 1) and targets (...)."""
        return (logits.squeeze(-1) - (targets - self.mean) / self.std).square()

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Invert the standardisation of predictions."""
        return logits * np.float32(self.std) + np.float32(self.mean)


def score_regression(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
    split_by: SplitBy | None = None,
) -> ScoreRecord:
    """Score a task of kind ``regression``.

    ``ridge`` is ridge regression; ``layer-mix`` is the same on a weighted sum of layers. ``linear`` is the schedule of
    X-ARES; under ``strict`` its targets are standardised by the round's training clips. ``strict`` averages the windows
    of a clip; under ``xares`` every window is a sample.
    """
    metric = find_metric(manifest.metric, protocol)
    watch = Stopwatch()
    load = load_layered_task if head == "layer-mix" else load_task
    with watch("read"):
        task = load(store, manifest, encoder=encoder, protocol=protocol, split_by=split_by)
        _check_size(task)
    bench = Bench(task=task, metric=metric, seeds=seeds)
    with watch("train"):
        if isinstance(task, LayeredTask):
            trained_rounds = learn_layer_mix(bench, task, grid=[1.0 / alpha for alpha in GRID])
        else:
            trained_rounds = _learn_ridge(bench) if head == "ridge" else _learn_linear(bench)
    with watch("score"):
        outcomes = [
            outcome_of(bench, each, found) for each, found in zip(task.rounds, trained_rounds.rounds, strict=True)
        ]
        scores = score_outcomes(task, outcomes)
    record = score_record(
        task,
        scores,
        track="A",
        seeds=trained_rounds.seeds,
        settings={"head": head, **trained_rounds.settings},
        seconds=watch.seconds,
        libraries=("torch",),
        details={
            **trained_rounds.details,
            "at_or_below_majority": is_at_or_below_constant(bench, outcomes, value=scores.value),
            "metrics": {name: _mean_score(find_metric(name, protocol), outcomes) for name in METRICS},
        },
    )
    return record_of_family(record, task.family) if isinstance(task, LayeredTask) else record


def _learn_ridge(bench: Bench) -> TrainedRounds:
    task = bench.task
    paths = []
    for each in task.rounds:
        windows, validated = task.windows_of(each.train), bench.validated(each)
        paths.append(
            fit_ridge(
                task.X[windows],
                task.targets.values[task.clip[windows]],
                X_valid=None if validated is None else task.X[validated.windows],
                score=None if validated is None else validated.score,
            )
        )
    return TrainedRounds(
        rounds=[[partial(_ridge_numbers, task, path.model)] for path in paths],
        details=fit_details(task.rounds, [[path.as_json()] for path in paths]),
        seeds=(),
        settings={},
    )


def _ridge_numbers(task: TaskData, model: Ridge, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    return model(task.X[windows])


def _learn_linear(bench: Bench) -> TrainedRounds:
    """Train by the schedule of X-ARES, one head per round and seed."""
    task, probe = bench.task, bench.task.manifest.probe
    features = linear.layer_normalised(torch.from_numpy(task.X))
    losses = [_loss_of(task, each) for each in task.rounds]
    trained = [
        linear.train_heads(
            features,
            task.targets.values[task.clip].astype(np.float32),
            linear_jobs(bench, number, loss.scores),
            n_classes=1,
            loss=loss,
            epochs=probe.epochs,
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
        )
        for number, loss in enumerate(losses)
    ]
    return TrainedRounds(
        rounds=[
            [partial(head_outputs, features, head, loss.scores) for head in of_round]
            for of_round, loss in zip(trained, losses, strict=True)
        ],
        details=selection_details(task.rounds, trained),
        seeds=bench.seeds,
        settings=probe.model_dump(exclude_none=True, exclude={"head"}),
    )


def _check_size(task: TaskData) -> None:
    too_large = np.flatnonzero(np.abs(task.targets.values) > LARGEST_NUMBER)
    if len(too_large):
        clip, number = task.clip_id[too_large[0]], task.targets.values[too_large[0]]
        raise LabelError(
            f"task {task.manifest.name}: clip {clip} has the label {number:g}; heads compute in float32, so absolute "
            f"values must be at most {LARGEST_NUMBER:g}: rescale the labels"
        )


def _loss_of(task: TaskData, each: Round) -> SquaredError:
    if task.protocol == "xares":
        return SquaredError()
    numbers = task.targets.values[each.train]
    return SquaredError(mean=float(numbers.mean()), std=float(numbers.std()))


def _mean_score(metric: Metric, outcomes: Sequence[TestSet]) -> float:
    """Mean score over rounds and seeds."""
    return float(np.mean([metric.score(each.y_true, y_score) for each in outcomes for y_score in each.y_scores]))
