"""MiniBatchKMeans of many samples of the same rows, faster than one call of scikit-learn for each sample.

mteb clusters ten samples of 16,384 rows, drawn with replacement. Most rows are repeated, so that copies of the rows,
distances to candidates of k-means++ and final labels are shared here. The arithmetic and the random numbers are those
of ``sklearn.cluster.MiniBatchKMeans(n_clusters, batch_size=512, init="k-means++", n_init=1, random_state=42)``
(scikit-learn 1.9, Sculley 2010, Arthur and Vassilvitskii 2007), in float32 and in the same order of operations: labels
are equal, except where two centres are at the same distance but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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

    def labels(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cluster samples of the rows, (samples, n) with repetitions; return the cluster of each row, (samples, rows).

        All samples take a step together: on a thread for each, they would wait for each other between short operations.
        """
        n, n_clusters = samples.shape[1], self._n_clusters
        batch_size = min(BATCH_SIZE, n)
        runs = _Runs.begin(samples, n_clusters=n_clusters, batch_size=batch_size, dim=self._X.shape[1], seed=self._seed)
        for sample, centres, rng in zip(samples, runs.centres, runs.rng, strict=True):
            centres[:] = self._X[self._first_rows(sample, rng)]
        share = min(1.0, batch_size * 2.0 / (n + 1))
        found = np.empty((len(samples), len(self._X)), np.int64)
        averages = _Averages(*runs.stacked.shape[:2], n_clusters=n_clusters)
        for step in range(MAX_PASSES * n // batch_size):
            # RandomState.choice with equal probabilities
            drawn = np.array([rng.random_sample(batch_size) for rng in runs.rng])
            drawn = np.minimum((drawn * n).astype(np.int64), n - 1)
            rows = samples[runs.sample[:, None], drawn]
            for batch, some in zip(runs.batches, rows, strict=True):
                np.take(self._X, some, axis=0, out=batch, mode="clip")
            runs.since_reassignment += batch_size
            reassigns = (runs.since_reassignment >= 10 * n_clusters) | (runs.counts == 0).any(axis=1)
            runs.since_reassignment[reassigns] = 0
            nearest, distances = _nearest(list(runs.batches), runs.centres)
            inertia = (self._norms[rows].sum(axis=1) + distances.sum(axis=1, dtype=np.float64)) / batch_size
            averages.update(runs.stacked, nearest, runs.counts)
            for at in np.flatnonzero(reassigns & (_rare(runs.counts).any(axis=1))):
                _reassign(runs.batches[at], runs.centres[at], runs.counts[at], runs.rng[at])
            if step == 0:  # the inertia of the initialisation
                continue
            runs.average = inertia if step == 1 else runs.average * (1.0 - share) + inertia * share
            runs.n_worse = np.where(runs.average < runs.lowest, 0, runs.n_worse + 1)
            runs.lowest = np.minimum(runs.lowest, runs.average)
            stops = runs.n_worse >= MAX_STEPS_WITHOUT_IMPROVEMENT
            if stops.any():
                found[runs.sample[stops]] = self._clusters(runs.centres[stops])
                runs = runs.only(~stops)
                if not len(runs.sample):
                    return found
                averages = _Averages(*runs.stacked.shape[:2], n_clusters=n_clusters)
        found[runs.sample] = self._clusters(runs.centres)
        return found

    def _clusters(self, centres: NDArray[np.float32]) -> NDArray[np.int64]:
        """Nearest centre of each row, int64 (runs, rows)."""
        return _nearest([self._X] * len(centres), centres)[0]

    def _first_rows(self, sample: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.int64]:
        """Rows of the first centres, chosen by greedy k-means++ among some of a sample."""
        n, n_clusters = len(sample), self._n_clusters
        batch_size = min(BATCH_SIZE, n)
        init_size = min(3 * batch_size if 3 * batch_size >= n_clusters else 3 * n_clusters, n)
        rng.randint(0, n, init_size)  # rows on which scikit-learn compares several initialisations: here there is one
        # the rows of the initialisation are drawn only where they are fewer than the sample
        rows = sample[rng.randint(0, n, init_size)] if init_size < n else sample
        return rows[self._plus_plus(rows, rng)]

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


@dataclass(slots=True)
class _Runs:
    """Clusterings in progress, one for each sample that has not stopped: arrays whose first axis is the clustering.

    Attributes
    ----------
    sample : int64 (runs,)
    rng : object (runs,)
    stacked : float32 (runs, n_clusters + batch_size, dim)
        The centres, and below them the batch: updated centres are weighted sums of these rows.
    counts : float32 (runs, n_clusters)
        Rows that were averaged into each centre.
    average, lowest : float64 (runs,)
        Running average of the inertia, and its least value.
    n_worse, since_reassignment : int64 (runs,)
        Steps since that value; rows since centres were last reassigned.
    """

    sample: NDArray[np.int64]
    rng: NDArray[np.object_]
    stacked: NDArray[np.float32]
    counts: NDArray[np.float32]
    average: NDArray[np.float64]
    lowest: NDArray[np.float64]
    n_worse: NDArray[np.int64]
    since_reassignment: NDArray[np.int64]

    @classmethod
    def begin(cls, samples: NDArray[np.int64], *, n_clusters: int, batch_size: int, dim: int, seed: int) -> _Runs:
        n = len(samples)
        return cls(
            sample=np.arange(n),
            rng=np.array([np.random.RandomState(seed) for _ in samples], object),
            stacked=np.empty((n, n_clusters + batch_size, dim), np.float32),
            counts=np.zeros((n, n_clusters), np.float32),
            average=np.full(n, np.inf),
            lowest=np.full(n, np.inf),
            n_worse=np.zeros(n, np.int64),
            since_reassignment=np.zeros(n, np.int64),
        )

    @property
    def centres(self) -> NDArray[np.float32]:
        return self.stacked[:, : self.counts.shape[1]]

    @property
    def batches(self) -> NDArray[np.float32]:
        return self.stacked[:, self.counts.shape[1] :]

    def only(self, some: NDArray[np.bool_]) -> _Runs:
        return _Runs(**{each.name: getattr(self, each.name)[some] for each in fields(self)})


def _nearest(
    X: Sequence[NDArray[np.float32]], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Nearest centre of each row, int64 (runs, rows), and the squared distance to it less the squared norm of the row.

    Parameters
    ----------
    X : (runs,) of float32 (rows, dim)
    centres : float32 (runs, n_clusters, dim)
    """
    distances = np.empty((len(X), len(X[0]), centres.shape[1]), np.float32)
    for rows, scaled, products in zip(X, np.float32(-2.0) * centres, distances, strict=True):
        np.matmul(rows, scaled.T, out=products)  # a fifth faster than one product of arrays with three axes
    distances += np.einsum("rij,rij->ri", centres, centres)[:, None]
    return distances.argmin(axis=2), distances.min(axis=2)


class _Averages:
    """Averages the rows of batches into the centres.

    The sums are a product with a sparse matrix, whose arrays are written again for each step. They are added in the
    order of scikit-learn, which decides the last bits: the weighted centre, then the rows.
    """

    def __init__(self, n_runs: int, n_stacked: int, *, n_clusters: int) -> None:
        from scipy.sparse import csr_array

        n_rows, n_terms = n_runs * n_clusters, n_runs * n_stacked
        self._is_centre = np.empty(n_terms, bool)
        bounds = np.zeros(n_rows + 1, np.int32)
        bounds[1:] = n_terms
        self._sums = csr_array(
            (np.ones(n_terms, np.float32), np.zeros(n_terms, np.int32), bounds), shape=(n_rows, n_terms)
        )
        places = np.arange(n_terms, dtype=np.int32).reshape(n_runs, n_stacked)
        self._centres, self._rows = places[:, :n_clusters].ravel(), places[:, n_clusters:].ravel()

    def update(self, stacked: NDArray[np.float32], nearest: NDArray[np.int64], counts: NDArray[np.float32]) -> None:
        """Update the centres, and `counts`, the rows of each.

        Parameters
        ----------
        stacked : float32 (runs, n_clusters + batch_size, dim)
            The centres, and the rows.
        nearest : int64 (runs, batch_size)
        counts : float32 (runs, n_clusters)
        """
        n_runs, n_clusters = counts.shape
        nearest = (nearest + n_clusters * np.arange(n_runs)[:, None]).ravel()
        sizes = np.bincount(nearest, minlength=counts.size)
        np.cumsum(sizes + 1, out=self._sums.indptr[1:])
        centres = self._sums.indptr[:-1]
        self._is_centre[:] = False
        self._is_centre[centres] = True
        self._sums.indices[centres] = self._centres
        self._sums.indices[~self._is_centre] = self._rows[np.argsort(nearest, kind="stable")]
        before, present = counts.ravel(), sizes > 0
        self._sums.data[:] = 1.0
        self._sums.data[centres] = np.where(present, before, np.float32(1.0))
        counts += sizes.reshape(counts.shape)
        weights = np.ones(counts.size, np.float32)
        np.divide(np.float32(1.0), counts.ravel(), out=weights, where=present)
        updated = (self._sums @ stacked.reshape(-1, stacked.shape[2])) * weights[:, None]
        stacked[:, :n_clusters] = updated.reshape(n_runs, n_clusters, -1)


def _rare(counts: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a centre has very few rows, (..., n_clusters)."""
    return np.asarray(counts < REASSIGNMENT_RATIO * counts.max(axis=-1, keepdims=True))


def _reassign(
    X: NDArray[np.float32], centres: NDArray[np.float32], counts: NDArray[np.float32], rng: np.random.RandomState
) -> None:
    """Move centres with very few rows to rows of the batch."""
    rare = _rare(counts)
    if rare.sum() > 0.5 * len(X):
        rare[np.argsort(counts)[int(0.5 * len(X)) :]] = False
    n_rare = int(rare.sum())
    if n_rare:
        centres[rare] = X[rng.choice(len(X), replace=False, size=n_rare)]
    counts[rare] = counts[~rare].min()
