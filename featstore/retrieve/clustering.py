"""The measure ``clustering``: do clusters of the test clips, found without labels, agree with their classes?"""

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
from featstore.metrics import interval_of_units, of_units, unit_spread
from featstore.metrics.partition import PARTITION_METRICS, Agreement, agreement
from featstore.records import ScoreRecord
from featstore.retrieve.clip_set import MAX_STORED_CLIPS, ClipSet
from featstore.retrieve.measured import Estimate, MeasuredTask, measure_record
from featstore.system import cores

__all__ = ["SEEDS", "score_clustering"]

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of k-means; the score is their mean."""

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
        clusters = _hdbscan(dense)
    with watch("score"):
        estimates = {name: _estimate(name, found, clips) for name in PARTITION_METRICS}
        by_density = agreement(classes[: len(dense)], clusters)
        others = {name: _estimate(name, [by_density], dense) for name in PARTITION_METRICS}
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

    X = clips.X.astype(np.float64)  # scikit-learn computes distances of float32 in float64 blocks, which is slower

    def run(seed: int) -> Agreement:
        return agreement(classes, KMeans(k, init=_plus_plus, n_init=1, random_state=seed).fit(X).labels_)

    with threadpool_limits(1), ThreadPoolExecutor(min(cores(), len(SEEDS))) as pool:
        return list(pool.map(run, SEEDS))


def _plus_plus(X: NDArray[np.float64], k: int, random_state: Any) -> NDArray[np.float64]:
    """Starting centres of k-means++, without scikit-learn's several trials for each centre."""
    from sklearn.cluster import kmeans_plusplus

    centres, _ = kmeans_plusplus(X, k, random_state=random_state, n_local_trials=1)
    return np.asarray(centres)


def _hdbscan(clips: ClipSet) -> NDArray[np.int64]:
    """Clusters from 0, and -1 for noise, int64 (clips,)."""
    from sklearn.cluster import HDBSCAN

    # Euclidean distances of unit vectors; scikit-learn's own are several times slower in many dimensions
    distances = 2.0 - 2.0 * clips.stored_similarities.astype(np.float64)
    np.fill_diagonal(distances, 0.0)
    distances = np.sqrt(np.maximum(distances + distances.T, 0.0) / 2.0)
    return np.asarray(HDBSCAN(metric="precomputed", copy=False).fit(distances).labels_, np.int64)


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
