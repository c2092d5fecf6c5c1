"""The measure ``clustering``: agreement of clusters of the test clips, found without labels, with their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featstore.errors import DataError
from featstore.evaluation import Stopwatch
from featstore.metrics import Interval, interval_of_units, of_units, unit_spread
from featstore.metrics.partition import PARTITION_METRICS, Agreement, agreement
from featstore.records import ScoreRecord
from featstore.retrieve.clip_set import MAX_STORED_CLIPS, ClipSet
from featstore.retrieve.measured import Estimate, MeasuredTask, measure_record
from featstore.system import cores

__all__ = ["N_HALVES", "SEEDS", "score_clustering"]

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of k-means; the score is their mean."""

N_HALVES = 10
"""Random halves of the clips that HDBSCAN clusters again, for the variance of its score."""

_HALVES_SEED = 0

BOUNDS: Mapping[str, tuple[float, float]] = {"adjusted_rand": (-1.0, 1.0)}


def score_clustering(of: MeasuredTask) -> ScoreRecord:
    """Cluster the test clips by k-means, with the number of classes as k, and by HDBSCAN, without it.

    The score is the V-measure of k-means, averaged over `SEEDS`. k-means is scikit-learn's, from one start by k-means++
    (Arthur and Vassilvitskii 2007); HDBSCAN (Campello et al. 2013) has scikit-learn's defaults, clusters of five clips
    or more, and at most `MAX_STORED_CLIPS` clips; its noise is one cluster. Both see vectors of unit length.

    Of several labels of a clip the rarest is its class. A clip without a label is not clustered.

    Raises
    ------
    DataError
        There are fewer than two classes, or not more clips than classes.
    """
    watch = Stopwatch()
    with watch("read"):
        clips = of.clips
        if (clips.classes < 0).any():
            clips = clips.subset(np.flatnonzero(clips.classes >= 0))
        classes = np.unique(clips.classes, return_inverse=True)[1] if len(clips) else clips.classes
        k = len(np.unique(classes))
        if not 1 < k < len(clips):
            raise DataError(
                f"task {clips.task}: clustering takes two classes or more, and more clips than classes: "
                f"{len(clips)} test clips with a label have {k}"
            )
    with watch("k-means"):
        found = _k_means(clips, classes, k)
    with watch("hdbscan"):
        dense = clips if len(clips) <= MAX_STORED_CLIPS else clips.subset(np.arange(MAX_STORED_CLIPS))
        clusters, halves = _hdbscan(dense, classes[: len(dense)])
    with watch("score"):
        estimates = {name: _estimate(name, found, clips) for name in PARTITION_METRICS}
        by_density = agreement(classes[: len(dense)], clusters)
        others = {name: _estimate_by_halves(name, by_density, halves, dense) for name in PARTITION_METRICS}
    scores = [each.values["v_measure"] for each in found]
    return measure_record(
        of,
        clips,
        measure="clustering",
        estimates=estimates,
        watch=watch,
        by_seed=dict(zip(SEEDS, scores, strict=True)),
        std=float(np.std(scores, ddof=1)),
        details={
            "n_clusters": k,
            "hdbscan": {
                "scores": {name: each.as_json() for name, each in others.items()},
                "clips": len(dense),
                "n_clusters": int(clusters.max()) + 1,
                "noise": float(np.mean(clusters < 0)),
            },
        },
    )


def _k_means(clips: ClipSet, classes: NDArray[np.int64], k: int) -> list[Agreement]:
    """Agreement of k-means with the classes, for each seed; seeds run side by side, on one thread each."""
    from sklearn.cluster import KMeans

    def run(seed: int) -> Agreement:
        return agreement(classes, KMeans(k, init=_plus_plus, n_init=1, random_state=seed).fit(clips.X).labels_)

    with threadpool_limits(1), ThreadPoolExecutor(min(cores(), len(SEEDS))) as pool:
        return list(pool.map(run, SEEDS))


def _plus_plus(X: NDArray[np.float32], k: int, random_state: Any) -> NDArray[np.float32]:
    """Starting centres of k-means++, without scikit-learn's several trials for each centre."""
    from sklearn.cluster import kmeans_plusplus

    # scikit-learn computes distances of float32 in blocks of float64, which takes twice as long
    centres, _ = kmeans_plusplus(X.astype(np.float64), k, random_state=random_state, n_local_trials=1)
    return np.asarray(centres, np.float32)


def _hdbscan(clips: ClipSet, classes: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Agreement | None]]:
    """Clusters from 0, and -1 for noise, int64 (clips,); and the agreement in random halves, None without a cluster."""
    from sklearn.cluster import HDBSCAN

    # Euclidean distances of unit vectors; scikit-learn's own are several times slower in many dimensions
    distances = 2.0 - 2.0 * clips.stored_similarities.astype(np.float64)
    np.fill_diagonal(distances, 0.0)
    np.sqrt(np.maximum(distances, 0.0, out=distances), out=distances)

    def labels(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        of = distances if len(rows) == len(distances) else distances[np.ix_(rows, rows)]
        return np.asarray(HDBSCAN(metric="precomputed", copy=True).fit(of).labels_, np.int64)

    halves = _halves(clips)
    with threadpool_limits(1), ThreadPoolExecutor(min(cores(), N_HALVES)) as pool:
        clusters, *of_halves = pool.map(labels, [np.arange(len(clips)), *halves])
    return clusters, [
        agreement(classes[half], found) if found.max() >= 0 else None
        for half, found in zip(halves, of_halves, strict=True)
    ]


def _halves(clips: ClipSet) -> list[NDArray[np.int64]]:
    """Random halves of the clips, or the clips of random halves of the groups."""
    rng = np.random.default_rng(_HALVES_SEED)
    _, group = np.unique(clips.group, return_inverse=True)
    n_groups = int(group.max()) + 1
    return [np.flatnonzero(np.isin(group, rng.permutation(n_groups)[: (n_groups + 1) // 2])) for _ in range(N_HALVES)]


def _estimate_by_halves(name: str, found: Agreement, halves: Sequence[Agreement | None], clips: ClipSet) -> Estimate:
    """Score with the variance over clips for fixed clusters and that of the halves.

    The variance of a score over halves drawn without replacement estimates that of the score of all clips over other
    clips (the delete-half jackknife, Shao and Wu 1989). HDBSCAN finds other clusters in other clips: for fixed clusters
    alone, the interval would be too narrow by half.
    """
    spread = unit_spread(found.values[name], of_units(found.deviations[name], clips.units), clips.units)
    there = [each.values[name] for each in halves if each is not None]
    if len(there) < len(halves):
        interval = Interval(low=None, high=None, reason="HDBSCAN finds no cluster in some halves of the clips")
    else:
        interval = interval_of_units(spread, clips.units, by_seed=there, bounds=BOUNDS.get(name, (0.0, 1.0)))
    return Estimate(value=spread.score, interval=interval, spread=spread)


def _estimate(name: str, found: Sequence[Agreement], clips: ClipSet) -> Estimate:
    """Mean over seeds, with the variance over clips for fixed clusters and that of a seed.

    The deviations are scaled to this variance, for comparisons of encoders.
    """
    by_seed = [each.values[name] for each in found]
    deviations = np.mean([each.deviations[name] for each in found], axis=0)
    spread = unit_spread(float(np.mean(by_seed)), of_units(deviations, clips.units), clips.units)
    interval = interval_of_units(spread, clips.units, by_seed=by_seed, bounds=BOUNDS.get(name, (0.0, 1.0)))
    if len(by_seed) > 1 and spread.variance > 0:
        variance = spread.variance + float(np.var(by_seed, ddof=1))
        scale = float(np.sqrt(variance / spread.variance))
        spread = replace(spread, deviations=spread.deviations * scale, variance=variance)
    return Estimate(value=spread.score, interval=interval, spread=spread)
