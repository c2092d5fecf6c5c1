"""One task's linear probe, from the store to a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.metrics import Metric, find_metric
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
    from featstore.probe.heads import Loss, Trained, Validation
    from featstore.store import Store

__all__ = ["probe_task"]

SEEDS: Mapping[Protocol, tuple[int, ...]] = {"strict": (0, 1, 2), "xares": (42,)}
HEADS = ("linear",)


def probe_task(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None = None,
    protocol: Protocol = "strict",
    seeds: tuple[int, ...] | None = None,
    head: str = "linear",
) -> ScoreRecord:
    """Train a linear head on a task's cached embeddings and score it.

    All folds and seeds are trained together. An epoch is selected on the round's validation clips: see
    `featstore.splits.plan_rounds` for which these are under each protocol.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; not needed where the store holds one encoder.
    protocol : "strict" or "xares"
    seeds : tuple of int, optional
        Of initial weights and batch order: (0, 1, 2) under ``strict``, (42,) under ``xares``.
    head : "linear"

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The labels or the embeddings cannot be learned from.
    UsageError
        The head, the metric or the kind of the task is not one that the probe knows.
    """
    if head not in HEADS:
        raise UsageError(f"there is no head {head!r}; there are {', '.join(HEADS)}")
    seeds = SEEDS[protocol] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds must be one or more different numbers from 0 on, got {seeds}")
    metric = find_metric(manifest.metric, protocol)
    from featstore.probe import heads

    watch = Stopwatch()
    with watch("read"):
        task = load_task(store, manifest, encoder=encoder, protocol=protocol)
    with watch("train"):
        loss = _loss_of(manifest)
        features = heads.standardised(task.X)
        trained = _train(task, features, metric=metric, loss=loss, seeds=seeds)
    with watch("score"):
        outcomes = [
            _outcome(task, each, features, heads_of_round, loss)
            for each, heads_of_round in zip(task.rounds, trained, strict=True)
        ]
        scores = score_outcomes(task, outcomes)
    return score_record(
        task,
        outcomes,
        scores,
        track="A",
        seeds=seeds,
        settings={"head": head, **manifest.probe.model_dump(exclude_none=True)},
        seconds=watch.seconds,
        libraries=("torch",),
        details={
            "best_epoch": _by_round(task, [[head.epoch for head in of_round] for of_round in trained]),
            "validation": _by_round(task, [[list(head.history) for head in of_round] for of_round in trained]),
        },
    )


def _loss_of(manifest: Manifest) -> Loss:
    from featstore.probe import heads

    if manifest.kind == "multilabel":
        return heads.BinaryCrossEntropy(pos_weight=manifest.probe.pos_weight or 1.0)
    return heads.CrossEntropy()


def _train(
    task: TaskData, features: Tensor, *, metric: Metric, loss: Loss, seeds: tuple[int, ...]
) -> list[tuple[Trained, ...]]:
    """Heads by round and seed."""
    from featstore.probe import heads

    probe = task.manifest.probe
    jobs = []
    for number, each in enumerate(task.rounds):
        windows = task.windows_of(each.train)
        validation = _validation(task, each, metric=metric, loss=loss)
        jobs += [
            heads.Job(
                windows=windows,
                validation=validation,
                rng=np.random.default_rng((seed, number)),
                learning_rate=probe.learning_rate,
            )
            for seed in seeds
        ]
    trained = heads.train_heads(
        features,
        task.targets.values[task.clip],
        jobs,
        n_classes=len(task.classes),
        loss=loss,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
    )
    return [trained[start : start + len(seeds)] for start in range(0, len(trained), len(seeds))]


def _validation(task: TaskData, each: Round, *, metric: Metric, loss: Loss) -> Validation | None:
    from featstore.probe import heads

    if not len(each.valid):
        return None
    samples = task.samples(each.valid)
    sign = 1.0 if metric.higher_is_better else -1.0

    def score(logits: NDArray[np.float32]) -> float:
        return sign * metric.score(samples.y_true, _sample_scores(task, samples, logits, loss))

    return heads.Validation(windows=samples.windows, score=score)


def _outcome(task: TaskData, each: Round, features: Tensor, trained: Sequence[Trained], loss: Loss) -> Outcome:
    from featstore.probe import heads

    samples = task.samples(each.test)
    logits = heads.predict(features, samples.windows, trained)
    return Outcome(
        n_train=len(each.train),
        n_valid=len(each.valid),
        samples=samples,
        y_scores=tuple(_sample_scores(task, samples, of_seed, loss) for of_seed in logits),
    )


def _sample_scores(
    task: TaskData, samples: Samples, logits: NDArray[np.float32], loss: Loss
) -> NDArray[np.floating[Any]]:
    """Logits under ``xares``, as in X-ARES; under ``strict`` probabilities, with which the windows of a clip vote."""
    return logits if task.protocol == "xares" else samples.vote(loss.scores(logits))


def _by_round(task: TaskData, values: Sequence[Any]) -> dict[str, Any]:
    return {each.name: value for each, value in zip(task.rounds, values, strict=True)}
