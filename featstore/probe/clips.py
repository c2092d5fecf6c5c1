"""Tasks of one target for each clip, kinds ``clip`` and ``multilabel``: which head is trained, and its score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
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
    shots_details,
    support_sets,
)

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.manifest import Manifest
    from featstore.probe.heads import Job, Loss, Trained, Validation
    from featstore.probe.logreg import Affine
    from featstore.probe.track import Head
    from featstore.store import Store

__all__ = ["score_clips"]

SUPPORT_STEPS = 200
"""A few-shot head takes at least so many steps: ten epochs of one batch would teach it nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What training needs: ``X`` standardised per window, once for all heads."""

    task: TaskData
    metric: Metric
    loss: Loss
    seeds: tuple[int, ...]
    features: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    """What one round taught: for each seed, logits float32 (n, classes) of windows of the pool."""

    logits: tuple[Callable[[NDArray[np.int64]], NDArray[np.float32]], ...]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trainer:
    """How a head is trained: every round at once. ``settings`` beside its name go into the record."""

    learn: Callable[[_Bench], Sequence[_Learned]]
    settings: Callable[[Manifest], Mapping[str, Any]]
    seeded: bool
    libraries: tuple[str, ...]


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
    metric = find_metric(manifest.metric, protocol)
    trainer = TRAINERS[head]
    from featstore.probe import heads

    watch = Stopwatch()
    with watch("read"):
        task = load_task(store, manifest, encoder=encoder, protocol=protocol)
    with watch("train"):
        bench = _Bench(
            task=task,
            metric=metric,
            loss=_loss_of(manifest),
            seeds=seeds if trainer.seeded else seeds[:1],
            features=heads.standardised(task.X),
        )
        learned = trainer.learn(bench)
    with watch("score"):
        outcomes = [_outcome(bench, each, found) for each, found in zip(task.rounds, learned, strict=True)]
        scores = score_outcomes(task, outcomes)
    details: dict[str, Any] = {
        name: _by_round(task, [found.details[name] for found in learned]) for name in learned[0].details
    }
    if shots:
        with watch("shots"):
            details["shots"] = shots_details({number: _few_shot(bench, shots=number) for number in shots})
    return score_record(
        task,
        outcomes,
        scores,
        track="A",
        seeds=bench.seeds if trainer.seeded else (),
        settings={"head": head, **trainer.settings(manifest), **({"shots": list(shots)} if shots else {})},
        seconds=watch.seconds,
        libraries=trainer.libraries,
        details=details,
    )


# --- heads ------------------------------------------------------------------------------------------------------------


def _learn_linear(bench: _Bench) -> list[_Learned]:
    """One head for each round and seed, all in one batched problem."""
    from featstore.probe import heads

    task, probe, n_seeds = bench.task, bench.task.manifest.probe, len(bench.seeds)
    jobs = [job for number in range(len(task.rounds)) for job in _jobs(bench, number)]
    trained = heads.train_heads(
        bench.features,
        task.targets.values[task.clip],
        jobs,
        n_classes=len(task.classes),
        loss=bench.loss,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
    )
    return [_learned_heads(bench, trained[start : start + n_seeds], {}) for start in range(0, len(trained), n_seeds)]


def _learn_sweep(bench: _Bench) -> list[_Learned]:
    """For each round: a grid at the first seed, then the chosen candidate at the others."""
    from featstore.probe import sweep

    task, probe = bench.task, bench.task.manifest.probe
    targets = task.targets.values[task.clip]

    def swept(job: Job, grid: Sequence[sweep.Candidate]) -> sweep.Swept:
        return sweep.sweep_heads(
            bench.features,
            targets,
            job,
            grid=grid,
            n_classes=len(task.classes),
            loss=bench.loss,
            epochs=probe.epochs,
            batch_size=probe.batch_size,
        )

    found = []
    for number in range(len(task.rounds)):
        first, *others = _jobs(bench, number)
        best = swept(first, sweep.GRID)
        trained = [best.head, *(swept(job, [best.chosen]).head for job in others)]
        told = {
            "chosen": asdict(best.chosen),
            "tried": [{**asdict(each.candidate), "score": each.score, "epochs": each.epochs} for each in best.tried],
        }
        found.append(_learned_heads(bench, trained, {"sweep": told}))
    return found


def _learn_logreg(bench: _Bench) -> list[_Learned]:
    """For each round: scikit-learn's logistic regression at several C, the first of the best by validation."""
    from featstore.probe import logreg

    task = bench.task
    found = []
    for each in task.rounds:
        windows = task.windows_of(each.train)
        samples = task.samples(each.valid) if len(each.valid) else None

        def score(model: logreg.Affine, each: Round = each, samples: Samples | None = samples) -> float:
            return 0.0 if samples is None else _selecting_score(bench, each, samples, model(task.X[samples.windows]))

        tried = logreg.regress(
            task.X[windows],
            task.targets.values[task.clip[windows]],
            n_classes=len(task.classes),
            pos_weight=task.manifest.probe.pos_weight or 1.0,
            score=None if samples is None else score,
            grid=logreg.C_GRID if samples is not None else (1.0,),
        )
        best = max(tried, key=lambda model: model.score or 0.0) if samples is not None else tried[0]
        told = {
            "chosen": {"C": best.C},
            "tried": [{"C": model.C, "score": model.score, "converged": model.converged} for model in tried],
        }
        found.append(_Learned(logits=(partial(_affine_logits, task, best.model),), details={"logreg": told}))
    return found


def _affine_logits(task: TaskData, model: Affine, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    return model(task.X[windows])


TRAINERS: Mapping[Head, _Trainer] = {
    "linear": _Trainer(
        learn=_learn_linear,
        settings=lambda manifest: manifest.probe.model_dump(exclude_none=True),
        seeded=True,
        libraries=("torch",),
    ),
    "sweep": _Trainer(
        learn=_learn_sweep,
        settings=lambda manifest: manifest.probe.model_dump(exclude_none=True, exclude={"learning_rate"}),
        seeded=True,
        libraries=("torch",),
    ),
    "logreg": _Trainer(
        learn=_learn_logreg,
        settings=lambda manifest: manifest.probe.model_dump(exclude_none=True, include={"pos_weight"}),
        seeded=False,
        libraries=("torch", "sklearn"),
    ),
}


# --- what the heads have in common ------------------------------------------------------------------------------------


def _loss_of(manifest: Manifest) -> Loss:
    from featstore.probe import heads

    if manifest.kind == "multilabel":
        return heads.BinaryCrossEntropy(pos_weight=manifest.probe.pos_weight or 1.0)
    return heads.CrossEntropy()


def _jobs(bench: _Bench, number: int) -> list[Job]:
    """One job of a round for each seed."""
    from featstore.probe import heads

    each = bench.task.rounds[number]
    windows = bench.task.windows_of(each.train)
    validation = _validation(bench, each)
    return [
        heads.Job(
            windows=windows,
            validation=validation,
            rng=np.random.default_rng((seed, number)),
            learning_rate=bench.task.manifest.probe.learning_rate,
        )
        for seed in bench.seeds
    ]


def _validation(bench: _Bench, each: Round) -> Validation | None:
    from featstore.probe import heads

    if not len(each.valid):
        return None
    samples = bench.task.samples(each.valid)

    def score(logits: NDArray[np.float32]) -> float:
        return _selecting_score(bench, each, samples, logits)

    return heads.Validation(windows=samples.windows, score=score)


def _selecting_score(bench: _Bench, each: Round, samples: Samples, logits: NDArray[np.float32]) -> float:
    """Validation score of a round, higher is better. Raises DataError where its clips cannot select by the metric."""
    y_score = _sample_scores(bench, samples, logits)
    sign = 1.0 if bench.metric.higher_is_better else -1.0
    try:
        return sign * bench.metric.score(samples.y_true, y_score)
    except DataError as error:
        raise DataError(
            f"task {bench.task.manifest.name}, round {each.name!r}: its {len(each.valid)} validation clips cannot "
            f"select: {error}; it takes more clips, or a split of their own"
        ) from error


def _head_logits(features: Tensor, head: Trained, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    from featstore.probe import heads

    (logits,) = heads.predict(features, windows, [head])
    return logits


def _learned_heads(bench: _Bench, trained: Sequence[Trained], details: Mapping[str, Any]) -> _Learned:
    return _Learned(
        logits=tuple(partial(_head_logits, bench.features, head) for head in trained),
        details={
            "best_epoch": [head.epoch for head in trained],
            "validation": [list(head.history) for head in trained],
            **details,
        },
    )


def _outcome(bench: _Bench, each: Round, learned: _Learned) -> Outcome:
    samples = bench.task.samples(each.test)
    return Outcome(
        n_train=len(each.train),
        n_valid=len(each.valid),
        samples=samples,
        y_scores=tuple(_sample_scores(bench, samples, logits(samples.windows)) for logits in learned.logits),
    )


def _sample_scores(bench: _Bench, samples: Samples, logits: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """Logits under ``xares``, as in X-ARES; under ``strict`` probabilities, with which the windows of a clip vote."""
    return logits if bench.task.protocol == "xares" else samples.vote(bench.loss.scores(logits))


def _by_round(task: TaskData, values: Sequence[Any]) -> dict[str, Any]:
    return {each.name: value for each, value in zip(task.rounds, values, strict=True)}


# --- few shots --------------------------------------------------------------------------------------------------------


def _few_shot(bench: _Bench, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) of linear heads that see a support set alone; their last epoch counts."""
    from featstore.probe import heads

    task, probe = bench.task, bench.task.manifest.probe
    targets = task.targets.values[task.clip]
    scores = []
    for number, each in enumerate(task.rounds):
        drawn = [task.windows_of(clips) for clips in support_sets(task, each, shots=shots)]
        smallest = min(map(len, drawn))
        trained = heads.train_heads(
            bench.features,
            targets,
            [
                heads.Job(
                    windows=windows,
                    validation=None,
                    rng=np.random.default_rng((bench.seeds[0], number, at)),
                    learning_rate=probe.learning_rate,
                )
                for at, windows in enumerate(drawn)
            ],
            n_classes=len(task.classes),
            loss=bench.loss,
            epochs=max(probe.epochs, math.ceil(SUPPORT_STEPS / math.ceil(smallest / probe.batch_size))),
            batch_size=probe.batch_size,
        )
        samples = task.samples(each.test)
        scores.append(
            [
                bench.metric.score(samples.y_true, _sample_scores(bench, samples, logits))
                for logits in heads.predict(bench.features, samples.windows, trained)
            ]
        )
    return np.array(scores)
