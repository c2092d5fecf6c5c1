"""The layer mix of frames: against plain torch, and from a store with the frames of several layers to a record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

import beeps
import featstore as fs
import framed
from featstore.errors import DataError, UnknownFeatureSet, UsageError
from featstore.evaluation.layers import load_layered_frame_task
from featstore.probe import probe_task
from featstore.probe.ctc import CtcHead, Utterances
from featstore.probe.frame_heads import FrameFeatures, frame_logits, standardised_by, train_frame_head, worker_threads
from featstore.probe.frame_scoring import excerpts_of
from featstore.probe.layer_mix import LayerSum, frame_products, learned_weights
from featstore.probe.standardisation import Standardisation, Standardise
from featstore.probe.training import RATES
from featstore.report.page_charts import charts_of
from featstore.store import open_store

PROBE = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 5}
TASK = framed.task(probe=PROBE)
SETS = {name: framed.clips(name, n) for name, n in (("train", 24), ("valid", 10), ("test", 14))}
INFORMATIVE = 1


def noisy(clip, seed, *, scale=3.0):
    rng = np.random.default_rng([seed, *clip.key.encode()])
    return replace(clip, frames=scale * rng.standard_normal(clip.frames.shape) + 5.0)


def write_layers(url, *, sets=SETS, **options):
    """Layers 0 and 2 are noise of another scale, layer 1 has the events."""
    for layer in range(3):
        found = {
            name: [clip if layer == INFORMATIVE else noisy(clip, layer) for clip in clips]
            for name, clips in sets.items()
        }
        write_layer(url, found, layer, **options)
    return open_store(str(url))


def write_layer(url, sets, layer, **options):
    framed.write(url, sets, encoder=f"wav.layer{layer}", identity={"class": "wav", "layer": layer}, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_layers(tmp_path_factory.mktemp("layers") / "s.zarr")


@pytest.fixture(scope="module")
def twenty_epochs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featstore.probe.training.MAX_EPOCHS", 20)
        yield


@pytest.fixture(scope="module")
def record(store, twenty_epochs):
    return probe_task(store, TASK, head="layer-mix", seeds=(0, 1))


def plainly(layers, targets, *, seed, epochs, batch_size, rate, pos_weight):
    """The written objective by autograd and torch.optim: `layers` are those of the frames of each clip."""
    every = [
        torch.from_numpy(StandardScaler().fit_transform(np.concatenate(each).astype(np.float64))) for each in layers
    ]
    lengths = [len(each) for each in layers[0]]
    Z = torch.stack(every).float()
    a = torch.zeros(len(Z), requires_grad=True)
    model = torch.nn.Linear(Z.shape[2], targets[0].shape[1])
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimiser = torch.optim.Adam([a, *model.parameters()], lr=rate)
    rng = np.random.default_rng((seed, 0))
    first = np.cumsum([0, *lengths])

    def logits():
        H = torch.tensordot(torch.softmax(a, 0), Z, 1)
        return model(H / H.square().mean().sqrt())  # of all training frames

    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = rate * (0.1 + 0.9 * (1 + np.cos(np.pi * epoch / epochs)) / 2)
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = np.concatenate([np.arange(first[at], first[at + 1]) for at in batch])
            y = torch.from_numpy(np.concatenate([targets[at] for at in batch])).float()
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                logits()[rows], y, pos_weight=torch.tensor(pos_weight)
            ).backward()
            optimiser.step()
    with torch.no_grad():
        return logits().numpy(), torch.softmax(a, 0).numpy()


@pytest.mark.parametrize("cache_bytes", [pytest.param(2**30, id="in memory"), pytest.param(0, id="from disk")])
@pytest.mark.parametrize("pos_weight", [1.0, 10.0])
def test_training_is_that_of_the_written_objective(store, cache_bytes, pos_weight):
    task = load_layered_frame_task(store, TASK, encoder=None, protocol="strict")
    samples = task.samples(task.rounds[0].train)
    excerpts = excerpts_of(task, samples)
    rows = [np.asarray(task.frames[window]) for window in samples.windows.tolist()]
    layers = [[each[:, 24 * layer : 24 * (layer + 1)] for each in rows] for layer in range(3)]
    known = [excerpts.targets(at, start=0, stop=int(excerpts.n_rows[at])) for at in range(len(excerpts))]
    expected, weights = plainly(layers, known, seed=5, epochs=8, batch_size=5, rate=3e-2, pos_weight=pos_weight)
    statistics = Standardisation.of_chunks(rows)
    with worker_threads() as threads:
        features = FrameFeatures(
            task.frames, dim=72, threads=threads, normalise=standardised_by(statistics), cache_bytes=cache_bytes
        )
        head = train_frame_head(
            features,
            excerpts,
            threads=threads,
            padded=False,
            pos_weight=pos_weight,
            seed=(5, 0),
            score=None,
            epochs=8,
            batch_size=5,
            learning_rate=3e-2,
            rates=RATES,
            products=frame_products(rows, statistics, n_layers=3),
        )
    assert weights[INFORMATIVE] > 0.5  # it has moved
    np.testing.assert_allclose(head.layer_weights, weights, atol=1e-4)
    np.testing.assert_allclose(frame_logits(features, excerpts, range(len(excerpts)), head).logits, expected, atol=2e-3)


def test_products_in_pieces_are_those_of_all_standardised_frames():
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((n, 12)).astype(np.float32) @ rng.standard_normal((12, 12)) for n in (5, 1, 40)]
    Z = StandardScaler().fit_transform(np.concatenate(pieces)).reshape(46, 3, 4)
    expected = np.einsum("nkd,nld->kl", Z, Z) / (46 * 4)
    found = frame_products(pieces, Standardisation.of_chunks(pieces), n_layers=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # the root mean square of a mix is 1
    total = LayerSum(found)
    total.layer_logits.data = torch.tensor([0.3, -1.0, 2.0])
    mixed = total(torch.from_numpy(Z.reshape(46, 12)).float()).detach()
    assert float(mixed.square().mean()) == pytest.approx(1.0, abs=1e-5)


def test_the_layer_with_the_events_has_the_weight(store, record):
    weights = record.details["layer_weights"]
    assert (record.encoder, record.settings["layers"], weights["layers"]) == ("wav", [0, 1, 2], [0, 1, 2])
    assert weights["mean"][INFORMATIVE] > 0.8
    assert sum(weights["mean"]) == pytest.approx(1.0)
    assert (weights["fits"], len(weights["std"])) == (2, 3)
    alone = probe_task(store, TASK, encoder=f"wav.layer{INFORMATIVE}", seeds=(0, 1))
    assert record.value > 0.85
    assert record.value == pytest.approx(alone.value, abs=0.05)
    assert set(record.features) == {f"{name}.layer{layer}" for name in SETS for layer in range(3)}
    assert record.details["event_f1"]["value"] > 0.6
    (chart,) = [each for each in charts_of([("wav", 0, record)]) if each.kind == "weights"]
    assert [point.y for point in chart.curves[0].points] == weights["mean"]


def test_the_events_of_the_test_clips_have_no_say(record, tmp_path, twenty_epochs):
    silent = {**SETS, "test": [replace(clip, events=[]) for clip in SETS["test"]]}
    other = probe_task(write_layers(tmp_path / "s.zarr", sets=silent), TASK, head="layer-mix", seeds=(0, 1))
    assert other.details["layer_weights"] == record.details["layer_weights"]
    assert other.details["validation"] == record.details["validation"]


def test_a_layer_without_frames_is_one_line_with_the_command(tmp_path):
    url = tmp_path / "s.zarr"
    for layer in range(3):
        write_layer(url, SETS, layer, frames_stored=layer != 1)
    with pytest.raises(UnknownFeatureSet, match=r"no frames of tiny.* by wav\.layer1@.*--frames always") as caught:
        probe_task(open_store(str(url)), TASK, head="layer-mix")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda clips: clips[:-1], id="fewer clips"),
        pytest.param(lambda clips: [replace(each, frames=each.frames[:-3]) for each in clips], id="fewer frames"),
        pytest.param(lambda clips: [replace(each, frames=each.frames[:, :7]) for each in clips], id="narrower"),
    ],
)
def test_layers_that_differ_are_not_mixed(tmp_path, changed):
    write_layer(tmp_path / "s.zarr", {name: changed(clips) for name, clips in SETS.items()}, 0)
    write_layer(tmp_path / "s.zarr", SETS, 1)
    with pytest.raises(DataError, match="different clips, frames or widths"):
        probe_task(open_store(str(tmp_path / "s.zarr")), TASK, head="layer-mix")


def test_xares_has_no_mix_of_frames(store):
    with pytest.raises(UsageError, match="xares"):
        probe_task(store, TASK, head="layer-mix", protocol="xares")


# --- an encoder whose last hidden state is the only one that hears ----------------------------------------------------


def test_a_mix_of_layers_learns_to_spell(tmp_path, twenty_epochs):
    """SUPERB's speech recognition from an extraction with ``--layers all``."""
    pytest.importorskip("jiwer", reason="word error rates need jiwer: pip install featstore[asr]")
    rng = np.random.default_rng(0)
    task = beeps.manifest(kind="ctc", metric="wer_inv", label={"field": "said"}, probe={"epochs": 30, "batch_size": 8})
    clips = {
        name: [
            beeps.clip(f"{name}{at}", beeps.spoken(text, tones="abcdef ", rng=rng), {"said": text})
            for at, text in enumerate(" ".join(rng.choice(["abba", "cede", "fad"], size=2)) for _ in range(n))
        ]
        for name, n in (("train", 24), ("valid", 8), ("test", 8))
    }
    store = beeps.store_of(tmp_path, task, clips, encoder=beeps.layered(tmp_path))
    (record,) = fs.probe(task, store=store, head="layer-mix", seeds=1)
    assert (record.encoder, record.settings["layers"]) == ("Ear", [0, 1, 2])
    assert record.details["layer_weights"]["mean"][2] > 0.5
    assert record.details["cer"] < 0.4  # of the first layer alone it is above 0.7
    assert len(record.features) == 9


def test_a_head_on_a_mix_is_the_head_on_the_sum_of_the_standardised_layers():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((50, 12)).astype(np.float32) * 3 + 1
    by = Standardisation.of(rows)
    total = LayerSum(frame_products([rows], by, n_layers=3))
    total.layer_logits.data = torch.tensor([0.0, 1.0, -1.0])
    head = CtcHead(dim=4, n_symbols=5, upsampling=1, norm=torch.nn.Sequential(Standardise(by), total))
    weights = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    mixed = np.tensordot(weights, StandardScaler().fit_transform(rows.astype(np.float64)).reshape(50, 3, 4), (0, 1))
    mixed /= np.sqrt(np.square(mixed).mean())
    expected = mixed @ head.linear.weight.detach().numpy().T + head.linear.bias.detach().numpy()
    np.testing.assert_allclose(head(torch.from_numpy(rows)).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(learned_weights(head), weights, atol=1e-6)
    head.loss(Utterances(frames=[rows], symbols=[np.array([1, 2])])).backward()
    assert total.layer_logits.grad.abs().min() > 0
