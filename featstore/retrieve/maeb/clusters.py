"""MiniBatchKMeans of many samples of the same rows, faster than one call of scikit-learn for each sample.

mteb clusters ten samples of 16,384 rows, drawn with replacement. Most rows are repeated, so that copies of the rows,
distances to candidates of k-means++ and final labels are shared here. The arithmetic and the random numbers are those
of ``sklearn.cluster.MiniBatchKMeans(n_clusters, batch_size=512, init="k-means++", n_init=1, random_state=42)``
(scikit-learn 1.9, Sculley 2010, Arthur and Vassilvitskii 2007), in float32 and in the same order of operations: labels
are equal, except where two centres are at the same distance but for rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowClustering"]

BATCH_SIZE = 512
MAX_PASSES = 100
MAX_STEPS_WITHOUT_IMPROVEMENT = 10
REASSIGNMENT_RATIO = 0.01
MAX_INNER_PRODUCTS = 2**24
"""Inner products of all pairs of rows are kept if there are at most this many: 128 MiB."""


class RowClustering:
    """Clusters samples of the rows of a matrix.

    Parameters
    ----------
    X : float32 (rows, dim)
        Finite.
    n_clusters : int
    seed : int
        ``random_state`` of each clustering.
    """

    def __init__(self, X: NDArray[np.float32], *, n_clusters: int, seed: int) -> None:
        self._X = np.ascontiguousarray(X, np.float32)
        self._n_clusters = n_clusters
        self._seed = seed
        self._exact = self._X.astype(np.float64)
        self._norms = np.einsum("ij,ij->i", self._exact, self._exact)
        keeps = len(X) ** 2 <= MAX_INNER_PRODUCTS
        self._inner = self._exact @ self._exact.T if keeps else None

    def labels(self, sample: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cluster the rows of a sample, int64 (n,) with repetitions; return the cluster of each row of ``X``."""
        n, n_clusters = len(sample), self._n_clusters
        batch_size = min(BATCH_SIZE, n)
        init_size = min(3 * batch_size if 3 * batch_size >= n_clusters else 3 * n_clusters, n)
        rng = np.random.RandomState(self._seed)
        rng.randint(0, n, init_size)  # rows on which scikit-learn compares several initialisations: here there is one
        # the rows of the initialisation are drawn only where they are fewer than the sample
        rows = sample[rng.randint(0, n, init_size)] if init_size < n else sample
        # the centres, and below them the batch: updated centres are weighted sums of these rows
        stacked = np.empty((n_clusters + batch_size, self._X.shape[1]), np.float32)
        centres, batch = stacked[:n_clusters], stacked[n_clusters:]
        centres[:] = self._X[rows[self._plus_plus(rows, rng)]]
        counts = np.zeros(n_clusters, np.float32)
        averages = _Averages(n_clusters, batch_size)
        share = min(1.0, batch_size * 2.0 / (n + 1))
        average = lowest = np.inf
        n_worse = since_reassignment = 0
        for step in range(MAX_PASSES * n // batch_size):
            # RandomState.choice with equal probabilities
            drawn = np.minimum((rng.random_sample(batch_size) * n).astype(np.int64), n - 1)
            rows = sample[drawn]
            np.take(self._X, rows, axis=0, out=batch, mode="clip")
            since_reassignment += batch_size
            reassigns = since_reassignment >= 10 * n_clusters or bool((counts == 0).any())
            if reassigns:
                since_reassignment = 0
            nearest, distances = _nearest(batch, centres)
            inertia = float(self._norms[rows].sum() + distances.sum(dtype=np.float64)) / batch_size
            averages.update(stacked, nearest, counts)
            if reassigns:
                _reassign(batch, centres, counts, rng)
            if step == 0:  # the inertia of the initialisation
                continue
            average = inertia if step == 1 else average * (1.0 - share) + inertia * share
            n_worse = 0 if average < lowest else n_worse + 1
            lowest = min(lowest, average)
            if n_worse >= MAX_STEPS_WITHOUT_IMPROVEMENT:
                break
        return _nearest(self._X, centres)[0]

    def _plus_plus(self, rows: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.int64]:
        """Indices into `rows` of the first centres, chosen by greedy k-means++."""
        n, n_trials = len(rows), 2 + int(np.log(self._n_clusters))
        chosen = np.empty(self._n_clusters, np.int64)
        chosen[0] = rng.choice(n, p=np.full(n, 1.0 / n, np.float32))
        weights = np.ones(n, np.float32)
        closest = self._squared_distances(rows[chosen[:1]], rows)
        potential = closest @ weights
        for place in range(1, self._n_clusters):
            drawn = rng.uniform(size=n_trials) * potential
            candidates = np.minimum(np.searchsorted(np.cumsum(weights * closest), drawn), n - 1)
            distances = np.minimum(closest, self._squared_distances(rows[candidates], rows))
            potentials = distances @ weights[:, None]
            best = int(np.argmin(potentials))
            potential, closest, chosen[place] = potentials[best], distances[best], candidates[best]
        return chosen

    def _squared_distances(self, some: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Squared distances float32 (some, rows), computed in float64."""
        inner = self._exact[some] @ self._exact[rows].T if self._inner is None else self._inner[some][:, rows]
        squared = (self._norms[some, None] - 2.0 * inner + self._norms[rows]).astype(np.float32)
        squared[some[:, None] == rows] = 0.0
        return np.asarray(np.maximum(squared, np.float32(0.0)))


def _nearest(X: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest centre of each row, int64 (rows,), and the squared distance to it less the squared norm of the row."""
    distances = X @ centres.T
    distances *= np.float32(-2.0)
    distances += np.einsum("ij,ij->i", centres, centres)
    return distances.argmin(axis=1), distances.min(axis=1)


class _Averages:
    """Averages the rows of a batch into the centres.

    The sums are a product with a sparse matrix, whose arrays are written again for each batch. They are added in the
    order of scikit-learn, which decides the last bits: the weighted centre, then the rows.
    """

    def __init__(self, n_clusters: int, batch_size: int) -> None:
        from scipy.sparse import csr_array

        n_terms = n_clusters + batch_size
        self._is_first = np.empty(n_terms, bool)
        bounds = np.zeros(n_clusters + 1, np.int32)
        bounds[1:] = n_terms
        self._sums = csr_array(
            (np.ones(n_terms, np.float32), np.zeros(n_terms, np.int32), bounds), shape=(n_clusters, n_terms)
        )

    def update(self, stacked: NDArray[np.float32], nearest: NDArray[np.int64], counts: NDArray[np.float32]) -> None:
        """Update the centres, and `counts`, the rows of each.

        Parameters
        ----------
        stacked : float32 (n_clusters + batch_size, dim)
            The centres, and the rows.
        nearest : int64 (batch_size,)
        """
        n_clusters = len(counts)
        sizes = np.bincount(nearest, minlength=n_clusters)
        np.cumsum(sizes + 1, out=self._sums.indptr[1:])
        firsts = self._sums.indptr[:-1]
        self._is_first[:] = False
        self._is_first[firsts] = True
        self._sums.indices[firsts] = np.arange(n_clusters)
        self._sums.indices[~self._is_first] = n_clusters + np.argsort(nearest, kind="stable")
        self._sums.data[:] = 1.0
        self._sums.data[firsts] = np.where(sizes > 0, counts, np.float32(1.0))
        present = sizes > 0
        counts += sizes
        weights = np.ones(n_clusters, np.float32)
        np.divide(np.float32(1.0), counts, out=weights, where=present)
        np.multiply(self._sums @ stacked, weights[:, None], out=stacked[:n_clusters])


def _reassign(
    X: NDArray[np.float32], centres: NDArray[np.float32], counts: NDArray[np.float32], rng: np.random.RandomState
) -> None:
    """Move centres with very few rows to rows of the batch."""
    rare = counts < REASSIGNMENT_RATIO * counts.max()
    if rare.sum() > 0.5 * len(X):
        rare[np.argsort(counts)[int(0.5 * len(X)) :]] = False
    n_rare = int(rare.sum())
    if n_rare:
        centres[rare] = X[rng.choice(len(X), replace=False, size=n_rare)]
    counts[rare] = counts[~rare].min()
