"""Agreement of clusters with classes: V-measure, adjusted Rand index and purity, and what each clip contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PARTITION_METRICS", "Agreement", "agreement", "n_log_n", "v_measure_of_sums"]

PARTITION_METRICS = ("v_measure", "adjusted_rand", "purity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Scores of a clustering, by name of `PARTITION_METRICS`.

    Attributes
    ----------
    values : mapping
    deviations : mapping
        float64 (clips,): score - score without the clip, with the clusters of all others unchanged.
    """

    values: Mapping[str, float]
    deviations: Mapping[str, NDArray[np.float64]]


def agreement(classes: NDArray[np.int64], clusters: NDArray[np.int64]) -> Agreement:
    """Compare clusters with classes.

    V-measure (Rosenberg and Hirschberg 2007) and adjusted Rand index (Hubert and Arabie 1985) are scikit-learn's.
    Purity is the share of clips that have the most frequent class of their cluster.

    Parameters
    ----------
    classes, clusters : int64 (clips,)
        At least two clips.
    """
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    _, of_class = np.unique(classes, return_inverse=True)
    _, of_cluster = np.unique(clusters, return_inverse=True)
    n, n_clusters = len(classes), int(of_cluster.max()) + 1
    cells, cell = np.unique(of_class * n_clusters + of_cluster, return_inverse=True)
    a, b = np.bincount(of_class).astype(np.float64), np.bincount(of_cluster).astype(np.float64)
    both = np.bincount(cell).astype(np.float64)
    row, column = np.divmod(cells, n_clusters)
    largest = np.zeros(n_clusters)
    np.maximum.at(largest, column, both)
    tied = np.bincount(column, weights=both == largest[column])

    def without(function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
        """Sums of a function of the sizes of classes, clusters and cells, without a clip of each cell."""
        for sizes, mine in ((a, a[row]), (b, b[column]), (both, both)):
            yield function(sizes).sum() - function(mine) + function(mine - 1.0)

    # a clip changes one class, one cluster and one cell: every clip of a cell has the same scores without it
    left = {
        "v_measure": v_measure_of_sums(n - 1, *without(n_log_n)),
        "adjusted_rand": _adjusted_rand(n - 1, *without(_n_pairs)),
        "purity": (largest.sum() - ((both == largest[column]) & (tied[column] == 1))) / (n - 1),
    }
    values = {
        "v_measure": float(v_measure_score(classes, clusters)),
        "adjusted_rand": float(adjusted_rand_score(classes, clusters)),
        "purity": float(largest.sum() / n),
    }
    return Agreement(values=values, deviations={name: values[name] - left[name][cell] for name in PARTITION_METRICS})


def n_log_n(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x log x of counts, 0 for none."""
    return np.asarray(x * np.log(np.maximum(x, 1.0)))


def _n_pairs(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x * (x - 1.0) / 2.0)


def v_measure_of_sums(
    n: int | NDArray[np.float64],
    of_classes: NDArray[np.float64],
    of_clusters: NDArray[np.float64],
    of_both: NDArray[np.float64],
) -> NDArray[np.float64]:
    """V-measure 2 I / (H(classes) + H(clusters)) of n samples, from sums of n log n; 1 if both entropies are 0."""
    h_classes, h_clusters, h_both = (np.log(n) - each / n for each in (of_classes, of_clusters, of_both))
    total = h_classes + h_clusters
    return np.where(total > 1e-12, 2.0 * (total - h_both) / np.maximum(total, 1e-12), 1.0)


def _adjusted_rand(
    n: int, of_classes: NDArray[np.float64], of_clusters: NDArray[np.float64], of_both: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(pairs - expected) / (maximum - expected), from numbers of pairs; 1 if the partitions are trivial."""
    expected = of_classes * of_clusters / max(n * (n - 1) / 2.0, 1.0)
    spread = (of_classes + of_clusters) / 2.0 - expected
    return np.where(np.abs(spread) > 1e-12, (of_both - expected) / np.where(spread == 0, 1.0, spread), 1.0)
