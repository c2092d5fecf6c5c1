"""``st:``: a sentence-transformers model that takes audio gives the vectors of the library's own ``encode``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import write_sentence_transformer

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.errors import EncoderError
from handmade import noise

SETTINGS: dict[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_transformer(tmp_path_factory.mktemp("st"))


@pytest.fixture(scope="module")
def encoder(saved: Path) -> Encoder:
    return load_encoder(f"st:{saved}")


def fingerprint(encoder: Encoder) -> str:
    return encoder.recipe(**SETTINGS).fingerprint


def why(spec: str, **arguments: Any) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec, arguments=arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_vectors_are_those_of_the_library_for_each_clip_alone(saved: Path, encoder: Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    facts = encoder.facts
    assert (encoder.name, facts.sample_rate_hz, facts.dim, facts.takes_lengths) == ("tiny-st", 16_000, 8, True)
    lengths = [16_000, 9_001, 16_000]
    clips = [noise(length / 16_000, seed=row)[:length] for row, length in enumerate(lengths)]
    audio = np.stack([np.pad(clip, (0, 16_000 - len(clip))) for clip in clips])
    with torch.inference_mode():
        [output] = encoder.forward(torch.from_numpy(audio), torch.tensor(lengths))
    assert output.utterance is not None
    assert torch.equal(output.frames[:, 0], output.utterance)
    model = SentenceTransformer(str(saved), device="cpu")
    alone = [model.encode({"array": clip, "sampling_rate": 16_000}) for clip in clips]
    np.testing.assert_allclose(output.utterance.numpy(), alone, atol=1e-6)
    together = model.encode([{"array": clip, "sampling_rate": 16_000} for clip in clips])
    assert np.abs(together - alone).max() > 1e-3  # it pads, and this model sees that


def test_the_fingerprint_follows_weights_and_settings_and_no_path(
    saved: Path, encoder: Encoder, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "a copy"))
    moved = load_encoder(f"st:{copy}")
    assert (moved.name, fingerprint(moved)) == ("a-copy", fingerprint(encoder))
    pooling = copy / "1_Pooling/config.json"
    changed = json.loads(pooling.read_text()) | {"pooling_mode": "max"}
    pooling.write_text(json.dumps(changed))
    assert fingerprint(load_encoder(f"st:{copy}")) != fingerprint(encoder)
    other = write_sentence_transformer(tmp_path / "other", seed=1)
    assert fingerprint(load_encoder(f"st:{other}")) != fingerprint(encoder)


def test_code_of_a_model_is_not_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(saved, tmp_path / "evil"))
    (copy / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (copy / "modules.json").write_text(json.dumps(modules))
    why(f"st:{copy}")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_audio_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    SentenceTransformer(modules=[BoW(vocab=["a", "b"])], device="cpu").save_pretrained(
        str(tmp_path / "text"), create_model_card=False
    )
    assert "text" in why(f"st:{tmp_path / 'text'}")
    (tmp_path / "empty").mkdir()
    why(f"st:{tmp_path / 'empty'}")
    why(f"st:{tmp_path / 'missing'}")
    why("st:")
    why(f"st:{tmp_path / 'text'}", width=2)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "featstore[st]" in why(f"st:{tmp_path / 'text'}")
