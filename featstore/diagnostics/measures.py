"""Measures of one embedding space. Pure NumPy."""

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
    "separability",
    "space_health",
]

NEIGHBOURS = 10
MAX_NEIGHBOUR_ROWS = 5_000
MAX_BLOCK_CELLS = 2**22
TIE = 1e-6  # of cosines in float32
DEAD_SHARE = 1e-6
DUPLICATE_CORRELATION = 0.9999
MAX_DUPLICATES_NAMED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Hubness:
    """How unevenly rows are neighbours of others.

    Attributes
    ----------
    skewness : float
        Of the number of times that a row is among the ten nearest of another; 0 where all are alike.
    largest : int
        The greatest such number.
    orphans : float
        Share of rows that are no row's neighbour, or have less than half of a place that they share with equals.
    rows : int
        How many rows were compared.
    """

    skewness: float
    largest: int
    orphans: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Separability:
    """How far classes stand apart.

    Attributes
    ----------
    between : float
        Share of the variance that is between classes, 0 to 1.
    centroid_accuracy : float
        Share of rows that are nearest to the mean of their own class, which is taken without the row itself.
    largest_class : float
        Share of rows in the largest class: what a constant answer would have right.
    classes : int
    """

    between: float
    centroid_accuracy: float
    largest_class: float
    classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceHealth:
    """State of one embedding space.

    Attributes
    ----------
    rows, dim : int
        Of what was measured.
    not_finite : int
        Rows with a NaN or an infinity; they are left out of everything else.
    norm_median, norm_spread : float
        Of Euclidean norms: the median, and the distance of the quartiles as a share of it.
    effective_rank, anisotropy : float or None
        None where fewer than two rows, or no variation, are there.
    dead_dimensions : tuple of int
    duplicate_dimensions : tuple of (int, int)
        A dimension and the earlier one that it repeats, of many the first hundred.
    n_duplicate_dimensions : int
    hubness : Hubness or None
        None where fewer rows are there than a search for neighbours takes.
    separability : Separability or None
        None without labels, or where a class is alone.
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
    """Measure a space.

    Parameters
    ----------
    X : float32 (n, dim)
    classes : int64 (n,), optional
        Class of each row, from 0 on.
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
        hubness=hubness(_some(kept, MAX_NEIGHBOUR_ROWS).astype(np.float32)),
        separability=None if classes is None else separability(kept, classes[finite]),
    )


def effective_rank(X: NDArray[np.float64]) -> float | None:
    """How many directions the rows (n, dim) vary in: the exponential of the entropy of the singular values.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, of the matrix less its
    mean row, so that an offset which all rows share is no direction. Between 1 and min(n - 1, dim).
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
    """Mean cosine of two different rows (n, dim): 0 where directions are even, 1 where all rows point one way.

    Ethayarajh, "How contextual are contextualized word representations?", EMNLP 2019. Not of a draw of pairs but of all
    of them: the sum over pairs of unit vectors is the squared length of their sum, less n. Rows of zeros are left out.
    """
    norms = np.linalg.norm(X, axis=1)
    unit = X[norms > 0] / norms[norms > 0, None]
    n = len(unit)
    if n < 2:
        return None
    total = unit.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def dead_dimensions(X: NDArray[np.float64]) -> NDArray[np.int64]:
    """Dimensions that never vary: a deviation of less than a millionth of the largest one's."""
    if len(X) < 2:
        return np.zeros(0, np.int64)
    deviations = X.std(axis=0)
    return np.flatnonzero(deviations <= DEAD_SHARE * deviations.max())


def duplicate_dimensions(X: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Dimensions that repeat an earlier one up to scale, sign and offset, each with the first that it repeats.

    Two are duplicates where Pearson's correlation is beyond 0.9999 in size; dead ones are no duplicates.
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
    """How unevenly the rows (n, dim) are among the ``k`` nearest of others, by cosine.

    Skewness of the k-occurrence: Radovanovic, Nanopoulos and Ivanovic, "Hubs in space", JMLR 11, 2010. Rows that are
    equally near, to within rounding, share the places that are left for them: the order of rows changes nothing.
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
    """How far the classes (n,) of the rows (n, dim) stand apart; classes of a single row are left out.

    ``between`` is tr(S_B) / tr(S_T), the scatter of class means over all scatter (Fukunaga, "Introduction to
    Statistical Pattern Recognition", 1990, section 10.2). Nearest means are by Euclidean distance, each row left out
    of its own.
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
    # Without the row x the mean of its class is further from it by n / (n - 1).
    rows = np.arange(len(X))
    distances[rows, codes] = ((X - means[codes]) ** 2).sum(axis=1) * (counts[codes] / (counts[codes] - 1)) ** 2
    return Separability(
        between=between,
        centroid_accuracy=float((distances.argmin(axis=1) == codes).mean()),
        largest_class=float(counts.max() / counts.sum()),
        classes=len(counts),
    )


def _some(X: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """All rows, or of many a draw of so many that repeats."""
    if len(X) <= most:
        return X
    return X[np.sort(np.random.default_rng(0).choice(len(X), most, replace=False))]
