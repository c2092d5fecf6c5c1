"""`--head sweep`, `--head logreg` and `--shots`: chosen by validation, against scikit-learn and training by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

import tiny
from featstore.errors import UsageError
from featstore.probe import heads, probe_task, sweep
from featstore.probe.logreg import regress

SETS = {
    name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=1.5, windows=windows))
    for name, n, windows in (("train", 120, 1), ("valid", 30, 2), ("test", 60, 2))
}


def probe(sets=SETS, **options):
    changes = options.pop("changes", {})
    return probe_task(tiny.TinyStore(sets), tiny.task(**{"probe": {"epochs": 15}, **changes}), **options)


def classes(tiny_set):
    return np.array([int(tiny_set.clips[at].label[-1]) for at in tiny_set.clip])


@pytest.mark.parametrize("head", ["sweep", "logreg"])
@pytest.mark.parametrize("protocol", ["strict", "xares"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one class"),
        pytest.param({"kind": "multilabel", "metric": "mAP"}, id="label sets"),
        pytest.param(tiny.folds("train", "valid", "test"), id="folds"),
    ],
)
def test_every_head_learns_under_both_protocols(head, protocol, changes):
    record = probe(changes=changes, head=head, protocol=protocol)
    assert record.value > 0.8
    assert record.settings["head"] == head
    assert set(record.details[head]) == set(record.details["by_round"])
    again = probe(changes=changes, head=head, protocol=protocol)
    assert {**record.as_json(), "seconds": {}} == {**again.as_json(), "seconds": {}}


def test_the_sweep_tells_every_candidate_and_takes_the_best_by_validation():
    record = probe(head="sweep", seeds=(3, 4))
    told = record.details["sweep"]["test"]
    best = max(each["score"] for each in told["tried"])
    first = next(each for each in told["tried"] if each["score"] == best and each["epochs"] == 15)
    assert len(told["tried"]) == 48
    assert told["chosen"] == {name: first[name] for name in ("learning_rate", "weight_decay")}
    assert max(record.details["validation"]["test"][0]) == best
    assert sum(each["epochs"] == 15 for each in told["tried"]) == 6


def job(validation, n=64, seed=0):
    return heads.Job(windows=np.arange(n), validation=validation, rng=np.random.default_rng(seed), learning_rate=1e-3)


@pytest.mark.parametrize("loss", [heads.CrossEntropy(), heads.BinaryCrossEntropy(pos_weight=2.0)], ids=["ce", "bce"])
def test_heads_that_are_swept_together_are_heads_of_adamw_alone(loss):
    rng = np.random.default_rng(0)
    X = heads.standardised(rng.standard_normal((80, 12)).astype(np.float32))
    labels = rng.integers(4, size=80)
    y = labels if isinstance(loss, heads.CrossEntropy) else np.eye(4, dtype=np.float32)[labels]
    logits_seen = []
    validation = heads.Validation(windows=np.arange(64, 80), score=lambda logits: logits_seen.append(logits) or 0.0)
    grid = [sweep.Candidate(learning_rate=rate, weight_decay=decay) for rate in (1e-2, 3e-2) for decay in (0.0, 0.5)]
    sweep.sweep_heads(X, y, job(validation), grid=grid, n_classes=4, loss=loss, epochs=3, batch_size=16)

    reference = torch.nn.CrossEntropyLoss() if y.ndim == 1 else torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))
    for at, candidate in enumerate(grid):
        drawer = np.random.default_rng(0)
        drawn = drawer.uniform(-(12**-0.5), 12**-0.5, (4, 13)).astype(np.float32)
        model = torch.nn.Linear(12, 4)
        model.weight.data, model.bias.data = torch.from_numpy(drawn[:, :-1]).clone(), torch.from_numpy(drawn[:, -1])
        groups = [
            {"params": [model.weight], "weight_decay": candidate.weight_decay},
            {"params": [model.bias], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=candidate.learning_rate)
        for epoch in range(3):
            for group in optimizer.param_groups:
                group["lr"] = heads.cosine_rate(candidate.learning_rate, epoch=epoch, epochs=3)
            for rows in np.split(drawer.permutation(np.arange(64)), 4):
                optimizer.zero_grad()
                reference(model(X[rows]), torch.from_numpy(y[rows])).backward()
                optimizer.step()
        with torch.no_grad():
            np.testing.assert_allclose(logits_seen[8 + at], model(X[64:]).numpy(), atol=2e-4)


def test_without_validation_a_sweep_trains_the_manifests_head_to_its_end():
    rng = np.random.default_rng(0)
    X = heads.standardised(rng.standard_normal((64, 12)).astype(np.float32))
    swept = sweep.sweep_heads(
        X, rng.integers(4, size=64), job(None), grid=sweep.GRID, n_classes=4, loss=heads.CrossEntropy(), epochs=5,
        batch_size=8,
    )  # fmt: skip
    assert (swept.chosen, swept.head.epoch) == (sweep.Candidate(learning_rate=1e-3, weight_decay=0.0), 5)


def test_logistic_regression_is_that_of_scikit_learn_at_the_c_that_validation_chooses():
    record = probe(head="logreg", protocol="xares")
    train, valid, test = (SETS[name] for name in ("train", "valid", "test"))
    scaler = StandardScaler().fit(train.utterance)
    scores = {}
    for tried in record.details["logreg"]["test"]["tried"]:
        model = LogisticRegression(C=tried["C"], max_iter=1000)
        model.fit(scaler.transform(train.utterance), classes(train))
        assert model.score(scaler.transform(valid.utterance), classes(valid)) == pytest.approx(tried["score"], abs=0.02)
        scores[tried["C"]] = model.score(scaler.transform(test.utterance), classes(test))
    assert record.value == pytest.approx(scores[record.details["logreg"]["test"]["chosen"]["C"]], abs=0.01)
    assert record.seeds == ()
    assert "scikit-learn" in record.versions


def test_label_sets_have_a_logistic_regression_for_each_class_as_one_vs_rest_has():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((200, 6)) * [1, 2, 3, 4, 5, 6] + 3).astype(np.float32)
    y = (X[:, :3] + rng.standard_normal((200, 3)) > 3).astype(np.float32)
    (tried,) = regress(
        X, np.column_stack([y, np.zeros(200), np.ones(200)]), n_classes=5, pos_weight=1.0, score=None, grid=(0.1,)
    )
    reference = OneVsRestClassifier(LogisticRegression(C=0.1)).fit(StandardScaler().fit_transform(X), y)
    expected = reference.predict_proba(StandardScaler().fit_transform(X))
    found = 1 / (1 + np.exp(-tried.model(X).astype(np.float64)))
    np.testing.assert_allclose(found[:, :3], expected, atol=2e-3)
    np.testing.assert_allclose(found[:, 3:], [[0.0, 1.0]] * 200, atol=1e-12)


@pytest.mark.parametrize("present", [[0, 2], [0, 1, 3]], ids=["two classes", "three classes"])
def test_a_class_that_training_never_shows_is_never_said(present):
    rng = np.random.default_rng(0)
    y = rng.choice(present, 90)
    X = (np.eye(4)[y] * 3 + rng.standard_normal((90, 4))).astype(np.float32)
    (tried,) = regress(X, y, n_classes=4, pos_weight=1.0, score=None, grid=(1.0,))
    reference = LogisticRegression(C=1.0).fit(StandardScaler().fit_transform(X), y)
    shares = torch.softmax(torch.from_numpy(tried.model(X)), dim=1).numpy()
    np.testing.assert_allclose(
        shares[:, present], reference.predict_proba(StandardScaler().fit_transform(X)), atol=2e-3
    )


def test_strict_selection_never_sees_the_test_clips():
    # Test embeddings that say another thing change the score, and nothing that was selected.
    spoilt = {**SETS, "test": tiny.TinySet(tiny.clips("test", 60, dim=16, spread=9.0, windows=2, seed=5))}
    for head in ("sweep", "logreg"):
        one, other = probe(head=head, seeds=(0,)), probe(spoilt, head=head, seeds=(0,))
        assert one.value != other.value
        assert one.details[head] == other.details[head]


def test_more_shots_score_better_and_the_curve_has_mean_and_interval():
    sets = {name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=2.0)) for name, n in
            (("train", 90), ("valid", 30), ("test", 60))}  # fmt: skip
    record = probe(sets, shots=(1, 5, 20), seeds=(0,))
    curve = record.details["shots"]
    assert list(curve) == ["1", "5", "20"]
    assert curve["1"]["mean"] < curve["5"]["mean"] < curve["20"]["mean"]
    for point in curve.values():
        assert point["low"] <= point["mean"] <= point["high"]
        assert point["support_sets"] == 20
    assert record.value == probe(sets, seeds=(0,)).value


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        pytest.param({}, {"head": "svm"}, "there is no head 'svm'; there are linear, sweep, logreg", id="head"),
        pytest.param({}, {"shots": (0,)}, "from 1 on, got 0", id="shots"),
        pytest.param({}, {"shots": (2, 2)}, "different numbers", id="shots twice"),
        pytest.param(
            {"kind": "regression", "metric": "pearson"}, {"head": "sweep"}, "is of kind regression", id="kind"
        ),
    ],
)
def test_what_cannot_be_trained_is_a_usage_error(changes, options, says):
    with pytest.raises(UsageError, match=says):
        probe(changes=changes, **options)
