"""Every measure, and the layer mix, on recorded speech by layers of a trained encoder."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import recordings
from ge2e import weights_file
from ge2e_layers import LayeredSpeakerEncoder

import featstore as fs

pytestmark = pytest.mark.real

LANGUAGES, PARTS = ("cs", "da", "fr", "nl"), {"train": 12, "valid": 4, "test": 10}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The manifest of some languages, and a store with each LSTM layer, the output, and `SpeakerEncoder`."""
    if not recordings.KLETTRES.is_dir() or weights_file() is None:
        pytest.skip("not installed: klettres-data and the wheel of resemblyzer; see `make test-real`")
    folder = tmp_path_factory.mktemp("layers")
    rows = recordings.languages()
    splits = [split for split, n in PARTS.items() for _ in range(n)]
    with (folder / "speech.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for language in LANGUAGES:
            of_it = [row for row in rows if row.label == language]
            writer.writerows((row.path, language, split) for row, split in zip(of_it, splits, strict=False))
    toml, store = folder / "speech.toml", folder / "store.zarr"
    fs.pack(folder / "data" / "speech", csv=folder / "speech.csv", audio=recordings.KLETTRES, manifest=toml)
    for spec, layers in ((f"{HERE / 'ge2e_layers.py'}:LayeredSpeakerEncoder", "all,last"),
                         (f"{HERE / 'ge2e.py'}:SpeakerEncoder", ())):  # fmt: skip
        fs.extract(toml, encoder=spec, layers=layers, data=folder / "data", store=store, device="cpu").raise_failures()
    return toml, store


def test_layers_of_a_trained_encoder_end_in_its_output(task: tuple[Path, Path]) -> None:
    store = fs.open(task[1])
    names = {each.encoder for each in store.feature_sets()}
    assert len(names) == LayeredSpeakerEncoder.n_layers + 3
    plain = store.select(encoder="SpeakerEncoder", split="test")
    layered = store.select(encoder="LayeredSpeakerEncoder", split="test")
    assert plain.key.tolist() == layered.key.tolist()
    np.testing.assert_allclose(layered.utterance, plain.utterance, atol=1e-5)


def test_the_layer_mix_of_a_trained_encoder_tells_speakers_apart(task: tuple[Path, Path]) -> None:
    (record,) = fs.probe(task[0], store=task[1], encoder="LayeredSpeakerEncoder", head="layer-mix")
    weights = record.details["layer_weights"]
    assert set(range(LayeredSpeakerEncoder.n_layers + 1)) <= set(weights["layers"])
    assert sum(weights["mean"]) == pytest.approx(1.0)
    assert record.details["fit"]["converged"]
    assert record.value > 0.8


def test_every_measure_scores_every_layer(task: tuple[Path, Path]) -> None:
    scores = fs.retrieve(task[0], store=task[1], measure=["knn", "retrieval", "clustering", "pairs"])
    scores.raise_failures()
    assert len(scores) == 4 * (LayeredSpeakerEncoder.n_layers + 3)
    for record in scores:
        assert record.ci_low <= record.value <= record.ci_high
        assert np.isfinite(record.value)
        chance = {"knn": 0.25, "retrieval": 0.25, "clustering": 0.05}.get(record.measure)
        assert record.value < 0.5 if chance is None else record.value > chance, record
