"""Tasks of kind ``regression``: a linear head that tells one number of each clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError
from featstore.metrics import Metric, find_metric
from featstore.probe.selection import selection_details
from featstore.records import Protocol, ScoreRecord
from featstore.splits import Round
from featstore.taskdata import (
    Outcome,
    Samples,
    Stopwatch,
    TaskData,
    load_task,
    score_outcomes,
    score_record,
)

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.manifest import Manifest
    from featstore.probe.heads import Trained, Validation
    from featstore.store import Store

__all__ = ["SquaredError", "score_regression"]

METRICS = ("mae", "mse", "pearson", "spearman")
LARGEST_NUMBER = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaredError:
    """Mean squared error of standardised numbers, as ``torch.nn.MSELoss``; see `featstore.probe.heads.Loss`.

    A head that begins near 0 would spend its epochs on the way to numbers of another size: it learns
    (number - mean) / std instead, and its scores are turned back into numbers.
    """

    mean: float = 0.0
    std: float = 1.0

    def gradient(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Twice the difference."""
        return logits.sub_(targets.sub(self.mean).div_(self.std).unsqueeze(2)).mul_(2.0 * weights)

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers, as they were before they were standardised."""
        return logits * np.float32(self.std) + np.float32(self.mean)


def score_regression(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
) -> ScoreRecord:
    """Score a task of kind ``regression``.

    ``strict`` learns numbers that are standardised by the round's training clips, and averages the windows of a clip;
    ``xares`` learns the numbers as they are, as the MSELoss of X-ARES would, every window a sample.
    """
    metric = find_metric(manifest.metric, protocol)
    from featstore.probe import heads

    watch = Stopwatch()
    with watch("read"):
        task = load_task(store, manifest, encoder=encoder, protocol=protocol)
        _check_size(task)
    with watch("train"):
        features = heads.standardised(task.X)
        losses = [_loss_of(task, each) for each in task.rounds]
        trained = [
            _train(task, features, number, loss=loss, metric=metric, seeds=seeds) for number, loss in enumerate(losses)
        ]
    with watch("score"):
        outcomes = [
            _outcome(task, each, features, heads_of_round, loss)
            for each, heads_of_round, loss in zip(task.rounds, trained, losses, strict=True)
        ]
        scores = score_outcomes(task, outcomes)
    return score_record(
        task,
        outcomes,
        scores,
        track="A",
        seeds=seeds,
        settings={"head": "linear", **manifest.probe.model_dump(exclude_none=True)},
        seconds=watch.seconds,
        libraries=("torch",),
        details={
            **selection_details(task.rounds, trained),
            "metrics": {name: _mean_score(find_metric(name, protocol), outcomes) for name in METRICS},
        },
    )


def _check_size(task: TaskData) -> None:
    too_large = np.flatnonzero(np.abs(task.targets.values) > LARGEST_NUMBER)
    if len(too_large):
        clip, number = task.clip_id[too_large[0]], task.targets.values[too_large[0]]
        raise LabelError(
            f"task {task.manifest.name}: clip {clip} has the number {number:g}; a head computes in float32, and takes "
            f"numbers of at most {LARGEST_NUMBER:g} in size: scale them"
        )


def _loss_of(task: TaskData, each: Round) -> SquaredError:
    if task.protocol == "xares":
        return SquaredError()
    numbers = task.targets.values[each.train]
    return SquaredError(mean=float(numbers.mean()), std=float(numbers.std()))


def _train(
    task: TaskData, features: Tensor, number: int, *, loss: SquaredError, metric: Metric, seeds: tuple[int, ...]
) -> tuple[Trained, ...]:
    """Heads of one round by seed."""
    from featstore.probe import heads

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
                learning_rate=probe.learning_rate,
            )
            for seed in seeds
        ],
        n_classes=1,
        loss=loss,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
    )


def _validation(task: TaskData, each: Round, *, loss: SquaredError, metric: Metric) -> Validation | None:
    from featstore.probe import heads

    if not len(each.valid):
        return None
    samples = task.samples(each.valid)
    sign = 1.0 if metric.higher_is_better else -1.0

    def score(logits: NDArray[np.float32]) -> float:
        return sign * metric.score(samples.y_true, _numbers(samples, logits, loss))

    return heads.Validation(windows=samples.windows, score=score)


def _outcome(task: TaskData, each: Round, features: Tensor, trained: Sequence[Trained], loss: SquaredError) -> Outcome:
    from featstore.probe import heads

    samples = task.samples(each.test)
    logits = heads.predict(features, samples.windows, trained)
    return Outcome(
        n_train=len(each.train),
        n_valid=len(each.valid),
        samples=samples,
        y_scores=tuple(_numbers(samples, of_seed, loss) for of_seed in logits),
    )


def _numbers(samples: Samples, logits: NDArray[np.float32], loss: SquaredError) -> NDArray[np.floating[Any]]:
    return samples.vote(loss.scores(logits))


def _mean_score(metric: Metric, outcomes: Sequence[Outcome]) -> float:
    """Mean over rounds and seeds."""
    return float(
        np.mean([metric.score(each.samples.y_true, y_score) for each in outcomes for y_score in each.y_scores])
    )
