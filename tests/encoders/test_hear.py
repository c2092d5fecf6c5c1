"""``hear:``: a module with the API of HEAR 2021 gets windows of one length, and its code is part of the fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import DIM, KERNEL, convolved, write_hear

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.errors import EncoderError
from handmade import noise

SETTINGS: dict[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a HEAR module lies, which imports a helper from the same folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny_hear", "hear_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    write_hear(tmp_path)
    return tmp_path


def weights_of(encoder: Encoder) -> np.ndarray:
    [weight] = encoder.module.parameters()
    return weight.detach().numpy()[:, 0]


def fingerprint(spec: str, **arguments: Any) -> str:
    return load_encoder(spec, arguments=arguments).recipe(**SETTINGS).fingerprint


def why(spec: str, **arguments: Any) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec, arguments=arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spec", ["hear:tiny_hear", "hear:./tiny_hear.py"])
def test_frames_and_scenes_are_those_of_each_clip_alone_whatever_its_batch(here: Path, spec: str) -> None:
    encoder = load_encoder(spec)
    facts = encoder.facts
    assert (encoder.name, facts.sample_rate_hz, facts.dim, facts.hop_seconds) == ("tiny_hear", 16_000, DIM, 0.01)
    lengths = [16_000, 9_001, 16_000, 1_600]
    audio = np.zeros((4, 16_000), np.float32)
    for row, length in enumerate(lengths):
        audio[row, :length] = noise(length / 16_000, seed=row)[:length]
    [output] = encoder.forward(torch.from_numpy(audio), torch.tensor(lengths))
    assert output.n_frames is not None
    assert output.utterance is not None
    for row, length in enumerate(lengths):
        expected = convolved(audio[row : row + 1, :length], weights_of(encoder))[0]
        assert output.n_frames[row] == len(expected)
        np.testing.assert_allclose(output.frames[row, : len(expected)].detach().numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(output.utterance[row].detach().numpy(), expected.max(axis=0), atol=1e-5)


def test_windows_that_are_too_short_are_padded_with_silence(here: Path) -> None:
    encoder = load_encoder("hear:tiny_hear")
    audio = np.zeros((2, 4000), np.float32)
    audio[0, :160] = noise(0.01)
    audio[1] = noise(0.25)
    [output] = encoder.forward(torch.from_numpy(audio), torch.tensor([160, 4000]))
    expected = convolved(audio[:1, :1600], weights_of(encoder))[0]
    assert output.n_frames is not None
    assert output.utterance is not None
    assert output.n_frames.tolist() == [len(expected), 23]
    np.testing.assert_allclose(output.utterance[0].detach().numpy(), expected.max(axis=0), atol=1e-5)


def test_a_scene_of_another_width_is_the_only_frame_unless_timestamps_are_asked_for(here: Path) -> None:
    write_hear(here, scene_size=2 * DIM)
    audio = torch.from_numpy(noise(0.5)[None])
    scene = load_encoder("hear:tiny_hear")
    expected = convolved(audio.numpy(), weights_of(scene))[0]
    [output] = scene.forward(audio, None)
    assert output.frames.shape == (1, 1, 2 * DIM)
    assert output.utterance is not None
    np.testing.assert_allclose(output.utterance[0].detach().numpy(), np.tile(expected.max(axis=0), 2), atol=1e-5)
    timestamps = load_encoder("hear:tiny_hear", arguments={"embedding": "timestamps"})
    [output] = timestamps.forward(audio, None)
    assert output.utterance is None  # the mean, over real frames
    np.testing.assert_allclose(output.frames[0].detach().numpy(), expected, atol=1e-5)
    assert fingerprint("hear:tiny_hear", embedding="scene") != fingerprint("hear:tiny_hear", embedding="timestamps")


def test_functions_can_be_methods_of_the_model(here: Path) -> None:
    (here / "methods.py").write_text(
        "import tiny_hear\n\n\n"
        "class Model(tiny_hear.Model):\n"
        "    def get_timestamp_embeddings(self, audio):\n"
        "        return tiny_hear.get_timestamp_embeddings(audio, self)\n\n\n"
        "def load_model(path=''):\n"
        "    return Model()\n"
    )
    encoder = load_encoder("hear:methods")
    [output] = encoder.forward(torch.from_numpy(noise(0.5)[None]), None)
    expected = convolved(noise(0.5)[None], weights_of(encoder))
    np.testing.assert_allclose(output.frames.detach().numpy(), expected, atol=1e-5)
    assert output.utterance is None


def test_the_fingerprint_follows_code_and_weights_and_no_path(here: Path, tmp_path: Path) -> None:
    before = fingerprint("hear:tiny_hear")
    assert fingerprint("hear:./tiny_hear.py") == before
    write_hear(here, name="moved")
    assert fingerprint("hear:moved") == before
    write_hear(here, gain=2.0)  # in the module that it imports
    assert fingerprint("hear:tiny_hear") != before
    write_hear(here)
    assert fingerprint("hear:tiny_hear") == before
    torch.save({"weight": torch.ones(DIM, 1, KERNEL)}, here / "ones.pt")
    ones = fingerprint("hear:tiny_hear=ones.pt")
    assert ones != before
    (here / "ones.pt").rename(here / "other.pt")
    assert fingerprint("hear:tiny_hear=other.pt") == ones
    np.testing.assert_array_equal(weights_of(load_encoder("hear:tiny_hear=other.pt")), 1)


def test_an_installed_module_counts_by_distribution_and_version(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "lib/site-packages"
    (site / "hear_of_someone-1.2.dist-info").mkdir(parents=True)
    (site / "hear_of_someone-1.2.dist-info/METADATA").write_text("Name: hear-of-someone\nVersion: 1.2\n")
    (site / "hear_of_someone-1.2.dist-info/top_level.txt").write_text("hear_of_someone\nhear_helper\n")
    write_hear(site, name="hear_of_someone")
    (here / "hear_helper.py").unlink()
    monkeypatch.syspath_prepend(site)
    encoder = load_encoder("hear:hear_of_someone")
    assert encoder.identity["distribution"] == "hear-of-someone==1.2"
    assert encoder.code == ()


BROKEN = {
    "no_load_model": "def get_scene_embeddings(audio, model): ...",
    "raises": "def load_model(path=''):\n    raise RuntimeError('no\\nweights')",
    "exits": "def load_model(path=''):\n    raise SystemExit(1)",
    "no_functions": "import tiny_hear\nload_model = tiny_hear.load_model",
    "no_rate": "from tiny_hear import *\ndef load_model(path=''):\n    m = Model(); m.sample_rate = None; return m",
    "no_size": (
        "from tiny_hear import *\ndef load_model(path=''):\n    m = Model(); m.timestamp_embedding_size = 'x'; return m"
    ),
    "seconds": (
        "import tiny_hear\nfrom tiny_hear import load_model\n"
        "def get_timestamp_embeddings(audio, model):\n"
        "    frames, times = tiny_hear.get_timestamp_embeddings(audio, model)\n    return frames, times / 1000"
    ),
    "uneven": (
        "import tiny_hear\nfrom tiny_hear import load_model\n"
        "def get_timestamp_embeddings(audio, model):\n"
        "    frames, times = tiny_hear.get_timestamp_embeddings(audio, model)\n    return frames, times ** 2 / 4000"
    ),
    "no_times": "from tiny_hear import load_model, get_scene_embeddings as get_timestamp_embeddings",
    "fails": "from tiny_hear import load_model\ndef get_timestamp_embeddings(audio, model):\n    return audio[9, 9]",
    "wrong_rank": "from tiny_hear import load_model\ndef get_scene_embeddings(audio, model):\n    return audio[0]",
    "wrong_size": "from tiny_hear import load_model\ndef get_scene_embeddings(audio, model):\n    return audio[:, :3]",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_module_that_breaks_the_api_is_one_line(here: Path, name: str) -> None:
    (here / f"{name}.py").write_text(BROKEN[name])
    assert name in why(f"hear:{name}") or name == "wrong_size"


def test_a_wrong_call_is_one_line(here: Path) -> None:
    assert "no_such_module" in why("hear:no_such_module")
    assert "none.pt" in why("hear:tiny_hear=none.pt")
    assert "pitch" in why("hear:tiny_hear", embedding="pitch")
    assert "speed" in why("hear:tiny_hear", speed=2)
    why("hear:")
    why("hear:./no_such_file.py")
