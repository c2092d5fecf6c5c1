from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from featstore.errors import DataError
from featstore.metrics import find_metric

seeds = st.integers(0, 2**32 - 1)
# Times that samples are drawn: whole numbers, none of which may leave a class empty where scikit-learn would warn.
MULTIPLES = (1, 2, 3)


def repeated(arrays, times):
    """The samples as often as they were drawn: what a weight means, without weights."""
    return [np.repeat(each, times, axis=0) for each in arrays]


def assert_weights_are_repeats(metric, y_true, y_score, weights):
    ours = metric.weighted(y_true, y_score, weights)
    expected = [metric.score(*repeated((y_true, y_score), column.astype(int))) for column in weights.T]
    np.testing.assert_allclose(ours, expected, atol=1e-6)


# --- macro F1 ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=seeds, n=st.integers(1, 40), n_classes=st.integers(2, 6))
def test_macro_f1_of_classes_is_that_of_scikit_learn(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    y_true, y_score = rng.integers(n_classes, size=n), rng.standard_normal((n, n_classes))
    metric = find_metric("macro_f1", "strict")
    expected = sk.f1_score(y_true, y_score.argmax(axis=1), average="macro")
    assert metric.score(y_true, y_score) == pytest.approx(expected)
    assert_weights_are_repeats(metric, y_true, y_score, rng.choice(MULTIPLES, (n, 4)).astype(np.float32))


@settings(max_examples=50)
@given(seed=seeds, n=st.integers(1, 40), rate=st.floats(0.1, 0.9))
def test_macro_f1_of_label_sets_is_that_of_scikit_learn_over_classes_that_are_there(seed, n, rate):
    rng = np.random.default_rng(seed)
    y_true = (rng.random((n, 5)) < rate).astype(np.float32)
    y_score = rng.random((n, 5))
    y_true[0, 0] = 1
    metric = find_metric("macro_f1", "strict")
    expected = sk.f1_score(y_true, y_score > 0.5, average="macro", zero_division=np.nan)
    assert metric.score(y_true, y_score) == pytest.approx(expected)
    logits = np.log(y_score / (1 - y_score))
    assert find_metric("macro_f1", "xares").score(y_true, logits) == pytest.approx(expected)
    assert_weights_are_repeats(metric, y_true, y_score, rng.choice(MULTIPLES, (n, 4)).astype(np.float32))


# --- F1 of counts -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=seeds, rate=st.floats(0.02, 0.9), protocol=st.sampled_from(["strict", "xares"]))
def test_f1_of_counted_segments_is_that_of_scikit_learn_on_the_segments(seed, rate, protocol):
    rng = np.random.default_rng(seed)
    n_segments = rng.integers(1, 12, size=9)
    clip = np.repeat(np.arange(9), n_segments)
    truth, found = rng.random((2, len(clip), 4)) < rate
    truth[0, 0] = True
    y_true = np.stack([truth[clip == at].sum(axis=0) for at in range(9)])
    y_score = np.stack(
        [
            np.stack([(each & keep)[clip == at].sum(axis=0) for each, keep in ((found, True), (found, truth))], -1)
            for at in range(9)
        ]
    ).astype(float)
    zero = 0.0 if protocol == "xares" else np.nan
    for average in ("micro", "macro"):
        metric = find_metric(f"segment_f1_{average}", protocol)
        expected = sk.f1_score(truth, found, average=average, zero_division=zero)
        assert metric.score(y_true, y_score) == pytest.approx(expected)
        assert_weights_are_repeats(metric, y_true, y_score, rng.choice(MULTIPLES, (9, 5)).astype(np.float32))
    per_class = sk.f1_score(truth, found, average=None, zero_division=np.nan)
    np.testing.assert_allclose(find_metric("segment_f1_macro", protocol).per_class(y_true, y_score), per_class)


def test_f1_where_nothing_is_and_nothing_is_found_is_0():
    assert find_metric("segment_f1_macro", "strict").score(np.zeros((3, 2)), np.zeros((3, 2, 2))) == 0.0


# --- equal error rate -------------------------------------------------------------------------------------------------


def two_classes(rng, n, levels):
    y_true = rng.integers(2, size=n)
    y_true[:2] = 0, 1
    scores = rng.integers(levels, size=n) / levels + 0.3 * y_true
    return y_true, np.stack([-scores, scores], axis=1) / 2


@settings(max_examples=100)
@given(seed=seeds, n=st.integers(2, 60), levels=st.integers(1, 40))
def test_eer_is_where_a_curve_through_the_roc_points_crosses_equal_errors(seed, n, levels):
    rng = np.random.default_rng(seed)
    y_true, y_score = two_classes(rng, n, levels)
    metric = find_metric("eer", "strict")
    false_alarms, found, _ = sk.roc_curve(y_true, y_score[:, 1], drop_intermediate=False)
    # An independent way: along the curve by its length, find where misses less false alarms is 0.
    length = np.linspace(0, 1, len(false_alarms))
    at = brentq(lambda x: 1 - np.interp(x, length, found) - np.interp(x, length, false_alarms), 0, 1, xtol=1e-14)
    assert metric.score(y_true, y_score) == pytest.approx(np.interp(at, length, false_alarms), abs=1e-9)
    assert_weights_are_repeats(metric, y_true, y_score, rng.choice(MULTIPLES, (n, 4)).astype(np.float32))


def test_eer_of_other_than_two_classes_is_one_clear_error():
    metric = find_metric("eer", "strict")
    with pytest.raises(DataError, match=r"\b2\b.*\b3\b"):
        metric.score(np.array([0, 1]), np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"\b1\b.*\b2\b"):
        metric.score(np.array([1, 1]), np.zeros((2, 2)))


# --- d' ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=seeds, n=st.integers(8, 60), levels=st.integers(2, 30))
@example(seed=759, n=8, levels=2)  # a wrong pair that counts once among others that count up to nine times
def test_d_prime_is_that_of_the_mean_area_by_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    y_true = (rng.random((n, 4)) < 0.4).astype(np.float32)
    y_true[:2] = [[1] * 4, [0] * 4]
    y_score = rng.integers(levels, size=(n, 4)) / levels
    # A pair the wrong way round and one the right way: no class is beyond what its pairs can tell.
    y_score[:4], y_true[2:4] = [[0.1] * 4, [0.9] * 4, [0.95] * 4, [0.05] * 4], [[1] * 4, [0] * 4]
    metric = find_metric("d_prime", "strict")
    expected = np.sqrt(2) * norm.ppf(sk.roc_auc_score(y_true, y_score, average="macro"))
    assert metric.score(y_true, y_score) == pytest.approx(expected)
    weights = rng.choice(MULTIPLES, (n, 4)).astype(np.float32)
    areas = [sk.roc_auc_score(y_true, y_score, average="macro", sample_weight=column) for column in weights.T]
    np.testing.assert_allclose(metric.weighted(y_true, y_score, weights), np.sqrt(2) * norm.ppf(areas), atol=1e-5)
    assert_weights_are_repeats(metric, y_true, y_score, weights)


def test_a_weighted_d_prime_without_a_wrong_pair_is_held_as_that_of_the_samples_so_often():
    y_true, y_score = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.1], [0.2], [0.3], [0.4]])
    weights = np.array([[1, 3], [1, 2], [1, 1], [1, 3]], np.float32)
    assert_weights_are_repeats(find_metric("d_prime", "strict"), y_true, y_score, weights)


def test_d_prime_by_hand_and_where_it_would_be_infinite():
    metric = find_metric("d_prime", "strict")
    y_true = np.array([0, 0, 1, 1])
    assert metric.score(y_true, np.zeros((4, 2))) == pytest.approx(0.0)
    perfect = metric.score(y_true, np.eye(2)[y_true])
    assert perfect == pytest.approx(np.sqrt(2) * norm.ppf(1 - 0.5 / 4))  # half of one of four pairs
    with pytest.raises(DataError):
        metric.score(np.array([1, 1]), np.zeros((2, 2)))
