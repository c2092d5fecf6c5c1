"""Scores: from predictions to a `ScoreRecord` with its interval and details."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation.duplicates import shared_embeddings
from featstore.evaluation.leakage import shared_names
from featstore.evaluation.pool import Windows
from featstore.evaluation.warnings import ScoreWarning, warnings_of_details
from featstore.metrics import Interval, Metric, Spread, TestSet, Units, find_metric, interval_of, jackknife, plan_units
from featstore.metrics.ranking import chance_corrected
from featstore.records import PROTOCOL_VERSION, ScoreRecord, Track, sha256_of

if TYPE_CHECKING:
    from featstore.evaluation.data import PlannedTask, TaskWindows

__all__ = [
    "Stopwatch",
    "TaskScore",
    "details_by_round",
    "score_outcomes",
    "score_record",
    "score_test_sets",
    "spread_details",
]


class Stopwatch:
    """Measures the stages of a run: ``with watch("read"): ...``. ``watch.seconds`` has the total time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the ``with`` body to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


MAX_CONFUSION_CLASSES = 60
MAX_CONFUSED_PAIRS = 100
MAX_SKIPPED_NAMED = 100
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Score of the predictions of a task.

    Attributes
    ----------
    value : float
        Mean over rounds and seeds.
    by_round, by_seed : tuple of float
        Means over seeds by round, and over rounds by seed; a score of the clips of all rounds together has no rounds.
    std : float or None
        Sample standard deviation of ``by_seed``; None for one seed.
    interval : Interval
        95 % interval, by clip or by group.
    details : mapping
        The interval's method or the reason why there is none, and the values that comparisons use. For outcomes also
        scores and support by class and, if each clip has one class, the confusion matrix or, with many classes, the
        pairs that are confused most.
    libraries : tuple of str
        Modules that the metric used.
    """

    value: float
    std: float | None
    interval: Interval
    by_round: tuple[float, ...]
    by_seed: tuple[float, ...]
    details: Mapping[str, Any]
    libraries: tuple[str, ...]


def details_by_round(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Details of the rounds, by name of the round: unchanged for a single one, else each entry by round."""
    if len(details) == 1:
        return dict(*details.values())
    names = dict.fromkeys(name for each in details.values() for name in each)
    return {name: {number: each[name] for number, each in details.items()} for name in names}


def score_outcomes(task: TaskWindows, tested: Sequence[TestSet], *, metric: Metric | None = None) -> TaskScore:
    """Score the predictions of ``task.rounds``, in their order, by `metric` or else by the task's metric.

    Raises
    ------
    DataError
        The test clips cannot be scored by the metric.
    """
    metric = find_metric(task.manifest.metric, task.protocol) if metric is None else metric
    try:
        found = score_test_sets(metric, tested, clip_ids=task.clip_id, groups=task.groups)
    except DataError as error:
        raise DataError(f"task {task.manifest.name}: its test clips cannot be scored: {error}") from error
    return replace(found, details={**_by_class(task, metric, tested), **found.details})


def score_test_sets(
    metric: Metric, tested: Sequence[TestSet], *, clip_ids: Sequence[str], groups: Sequence[str] | None = None
) -> TaskScore:
    """Score the predictions of each round.

    Parameters
    ----------
    metric : Metric
    tested : sequence of TestSet
        One per round.
    clip_ids : sequence of str (n_clips,)
    groups : sequence of str (n_clips,), optional
        Group of each clip. Clips of one group are not independent.

    Raises
    ------
    DataError
        The metric is undefined for these samples.
    """
    scores = np.array([[metric.score(each.y_true, y_score) for y_score in each.y_scores] for each in tested])
    units = plan_units([each.clip for each in tested], names=clip_ids, groups=groups)
    spread = jackknife(metric, tested, units)
    if np.isnan(spread.score):
        raise DataError(f"{metric.name} is undefined: no clip has a class, and no class was predicted for one")
    by_seed = scores.mean(axis=0).tolist()
    interval = interval_of(metric, spread, units, tested, by_seed=by_seed)
    details: dict[str, Any] = {
        "interval": interval.as_json(),
        "spread": _spread_details(metric, tested, spread, units, clip_ids=clip_ids, groups=groups),
    }
    if metric.name == "mAP":
        details["chance_corrected"] = float(
            np.mean([chance_corrected(each.y_true, y_score) for each in tested for y_score in each.y_scores])
        )
    return TaskScore(
        value=float(scores.mean()),
        std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        interval=interval,
        by_round=tuple(scores.mean(axis=1).tolist()),
        by_seed=tuple(by_seed),
        details=details,
        libraries=metric.libraries,
    )


def _spread_details(
    metric: Metric,
    tested: Sequence[TestSet],
    spread: Spread,
    units: Units,
    *,
    clip_ids: Sequence[str],
    groups: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the values that `featstore report` compares two encoders by; see `featstore.report.pairing`.

    Clips are sorted by name, so that the order of clips in a store does not matter.
    """
    ordered = [sorted(dict.fromkeys(each.clip.tolist()), key=lambda clip: clip_ids[clip]) for each in tested]
    names = [[[clip_ids[clip], *([groups[clip]] if groups else [])] for clip in each] for each in ordered]
    found = spread_details(spread, units, compared=names)
    one_sample_per_clip = all(len(each.clip) == len(clips) for each, clips in zip(tested, ordered, strict=True))
    if metric.name == "accuracy" and not units.grouped and one_sample_per_clip and len(tested[0].y_scores) < 10:
        found["right"] = "".join(_right_seeds(each, clips) for each, clips in zip(tested, ordered, strict=True))
    return found


def spread_details(spread: Spread, units: Units, *, compared: Sequence[Any]) -> dict[str, Any]:
    """Return ``details["spread"]``; two encoders can be compared if ``compared``, such as the clips, is equal."""
    defined = bool(np.isfinite(spread.variance))
    return {
        "clips": sha256_of(compared)[:32],
        "units": "groups" if units.grouped else "clips",
        "n": units.n_independent,
        "variance": spread.variance if defined else None,
        "deviations": [float(f"{value:.9g}") for value in spread.deviations.tolist()] if defined else None,
    }


def _right_seeds(test_set: TestSet, clips: Sequence[int]) -> str:
    """Return the number of seeds that classify each clip correctly, one digit per clip."""
    right = np.sum([y_score.argmax(axis=1) == test_set.y_true for y_score in test_set.y_scores], axis=0)
    by_clip = dict(zip(test_set.clip.tolist(), right.tolist(), strict=True))
    return "".join(str(by_clip[clip]) for clip in clips)


def _origin_details(windows: Windows) -> dict[str, Any]:
    """Return the recipe of the embeddings, and up to 100 of the clips that are not in the store."""
    named = [[clip.shard, clip.key, clip.reason] for clip in windows.skipped[:MAX_SKIPPED_NAMED]]
    return {"recipe": windows.recipe.as_json(), "left_out": named}


def score_record(
    task: PlannedTask,
    scores: TaskScore,
    *,
    track: Track,
    seeds: tuple[int, ...],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    libraries: Sequence[str],
    details: Mapping[str, Any],
    n_train: Sequence[int] | None = None,
    n_valid: Sequence[int] | None = None,
    metric: str | None = None,
    with_leakage: bool = True,
) -> ScoreRecord:
    """Build the record of a score, of whatever kind the task is.

    Parameters
    ----------
    libraries : sequence of str
        Modules that the track used.
    n_train, n_valid : sequence of int, optional
        Clips that were learned from and that selected, by round; by default those of ``task.rounds``.
    metric : str, optional
        Name of the metric; by default the manifest's.
    with_leakage : bool
        Whether the score depends on the training side, so that test clips which it shares are reported.
    """
    manifest, rounds = task.manifest, task.rounds
    metric = manifest.metric if metric is None else metric
    n_train = [len(each.train) for each in rounds] if n_train is None else n_train
    n_valid = [len(each.valid) for each in rounds] if n_valid is None else n_valid
    watch = Stopwatch()
    details = dict(details)
    shared: tuple[ScoreWarning, ...] = ()
    if with_leakage:
        with watch("warnings"):
            duplicates = shared_embeddings(task, rounds)
            names = shared_names(task, rounds) if task.protocol != "strict" else ()
            shared = (*names, *duplicates.warnings())
        details["near_duplicates"] = duplicates.as_json()
    implied = warnings_of_details(
        {**scores.details, **details},
        metric=metric,
        value=scores.value,
        skipped={name: len(each.skipped) for name, each in zip(task.members, task.sets, strict=True)},
    )
    return ScoreRecord(
        task=manifest.name,
        title=manifest.title,
        track=track,
        protocol=task.protocol,
        encoder=task.recipe.encoder,
        fingerprint=task.recipe.fingerprint,
        metric=metric,
        value=scores.value,
        std=scores.std,
        ci_low=scores.interval.low,
        ci_high=scores.interval.high,
        seeds=seeds,
        n_train=round(float(np.mean(n_train))),
        n_valid=round(float(np.mean(n_valid))),
        n_test=sum(len(each.test) for each in rounds),
        n_skipped=len(task.skipped),
        eval_weight=float(manifest.eval_weight),
        private=manifest.private,
        seconds={**seconds, **watch.seconds},
        manifest_sha256=manifest.sha256,
        versions=_versions("featstore", "numpy", *libraries, *scores.libraries),
        settings=dict(settings),
        features=dict(task.features),
        details={
            "by_round": {
                each.name: score for each, score in zip(rounds, scores.by_round, strict=bool(scores.by_round))
            },
            "by_seed": {str(seed): score for seed, score in zip(seeds, scores.by_seed, strict=False)},
            **scores.details,
            **details,
            **_origin_details(task),
            "warnings": [each.as_json() for each in (*shared, *implied)],
        },
        protocol_version=PROTOCOL_VERSION,
    )


def _versions(*modules: str) -> dict[str, str]:
    """Map the distribution of each module to its version."""
    return {DISTRIBUTIONS.get(name, name): _version(name) for name in modules}


def _version(module: str) -> str:
    own = getattr(importlib.import_module(module), "__version__", None)
    return metadata.version(module) if own is None else str(own)


def _by_class(task: TaskWindows, metric: Metric, tested: Sequence[TestSet]) -> dict[str, Any]:
    """Compute scores per class; null for a class that has no test clip.

    With several rounds it is the mean, weighted by the test clips of the class. For accuracy that is the share of all
    clips of the class; ``support`` is their number.
    """
    if not task.targets.classes:
        return {}
    support = np.array([_support_of(task, each) for each in tested])
    per_class = np.array(
        [[metric.per_class(each.y_true, y_score) for y_score in each.y_scores] for each in tested]
    ).mean(axis=1)
    known = ~np.isnan(per_class)
    weights = np.where(known, support, 0)
    total = weights.sum(axis=0)
    means = (np.where(known, per_class, 0.0) * weights).sum(axis=0) / np.maximum(total, 1)
    unseen = [
        label
        for each in task.rounds
        if len(each.train)  # a measure without training has none
        for label in np.setdiff1d(task.targets.present(each.test), task.targets.present(each.train))
    ]
    found: dict[str, Any] = {
        "classes": list(task.targets.classes),
        "by_class": [float(mean) if n else None for mean, n in zip(means, total, strict=True)],
        "support": support.sum(axis=0).tolist(),
        "classes_not_in_training": sorted({task.targets.classes[label] for label in unseen}),
    }
    if task.targets.values.ndim == 1:
        cells, counts = _confusion(len(task.targets.classes), tested)
        found |= _confusion_details(len(task.targets.classes), cells, counts)
    return found


def _support_of(task: TaskWindows, test_set: TestSet) -> NDArray[np.int64]:
    """Count a round's test clips of each class."""
    n_classes = len(task.targets.classes)
    values = task.targets.values[np.unique(test_set.clip)]
    counts = np.bincount(values, minlength=n_classes) if values.ndim == 1 else (values > 0).sum(axis=0)
    return np.asarray(counts, np.int64)


def _confusion(n_classes: int, tested: Sequence[TestSet]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count samples by ``true class * n_classes + predicted class`` over all rounds, first seed; cells above 0 only."""
    cells = [each.y_true * n_classes + each.y_scores[0].argmax(axis=1) for each in tested]
    return np.unique(np.concatenate(cells), return_counts=True)


def _confusion_details(n_classes: int, cells: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, Any]:
    if n_classes <= MAX_CONFUSION_CLASSES:
        matrix = np.zeros(n_classes * n_classes, np.int64)
        matrix[cells] = counts
        return {"confusion": matrix.reshape(n_classes, n_classes).tolist()}
    true, predicted = np.divmod(cells, n_classes)
    confused = np.flatnonzero(true != predicted)
    most = confused[np.argsort(-counts[confused], kind="stable")][:MAX_CONFUSED_PAIRS]
    return {"confused": np.stack([true, predicted, counts], axis=1)[most].tolist()}
