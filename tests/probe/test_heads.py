"""Heads that are trained together against torch.nn and torch.optim, one head at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from featstore.probe import linear as heads
from featstore.probe.training import cosine_rate

DIM, CLASSES, BATCH = 12, 4, 8
LOSSES = [
    pytest.param(heads.cross_entropy, nn.CrossEntropyLoss(), id="cross-entropy"),
    pytest.param(heads.binary_cross_entropy(1.0), nn.BCEWithLogitsLoss(), id="binary"),
    pytest.param(
        heads.binary_cross_entropy(3.0), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), id="weighted binary"
    ),
]


def data(loss, n=90, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((n, DIM)) * rng.uniform(0.5, 3, DIM) + rng.standard_normal(DIM)).astype(np.float32)
    labels = (X[:, :CLASSES] + rng.standard_normal((n, CLASSES))).argmax(axis=1)
    if loss is heads.cross_entropy:
        return X, labels
    return X, (np.eye(CLASSES)[labels] + (rng.random((n, CLASSES)) < 0.2) > 0).astype(np.float32)


def normalised(X):
    return heads.layer_normalised(torch.from_numpy(X))


def share_right(y):
    """A validation score for either kind of target."""
    label = y if y.ndim == 1 else y.argmax(axis=1)
    return lambda logits: float(np.mean(logits.argmax(axis=1) == label))


def train_alone(X, y, *, windows, valid, seed, reference, epochs, learning_rate, score):
    """One head as anybody would write it, with the draws of a `heads.Job`."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))
    drawn = rng.uniform(-(DIM**-0.5), DIM**-0.5, (CLASSES, DIM + 1)).astype(np.float32)
    model[1].weight.data, model[1].bias.data = torch.from_numpy(drawn[:, :-1]).clone(), torch.from_numpy(drawn[:, -1])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    best, best_score, best_epoch = None, -1.0, 0
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(learning_rate, epoch=epoch, epochs=epochs)
        shuffled = rng.permutation(windows)
        for start in range(0, len(shuffled), BATCH):
            rows = shuffled[start : start + BATCH]
            optimizer.zero_grad()
            reference(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            found = score(model(inputs[valid]).numpy())
        if found > best_score:
            best, best_score, best_epoch = copy.deepcopy(model), found, epoch + 1
    return best, best_epoch


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_training_together_is_training_each_head_alone(loss, reference):
    X, y = data(loss)
    folds = [np.arange(0, 61), np.arange(20, 90), np.arange(0, 24), np.arange(5, 70)]  # 8, 9, 3 and 9 steps
    valid = np.arange(60, 90)
    validation = heads.Validation(windows=valid, score=share_right(y[valid]))
    together = heads.train_heads(
        normalised(X),
        y,
        [
            heads.Job(windows=windows, validation=validation, rng=np.random.default_rng(at))
            for at, windows in enumerate(folds)
        ],
        n_classes=CLASSES,
        loss=loss,
        epochs=6,
        batch_size=BATCH,
        learning_rate=1e-2,
    )
    for at, windows in enumerate(folds):
        model, epoch = train_alone(
            X,
            y,
            windows=windows,
            valid=valid,
            seed=at,
            reference=reference,
            epochs=6,
            learning_rate=1e-2,
            score=share_right(y[valid]),
        )
        (ours,) = heads.predict(normalised(X), np.arange(90), [together[at]])
        with torch.no_grad():
            np.testing.assert_allclose(ours, model(torch.from_numpy(X)).numpy(), atol=2e-4)
        assert together[at].epoch == epoch


def job(score, *, windows, seed=0):
    validation = None if score is None else heads.Validation(windows=np.arange(5), score=score)
    return heads.Job(windows=windows, validation=validation, rng=np.random.default_rng(seed))


def train(jobs, epochs=4):
    X, y = data(heads.cross_entropy)
    return heads.train_heads(
        normalised(X),
        y,
        jobs,
        n_classes=CLASSES,
        loss=heads.cross_entropy,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=1e-2,
    )


@pytest.mark.parametrize(
    ("scores", "epoch"), [((0.5, 0.7, 0.7, 0.6), 2), ((0.5, 0.5, 0.5, 0.5), 1), ((0.1, 0.2, 0.3, 0.4), 4)]
)
def test_the_first_of_the_best_epochs_is_kept(scores, epoch):
    scores_in_order = iter(scores)
    (best,) = train([job(lambda _: next(scores_in_order), windows=np.arange(40))])
    assert best.epoch == epoch
    assert best.history == scores
    # Fewer epochs have another schedule, so the same weights are found by validation of a second head.
    scores_in_order = iter([float(at == epoch - 1) for at in range(4)])
    (same,) = train([job(lambda _: next(scores_in_order), windows=np.arange(40))])
    torch.testing.assert_close(best.weight, same.weight, rtol=0, atol=0)


def test_without_validation_the_last_epoch_is_kept():
    (head,) = train([job(None, windows=np.arange(40))])
    assert (head.epoch, head.history) == (4, ())


def test_a_head_does_not_depend_on_the_heads_beside_it():
    windows = [np.arange(40), np.arange(90), np.arange(9)]
    together = train([job(None, windows=each, seed=at) for at, each in enumerate(windows)])
    for at, each in enumerate(windows):
        (alone,) = train([job(None, windows=each, seed=at)])
        torch.testing.assert_close(alone.weight, together[at].weight, rtol=1e-4, atol=1e-5)


def test_training_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    train([job(None, windows=np.arange(16))], epochs=1)
    assert torch.get_num_threads() == before


def test_the_schedule_is_that_of_ignite():
    # What ignite 0.5's CosineAnnealingScheduler(optimizer, "lr", 1e-3, 1e-4, 10) sets at the start of each epoch.
    ignite = [
        0.001, 0.0009779754323328191, 0.0009140576474687263, 0.000814503363531613, 0.0006890576474687264, 0.00055,
        0.0004109423525312737, 0.0002854966364683872, 0.00018594235253127373, 0.00012202456766718093,
    ]  # fmt: skip
    np.testing.assert_allclose([cosine_rate(1e-3, epoch=at, epochs=10) for at in range(10)], ignite, rtol=1e-12)
    assert cosine_rate(1e-3, epoch=0, epochs=1) == 1e-3
