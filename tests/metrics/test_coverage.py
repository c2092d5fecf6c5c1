"""Do 95 % intervals hold the true score in about 95 % of all experiments? Simulated ones, whose truth is known.

Average precision of few clips is too high (by 0.01 of 200 clips with 40 positives each, where 90 % of the intervals
hold the truth), so it is asked with more.
"""

from __future__ import annotations

import numpy as np
import pytest

from featstore.metrics import TestSet, bootstrap_interval, find_metric

N_EXPERIMENTS = 300


def one_right_class(rng, n):
    """Right with a probability that differs by clip; four windows of a clip are right or wrong together, mostly."""
    y_true = np.repeat(rng.integers(5, size=n), 4)
    right = np.repeat(rng.random(n) < 0.7, 4) ^ (rng.random(4 * n) < 0.05)
    guess = np.where(right, y_true, (y_true + 1) % 5)
    return y_true, np.eye(5)[guess], np.repeat(np.arange(n), 4)


def label_sets(rng, n):
    y_true = (rng.random((n, 6)) < 0.2).astype(np.float32)
    return y_true, 1.2 * y_true + rng.standard_normal((n, 6)), np.arange(n)


def counts(rng, n):
    y_true = rng.poisson(3, (n, 4))
    found = rng.binomial(y_true, 0.6) + rng.poisson(1, (n, 4))
    return y_true, np.stack([found, np.minimum(found, rng.binomial(y_true, 0.6))], -1).astype(float), np.arange(n)


def numbers(rng, n):
    y_true = rng.standard_normal(n)
    return y_true, (y_true + rng.standard_normal(n))[:, None], np.arange(n)


def two_classes(rng, n):
    y_true = rng.integers(2, size=n)
    scores = 1.5 * y_true + rng.standard_normal(n)
    return y_true, np.stack([-scores, scores], 1), np.arange(n)


@pytest.mark.parametrize(
    ("name", "draw", "n", "least"),
    [
        pytest.param("accuracy", one_right_class, 100, 0.92, id="accuracy"),
        pytest.param("mAP", label_sets, 600, 0.90, id="mAP"),
        pytest.param("macro_f1", one_right_class, 150, 0.90, id="macro F1"),
        pytest.param("segment_f1_macro", counts, 80, 0.90, id="segment F1"),
        pytest.param("pearson", numbers, 100, 0.90, id="Pearson"),
        pytest.param("spearman", numbers, 100, 0.90, id="Spearman"),
        pytest.param("mse", numbers, 100, 0.90, id="MSE"),
        pytest.param("eer", two_classes, 200, 0.90, id="EER"),
        pytest.param("d_prime", two_classes, 200, 0.90, id="d'"),
    ],
)
def test_an_interval_holds_the_true_score_as_often_as_it_says(name, draw, n, least):
    metric = find_metric(name, "strict")
    rng = np.random.default_rng(11)
    y_true, y_score, _ = draw(rng, 100_000)
    truth = metric.score(y_true, y_score)
    held = 0
    for _ in range(N_EXPERIMENTS):
        y_true, y_score, clip = draw(rng, n)
        test_set = TestSet(y_true=y_true, y_scores=(y_score,), clip=clip)
        interval = bootstrap_interval(metric, [test_set], rng=rng, n_resamples=200)
        held += interval.low <= truth <= interval.high
    assert least <= held / N_EXPERIMENTS <= 0.985
