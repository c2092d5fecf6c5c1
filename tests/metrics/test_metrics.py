from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import DataError, UsageError
from featstore.metrics import find_metric
from featstore.metrics.ranking import weighted_average_precision

seeds = st.integers(0, 2**32 - 1)


def label_sets(rng, n=60, n_classes=5, rate=0.3):
    y_true = (rng.random((n, n_classes)) < rate).astype(np.float32)
    y_true[0] = 1
    return y_true


@given(seed=seeds, n=st.integers(2, 60), levels=st.integers(1, 30), rate=st.floats(0.05, 0.95))
def test_weighted_average_precision_is_that_of_scikit_learn_with_ties_and_weights(seed, n, levels, rate):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < rate
    positive[rng.integers(n)] = True
    scores = rng.integers(levels, size=n) / levels
    weights = rng.poisson(1.0, (n, 7)).astype(np.float32)
    ours = weighted_average_precision(positive, scores, weights)
    for column, value in zip(weights.T, ours, strict=True):
        if column[positive].any():
            assert value == pytest.approx(sk.average_precision_score(positive, scores, sample_weight=column), abs=1e-6)
        else:
            assert np.isnan(value)


@settings(max_examples=30)
@given(seed=seeds)
def test_accuracy_is_that_of_scikit_learn_with_weights(seed):
    rng = np.random.default_rng(seed)
    y_true, y_score = rng.integers(4, size=50), rng.standard_normal((50, 4)).astype(np.float32)
    weights = (1 + rng.poisson(1.0, (50, 5))).astype(np.float32)
    metric = find_metric("accuracy", "strict")
    predicted = y_score.argmax(axis=1)
    assert metric.score(y_true, y_score) == pytest.approx(sk.accuracy_score(y_true, predicted))
    expected = [sk.accuracy_score(y_true, predicted, sample_weight=column) for column in weights.T]
    np.testing.assert_allclose(metric.weighted(y_true, y_score, weights), expected, atol=1e-6)


def test_accuracy_of_each_class_is_its_recall_and_unknown_without_samples():
    y_score = np.eye(4)[[0, 0, 1, 2, 1]]
    per_class = find_metric("accuracy", "strict").per_class(np.array([0, 0, 0, 2, 1]), y_score)
    np.testing.assert_allclose(per_class, [2 / 3, 1, 1, np.nan])


def test_a_tie_goes_to_the_lowest_class():
    assert find_metric("accuracy", "strict").score(np.array([0, 1]), np.zeros((2, 3))) == 0.5


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_map_is_the_macro_average_of_scikit_learn(protocol):
    rng = np.random.default_rng(0)
    y_true, y_score = label_sets(rng), rng.standard_normal((60, 5))
    expected = sk.average_precision_score(y_true, y_score, average="macro")
    assert find_metric("mAP", protocol).score(y_true, y_score) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:No positive class found")
def test_a_class_without_positives_is_skipped_under_strict_and_zero_under_xares():
    rng = np.random.default_rng(0)
    y_true, y_score = label_sets(rng), rng.standard_normal((60, 5))
    y_true[:, 2] = 0
    weights = rng.poisson(1.0, (60, 4)).astype(np.float32)
    kept = [0, 1, 3, 4]
    strict, xares = find_metric("mAP", "strict"), find_metric("mAP", "xares")
    assert strict.score(y_true, y_score) == pytest.approx(sk.average_precision_score(y_true[:, kept], y_score[:, kept]))
    assert xares.score(y_true, y_score) == pytest.approx(sk.average_precision_score(y_true, y_score))
    np.testing.assert_allclose(
        strict.weighted(y_true, y_score, weights), xares.weighted(y_true, y_score, weights) * 5 / 4
    )


@pytest.mark.parametrize("name", ["accuracy", "mAP"])
def test_weights_of_one_change_nothing(name):
    rng = np.random.default_rng(3)
    y_score = rng.standard_normal((60, 5))
    y_true = rng.integers(5, size=60) if name == "accuracy" else label_sets(rng)
    metric = find_metric(name, "strict")
    (weighted,) = metric.weighted(y_true, y_score, np.ones((60, 1), np.float32))
    assert weighted == pytest.approx(metric.score(y_true, y_score), abs=1e-6)


def test_map_takes_class_indices_as_sets_of_one():
    rng = np.random.default_rng(1)
    y_true, y_score = rng.integers(4, size=40), rng.standard_normal((40, 4))
    metric = find_metric("mAP", "strict")
    assert metric.score(y_true, y_score) == metric.score(np.eye(4)[y_true], y_score)


def test_map_without_any_label_is_one_clear_error():
    with pytest.raises(DataError, match=r"\b3\b"):
        find_metric("mAP", "strict").score(np.zeros((3, 2)), np.zeros((3, 2)))


def test_an_unknown_metric_is_a_usage_error_that_lists_those_there_are():
    with pytest.raises(UsageError, match=r"'bleu'.*accuracy, d_prime, eer"):
        find_metric("bleu", "strict")
