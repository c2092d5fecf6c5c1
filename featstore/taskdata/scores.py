"""From predictions to a `ScoreRecord`: the value, its spread and interval, and what a report draws beside them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics import Interval, Metric, TestSet, bootstrap_interval, find_metric
from featstore.records import ScoreRecord, Track, sha256_of

if TYPE_CHECKING:
    from featstore.taskdata.load import TaskData
    from featstore.taskdata.samples import Samples

__all__ = ["Outcome", "Scores", "score_outcomes", "score_record"]

N_RESAMPLES = 1000
MAX_CONFUSION_CLASSES = 60
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a track predicted in one round.

    Attributes
    ----------
    n_train, n_valid : int
        Clips that were learned from, and that selected.
    samples : Samples
        Of the round's test clips.
    y_scores : tuple of float (samples, n_classes)
        One per seed, or one.
    """

    n_train: int
    n_valid: int
    samples: Samples
    y_scores: tuple[NDArray[np.floating[Any]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the outcomes of a task come to.

    Attributes
    ----------
    by_round, by_seed : tuple of float
        Means over seeds, and over rounds; ``value`` is the mean of either.
    std : float
        Sample standard deviation of ``by_seed``, 0 for one seed.
    interval : Interval
        95 %, bootstrap by clip.
    details : mapping
        Scores by class, and the confusion counts of a task of few classes.
    libraries : tuple of str
        Modules that the metric used.
    """

    value: float
    std: float
    interval: Interval
    by_round: tuple[float, ...]
    by_seed: tuple[float, ...]
    details: Mapping[str, Any]
    libraries: tuple[str, ...]


def score_outcomes(task: TaskData, outcomes: Sequence[Outcome]) -> Scores:
    """Score what was predicted in each of ``task.rounds``, in their order.

    The interval comes from a generator that is seeded by what was read, so that a run repeats.
    """
    metric = find_metric(task.manifest.metric, task.protocol)
    scores = np.array([[metric.score(each.samples.y_true, y_score) for y_score in each.y_scores] for each in outcomes])
    read = {"manifest": task.manifest.sha256, "features": dict(task.features), "protocol": task.protocol}
    interval = bootstrap_interval(
        metric,
        [TestSet(y_true=each.samples.y_true, y_scores=each.y_scores, clip=each.samples.clip) for each in outcomes],
        rng=np.random.default_rng(int(sha256_of(read), 16)),
        n_resamples=N_RESAMPLES,
    )
    by_seed = scores.mean(axis=0)
    return Scores(
        value=float(scores.mean()),
        std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
        interval=interval,
        by_round=tuple(scores.mean(axis=1).tolist()),
        by_seed=tuple(by_seed.tolist()),
        details=_by_class(task, metric, outcomes),
        libraries=metric.libraries,
    )


def score_record(
    task: TaskData,
    outcomes: Sequence[Outcome],
    scores: Scores,
    *,
    track: Track,
    seeds: tuple[int, ...],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    libraries: Sequence[str],
    details: Mapping[str, Any],
) -> ScoreRecord:
    """Build the record of a task's scores; ``libraries`` are the modules that the track used."""
    manifest = task.manifest
    by_round = {each.name: score for each, score in zip(task.rounds, scores.by_round, strict=True)}
    by_seed = {str(seed): score for seed, score in zip(seeds, scores.by_seed, strict=False)}
    return ScoreRecord(
        task=manifest.name,
        title=manifest.title,
        track=track,
        protocol=task.protocol,
        encoder=task.recipe.encoder,
        fingerprint=task.recipe.fingerprint,
        metric=manifest.metric,
        value=scores.value,
        std=scores.std,
        ci_low=scores.interval.low,
        ci_high=scores.interval.high,
        seeds=seeds,
        n_train=round(float(np.mean([each.n_train for each in outcomes]))),
        n_valid=round(float(np.mean([each.n_valid for each in outcomes]))),
        n_test=sum(len(each.test) for each in task.rounds),
        n_skipped=task.n_skipped,
        eval_weight=float(manifest.eval_weight),
        private=manifest.private,
        seconds=dict(seconds),
        manifest_sha256=manifest.sha256,
        versions=_versions("featstore", "numpy", *libraries, *scores.libraries),
        settings=dict(settings),
        features=dict(task.features),
        details={"by_round": by_round, "by_seed": by_seed, **scores.details, **details},
    )


def _versions(*modules: str) -> dict[str, str]:
    """Name of a distribution -> version of the module that was used."""
    return {DISTRIBUTIONS.get(name, name): str(importlib.import_module(name).__version__) for name in modules}


def _by_class(task: TaskData, metric: Metric, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Scores per class, a mean over rounds and seeds; null for a class that no test clip shows."""
    per_class = np.array(
        [metric.per_class(each.samples.y_true, y_score) for each in outcomes for y_score in each.y_scores]
    )
    known = ~np.isnan(per_class)
    means = np.where(known, per_class, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    unseen = [
        label
        for each in task.rounds
        for label in np.setdiff1d(task.targets.present(each.test), task.targets.present(each.train))
    ]
    found: dict[str, Any] = {
        "classes": list(task.classes),
        "by_class": [
            float(mean) if any_known else None for mean, any_known in zip(means, known.any(axis=0), strict=True)
        ],
        "classes_not_in_training": sorted({task.classes[label] for label in unseen}),
    }
    if task.targets.values.ndim == 1 and len(task.classes) <= MAX_CONFUSION_CLASSES:
        found["confusion"] = _confusion(len(task.classes), outcomes).tolist()
    return found


def _confusion(n_classes: int, outcomes: Sequence[Outcome]) -> NDArray[np.int64]:
    """Count samples of each class (rows) by predicted class (columns): all rounds, first seed."""
    counts = np.zeros(n_classes * n_classes, np.int64)
    for each in outcomes:
        cells = each.samples.y_true * n_classes + each.y_scores[0].argmax(axis=1)
        counts += np.bincount(cells, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes)
