"""What a clip contributes to a measure, against leaving it out; and the coverage of intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import adjusted_rand_score, v_measure_score

from featstore.metrics import interval_of_units, of_units, plan_units, unit_spread
from featstore.metrics.partition import PARTITION_METRICS, agreement
from featstore.metrics.ranked_clips import RETRIEVAL_METRICS, Comparisons, score_ranked_clips
from featstore.metrics.verification import PAIR_METRICS, score_pairs


def clips(rng, n, *, n_classes=4, dim=12, distance=0.6):
    centres = distance * np.random.default_rng(1).standard_normal((n_classes, dim))
    y = rng.integers(n_classes, size=n)
    X = centres[y] + rng.standard_normal((n, dim))
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32), y


def ranked(X, y):
    n = len(X)
    block = Comparisons(rows=slice(0, n), similarities=X @ X.T, comparable=~np.eye(n, dtype=bool), same=y[:, None] == y)
    return score_ranked_clips([block], n_clips=n)


def paired(X, y, units):
    i, j = np.triu_indices(len(X), 1)
    return score_pairs((X @ X.T)[i, j], y[i] == y[j], (units[i], units[j]), n_units=int(units.max()) + 1)


def without_each(score, n):
    return np.array([list(score(np.arange(n) != at).values()) for at in range(n)])


def test_the_contribution_of_a_clip_to_retrieval_is_the_score_less_that_without_it():
    X, y = clips(np.random.default_rng(0), 40)
    found = ranked(X, y)
    left = without_each(lambda kept: ranked(X[kept], y[kept]).values, 40)
    for at, name in enumerate(RETRIEVAL_METRICS):
        assert found.deviations[name] == pytest.approx(found.values[name] - left[:, at], abs=1e-12), name


def test_the_contribution_of_a_clip_to_pairs_is_the_score_less_that_without_it():
    X, y = clips(np.random.default_rng(0), 40)
    found = paired(X, y, np.arange(40))
    left = without_each(lambda kept: paired(X[kept], y[kept], np.arange(39)).values, 40)
    for at, name in enumerate(PAIR_METRICS):
        exact = found.values[name] - left[:, at]
        assert found.deviations[name] == pytest.approx(exact, abs=0.1 * np.abs(exact).max()), name


def test_the_contribution_of_a_clip_to_clusters_is_the_score_less_that_without_it():
    rng = np.random.default_rng(0)
    classes = rng.integers(5, size=60)
    clusters = np.where(rng.random(60) < 0.6, classes, rng.integers(7, size=60)) - 1

    def scores(kept):
        a, b = classes[kept], clusters[kept]
        purity = sum(np.bincount(a[b == each]).max() for each in np.unique(b)) / len(a)
        return {"v_measure": v_measure_score(a, b), "adjusted_rand": adjusted_rand_score(a, b), "purity": purity}

    found, left = agreement(classes, clusters), without_each(scores, 60)
    assert found.values == pytest.approx(scores(np.ones(60, dtype=bool)))
    for at, name in enumerate(PARTITION_METRICS):
        assert found.deviations[name] == pytest.approx(found.values[name] - left[:, at], abs=1e-10), name


@pytest.mark.parametrize("measure", ["retrieval", "pairs"])
def test_an_interval_holds_the_mean_score_of_test_sets_of_its_size(measure):
    """Clips are resampled as queries and documents, or as members of pairs: as queries alone, 8 of 10 would hold it."""
    rng, n, n_sets = np.random.default_rng(0), 60, 80
    units = plan_units([np.arange(n)], names=[str(at) for at in range(n)])
    values, ends = [], []
    for _ in range(n_sets):
        X, y = clips(rng, n)
        if measure == "retrieval":
            found = ranked(X, y)
            value, deviations = found.values["mAP"], of_units(found.deviations["mAP"], units)
        else:
            scores = paired(X, y, units.of_sample[0])
            value, deviations = scores.values["eer"], scores.deviations["eer"]
        interval = interval_of_units(unit_spread(value, deviations, units), units)
        values.append(value)
        ends.append((interval.low, interval.high))
    low, high = np.array(ends).T
    held = int(((low <= np.mean(values)) & (np.mean(values) <= high)).sum())
    assert held / n_sets > beta.ppf(0.001, 0.95 * n_sets, 0.05 * n_sets)
    width = np.mean(high - low) / 2 / 1.99
    assert 0.85 < width / np.std(values) < 1.5
