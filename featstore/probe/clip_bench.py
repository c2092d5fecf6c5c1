"""What the heads of clips share: the score of their outputs, jobs of linear heads, trained rounds, known classes.

Outputs are logits (n, classes) for kinds ``clip`` and ``multilabel``, and numbers (n, 1) for ``regression``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featstore.errors import DataError
from featstore.evaluation import Samples, TaskData
from featstore.metrics import Metric, TestSet
from featstore.probe.class_models import CERTAIN
from featstore.probe.linear import Job, Trained, Validation, predict
from featstore.probe.log_odds import log_odds, log_shares_of_one, log_shares_of_sets, mean_log_loss, vote
from featstore.probe.training import Score
from featstore.tasks.splits import Round

__all__ = [
    "Bench",
    "Predict",
    "TrainedRounds",
    "TrainingClasses",
    "Validated",
    "head_outputs",
    "is_at_or_below_constant",
    "linear_jobs",
    "outcome_of",
]

Outputs = NDArray[np.floating[Any]]

Predict = Callable[[NDArray[np.int64]], Outputs]
"""Maps windows of the pool to outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """Windows of a round's validation clips, and the score of their outputs with a tie-breaker, higher is better."""

    windows: NDArray[np.int64]
    score: Callable[[Outputs], Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A task, its metric and the seeds."""

    task: TaskData
    metric: Metric
    seeds: tuple[int, ...]

    def y_scores(self, samples: Samples, outputs: Outputs) -> Outputs:
        """Outputs averaged over the windows of each clip, logits as log-odds; logits as they are under ``xares``."""
        if self.task.manifest.kind == "regression":
            return samples.vote(outputs)
        return outputs if self.task.protocol == "xares" else log_odds(vote(samples, self._log_shares(outputs)))

    def selecting_score(self, each: Round, samples: Samples, outputs: Outputs) -> float:
        """Validation score of a round, higher is better. Raises DataError if the metric is undefined on its clips."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        try:
            return sign * self.metric.score(samples.y_true, self.y_scores(samples, outputs))
        except DataError as error:
            raise DataError(
                f"task {self.task.manifest.name}, round {each.name!r}: the metric is undefined on its "
                f"{len(each.valid)} validation clips: {error}; add clips, or give the task a validation split"
            ) from error

    def validated(self, each: Round) -> Validated | None:
        """Return the validation of a round, or None if it has no validation clip. The loss breaks ties."""
        if not len(each.valid):
            return None
        samples = self.task.samples(each.valid)
        return Validated(
            windows=samples.windows,
            score=lambda outputs: (self.selecting_score(each, samples, outputs), -self._loss(samples, outputs)),
        )

    def _loss(self, samples: Samples, outputs: Outputs) -> float:
        """Mean squared error of numbers, or mean log loss."""
        if self.task.manifest.kind == "regression":
            return float(np.square(samples.vote(outputs)[:, 0] - samples.y_true).mean())
        return mean_log_loss(samples.y_true, vote(samples, self._log_shares(outputs)))

    def _log_shares(self, logits: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        has_one_class = self.task.targets.values.ndim == 1
        return log_shares_of_one(logits) if has_one_class else log_shares_of_sets(logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRounds:
    """Trained heads of all rounds, in order and by seed, and the details and settings of the record."""

    rounds: Sequence[Sequence[Predict]]
    details: Mapping[str, Any]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]


def linear_jobs(bench: Bench, number: int, outputs_of: Callable[[NDArray[np.float32]], Outputs]) -> list[Job]:
    """Jobs of the linear heads of a round, one per seed; ``outputs_of`` maps what a head returns to outputs."""
    task, each = bench.task, bench.task.rounds[number]
    validation = None
    if len(each.valid):
        samples = task.samples(each.valid)
        validation = Validation(
            windows=samples.windows, score=lambda found: bench.selecting_score(each, samples, outputs_of(found))
        )
    return [
        Job(windows=task.windows_of(each.train), validation=validation, rng=np.random.default_rng((seed, number)))
        for seed in bench.seeds
    ]


def head_outputs(
    features: Tensor,
    head: Trained,
    outputs_of: Callable[[NDArray[np.float32]], Outputs],
    windows: NDArray[np.int64],
) -> Outputs:
    """Outputs of a linear head for some windows."""
    (found,) = predict(features, windows, [head])
    return outputs_of(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClasses:
    """Classes that occur in a round's training clips; all classes of the task under ``xares``, as in X-ARES.

    Classes that occur in the test clips only do not affect training.
    """

    labels: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, task: TaskData, each: Round) -> TrainingClasses:
        """Find the classes of a round."""
        n_classes = len(task.classes)
        labels = np.arange(n_classes) if task.protocol == "xares" else task.targets.present(each.train)
        return cls(labels=labels, n_classes=n_classes)

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for rounds with the same classes."""
        return tuple(self.labels.tolist())

    def targets(self, task: TaskData) -> NDArray[Any]:
        """Targets of all clips as indices or columns of these classes; arbitrary for clips of other classes."""
        values = task.targets.values
        if len(self.labels) == self.n_classes:
            return values
        if values.ndim == 2:
            return values[:, self.labels]
        return np.minimum(np.searchsorted(self.labels, values), len(self.labels) - 1)

    def expand(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of all classes of the task."""
        if len(self.labels) == self.n_classes:
            return logits
        of_all = np.full((len(logits), self.n_classes), -CERTAIN, np.float32)
        of_all[:, self.labels] = logits
        return of_all


def outcome_of(bench: Bench, each: Round, heads: Sequence[Predict]) -> TestSet:
    """Predict the test clips of a round."""
    samples = bench.task.samples(each.test)
    return samples.tested(bench.y_scores(samples, head(samples.windows)) for head in heads)


def is_at_or_below_constant(bench: Bench, outcomes: Sequence[TestSet], *, value: float) -> bool:
    """Whether a score does not exceed that of constant predictions: class frequencies or the mean of training clips."""
    task = bench.task
    constant = []
    for each, outcome in zip(task.rounds, outcomes, strict=True):
        values = task.targets.values[each.train]
        if task.manifest.kind == "regression":
            guess = np.array([values.mean()])
        else:
            counts = np.bincount(values, minlength=len(task.classes)) if values.ndim == 1 else values.sum(axis=0)
            share = np.clip(counts / len(values), 1e-6, 1.0 - 1e-6)
            guess = np.log(share) - np.log1p(-share)
        constant.append(bench.metric.score(outcome.y_true, np.tile(guess, (len(outcome.clip), 1))))
    baseline = float(np.mean(constant))
    return value <= baseline if bench.metric.higher_is_better else value >= baseline
