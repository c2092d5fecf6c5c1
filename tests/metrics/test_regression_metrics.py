from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.metrics import TestSet, find_metric
from intervals import interval

seeds = st.integers(0, 2**32 - 1)

EXPECTED = {
    "mae": sk.mean_absolute_error,
    "mse": sk.mean_squared_error,
    "pearson": lambda y, p: np.corrcoef(y, p)[0, 1],
    "spearman": lambda y, p: np.corrcoef(scipy.stats.rankdata(y), scipy.stats.rankdata(p))[0, 1],
}


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(4, 50), levels=st.integers(2, 30), name=st.sampled_from(sorted(EXPECTED)))
def test_metrics_of_numbers_are_those_of_others_with_ties_and_draws(seed, n, levels, name):
    rng = np.random.default_rng(seed)
    y_true, predicted = rng.integers(levels, size=(2, n)).astype(float)
    y_true[:2], predicted[:2] = (0, levels), (levels, 0)
    metric = find_metric(name, "strict")
    assert metric.score(y_true, predicted[:, None]) == pytest.approx(EXPECTED[name](y_true, predicted))
    weights = rng.multinomial(n, np.full(n, 1 / n), size=6).T.astype(np.float32)
    weights[:2] += 1
    expected = [
        EXPECTED[name](*(np.repeat(each, column.astype(int)) for each in (y_true, predicted))) for column in weights.T
    ]
    np.testing.assert_allclose(metric.weighted(y_true, predicted[:, None], weights), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_one_number_for_all_correlates_with_nothing(name):
    metric = find_metric(name, "strict")
    y_true, y_score = np.array([1.0, 2.0, 4.0]), np.full((3, 1), 0.1, np.float32)
    assert metric.score(y_true, y_score) == 0.0
    np.testing.assert_array_equal(metric.weighted(y_true, y_score, np.eye(3, dtype=np.float32) + 1), np.zeros(3))
    # A resample of one clip alone.
    np.testing.assert_array_equal(metric.weighted(y_true, y_true, np.eye(3, dtype=np.float32)), np.zeros(3))


def test_an_interval_of_correlation_is_about_that_of_fisher():
    rng = np.random.default_rng(0)
    y_true = rng.standard_normal(300)
    y_score = (y_true + rng.standard_normal(300))[:, None]
    test_set = TestSet(y_true=y_true, y_scores=(y_score,), clip=np.arange(300))
    found = interval(find_metric("pearson", "strict"), test_set)
    fisher = scipy.stats.pearsonr(y_true, y_score[:, 0]).confidence_interval()
    np.testing.assert_allclose((found.low, found.high), (fisher.low, fisher.high), atol=0.02)
