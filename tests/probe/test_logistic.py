"""Logistic and ridge regression against scikit-learn at convergence: strengths, scores and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from featstore.probe import logistic
from featstore.probe.regression import fit_ridge
from featstore.probe.standardisation import Standardisation

rng_of = np.random.default_rng


def mixed(n, dim, *, n_classes, spread, seed=0, shares=None, correlated=True):
    """Class centres in noise, seen through a matrix that makes dimensions correlate and differ in size."""
    rng = rng_of(seed)
    y = rng.choice(n_classes, n, p=shares)
    y[:n_classes] = np.arange(n_classes)
    X = spread * rng_of(99).standard_normal((n_classes, dim))[y] + rng.standard_normal((n, dim))
    if correlated:
        X = X @ rng_of(98).standard_normal((dim, dim)) * np.logspace(-1, 2, dim) + 5.0
    return X.astype(np.float32), y


def collinear(X):
    return np.concatenate([X, X[:, :5] * 3 - 1, X[:, :5] + X[:, 5:10]], axis=1)


def with_constants(X):
    return np.concatenate([X, np.full((len(X), 2), 0.1, np.float32), np.zeros((len(X), 1), np.float32)], axis=1)


def log_loss(y, logits):
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(y)))


CASES = {
    "n > d": ({"n_classes": 5, "spread": 0.5}, 400, 30, None),
    "n < d": ({"n_classes": 5, "spread": 0.3}, 150, 200, None),
    "uncorrelated": ({"n_classes": 5, "spread": 0.5, "correlated": False}, 300, 40, None),
    "collinear": ({"n_classes": 4, "spread": 0.4}, 300, 30, collinear),
    "constant columns": ({"n_classes": 4, "spread": 0.4}, 300, 30, with_constants),
    "two classes": ({"n_classes": 2, "spread": 0.3}, 300, 30, None),
    "many classes": ({"n_classes": 25, "spread": 0.7}, 300, 20, None),
    "tiny classes": ({"n_classes": 4, "spread": 0.6, "shares": [0.9, 0.08, 0.01, 0.01]}, 400, 20, None),
}


@pytest.mark.parametrize("name", CASES)
def test_one_class_a_clip_is_scikit_learns_path_with_its_choice(name):
    options, n, dim, change = CASES[name]
    sets = [mixed(size, dim, seed=seed, **options) for seed, size in enumerate((n, 200, 1000))]
    (X, y), (X_valid, y_valid), (X_test, y_test) = [(x if change is None else change(x), y) for x, y in sets]

    def score(logits):
        return float((logits.argmax(axis=1) == y_valid).mean()), -log_loss(y_valid, logits)

    (path,) = logistic.fit_paths(
        [logistic.TrainingSet(X=X, y=y, X_valid=X_valid, score=score)], n_classes=options["n_classes"]
    )
    scaler = StandardScaler().fit(X.astype(np.float64))
    models = {}
    for tried in path.tried:
        model = LogisticRegression(C=tried.strength, tol=1e-8, max_iter=5000).fit(
            scaler.transform(X.astype(np.float64)), y
        )
        logits = model.decision_function(scaler.transform(X_valid.astype(np.float64)))
        logits = np.stack([0 * logits, logits], axis=1) if logits.ndim == 1 else logits
        models[tried.strength] = score(logits), model
    expected_C = max(models, key=lambda C: models[C][0])
    assert abs(np.log10(path.chosen.strength / expected_C)) < 0.51
    assert path.converged
    # The model at the chosen strength, and the score of scikit-learn's own choice.
    Z = scaler.transform(X_test.astype(np.float64))
    predicted = path.model(X_test).argmax(axis=1)
    assert (predicted == models[path.chosen.strength][1].predict(Z)).mean() >= 0.99
    assert np.mean(predicted == y_test) == pytest.approx(models[expected_C][1].score(Z, y_test), abs=0.005)


@pytest.mark.parametrize("C", [1e-6, 1e-4, 1e-2, 1.0, 100.0])
def test_logits_are_those_of_scikit_learn_to_a_part_in_two_hundred(C, monkeypatch):
    monkeypatch.setattr(logistic, "C_UNSELECTED", C)
    X, y = mixed(300, 40, n_classes=4, spread=0.4)
    test = mixed(100, 40, n_classes=4, spread=0.4, seed=3)[0].astype(np.float64)
    (path,) = logistic.fit_paths([logistic.TrainingSet(X=X, y=y)], n_classes=4)
    scaler = StandardScaler().fit(X.astype(np.float64))
    model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(X.astype(np.float64)), y)
    expected = model.decision_function(scaler.transform(test))
    found = path.model(test)
    found = found - found.mean(axis=1, keepdims=True)
    assert np.abs(found - expected).max() < 0.005 * np.abs(expected).max()
    assert path.converged


@pytest.mark.parametrize("pos_weight", [1.0, 3.0])
def test_label_sets_are_one_versus_rest_and_what_never_varies_is_certain(pos_weight):
    X, _ = mixed(1200, 30, n_classes=2, spread=0.0)
    weights = rng_of(5).standard_normal((30, 6))
    logits = StandardScaler().fit_transform(X) @ weights + rng_of(6).standard_normal((1200, 6)) * 4 - 3
    y = (logits > 0).astype(np.float32)
    y = np.column_stack([y, np.zeros(1200), np.ones(1200)]).astype(np.float32)
    train, valid, test = slice(0, 300), slice(300, 500), slice(500, 1200)

    def score(found):
        return average_precision_score(y[valid, :6], found[:, :6], average="macro"), 0.0

    (path,) = logistic.fit_paths(
        [logistic.TrainingSet(X=X[train], y=y[train], X_valid=X[valid], score=score)], n_classes=8,
        pos_weight=pos_weight,
    )  # fmt: skip
    scaler = StandardScaler().fit(X[train])
    scores, models = {}, {}
    for tried in path.tried:
        models[tried.strength] = OneVsRestClassifier(
            LogisticRegression(C=tried.strength, tol=1e-8, max_iter=5000, class_weight={0: 1.0, 1: pos_weight})
        ).fit(scaler.transform(X[train]), y[train, :6])
        scores[tried.strength] = score(models[tried.strength].decision_function(scaler.transform(X[valid])))[0]
    expected_C = max(scores, key=scores.get)
    assert abs(np.log10(path.chosen.strength / expected_C)) < 0.51
    found = path.model(X[test])
    decisions = models[path.chosen.strength].decision_function(scaler.transform(X[test]))
    assert ((found[:, :6] > 0) == (decisions > 0)).mean() >= 0.99
    best = models[expected_C].decision_function(scaler.transform(X[test]))
    assert average_precision_score(y[test, :6], found[:, :6]) == pytest.approx(
        average_precision_score(y[test, :6], best), abs=0.005
    )
    np.testing.assert_array_equal(np.sign(found[:, 6:]), [[-1, 1]] * 700)
    assert np.ptp(found[:, 6:], axis=0).tolist() == [0.0, 0.0]


def test_separable_data_extend_the_grid_and_a_bound_is_reported(monkeypatch):
    X, y = mixed(120, 60, n_classes=3, spread=2.0, correlated=False)
    X_valid, y_valid = mixed(60, 60, n_classes=3, spread=2.0, correlated=False, seed=1)

    def confident(logits):
        return -log_loss(y_valid, logits), 0.0

    one = logistic.TrainingSet(X=X, y=y, X_valid=X_valid, score=confident)
    (path,) = logistic.fit_paths([one], n_classes=3)
    assert path.extended
    assert max(logistic.GRID) < path.chosen.strength
    assert path.converged
    monkeypatch.setattr(logistic, "HIGHEST_C", 1.0)
    (bounded,) = logistic.fit_paths([one], n_classes=3)
    assert (bounded.at_edge, bounded.chosen.strength) == (True, pytest.approx(1.0))

    def cautious(logits):
        return -float(np.abs(logits).max()), 0.0

    (path,) = logistic.fit_paths([logistic.TrainingSet(X=X, y=y, X_valid=X_valid, score=cautious)], n_classes=3)
    assert (path.extended, path.at_edge, path.chosen.strength) == (True, True, pytest.approx(logistic.LOWEST_C))


def test_a_grid_is_extended_while_the_metric_improves_and_no_further():
    X, y = mixed(120, 60, n_classes=3, spread=2.0, correlated=False)
    X_valid, y_valid = mixed(60, 60, n_classes=3, spread=2.0, correlated=False, seed=1)

    def perfect(logits):
        return 1.0, -log_loss(y_valid, logits)

    (path,) = logistic.fit_paths([logistic.TrainingSet(X=X, y=y, X_valid=X_valid, score=perfect)], n_classes=3)
    assert [tried.strength for tried in path.tried] == pytest.approx([*logistic.GRID, 10**-0.5, 1.0])
    assert (path.extended, path.at_edge) == (True, False)


def test_folds_in_one_batch_are_folds_alone_whatever_the_threads():
    sets = []
    for seed, (n, classes) in enumerate([(90, 4), (97, 4), (200, 4), (60, 3)]):
        X, y = mixed(n, 80, n_classes=classes, spread=0.5, seed=seed)
        X_valid, y_valid = mixed(50, 80, n_classes=classes, spread=0.5, seed=seed + 10)
        sets.append(
            logistic.TrainingSet(
                X=X, y=y, X_valid=X_valid,
                score=lambda logits, y=y_valid: (float((logits.argmax(1) == y).mean()), -log_loss(y, logits)),
            )
        )  # fmt: skip
    together = logistic.fit_paths(sets, n_classes=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = logistic.fit_paths(sets, n_classes=4)
    finally:
        torch.set_num_threads(before)
    for each, path, other in zip(sets, together, threaded, strict=True):
        (alone,) = logistic.fit_paths([each], n_classes=4)
        assert path.chosen.strength == alone.chosen.strength
        assert np.array_equal(path.model(each.X), other.model(each.X))
        logits = path.model(each.X)
        np.testing.assert_allclose(logits, alone.model(each.X), atol=0.01 * np.abs(logits[:, :3]).max())


@pytest.mark.parametrize("present", [[0, 2], [0, 1, 3]], ids=["two classes", "three classes"])
def test_a_class_that_training_never_shows_is_never_predicted(present):
    rng = rng_of(0)
    y = rng.choice(present, 90)
    X = (np.eye(4)[y] * 3 + rng.standard_normal((90, 4))).astype(np.float32)
    (path,) = logistic.fit_paths([logistic.TrainingSet(X=X, y=y)], n_classes=4)
    reference = LogisticRegression(C=1.0, tol=1e-8).fit(StandardScaler().fit_transform(X), y)
    shares = torch.softmax(torch.from_numpy(path.model(X)), dim=1).numpy()
    np.testing.assert_allclose(
        shares[:, present], reference.predict_proba(StandardScaler().fit_transform(X)), atol=2e-3
    )
    assert (path.chosen.score, len(path.tried), path.extended, path.at_edge) == (None, 1, False, False)


@pytest.mark.parametrize(("n", "dim"), [(300, 40), (60, 200), (300, 5)])
def test_ridge_is_scikit_learns_path_with_its_choice(n, dim):
    weights = rng_of(1).standard_normal(dim) / np.sqrt(dim)
    X, _ = mixed(n + 900, dim, n_classes=2, spread=0.0)
    y = StandardScaler().fit_transform(X) @ weights + rng_of(2).standard_normal(n + 900) + 250.0
    train, valid, test = slice(0, n), slice(n, n + 200), slice(n + 200, None)

    def score(numbers):
        return -float(np.abs(numbers[:, 0] - y[valid]).mean()), 0.0

    path = fit_ridge(X[train], y[train], X_valid=X[valid], score=score)
    scaler = StandardScaler().fit(X[train].astype(np.float64))
    models = {
        alpha: Ridge(alpha=alpha).fit(scaler.transform(X[train]), y[train])
        for alpha in (each.strength for each in path.tried)
    }
    expected = max(models, key=lambda alpha: score(models[alpha].predict(scaler.transform(X[valid]))[:, None]))
    assert abs(np.log10(path.chosen.strength / expected)) < 0.51
    np.testing.assert_allclose(
        path.model(X[test])[:, 0], models[path.chosen.strength].predict(scaler.transform(X[test])), atol=2e-3
    )
    assert path.chosen.gradient_norm < 1e-6


def test_ridge_extends_its_grid_and_tells_a_bound():
    X, _ = mixed(100, 20, n_classes=2, spread=0.0)
    y = rng_of(3).standard_normal(100)  # nothing to learn: the stronger the better
    path = fit_ridge(X[:50], y[:50], X_valid=X[50:], score=lambda numbers: (-float(np.ptp(numbers)), 0.0))
    assert (path.extended, path.at_edge, path.chosen.strength) == (True, True, pytest.approx(1e10))


@pytest.mark.parametrize("chunks", [1, 7])
def test_standardisation_is_that_of_scikit_learn_in_one_piece_or_streamed(chunks):
    X = with_constants(mixed(500, 12, n_classes=2, spread=1.0)[0] + np.float32(1e4))
    by = Standardisation.of_chunks(np.array_split(X, chunks))
    scaler = StandardScaler().fit(X.astype(np.float64))
    np.testing.assert_allclose(by.mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(by.scale, scaler.scale_, rtol=1e-9)
    np.testing.assert_allclose(by(X).numpy(), scaler.transform(X.astype(np.float64)), atol=1e-5)
