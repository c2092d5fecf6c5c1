from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import handmade
import tiny
from featstore.errors import LabelError
from featstore.probe import probe_task
from featstore.probe.linear import Job, layer_normalised, predict, train_heads
from featstore.probe.regression import SquaredError
from featstore.store import open_store

PROBE = {"epochs": 40, "learning_rate": 1e-2}
OFFSET = 250.0


def clips(name, n, *, windows=1, seed=0):
    """The number lies along one direction of the vectors, in noise, and far from 0."""
    direction = np.random.default_rng(99).standard_normal(16)
    rng = np.random.default_rng([seed, *name.encode()])
    made = []
    for number in range(n):
        value = float(rng.uniform(-10, 10))
        vectors = rng.standard_normal((windows, 16)) + value / 6 * direction
        made.append(
            tiny.Clip(f"{name}-{number}", round(OFFSET + value, 3), vectors, tuple(rng.uniform(0.5, 2, windows)))
        )
    return made


SETS = {"train": clips("train", 150), "valid": clips("valid", 40), "test": clips("test", 60, windows=2)}


def manifest(**changes):
    return tiny.task(**{"kind": "regression", "metric": "pearson", "probe": PROBE, **changes})


def probe(sets=SETS, changes=None, **options):
    return probe_task(tiny.TinyStore(sets), manifest(**(changes or {})), **options)


def test_a_head_is_that_of_mse_loss_by_autograd():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6)).astype(np.float32), rng.uniform(3, 9, 40).astype(np.float32)
    loss = SquaredError(mean=6.0, std=2.0)
    jobs = [Job(windows=np.arange(40), validation=None, rng=np.random.default_rng(1))]
    features = layer_normalised(torch.from_numpy(X))
    (head,) = train_heads(features, y, jobs, n_classes=1, loss=loss, epochs=1, batch_size=16, learning_rate=1e-2)
    ours = loss.scores(predict(features, np.arange(40), [head])[0])

    drawn = np.random.default_rng(1)
    weights = drawn.uniform(-(6**-0.5), 6**-0.5, (1, 7)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 1))
    model[1].weight.data, model[1].bias.data = torch.from_numpy(weights[:, :-1]), torch.from_numpy(weights[:, -1])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in torch.from_numpy(drawn.permutation(40)).split(16):
        optimiser.zero_grad()
        target = (torch.from_numpy(y)[batch, None] - 6.0) / 2.0
        torch.nn.functional.mse_loss(model(torch.from_numpy(X)[batch]), target).backward()
        optimiser.step()
    with torch.no_grad():
        np.testing.assert_allclose(ours, (model(torch.from_numpy(X)) * 2 + 6).numpy(), atol=1e-4)


def test_numbers_far_from_0_are_learned_about_as_well_as_by_ridge_regression():
    record = probe(changes={"metric": "mae"}, head="linear")
    train, test = (
        layer_normalised(torch.from_numpy(np.concatenate([clip.vectors for clip in SETS[name]]))).numpy()
        for name in ("train", "test")
    )
    model = Ridge().fit(train, [clip.label for clip in SETS["train"]])
    votes = model.predict(test).reshape(60, 2)
    seconds = np.array([clip.seconds for clip in SETS["test"]])
    expected = np.abs(np.average(votes, axis=1, weights=seconds) - [clip.label for clip in SETS["test"]]).mean()
    assert record.value < 1.15 * expected
    assert record.ci_low < record.value < record.ci_high


@pytest.mark.parametrize(
    ("metric", "protocol"), [("mae", "strict"), ("mse", "xares"), ("pearson", "strict"), ("spearman", "xares")]
)
def test_the_epoch_that_is_best_in_its_own_direction_is_taken(metric, protocol):
    record = probe(changes={"metric": metric}, protocol=protocol, head="linear")
    for epochs, histories in zip(
        record.details["best_epoch"].values(), record.details["validation"].values(), strict=True
    ):
        assert epochs == [int(np.argmax(history)) + 1 for history in histories]
        if metric in ("mae", "mse"):
            assert max(map(max, histories)) < 0  # errors, turned round
    assert record.details["metrics"][metric] == pytest.approx(record.value)
    assert set(record.details["metrics"]) == {"mae", "mse", "pearson", "spearman"}


def test_strict_standardises_what_xares_takes_as_it_is():
    strict, xares = (
        probe(protocol=protocol, head="linear").details["metrics"]["mae"] for protocol in ("strict", "xares")
    )
    assert strict < 10 < xares  # no number of steps at this rate gets from 0 to 250


@pytest.mark.parametrize("changes", [{}, tiny.folds("train", "valid", "test")], ids=["splits", "folds"])
def test_a_run_repeats_to_the_last_digit(changes):
    one, two = (probe(changes=changes) for _ in range(2))
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}
    assert one.value > 0.8


def test_numbers_that_are_all_one_teach_nothing_and_say_so():
    train = [tiny.Clip(clip.key, 5.0, clip.vectors, clip.seconds) for clip in SETS["train"]]
    with pytest.raises(LabelError, match=r"\b150\b.*\b5\.0\b"):
        probe({**SETS, "train": train})


def test_from_audio_to_a_score(tmp_path):
    """How high is it? Hand-made shards, logmel."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 60), ("valid", 12), ("test", 20)):
        members = []
        for number in range(n):
            pitch_hz = float(rng.uniform(200, 2000))
            wave = 0.2 * np.sin(2 * np.pi * pitch_hz * np.arange(12_000) / 16_000) + 0.01 * rng.standard_normal(12_000)
            members += handmade.clip(f"{split}-{number}", wave.astype(np.float32), label=pitch_hz / 1000)
        handmade.write_tar(tmp_path / "data" / "tiny" / f"{split}-0.tar", members)
    task = manifest(probe={**PROBE, "epochs": 80})
    handmade.extract(task, tmp_path / "data", tmp_path / "store.zarr", splits=("train", "valid", "test"))
    store = open_store(str(tmp_path / "store.zarr"))
    for protocol in ("strict", "xares"):
        assert probe_task(store, task, protocol=protocol, head="linear").value > 0.8
    assert probe_task(store, task).value > 0.8


def test_a_number_that_float32_cannot_hold_is_named_with_its_clip():
    far = [tiny.Clip("far", 1e300, np.zeros((1, 16)))]
    with pytest.raises(LabelError, match=r"test/far.* 1e\+300.* 1e\+30"):
        probe({**SETS, "test": [*SETS["test"], *far]})


def test_strict_is_ridge_regression_whose_penalty_validation_chooses():
    record = probe(changes={"metric": "mae"})
    (fit,) = record.details["fit"]["rounds"]["test"]
    train, valid, test = (np.concatenate([clip.vectors for clip in SETS[name]]) for name in ("train", "valid", "test"))
    y_train, y_valid, y_test = ([clip.label for clip in SETS[name]] for name in ("train", "valid", "test"))
    mean, scale = train.mean(axis=0), train.std(axis=0)
    errors = {
        alpha: np.abs(Ridge(alpha=alpha).fit((train - mean) / scale, y_train).predict((valid - mean) / scale) - y_valid)
        for alpha in fit["grid"]
    }
    assert fit["strength"] == min(errors, key=lambda alpha: errors[alpha].mean())
    assert fit["scores"] == pytest.approx([-each.mean() for each in errors.values()], abs=1e-4)
    model = Ridge(alpha=fit["strength"]).fit((train - mean) / scale, y_train)
    votes = model.predict((test - mean) / scale).reshape(60, 2)
    seconds = np.array([clip.seconds for clip in SETS["test"]])
    assert record.value == pytest.approx(np.abs(np.average(votes, axis=1, weights=seconds) - y_test).mean(), abs=1e-4)
    assert (record.settings, record.seeds, record.details["at_or_below_majority"]) == ({"head": "ridge"}, (), False)
    noise = {name: [tiny.Clip(c.key, c.label, 0 * c.vectors, c.seconds) for c in clips] for name, clips in SETS.items()}
    assert probe(noise, changes={"metric": "mae"}).details["at_or_below_majority"]


def test_labels_of_the_test_set_do_not_choose_the_validation_tenth():
    patterns = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    far = [tiny.Clip(c.key, c.label + 1000 * at, c.vectors, c.seconds) for at, c in enumerate(SETS["test"])]
    one, other = (
        probe({"train": SETS["train"], "test": test}, changes={"splits": patterns}) for test in (SETS["test"], far)
    )
    assert one.details["fit"] == other.details["fit"]
