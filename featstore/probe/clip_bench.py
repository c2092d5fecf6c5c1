"""What the heads of kinds ``clip`` and ``multilabel`` share: scoring of logits, trained rounds, classes in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation import Outcome, Samples, TaskData
from featstore.metrics import Metric
from featstore.probe.log_odds import log_odds, log_shares_of_one, log_shares_of_sets, mean_log_loss, vote
from featstore.tasks.splits import Round

__all__ = ["Bench", "RoundModels", "TrainedRounds", "TrainingClasses", "is_at_or_below_majority", "outcome_of"]

CERTAIN = 100.0
"""Logits of classes without a training clip are minus this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A task, its metric and the seeds."""

    task: TaskData
    metric: Metric
    seeds: tuple[int, ...]

    @property
    def one_class(self) -> bool:
        """Whether a clip has exactly one class, as opposed to a set of labels."""
        return self.task.targets.values.ndim == 1

    def y_scores(self, samples: Samples, logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Logits under ``xares``, as in X-ARES; log-odds under ``strict``, averaged over the windows of each clip."""
        return logits if self.task.protocol == "xares" else log_odds(vote(samples, self._log_shares(logits)))

    def selecting_score(self, each: Round, samples: Samples, logits: NDArray[np.floating[Any]]) -> float:
        """Validation score of a round, higher is better. Raises DataError if the metric is undefined on its clips."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        try:
            return sign * self.metric.score(samples.y_true, self.y_scores(samples, logits))
        except DataError as error:
            raise DataError(
                f"task {self.task.manifest.name}, round {each.name!r}: the metric is undefined on its "
                f"{len(each.valid)} validation clips: {error}; add clips, or give the task a validation split"
            ) from error

    def log_loss(self, samples: Samples, logits: NDArray[np.floating[Any]]) -> float:
        """Mean log loss of samples, which breaks ties of `selecting_score`."""
        return mean_log_loss(samples.y_true, vote(samples, self._log_shares(logits)))

    def _log_shares(self, logits: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return log_shares_of_one(logits) if self.one_class else log_shares_of_sets(logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundModels:
    """Trained heads of one round: for each seed, a function from windows of the pool to float32 (n, classes)."""

    logits: tuple[Callable[[NDArray[np.int64]], NDArray[np.float32]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRounds:
    """Trained heads of all rounds, in order, and the details and settings of the record."""

    rounds: Sequence[RoundModels]
    details: Mapping[str, Any]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]


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


def outcome_of(bench: Bench, each: Round, learned: RoundModels) -> Outcome:
    """Predict the test clips of a round."""
    samples = bench.task.samples(each.test)
    return Outcome(
        samples=samples,
        y_scores=tuple(bench.y_scores(samples, logits(samples.windows)) for logits in learned.logits),
    )


def is_at_or_below_majority(bench: Bench, outcomes: Sequence[Outcome], *, value: float) -> bool:
    """Whether the score does not exceed that of constant predictions by training class frequencies."""
    task = bench.task
    constant = []
    for each, outcome in zip(task.rounds, outcomes, strict=True):
        values = task.targets.values[each.train]
        counts = np.bincount(values, minlength=len(task.classes)) if values.ndim == 1 else values.sum(axis=0)
        share = np.clip(counts / len(values), 1e-6, 1.0 - 1e-6)
        guess = np.tile(np.log(share) - np.log1p(-share), (len(outcome.samples.clip), 1))
        constant.append(bench.metric.score(outcome.samples.y_true, guess))
    baseline = float(np.mean(constant))
    return value <= baseline if bench.metric.higher_is_better else value >= baseline
