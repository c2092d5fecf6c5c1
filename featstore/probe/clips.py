"""Kinds ``clip`` and ``multilabel``, which have one target per clip: train a head and score it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation import (
    Outcome,
    Samples,
    Stopwatch,
    TaskData,
    TaskScore,
    load_task,
    score_outcomes,
    score_record,
    shots_details,
    support_sets,
)
from featstore.evaluation.neighbours import score_neighbours
from featstore.metrics import Metric, find_metric
from featstore.probe.log_odds import log_odds, log_shares_of_one, log_shares_of_sets, mean_log_loss, vote
from featstore.probe.selection import fit_details, selection_details
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.probe.linear import Job, Loss, Trained
    from featstore.probe.logistic import Path, TrainingSet
    from featstore.probe.selection import Head
    from featstore.probe.training import Fitted
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["score_clips"]

SUPPORT_STEPS = 200
"""Minimum number of optimiser steps of a few-shot head: ten epochs of a single batch would underfit."""

STEPS_PER_EPOCH, MAX_BATCH = 8, 256
STEPS_PER_LONG_EPOCH, MAX_LONG_BATCH = 128, 1024
"""The sweep enlarges its batches while an epoch has `STEPS_PER_EPOCH` of them, up to `MAX_BATCH`, and while it has
`STEPS_PER_LONG_EPOCH`, up to `MAX_LONG_BATCH`: with 1,251 classes an update of Adam takes as long as 256 windows."""

CERTAIN = 100.0
"""Logits of classes without a training clip are minus this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
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
        return mean_log_loss(samples.y_true, vote(samples, self._log_shares(logits)))

    def _log_shares(self, logits: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return log_shares_of_one(logits) if self.one_class else log_shares_of_sets(logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundModels:
    """Trained heads of one round: for each seed, a function from windows of the pool to float32 (n, classes)."""

    logits: tuple[Callable[[NDArray[np.int64]], NDArray[np.float32]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainedRounds:
    """Trained heads of all rounds, in order, and the details and settings of the record."""

    rounds: Sequence[_RoundModels]
    details: Mapping[str, Any]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]


def score_clips(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
    shots: tuple[int, ...],
) -> ScoreRecord:
    """Score a task of kind ``clip`` or ``multilabel``: see `featstore.probe.probe_task`."""
    metric = find_metric(manifest.metric, protocol, log_odds=True)
    import torch  # noqa: F401  # imported here so that no timed stage includes it

    watch = Stopwatch()
    with watch("read"):
        task = load_task(store, manifest, encoder=encoder, protocol=protocol)
    bench = _Bench(task=task, metric=metric, seeds=seeds)
    with watch("train"):
        trained_rounds = LEARNERS[head](bench)
    with watch("score"):
        outcomes = [
            _outcome(bench, each, found) for each, found in zip(task.rounds, trained_rounds.rounds, strict=True)
        ]
        scores = score_outcomes(task, outcomes, metric=metric)
    details = {
        **trained_rounds.details,
        "at_or_below_majority": _at_or_below_majority(bench, outcomes, value=scores.value),
    }
    if protocol == "strict":
        with watch("neighbours"):
            vote = score_neighbours(task)
        if vote is not None:
            above = _is_above(vote, scores, metric=metric)
            details["neighbours_vote"] = {"score": vote, "above_interval": above}
    if shots:
        with watch("shots"):
            few_shot = _few_shot_logistic if head == "logistic" else _few_shot_linear
            details["shots"] = shots_details({number: few_shot(bench, shots=number) for number in shots})
    return score_record(
        task,
        scores,
        track="A",
        seeds=trained_rounds.seeds,
        settings={"head": head, **trained_rounds.settings, **({"shots": list(shots)} if shots else {})},
        seconds=watch.seconds,
        libraries=("torch",),
        details=details,
    )


# --- heads ------------------------------------------------------------------------------------------------------------


def _learn_logistic(bench: _Bench) -> _TrainedRounds:
    """Fit logistic regression for all rounds in one batch; fall back to minibatches where a round is too large."""
    from featstore.probe import logistic

    task = bench.task
    n_windows = max(len(task.windows_of(each.train)) for each in task.rounds)
    if not logistic.fits_full_batch(n_windows, task.X.shape[1], len(task.classes)):
        trained_rounds = _learn_sweep(bench)
        return _TrainedRounds(
            rounds=trained_rounds.rounds,
            details=trained_rounds.details,
            seeds=trained_rounds.seeds,
            settings={**trained_rounds.settings, "solver": "minibatch"},
        )
    paths = logistic.fit_paths(
        [_training_set(bench, each) for each in task.rounds],
        n_classes=len(task.classes),
        pos_weight=task.manifest.probe.pos_weight or 1.0,
    )
    return _TrainedRounds(
        rounds=[_RoundModels(logits=(partial(_logits_of, task, path.model),)) for path in paths],
        details=fit_details(task.rounds, [[_fit_of(path)] for path in paths]),
        seeds=(),
        settings={
            "solver": "lbfgs",
            **task.manifest.probe.model_dump(exclude_none=True, include={"pos_weight"}),
        },
    )


def _training_set(bench: _Bench, each: Round) -> TrainingSet:
    from featstore.probe import logistic

    task = bench.task
    windows = task.windows_of(each.train)
    X, y = task.X[windows], task.targets.values[task.clip[windows]]
    if not len(each.valid):
        return logistic.TrainingSet(X=X, y=y)
    samples = task.samples(each.valid)

    def score(logits: NDArray[np.float32]) -> tuple[float, float]:
        return bench.selecting_score(each, samples, logits), -bench.log_loss(samples, logits)

    return logistic.TrainingSet(X=X, y=y, X_valid=task.X[samples.windows], score=score)


def _fit_of(path: Path) -> dict[str, Any]:
    return {
        "strength": path.chosen.C,
        "grid": [tried.C for tried in path.tried],
        "scores": [None if tried.score is None else tried.score[0] for tried in path.tried],
        "extended": path.extended,
        "at_edge": path.at_edge,
        "iterations": path.chosen.iterations,
        "gradient_norm": path.chosen.gradient_norm,
        "converged": path.converged,
    }


def _logits_of(
    task: TaskData, model: Callable[[NDArray[np.float32]], NDArray[np.float32]], windows: NDArray[np.int64]
) -> NDArray[np.float32]:
    return model(task.X[windows])


def _learn_linear(bench: _Bench) -> _TrainedRounds:
    """Train by the schedule of X-ARES: one head per round and seed; rounds with the same classes share a batch."""
    import torch

    from featstore.probe import linear as heads

    task, probe = bench.task, bench.task.manifest.probe
    features = heads.layer_normalised(torch.from_numpy(task.X))
    classes_of_rounds = [_TrainingClasses.of(task, each) for each in task.rounds]
    trained: list[Sequence[Trained]] = [()] * len(task.rounds)
    for _, alike in groupby(
        sorted(range(len(classes_of_rounds)), key=lambda at: classes_of_rounds[at].key),
        key=lambda at: classes_of_rounds[at].key,
    ):
        numbers = list(alike)
        classes = classes_of_rounds[numbers[0]]
        found = heads.train_heads(
            features,
            classes.targets(task)[task.clip],
            [job for number in numbers for job in _jobs(bench, number, classes)],
            n_classes=len(classes.labels),
            loss=_loss_of(task.manifest),
            epochs=probe.epochs,
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
        )
        n_seeds = len(bench.seeds)
        for place, number in enumerate(numbers):
            trained[number] = found[place * n_seeds : (place + 1) * n_seeds]
    return _TrainedRounds(
        rounds=[
            _RoundModels(logits=tuple(partial(_head_logits, features, head, classes) for head in of_round))
            for of_round, classes in zip(trained, classes_of_rounds, strict=True)
        ],
        details=selection_details(task.rounds, trained),
        seeds=bench.seeds,
        settings=probe.model_dump(exclude_none=True, exclude={"head"}),
    )


def _learn_sweep(bench: _Bench) -> _TrainedRounds:
    """Train minibatches on standardised features: see `featstore.probe.training`."""
    from featstore.probe.training import over_seeds

    task = bench.task
    found = [
        over_seeds(bench.seeds, partial(_sweep_round, bench, number, each), fit_of=lambda trained: trained[1])
        for number, each in enumerate(task.rounds)
    ]
    return _TrainedRounds(
        rounds=[_RoundModels(logits=tuple(partial(_logits_of, task, model) for model, _ in of)) for of in found],
        details=selection_details(task.rounds, [[fitted for _, fitted in of] for of in found]),
        seeds=bench.seeds,
        settings=task.manifest.probe.model_dump(exclude_none=True, include={"batch_size", "pos_weight"}),
    )


def _sweep_round(
    bench: _Bench, number: int, each: Round, *, seed: int, rates: Sequence[float]
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], Fitted]:
    """Return a function from raw embeddings to logits, and the record of its training."""
    import torch

    from featstore.probe.standardisation import Standardisation
    from featstore.probe.training import train, zero_layer

    task, probe = bench.task, bench.task.manifest.probe
    classes = _TrainingClasses.of(task, each)
    windows = task.windows_of(each.train)
    standardisation = Standardisation.of(task.X[windows])
    X = standardisation(task.X[windows])
    y = torch.from_numpy(classes.targets(task)[task.clip[windows]])
    batch_size = max(
        probe.batch_size,
        min(MAX_BATCH, len(windows) // STEPS_PER_EPOCH),
        min(MAX_LONG_BATCH, len(windows) // STEPS_PER_LONG_EPOCH),
    )
    samples = task.samples(each.valid) if len(each.valid) else None
    X_valid = standardisation(task.X[samples.windows]) if samples is not None else X[:0]
    loss_of = _loss_of(task.manifest)

    def batches(rng: np.random.Generator) -> Iterable[Tensor]:
        return torch.split(torch.from_numpy(rng.permutation(len(X))), batch_size)

    @torch.no_grad()
    def score(model: torch.nn.Linear) -> tuple[float, float]:
        if samples is None:
            return 0.0, 0.0
        logits = classes.expand(model(X_valid).numpy())
        return bench.selecting_score(each, samples, logits), -bench.log_loss(samples, logits)

    model, fitted = train(
        lambda _: zero_layer(dim=X.shape[1], n_classes=len(classes.labels)),
        seed=(seed, number),
        batches=batches,
        loss=lambda model, rows: loss_of(model(X[rows]), y[rows]).mean(),
        score=None if samples is None else score,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
        rates=rates,
    )

    @torch.no_grad()
    def logits(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        return classes.expand(model(standardisation(embeddings)).numpy())

    return logits, fitted


LEARNERS: Mapping[Head, Callable[[_Bench], _TrainedRounds]] = {
    "logistic": _learn_logistic,
    "linear": _learn_linear,
    "sweep": _learn_sweep,
}


# --- shared by the heads ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainingClasses:
    """Classes that occur in a round's training clips; all classes of the task under ``xares``, as in X-ARES.

    Classes that occur in the test clips only do not affect training.
    """

    labels: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, task: TaskData, each: Round) -> _TrainingClasses:
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


def _loss_of(manifest: Manifest) -> Loss:
    from featstore.probe import linear as heads

    if manifest.kind == "multilabel":
        return heads.binary_cross_entropy(manifest.probe.pos_weight or 1.0)
    return heads.cross_entropy


def _jobs(bench: _Bench, number: int, classes: _TrainingClasses) -> list[Job]:
    """Jobs of a round, one per seed."""
    from featstore.probe import linear as heads

    each = bench.task.rounds[number]
    validation = None
    if len(each.valid):
        samples = bench.task.samples(each.valid)
        validation = heads.Validation(
            windows=samples.windows,
            score=lambda logits: bench.selecting_score(each, samples, classes.expand(logits)),
        )
    return [
        heads.Job(
            windows=bench.task.windows_of(each.train),
            validation=validation,
            rng=np.random.default_rng((seed, number)),
        )
        for seed in bench.seeds
    ]


def _head_logits(
    features: Tensor, head: Trained, classes: _TrainingClasses, windows: NDArray[np.int64]
) -> NDArray[np.float32]:
    from featstore.probe import linear as heads

    (logits,) = heads.predict(features, windows, [head])
    return classes.expand(logits)


def _outcome(bench: _Bench, each: Round, learned: _RoundModels) -> Outcome:
    samples = bench.task.samples(each.test)
    return Outcome(
        samples=samples,
        y_scores=tuple(bench.y_scores(samples, logits(samples.windows)) for logits in learned.logits),
    )


def _is_above(vote: float, scores: TaskScore, *, metric: Metric) -> bool:
    """Whether a score lies outside the confidence interval of ``scores``, on the better side."""
    low, high = scores.interval.low, scores.interval.high
    if low is None or high is None:
        return False
    return vote > high if metric.higher_is_better else vote < low


def _at_or_below_majority(bench: _Bench, outcomes: Sequence[Outcome], *, value: float) -> bool:
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


# --- few shots --------------------------------------------------------------------------------------------------------


def _few_shot_logistic(bench: _Bench, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) of logistic regressions that are trained on one support set each, at C = 1."""
    from featstore.probe import logistic

    task = bench.task
    scores = []
    for each in task.rounds:
        drawn = [task.windows_of(clips) for clips in support_sets(task, each, shots=shots)]
        paths = logistic.fit_paths(
            [logistic.TrainingSet(X=task.X[windows], y=task.targets.values[task.clip[windows]]) for windows in drawn],
            n_classes=len(task.classes),
            pos_weight=task.manifest.probe.pos_weight or 1.0,
        )
        samples = task.samples(each.test)
        X_test = task.X[samples.windows]
        scores.append(
            [bench.metric.score(samples.y_true, bench.y_scores(samples, path.model(X_test))) for path in paths]
        )
    return np.array(scores)


def _few_shot_linear(bench: _Bench, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) of linear heads that are trained on one support set each, after the last epoch."""
    import torch

    from featstore.probe import linear as heads

    task, probe = bench.task, bench.task.manifest.probe
    features = heads.layer_normalised(torch.from_numpy(task.X))
    scores = []
    for number, each in enumerate(task.rounds):
        classes = _TrainingClasses.of(task, each)
        drawn = [task.windows_of(clips) for clips in support_sets(task, each, shots=shots)]
        smallest = min(map(len, drawn))
        trained = heads.train_heads(
            features,
            classes.targets(task)[task.clip],
            [
                heads.Job(
                    windows=windows,
                    validation=None,
                    rng=np.random.default_rng((bench.seeds[0], number, at)),
                )
                for at, windows in enumerate(drawn)
            ],
            n_classes=len(classes.labels),
            loss=_loss_of(task.manifest),
            epochs=max(probe.epochs, math.ceil(SUPPORT_STEPS / math.ceil(smallest / probe.batch_size))),
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
        )
        samples = task.samples(each.test)
        scores.append(
            [
                bench.metric.score(samples.y_true, bench.y_scores(samples, classes.expand(logits)))
                for logits in heads.predict(features, samples.windows, trained)
            ]
        )
    return np.array(scores)
