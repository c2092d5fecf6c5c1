"""Similarity of representations against SciPy, scikit-learn and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from featstore.metrics.similarity import (
    Moments,
    aligned,
    cosines_of_pairs,
    linear_cka,
    nearest,
    overlap_by_row,
    procrustes_residual,
    spearman,
    with_interval,
)

N = 120


def space(dim: int, *, seed: int = 0, n: int = N, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)) * rng.uniform(0.2, 2, dim) + offset


def related(X: np.ndarray, dim: int, *, noise: float = 0.5, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return X @ rng.standard_normal((X.shape[1], dim)) + noise * rng.standard_normal((len(X), dim))


def cka_of_kernels(X: np.ndarray, Y: np.ndarray) -> float:
    """Kornblith et al. 2019, equations 1 to 3: HSIC of centred Gram matrices (n, n)."""
    H = np.eye(len(X)) - 1 / len(X)
    K, L = H @ (X @ X.T) @ H, H @ (Y @ Y.T) @ H
    return float(np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L)))


@pytest.mark.parametrize(("dim_x", "dim_y", "offset"), [(8, 8, 0.0), (8, 3, 5.0), (4, 30, -2.0), (200, 8, 1.0)])
def test_cka_is_that_of_centred_gram_matrices(dim_x: int, dim_y: int, offset: float) -> None:
    X = space(dim_x, offset=offset)
    Y = related(X, dim_y)
    assert linear_cka(Moments.of(X, Y)) == pytest.approx(cka_of_kernels(X, Y), abs=1e-9)


def test_cka_of_equal_spaces_up_to_rotation_scale_and_offset_is_1() -> None:
    X = space(6)
    rotation = np.linalg.qr(space(6, seed=3)[:6])[0]
    assert linear_cka(Moments.of(X, 3 * X @ rotation + 7)) == pytest.approx(1)
    assert procrustes_residual(Moments.of(X, 3 * X @ rotation + 7)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("dim_x", "dim_y"), [(6, 6), (6, 2), (2, 6)])
def test_the_residual_is_scipys_disparity_of_padded_spaces(dim_x: int, dim_y: int) -> None:
    X = space(dim_x, offset=1.0)
    Y = related(X, dim_y, noise=1.0)
    width = max(dim_x, dim_y)
    padded = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in (X, Y)]
    assert procrustes_residual(Moments.of(X, Y)) == pytest.approx(procrustes(*padded)[2], abs=1e-9)
    assert procrustes_residual(Moments.of(Y, X)) == pytest.approx(procrustes(*padded)[2], abs=1e-9)


def test_a_space_is_rotated_as_scipy_rotates_it() -> None:
    X = space(5, offset=2.0)
    Y = related(X, 5)
    A, B = (each - each.mean(axis=0) for each in (X, Y))
    rotated, target = aligned(X, Y)
    np.testing.assert_allclose(rotated, A @ orthogonal_procrustes(A, B)[0], atol=1e-9)
    np.testing.assert_allclose(target, B)


def test_moments_without_a_group_are_those_of_the_others() -> None:
    X, Y = space(5, offset=3.0), space(4, seed=2)
    left = Moments.of(X, Y) - Moments.of(X[:20], Y[:20])
    assert linear_cka(left) == pytest.approx(cka_of_kernels(X[20:], Y[20:]), abs=1e-9)


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_those_of_scikit_learn(k: int) -> None:
    X = space(6)
    Y = related(X, 6)
    found = nearest(X, X, k=k)
    wanted = NearestNeighbors(n_neighbors=k, metric="cosine").fit(X).kneighbors(return_distance=False)
    assert (np.sort(found) == np.sort(wanted)).all()
    across = nearest(Y, X, k=k)
    for row in range(N):  # each query leaves out the vector of its own clip
        others = np.delete(np.arange(N), row)
        search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(X[others])
        assert set(across[row]) == set(others[search.kneighbors(Y[[row]], return_distance=False)[0]])
    shared = [len(set(a) & set(b)) / k for a, b in zip(found, across, strict=True)]
    np.testing.assert_allclose(overlap_by_row(found, across), shared)


def test_rank_correlation_is_scipys_also_with_ties() -> None:
    X = np.round(space(3), 0)
    Y = related(X, 4)
    a, b = cosines_of_pairs(X), cosines_of_pairs(Y)
    rows, columns = np.triu_indices(N, k=1)
    cosines = (X[rows] * X[columns]).sum(axis=1) / np.maximum(
        np.linalg.norm(X[rows], axis=1) * np.linalg.norm(X[columns], axis=1), 1e-30
    )
    np.testing.assert_allclose(a, cosines, atol=1e-6)
    assert spearman(np.round(a, 3), b) == pytest.approx(spearmanr(np.round(a, 3), b).statistic)


def test_spaces_that_do_not_vary_have_no_value() -> None:
    constant, X = np.ones((N, 3)), space(3)
    for measure in (linear_cka, procrustes_residual):
        assert np.isnan(measure(Moments.of(constant - constant.mean(axis=0), X)))
    assert with_interval(float("nan"), [], least=0, most=1).value is None


def test_the_jackknife_of_a_mean_is_students_interval_of_group_means() -> None:
    from scipy.stats import t

    x = np.random.default_rng(0).standard_normal(100)
    groups = np.array_split(x, 10)
    without = [float(np.concatenate([each for each in groups if each is not left]).mean()) for left in groups]
    found = with_interval(float(x.mean()), without, least=-9, most=9)
    means = np.array([each.mean() for each in groups])
    low, high = t.interval(0.95, 9, loc=x.mean(), scale=means.std(ddof=1) / np.sqrt(10))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert with_interval(0.99, without, least=0.0, most=1.0).high == 1.0
