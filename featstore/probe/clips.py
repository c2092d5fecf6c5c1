"""Kinds ``clip`` and ``multilabel``, which have one target per clip: train a head and score it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.evaluation import (
    Stopwatch,
    TaskData,
    TaskScore,
    load_task,
    score_outcomes,
    score_record,
    shots_details,
    support_sets,
)
from featstore.evaluation.layers import LayeredTask, load_layered_task, record_of_family
from featstore.evaluation.neighbours import score_neighbours
from featstore.metrics import Metric, find_metric
from featstore.probe import linear, logistic
from featstore.probe.clip_bench import (
    Bench,
    TrainedRounds,
    TrainingClasses,
    head_outputs,
    is_at_or_below_constant,
    linear_jobs,
    outcome_of,
)
from featstore.probe.clip_layers import learn_layer_mix
from featstore.probe.clip_sweep import learn_sweep, loss_of
from featstore.probe.selection import fit_details, selection_details
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round, SplitBy

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["score_clips"]

SUPPORT_STEPS = 200
"""Minimum number of optimiser steps of a few-shot head: ten epochs of a single batch would underfit."""


def score_clips(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
    shots: tuple[int, ...],
    split_by: SplitBy | None = None,
) -> ScoreRecord:
    """Score a task of kind ``clip`` or ``multilabel``: see `featstore.probe.probe_task`."""
    metric = find_metric(manifest.metric, protocol, log_odds=True)
    watch = Stopwatch()
    load = load_layered_task if head == "layer-mix" else load_task
    with watch("read"):
        task = load(store, manifest, encoder=encoder, protocol=protocol, split_by=split_by)
    bench = Bench(task=task, metric=metric, seeds=seeds)
    with watch("train"):
        if isinstance(task, LayeredTask):
            trained_rounds = learn_layer_mix(bench, task)
        else:
            learners = {"logistic": _learn_logistic, "linear": _learn_linear, "sweep": learn_sweep}
            trained_rounds = learners[head](bench)
    with watch("score"):
        outcomes = [
            outcome_of(bench, each, found) for each, found in zip(task.rounds, trained_rounds.rounds, strict=True)
        ]
        scores = score_outcomes(task, outcomes, metric=metric)
    details = {
        **trained_rounds.details,
        "at_or_below_majority": is_at_or_below_constant(bench, outcomes, value=scores.value),
    }
    if protocol == "strict" and not isinstance(task, LayeredTask):
        with watch("neighbours"):
            vote = score_neighbours(task)
        if vote is not None:
            above = _is_above(vote, scores, metric=metric)
            details["neighbours_vote"] = {"score": vote, "above_interval": above}
    if shots:
        with watch("shots"):
            few_shot = _few_shot_logistic if head == "logistic" else _few_shot_linear
            details["shots"] = shots_details({number: few_shot(bench, shots=number) for number in shots})
    record = score_record(
        task,
        scores,
        track="A",
        seeds=trained_rounds.seeds,
        settings={"head": head, **trained_rounds.settings, **({"shots": list(shots)} if shots else {})},
        seconds=watch.seconds,
        libraries=("torch",),
        details=details,
    )
    return record_of_family(record, task.family) if isinstance(task, LayeredTask) else record


# --- heads ------------------------------------------------------------------------------------------------------------


def _learn_logistic(bench: Bench) -> TrainedRounds:
    """Fit logistic regression for all rounds in one batch; fall back to minibatches where a round is too large."""
    task = bench.task
    n_windows = max(len(task.windows_of(each.train)) for each in task.rounds)
    if not logistic.fits_full_batch(n_windows, task.X.shape[1], len(task.classes)):
        trained_rounds = learn_sweep(bench)
        return replace(trained_rounds, settings={**trained_rounds.settings, "solver": "minibatch"})
    paths = logistic.fit_paths(
        [_training_set(bench, each) for each in task.rounds],
        n_classes=len(task.classes),
        pos_weight=task.manifest.probe.pos_weight or 1.0,
    )
    return TrainedRounds(
        rounds=[[partial(_logits_of, task, path.model)] for path in paths],
        details=fit_details(task.rounds, [[path.as_json()] for path in paths]),
        seeds=(),
        settings={
            "solver": "lbfgs",
            **task.manifest.probe.model_dump(exclude_none=True, include={"pos_weight"}),
        },
    )


def _training_set(bench: Bench, each: Round) -> logistic.TrainingSet:
    task = bench.task
    windows = task.windows_of(each.train)
    X, y = task.X[windows], task.targets.values[task.clip[windows]]
    validated = bench.validated(each)
    if validated is None:
        return logistic.TrainingSet(X=X, y=y)
    return logistic.TrainingSet(X=X, y=y, X_valid=task.X[validated.windows], score=validated.score)


def _logits_of(
    task: TaskData, model: Callable[[NDArray[np.float32]], NDArray[np.float32]], windows: NDArray[np.int64]
) -> NDArray[np.float32]:
    return model(task.X[windows])


def _learn_linear(bench: Bench) -> TrainedRounds:
    """Train by the schedule of X-ARES: one head per round and seed; rounds with the same classes share a batch."""
    task, probe = bench.task, bench.task.manifest.probe
    features = linear.layer_normalised(torch.from_numpy(task.X))
    classes_of_rounds = [TrainingClasses.of(task, each) for each in task.rounds]
    trained: list[Sequence[linear.Trained]] = [()] * len(task.rounds)
    for _, alike in groupby(
        sorted(range(len(classes_of_rounds)), key=lambda at: classes_of_rounds[at].key),
        key=lambda at: classes_of_rounds[at].key,
    ):
        numbers = list(alike)
        classes = classes_of_rounds[numbers[0]]
        found = linear.train_heads(
            features,
            classes.targets(task)[task.clip],
            [job for number in numbers for job in linear_jobs(bench, number, classes.expand)],
            n_classes=len(classes.labels),
            loss=loss_of(task.manifest),
            epochs=probe.epochs,
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
        )
        n_seeds = len(bench.seeds)
        for place, number in enumerate(numbers):
            trained[number] = found[place * n_seeds : (place + 1) * n_seeds]
    return TrainedRounds(
        rounds=[
            [partial(head_outputs, features, head, classes.expand) for head in of_round]
            for of_round, classes in zip(trained, classes_of_rounds, strict=True)
        ],
        details=selection_details(task.rounds, trained),
        seeds=bench.seeds,
        settings=probe.model_dump(exclude_none=True, exclude={"head"}),
    )


def _is_above(vote: float, scores: TaskScore, *, metric: Metric) -> bool:
    """Whether a score lies outside the confidence interval of ``scores``, on the better side."""
    low, high = scores.interval.low, scores.interval.high
    if low is None or high is None:
        return False
    return vote > high if metric.higher_is_better else vote < low


# --- few shots --------------------------------------------------------------------------------------------------------


def _few_shot_logistic(bench: Bench, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) of logistic regressions that are trained on one support set each, at C = 1."""
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


def _few_shot_linear(bench: Bench, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) of linear heads that are trained on one support set each, after the last epoch."""
    task, probe = bench.task, bench.task.manifest.probe
    features = linear.layer_normalised(torch.from_numpy(task.X))
    scores = []
    for number, each in enumerate(task.rounds):
        classes = TrainingClasses.of(task, each)
        drawn = [task.windows_of(clips) for clips in support_sets(task, each, shots=shots)]
        smallest = min(map(len, drawn))
        trained = linear.train_heads(
            features,
            classes.targets(task)[task.clip],
            [
                linear.Job(
                    windows=windows,
                    validation=None,
                    rng=np.random.default_rng((bench.seeds[0], number, at)),
                )
                for at, windows in enumerate(drawn)
            ],
            n_classes=len(classes.labels),
            loss=loss_of(task.manifest),
            epochs=max(probe.epochs, math.ceil(SUPPORT_STEPS / math.ceil(smallest / probe.batch_size))),
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
        )
        samples = task.samples(each.test)
        scores.append(
            [
                bench.metric.score(samples.y_true, bench.y_scores(samples, classes.expand(logits)))
                for logits in linear.predict(features, samples.windows, trained)
            ]
        )
    return np.array(scores)
