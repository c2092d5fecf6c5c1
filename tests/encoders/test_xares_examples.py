"""Encoder files in the manner of X-ARES's four examples: what they lean on is there when they are built and called.

They import transformers or dasheng by themselves, look for weights below the working directory, split clips of more
than ten seconds, hand their input to a feature extractor in NumPy, and return frames and nothing else. The files here
are written anew in that manner; X-ARES's own were run by hand (`docs/encoders.md`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny_models import save

import featstore
from handmade import clip, extract, noise, write_split
from tiny import task

BY_TRANSFORMERS = """
from pathlib import Path

import torch
from transformers import {extractor}, {model}


class {name}(torch.nn.Module):
    def __init__(self, model_name="{where}"):
        super().__init__()
        if not Path(model_name).exists():
            raise FileNotFoundError(model_name)
        self.prepares = {extractor}.from_pretrained(model_name)
        self.model = {model}.from_pretrained(model_name){half}
        self.sampling_rate = 16000
        self.output_dim = 16
        self.hop_size_in_ms = 20
        self.max_length = int(10 * self.sampling_rate)

    def encode(self, audio):
        inputs = self.prepares({audio}, sampling_rate=self.sampling_rate, return_tensors="pt")
        values = inputs["{key}"].squeeze() if "{key}" == "input_values" else inputs["{key}"]
        if values.dim() == 1:
            values = values.unsqueeze(0)
        return self.model(values.to(self.model.device)).last_hidden_state

    def forward(self, audio: torch.Tensor):
        assert isinstance(audio, torch.Tensor)
        if audio.shape[-1] <= self.max_length:
            return self.encode(audio)
        return torch.cat([self.encode(chunk) for chunk in audio.split(self.max_length, dim=-1)], dim=1)


if __name__ == "__main__":
    from xares.audio_encoder_checker import check_audio_encoder

    assert check_audio_encoder({name}())
"""

BY_DASHENG = """
import torch
from dasheng import dasheng_base


class DashengEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sampling_rate = 16000
        self.output_dim = 8
        self.hop_size_in_ms = 40
        self.model = dasheng_base()

    def forward(self, audio: torch.Tensor):
        self.model.eval()
        with torch.inference_mode():
            return self.model(audio)
"""

EXAMPLES = {
    "wav2vec2": {
        "family": "wav2vec2-layer", "extractor": "Wav2Vec2FeatureExtractor", "model": "Wav2Vec2Model",
        "name": "Wav2vec2Encoder", "where": "facebook/wav2vec2-large-100k-voxpopuli", "half": "", "audio": "audio",
        "key": "input_values",
    },
    "data2vec": {
        "family": "data2vec-audio", "extractor": "AutoFeatureExtractor", "model": "Data2VecAudioModel",
        "name": "Data2VecEncoder", "where": "facebook/data2vec-audio-base", "half": "", "audio": "audio",
        "key": "input_values",
    },
    "whisper": {
        "family": "whisper", "extractor": "WhisperProcessor", "model": "WhisperModel", "name": "WhisperEncoder",
        "where": "openai/whisper-base", "half": ".get_encoder()", "audio": "audio.cpu().numpy()",
        "key": "input_features",
    },
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path / "data/tiny", "train", [clip(f"c{n}", noise(0.6 + n / 2, seed=n)) for n in range(3)])
    return tmp_path / "data"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_by_transformers_runs_as_a_file(example: str, data: Path, tmp_path: Path) -> None:
    result = EXAMPLES[example]
    weights = save(result["family"], tmp_path / result["where"])
    if example == "whisper":
        (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        tokenizer = transformers.WhisperTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
        transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(weights)
    (tmp_path / f"{example}_encoder.py").write_text(BY_TRANSFORMERS.format(**result))
    extract(task(), data, tmp_path / "store", encoder=f"./{example}_encoder.py", frames="always")
    fs = featstore.open(str(tmp_path / "store")).select(encoder=result["name"])
    assert [len(frames) for frames in fs.frames] == [30, 55, 80]
    assert np.isfinite(fs.utterance).all()


def test_the_example_by_dasheng_runs_as_a_file(
    data: Path, tmp_path: Path, dasheng_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = sys.modules["dasheng.pretrained.pretrained"].Dasheng.from_pretrained
    monkeypatch.setattr("dasheng.dasheng_base", lambda: tiny(str(dasheng_package)))
    (tmp_path / "dasheng_encoder.py").write_text(BY_DASHENG)
    extract(task(), data, tmp_path / "store", encoder="./dasheng_encoder.py", frames="always")
    fs = featstore.open(str(tmp_path / "store")).select(encoder="DashengEncoder")
    assert [len(frames) for frames in fs.frames] == [15, 28, 40]


def test_a_clip_longer_than_ten_seconds_goes_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = EXAMPLES["wav2vec2"]
    save(result["family"], tmp_path / result["where"])
    (tmp_path / "wav2vec2_encoder.py").write_text(BY_TRANSFORMERS.format(**result))
    write_split(tmp_path / "data/tiny", "train", [clip("long", noise(12.0))])
    extract(task(), tmp_path / "data", tmp_path / "store", encoder="./wav2vec2_encoder.py", frames="always")
    fs = featstore.open(str(tmp_path / "store")).select()
    assert [len(frames) for frames in fs.frames] == [499 + 99]
    assert "xares" not in sys.modules
