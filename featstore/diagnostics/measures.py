"""Measures of an embedding space, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Hubness",
    "Separability",
    "SpaceHealth",
    "anisotropy",
    "dead_dimensions",
    "duplicate_dimensions",
    "effective_rank",
    "hubness",
    "sampled_rows",
    "separability",
    "space_health",
]

NEIGHBOURS = 10
MAX_NEIGHBOUR_ROWS = 5_000
MAX_BLOCK_CELLS = 2**22
TIE = 1e-6  # tolerance of float32 cosines
DEAD_SHARE = 1e-6
DUPLICATE_CORRELATION = 0.9999
MAX_DUPLICATES_NAMED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Hubness:
    """Hubness: how unevenly rows occur among the nearest neighbours of other rows.

    Attributes
    ----------
    skewness : float
        Skewness of the number of times that a row is among the ten nearest of another; 0 if all rows are equal.
    largest : int
        The largest such number.
    orphans : float
        Share of rows with fewer than half an occurrence. Rows with equal similarity share their occurrences.
    rows : int
        Number of rows that were compared.
    """

    skewness: float
    largest: int
    orphans: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Separability:
    """Separation of the classes.

    Attributes
    ----------
    between : float
        Share of the variance that is between classes, 0 to 1.
    centroid_accuracy : float
        Share of rows that are nearest to the mean of their own class, which is computed without the row itself.
    largest_class : float
        Share of rows in the largest class: the accuracy of a constant prediction.
    classes : int
    """

    between: float
    centroid_accuracy: float
    largest_class: float
    classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceHealth:
    """Health of one embedding space.

    Attributes
    ----------
    rows, dim : int
        Shape of the measured array.
    not_finite : int
        Rows with NaN or infinity; they are excluded from all other measures.
    norm_median, norm_spread : float or None
        Median of the Euclidean norms, and their interquartile range divided by it.
    effective_rank, anisotropy : float or None
        None if there are fewer than two rows or no variation.
    dead_dimensions : tuple of int
    duplicate_dimensions : tuple of (int, int)
        A dimension and the earlier one that it duplicates; at most 100.
    n_duplicate_dimensions : int
    hubness : Hubness or None
        None if there are too few rows for a neighbour search.
    separability : Separability or None
        None without labels, or with a single class.
    """

    rows: int
    dim: int
    not_finite: int
    norm_median: float | None
    norm_spread: float | None
    effective_rank: float | None
    anisotropy: float | None
    dead_dimensions: tuple[int, ...]
    duplicate_dimensions: tuple[tuple[int, int], ...]
    n_duplicate_dimensions: int
    hubness: Hubness | None
    separability: Separability | None


def space_health(X: NDArray[np.float32], *, classes: NDArray[np.int64] | None = None) -> SpaceHealth:
    """Measure an embedding space.

    Parameters
    ----------
    X : float32 (n, dim)
    classes : int64 (n,), optional
        Class index of each row, from 0.
    """
    finite = np.isfinite(X).all(axis=1)
    kept = np.asarray(X[finite], np.float64)
    duplicates = duplicate_dimensions(kept)
    norms = np.linalg.norm(kept, axis=1)
    q1, median, q3 = np.percentile(norms, (25, 50, 75)).tolist() if len(norms) else (0.0, 0.0, 0.0)
    return SpaceHealth(
        rows=len(X),
        dim=X.shape[1],
        not_finite=int((~finite).sum()),
        norm_median=median if len(norms) else None,
        norm_spread=(q3 - q1) / median if median > 0 else None,
        effective_rank=effective_rank(kept),
        anisotropy=anisotropy(kept),
        dead_dimensions=tuple(dead_dimensions(kept).tolist()),
        duplicate_dimensions=duplicates[:MAX_DUPLICATES_NAMED],
        n_duplicate_dimensions=len(duplicates),
        hubness=hubness(kept[sampled_rows(len(kept), MAX_NEIGHBOUR_ROWS)].astype(np.float32)),
        separability=None if classes is None else separability(kept, classes[finite]),
    )


def effective_rank(X: NDArray[np.float64]) -> float | None:
    """Effective number of dimensions of the rows (n, dim): the exponential of the entropy of the singular values.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. The mean row is
    subtracted first, so that a common offset is not a dimension. The result is between 1 and min(n - 1, dim).
    """
    if len(X) < 2:
        return None
    centred = X - X.mean(axis=0)
    gram = centred.T @ centred if X.shape[1] <= len(X) else centred @ centred.T
    variances = np.clip(np.linalg.eigvalsh(gram), 0.0, None)
    variances = variances[variances > variances.max() * np.finfo(np.float64).eps * max(X.shape)]
    if not len(variances):
        return None
    share = np.sqrt(variances) / np.sqrt(variances).sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def anisotropy(X: NDArray[np.float64]) -> float | None:
    """Mean cosine of two different rows (n, dim): 0 if directions are uniform, 1 if all rows have the same direction.

    Ethayarajh, "How contextual are contextualized word representations?", EMNLP 2019. It is the mean over all pairs:
    the sum of their cosines is the squared length of the sum of unit vectors - n. Zero rows are skipped.
    """
    norms = np.linalg.norm(X, axis=1)
    unit = X[norms > 0] / norms[norms > 0, None]
    n = len(unit)
    if n < 2:
        return None
    total = unit.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def dead_dimensions(X: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return dimensions that do not vary: a standard deviation below 1e-6 of the largest one."""
    if len(X) < 2:
        return np.zeros(0, np.int64)
    deviations = X.std(axis=0)
    return np.flatnonzero(deviations <= DEAD_SHARE * deviations.max())


def duplicate_dimensions(X: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Return dimensions that duplicate an earlier one up to scale, sign and offset, each with the first such dimension.

    Two dimensions are duplicates if the absolute value of Pearson's correlation exceeds 0.9999. Dead dimensions are
    skipped.
    """
    alive = np.setdiff1d(np.arange(X.shape[1]), dead_dimensions(X))
    if len(X) < 3 or len(alive) < 2:
        return ()
    centred = X[:, alive] - X[:, alive].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=0)
    same = np.tril(np.abs(centred.T @ centred) > DUPLICATE_CORRELATION, k=-1)
    later = np.flatnonzero(same.any(axis=1))
    return tuple((int(alive[at]), int(alive[same[at].argmax()])) for at in later)


def hubness(X: NDArray[np.float32], *, k: int = NEIGHBOURS) -> Hubness | None:
    """Measure how unevenly the rows (n, dim) occur among the ``k`` nearest neighbours of others, by cosine.

    Skewness of the k-occurrence: Radovanovic, Nanopoulos and Ivanovic, "Hubs in space", JMLR 11, 2010. Rows with the
    same similarity, to within rounding, share the remaining places: the result does not depend on the order of rows.
    """
    from featstore.retrieve.scan import unit_rows

    if len(X) < 2 * k:
        return None
    unit = unit_rows(np.ascontiguousarray(X))
    occurrences = np.zeros(len(X))
    block = max(1, MAX_BLOCK_CELLS // len(X))
    for start in range(0, len(X), block):
        nearness = unit[start : start + block] @ unit.T
        nearness[np.arange(len(nearness)), start + np.arange(len(nearness))] = -np.inf
        last = np.partition(nearness, len(X) - k, axis=1)[:, len(X) - k, None]
        inside = nearness > last + TIE
        tied = ~inside & (nearness >= last - TIE)
        places = (k - inside.sum(axis=1)) / tied.sum(axis=1)
        occurrences += inside.sum(axis=0) + places @ tied
    deviation = occurrences.std()
    skewness = float((((occurrences - k) / deviation) ** 3).mean()) if deviation > 0 else 0.0
    return Hubness(
        skewness=skewness,
        largest=int(np.rint(occurrences.max())),
        orphans=float((occurrences < 0.5).mean()),
        rows=len(X),
    )


def separability(X: NDArray[np.float64], classes: NDArray[np.int64]) -> Separability | None:
    """Measure the separation of the classes (n,) of the rows (n, dim). Classes with a single row are skipped.

    ``between`` is tr(S_B) / tr(S_T), the scatter of class means divided by the total scatter (Fukunaga, "Introduction
    to Statistical Pattern Recognition", 1990, section 10.2). Nearest means are by Euclidean distance; the mean of a
    row's own class excludes the row.
    """
    counts = np.bincount(classes)
    kept = counts[classes] > 1
    X, codes = X[kept], np.unique(classes[kept], return_inverse=True)[1]
    counts = np.bincount(codes)
    if len(counts) < 2:
        return None
    sums = np.zeros((len(counts), X.shape[1]))
    np.add.at(sums, codes, X)
    means, grand = sums / counts[:, None], X.mean(axis=0)
    total = float(((X - grand) ** 2).sum())
    if total == 0:
        return None
    between = float((counts[:, None] * (means - grand) ** 2).sum()) / total
    distances = (X**2).sum(axis=1)[:, None] - 2 * X @ means.T + (means**2).sum(axis=1)
    # Excluding the row x moves the mean of its class away from it by a factor of n / (n - 1).
    rows = np.arange(len(X))
    distances[rows, codes] = ((X - means[codes]) ** 2).sum(axis=1) * (counts[codes] / (counts[codes] - 1)) ** 2
    return Separability(
        between=between,
        centroid_accuracy=float((distances.argmin(axis=1) == codes).mean()),
        largest_class=float(counts.max() / counts.sum()),
        classes=len(counts),
    )


def sampled_rows(n: int, most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """All of `n` numbers, or `most` of them, drawn with a fixed seed; ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
