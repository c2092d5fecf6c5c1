"""Kind ``regression``: ridge regression, or a linear head with the schedule of X-ARES."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.errors import LabelError
from featstore.evaluation import Outcome, Samples, Stopwatch, TaskData, load_task, score_outcomes, score_record
from featstore.evaluation.layers import LayeredTask, load_layered_task, record_of_family
from featstore.metrics import Metric, find_metric
from featstore.probe.selection import GridSearch, Path, Tried, fit_details, selection_details, weight_details
from featstore.probe.standardisation import Standardisation
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round, SplitBy

if TYPE_CHECKING:
    from featstore.probe.layer_mix import LayerMix
    from featstore.probe.linear import Trained, Validation
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
    import torch  # noqa: F401  # imported here so that no timed stage includes it

    watch = Stopwatch()
    load = load_layered_task if head == "layer-mix" else load_task
    with watch("read"):
        task = load(store, manifest, encoder=encoder, protocol=protocol, split_by=split_by)
        _check_size(task)
    with watch("train"):
        if isinstance(task, LayeredTask):
            trained_rounds = _learn_layer_mix(task, metric)
        elif head == "ridge":
            trained_rounds = _learn_ridge(task, metric)
        else:
            trained_rounds = _learn_linear(task, metric, seeds=seeds)
    with watch("score"):
        outcomes = [
            _outcome(task, each, numbers) for each, numbers in zip(task.rounds, trained_rounds.numbers, strict=True)
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
            "at_or_below_majority": _at_or_below_mean(task, metric, outcomes, value=scores.value),
            "metrics": {name: _mean_score(find_metric(name, protocol), outcomes) for name in METRICS},
        },
    )
    return record_of_family(record, task.family) if isinstance(task, LayeredTask) else record


Predict = Callable[[NDArray[np.int64]], NDArray[np.floating[Any]]]
"""Maps windows of the pool to predictions (n, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainedRounds:
    """Trained models of each round, by seed, and the details and settings of the record."""

    numbers: Sequence[Sequence[Predict]]
    details: Mapping[str, Any]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]


def _learn_ridge(task: TaskData, metric: Metric) -> _TrainedRounds:

    paths = []
    for each in task.rounds:
        windows = task.windows_of(each.train)
        score, X_valid = None, None
        if len(each.valid):
            samples = task.samples(each.valid)
            X_valid = task.X[samples.windows]
            score = partial(_ridge_score, metric, samples)
        paths.append(fit_ridge(task.X[windows], task.targets.values[task.clip[windows]], X_valid=X_valid, score=score))
    return _TrainedRounds(
        numbers=[(partial(_ridge_numbers, task, path.model),) for path in paths],
        details=fit_details(task.rounds, [[path.as_json()] for path in paths]),
        seeds=(),
        settings={},
    )


def _ridge_score(metric: Metric, samples: Samples, numbers: NDArray[np.float64]) -> tuple[float, float]:
    """Validation score, and the squared error as a tie-breaker; both negated where lower is better."""
    voted = samples.vote(numbers)
    sign = 1.0 if metric.higher_is_better else -1.0
    return sign * metric.score(samples.y_true, voted), -float(np.square(voted[:, 0] - samples.y_true).mean())


def _ridge_numbers(task: TaskData, model: Ridge, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    return model(task.X[windows])


def _learn_layer_mix(task: LayeredTask, metric: Metric) -> _TrainedRounds:
    from featstore.probe import layer_mix

    paths = []
    for each in task.rounds:
        windows = task.windows_of(each.train)
        samples = task.samples(each.valid) if len(each.valid) else None
        of = layer_mix.MixSet(
            layers=task.X_of_layer,
            windows=windows,
            objective=layer_mix.objective_of_numbers(task.targets.values[task.clip[windows]]),
            valid=None if samples is None else samples.windows,
            score=None if samples is None else partial(_ridge_score, metric, samples),
        )
        paths.append(layer_mix.fit_layer_mix(of, grid=[1.0 / alpha for alpha in GRID]))
    return _TrainedRounds(
        numbers=[(partial(_mix_numbers, task, path.model),) for path in paths],
        details={
            **fit_details(task.rounds, [[path.as_json()] for path in paths]),
            "layer_weights": weight_details(task.family.layers, [path.model.layer_weights for path in paths]),
        },
        seeds=(),
        settings={"solver": "lbfgs", "layers": list(task.family.layers)},
    )


def _mix_numbers(task: LayeredTask, model: LayerMix, windows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
    return model([X[windows] for X in task.X_of_layer])


def _learn_linear(task: TaskData, metric: Metric, *, seeds: tuple[int, ...]) -> _TrainedRounds:
    from featstore.probe import linear as heads

    features = heads.layer_normalised(torch.from_numpy(task.X))
    losses = [_loss_of(task, each) for each in task.rounds]
    trained = [
        _train(task, features, number, loss=loss, metric=metric, seeds=seeds) for number, loss in enumerate(losses)
    ]
    return _TrainedRounds(
        numbers=[
            [partial(_linear_numbers, features, head, loss) for head in of_round]
            for of_round, loss in zip(trained, losses, strict=True)
        ],
        details=selection_details(task.rounds, trained),
        seeds=seeds,
        settings=task.manifest.probe.model_dump(exclude_none=True, exclude={"head"}),
    )


def _linear_numbers(
    features: Tensor, head: Trained, loss: SquaredError, windows: NDArray[np.int64]
) -> NDArray[np.float32]:
    from featstore.probe import linear as heads

    (logits,) = heads.predict(features, windows, [head])
    return loss.scores(logits)


def _at_or_below_mean(task: TaskData, metric: Metric, outcomes: Sequence[Outcome], *, value: float) -> bool:
    """Whether the score is no better than that of the training mean as a constant prediction."""
    baseline = np.mean(
        [
            metric.score(
                outcome.samples.y_true,
                np.full((len(outcome.samples.y_true), 1), task.targets.values[each.train].mean()),
            )
            for each, outcome in zip(task.rounds, outcomes, strict=True)
        ]
    )
    return bool(value <= baseline if metric.higher_is_better else value >= baseline)


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


def _train(
    task: TaskData, features: Tensor, number: int, *, loss: SquaredError, metric: Metric, seeds: tuple[int, ...]
) -> tuple[Trained, ...]:
    """Heads of one round, one per seed."""
    from featstore.probe import linear as heads

    each, probe = task.rounds[number], task.manifest.probe
    windows = task.windows_of(each.train)
    validation = _validation(task, each, loss=loss, metric=metric)
    return heads.train_heads(
        features,
        task.targets.values[task.clip].astype(np.float32),
        [
            heads.Job(
                windows=windows,
                validation=validation,
                rng=np.random.default_rng((seed, number)),
            )
            for seed in seeds
        ],
        n_classes=1,
        loss=loss,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
        learning_rate=probe.learning_rate,
    )


def _validation(task: TaskData, each: Round, *, loss: SquaredError, metric: Metric) -> Validation | None:
    from featstore.probe import linear as heads

    if not len(each.valid):
        return None
    samples = task.samples(each.valid)
    sign = 1.0 if metric.higher_is_better else -1.0

    def score(logits: NDArray[np.float32]) -> float:
        return sign * metric.score(samples.y_true, samples.vote(loss.scores(logits)))

    return heads.Validation(windows=samples.windows, score=score)


def _outcome(task: TaskData, each: Round, numbers: Sequence[Predict]) -> Outcome:
    samples = task.samples(each.test)
    return Outcome(
        samples=samples,
        y_scores=tuple(samples.vote(of_seed(samples.windows)) for of_seed in numbers),
    )


def _mean_score(metric: Metric, outcomes: Sequence[Outcome]) -> float:
    """Mean score over rounds and seeds."""
    return float(
        np.mean([metric.score(each.samples.y_true, y_score) for each in outcomes for y_score in each.y_scores])
    )
