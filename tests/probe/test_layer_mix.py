"""The layer mix: against plain torch, scikit-learn and the single-layer probe, and from a store to a report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import featstore as fs
import tiny
from featstore.errors import AmbiguousSelection, DataError, UnknownFeatureSet, UsageError
from featstore.evaluation import layers as families
from featstore.probe import layer_mix, logistic, probe_task
from featstore.probe.layer_mix import MixSet, fit_layer_mix, objective_of_classes, objective_of_numbers
from featstore.report import read_scores
from featstore.report.page import render_page
from featstore.report.page_charts import charts_of
from mapped import Stored, write_set

N, DIM = 150, 6


def layers_of(y, *, informative=(0.0, 0.6, 1.2, 0.8), seed=0, dim=DIM):
    """Layers whose class centres have one direction and different lengths."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((int(y.max()) + 1, dim))
    return [(rng.standard_normal((len(y), dim)) + size * centres[y]).astype(np.float32) for size in informative]


def fitted(layers, objective, *, C, monkeypatch):
    monkeypatch.setattr(layer_mix, "C_UNSELECTED", C)
    return fit_layer_mix(MixSet(layers=layers, windows=np.arange(len(layers[0])), objective=objective))


def mixed(layers, weights):
    Z = np.stack([StandardScaler().fit_transform(X.astype(np.float64)) for X in layers])
    H = np.tensordot(weights, Z, 1)
    return H / np.sqrt(np.square(H).mean())


def plainly(layers, y, *, C):
    """Minimum of the written objective over everything at once, by autograd and torch's own L-BFGS in float64."""
    Z = torch.stack([torch.from_numpy(StandardScaler().fit_transform(X.astype(np.float64))) for X in layers])
    a = torch.zeros(len(Z), dtype=torch.float64, requires_grad=True)
    W = torch.zeros(int(y.max()) + 1, Z.shape[2], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(len(W), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([a, W, b], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        H = torch.tensordot(torch.softmax(a, 0), Z, 1)
        H = H / H.square().mean().sqrt()
        value = torch.nn.functional.cross_entropy(H @ W.T + b, torch.from_numpy(y)) + W.square().sum() / (
            2 * C * len(y)
        )
        value.backward()
        return value

    optimizer.step(objective)
    return float(objective().detach()), torch.softmax(a, 0).detach().numpy()


@pytest.mark.parametrize("C", [0.01, 0.3])
def test_weights_and_head_are_those_of_a_plain_joint_minimisation(C, monkeypatch):
    y = np.arange(N) % 3
    layers = layers_of(y)
    path = fitted(layers, objective_of_classes(y, n_classes=3), C=C, monkeypatch=monkeypatch)
    lowest, weights = plainly(layers, y, C=C)
    model = path.model
    np.testing.assert_allclose(model.layer_weights, weights, atol=0.01)
    logits = torch.from_numpy(model(layers)).double()
    W = model.weight.double()
    own = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)) + W.square().sum() / (2 * C * N)
    assert float(own) == pytest.approx(lowest, abs=5e-5)
    assert path.converged


@pytest.mark.parametrize("n_classes", [2, 3])
def test_at_its_weights_the_head_is_scikit_learn_s(n_classes, monkeypatch):
    y = np.arange(N) % n_classes
    layers = layers_of(y)
    path = fitted(layers, objective_of_classes(y, n_classes=n_classes), C=0.1, monkeypatch=monkeypatch)
    H = mixed(layers, path.model.layer_weights)
    expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(H, y).predict_proba(H)
    found = torch.softmax(torch.from_numpy(path.model(layers)), 1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_label_sets_have_one_binary_model_each_and_shared_weights(monkeypatch):
    y = np.arange(N) % 3
    sets = np.stack([y == 0, y != 1, np.ones(N, bool)], axis=1).astype(np.float32)
    layers = layers_of(y)
    path = fitted(layers, objective_of_classes(sets, n_classes=3), C=0.1, monkeypatch=monkeypatch)
    H, logits = mixed(layers, path.model.layer_weights), path.model(layers)
    for label in (0, 1):
        reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(H, sets[:, label])
        np.testing.assert_allclose(logits[:, label], reference.decision_function(H), atol=0.02)
    assert (logits[:, 2] > 50).all()  # every training clip has it


def test_with_one_layer_that_varies_the_mix_is_the_probe_of_that_layer():
    """Layers of constants are 0 when they are standardised, and the mix is scaled to the variance of what is left."""
    y = np.arange(N) % 3
    X = layers_of(y)[1]
    constant = np.ones_like(X)
    train, valid = np.arange(0, 100), np.arange(100, N)

    def score(logits):
        log_loss = torch.nn.functional.cross_entropy(torch.from_numpy(np.asarray(logits)), torch.from_numpy(y[valid]))
        return float((logits.argmax(1) == y[valid]).mean()), -float(log_loss)

    path = fit_layer_mix(
        MixSet(
            layers=[constant, X, constant],
            windows=train,
            objective=objective_of_classes(y[train], n_classes=3),
            valid=valid,
            score=score,
        )
    )
    (alone,) = logistic.fit_paths(
        [logistic.TrainingSet(X=X[train], y=y[train], X_valid=X[valid], score=score)], n_classes=3
    )
    assert (path.chosen.strength, path.extended) == (alone.chosen.strength, alone.extended)
    np.testing.assert_allclose(
        path.model([constant, X, constant]), alone.model(X), atol=0.01 * np.abs(alone.model(X)).max()
    )


def test_numbers_are_those_of_ridge(monkeypatch):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((N, DIM)).astype(np.float32)
    y = 50.0 + 7.0 * X @ rng.standard_normal(DIM) + rng.standard_normal(N)
    layers = [rng.standard_normal(X.shape).astype(np.float32), X]
    path = fitted(layers, objective_of_numbers(y), C=0.1, monkeypatch=monkeypatch)
    H = mixed(layers, path.model.layer_weights)
    expected = Ridge(alpha=10.0).fit(H, y).predict(H)
    np.testing.assert_allclose(path.model(layers)[:, 0], expected, atol=0.05)
    assert path.model.layer_weights[1] > 0.9


# --- from a store -----------------------------------------------------------------------------------------------------

SPLITS = {"train": 120, "valid": 45, "test": 90}


def write_layers(url, *, numbers=(0, 1, 2), name="wav", sizes=(0.0, 0.2, 1.0), flipped=False, seed=0, multi=False):
    for split, n in SPLITS.items():
        y = np.arange(n) % 3
        labelled = (y + 1) % 3 if flipped and split == "test" else y
        found = layers_of(y, informative=sizes, seed=len(split) + seed, dim=16)
        for layer, X in zip(numbers, found, strict=True):
            clips = [
                Stored(
                    f"{split}-{at}",
                    X[at],
                    {"label": [f"c{labelled[at]}"] if multi else f"c{labelled[at]}", "n": float(y[at])},
                )
                for at in range(n)
            ]
            identity = {"class": name, "layer": layer}
            write_set(url, clips, split=split, dataset="tiny", encoder=f"{name}.layer{layer}", identity=identity)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    url = tmp_path_factory.mktemp("layers") / "s.zarr"
    write_layers(url)
    return url


@pytest.fixture(scope="module")
def scores(store):
    return fs.probe(tiny.task(), store=store, head="layer-mix")


def test_one_score_stands_for_all_layers_and_the_informative_one_dominates(store, scores):
    (record,) = scores
    weights = record.details["layer_weights"]
    assert (record.encoder, record.settings["layers"], weights["layers"]) == ("wav", [0, 1, 2], [0, 1, 2])
    assert np.argmax(weights["mean"]) == 2
    assert weights["mean"][2] > 0.8
    assert sum(weights["mean"]) == pytest.approx(1.0)
    assert (weights["fits"], weights["std"]) == (1, None)
    assert record.details["fit"]["converged"]
    assert record.settings["head"] == "layer-mix"
    assert record.ci_low < record.value < record.ci_high
    opened = fs.open(store)
    assert record.features == {
        f"{each.split}.layer{each.recipe.encoder_identity['layer']}": each.content_hash for each in opened
    }
    assert record.fingerprint not in {each.fingerprint for each in opened}
    (named,) = fs.probe(tiny.task(), store=store, encoder=f"wav@{record.fingerprint}", head="layer-mix")
    assert named.key == record.key


def test_the_labels_of_the_test_clips_have_no_say(store, scores, tmp_path):
    write_layers(tmp_path / "flipped.zarr", flipped=True)
    (flipped,) = fs.probe(tiny.task(), store=tmp_path / "flipped.zarr", head="layer-mix")
    assert flipped.details["fit"] == scores[0].details["fit"]
    assert flipped.details["layer_weights"] == scores[0].details["layer_weights"]
    assert flipped.value < 0.5 < scores[0].value


def test_sets_that_are_too_large_train_the_same_mix_by_minibatches(store, monkeypatch, few_epochs):
    monkeypatch.setattr(layer_mix, "MAX_PASS", 0)
    record = probe_task(fs.open(store), tiny.task(), encoder="wav", head="layer-mix", seeds=(0, 1))
    assert (record.settings["solver"], record.seeds, record.details["layer_weights"]["fits"]) == (
        "minibatch",
        (0, 1),
        2,
    )
    assert len(record.details["layer_weights"]["std"]) == 3
    assert np.argmax(record.details["layer_weights"]["mean"]) == 2
    assert record.value > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": "multilabel", "metric": "mAP"}, id="label sets"),
        pytest.param({"kind": "regression", "metric": "pearson", "label": {"field": "n"}}, id="numbers"),
    ],
)
def test_other_kinds_with_one_target_per_clip_have_the_mix_too(tmp_path, changes):
    write_layers(tmp_path / "s.zarr", multi=True)
    record = probe_task(fs.open(tmp_path / "s.zarr"), tiny.task(**changes), head="layer-mix")
    assert np.argmax(record.details["layer_weights"]["mean"]) == 2
    assert record.value > 0.7


def test_a_store_of_many_encoders_gives_a_score_for_each_with_layers(store, tmp_path):
    url = tmp_path / "s.zarr"
    write_layers(url)
    write_layers(url, name="other", numbers=(3, 11), sizes=(0.5, 1.0))
    write_layers(url, name="lone", numbers=(7,), sizes=(1.0,))
    assert families.families_with(fs.open(url), tiny.task()) == ["other", "wav"]
    scores = fs.probe(tiny.task(), store=url, head="layer-mix")
    assert [(each.encoder, each.settings["layers"]) for each in scores] == [("other", [3, 11]), ("wav", [0, 1, 2])]
    with pytest.raises(AmbiguousSelection, match=r"other@\w{8}, wav@\w{8}"):
        probe_task(fs.open(url), tiny.task(), head="layer-mix")
    with pytest.raises(UsageError, match="one layer of lone, 7"):
        probe_task(fs.open(url), tiny.task(), encoder="lone", head="layer-mix")


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        pytest.param({"encoder": "wav.layer1"}, UsageError, r"wav\.layer1 is one layer.*wav", id="a layer"),
        pytest.param({"encoder": "logmel"}, UnknownFeatureSet, r"logmel.*--layers all", id="no layers"),
        pytest.param({"shots": (1,)}, UsageError, "--shots", id="shots"),
        pytest.param({"protocol": "xares"}, UsageError, "xares", id="xares"),
        pytest.param(
            {"task": {"kind": "contrastive", "metric": "recall_at_1", "label": {"captions": ["label"]}}},
            UsageError,
            "contrastive",
            id="captions",
        ),
    ],
)
def test_what_a_mix_cannot_do_is_one_line(store, options, error, named):
    task = tiny.task(**options.pop("task", {}))
    with pytest.raises(error, match=named):
        probe_task(fs.open(store), task, head="layer-mix", **options)


def test_layers_of_different_clips_are_not_mixed(tmp_path):
    write_layers(tmp_path / "s.zarr")
    clips = [Stored(f"more-{at}", np.ones(16), {"label": f"c{at % 3}"}) for at in range(6)]
    write_set(
        tmp_path / "s.zarr",
        clips,
        split="train",
        dataset="tiny",
        encoder="wav.layer3",
        identity={"class": "wav", "layer": 3},
    )
    for split in ("valid", "test"):
        write_set(
            tmp_path / "s.zarr",
            clips,
            split=split,
            dataset="tiny",
            encoder="wav.layer3",
            identity={"class": "wav", "layer": 3},
        )
    with pytest.raises(DataError, match="different clips"):
        probe_task(fs.open(tmp_path / "s.zarr"), tiny.task(), head="layer-mix")


def test_weights_are_written_drawn_and_printed(store, scores, tmp_path, capsys):
    from featstore.cli.evaluate import print_scores

    scores.save(tmp_path)
    (read,) = read_scores(tmp_path)
    (chart,) = [each for each in charts_of([("wav", 0, read)]) if each.kind == "weights"]
    assert [point.y for point in chart.curves[0].points] == scores[0].details["layer_weights"]["mean"]
    page = render_page([read, replace(read, task="again", title="again")])
    assert page.count('data-kind="weights"') == 2
    print_scores(scores, as_json=False)
    printed = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(printed) if "layer 2" in line)
    shares = [f"{share:.2f}" for share in read.details["layer_weights"]["mean"]]
    assert printed[at + 2].split()[-len(shares) :] == shares


def test_a_board_tells_a_mix_from_single_layers(store, scores):
    board = (scores + fs.probe(tiny.task(), store=store, encoder="wav.layer2")).leaderboard()
    assert {each.label for each in board.tables[0].columns} == {"wav (head=layer-mix)", "wav.layer2 (head=logistic)"}
