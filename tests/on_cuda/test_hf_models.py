"""transformers audio models on a GPU give what they give on the CPU."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save, save_with_text

from featstore.encoders import load_encoder
from handmade import noise, started

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is shown")

ALLOWED = {"float32": 2e-3, "bfloat16": 0.3}


run_of = partial(started, frame_dtype="float32")


@pytest.mark.parametrize("precision", sorted(ALLOWED))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_what_the_cpu_gives(family: str, precision: str, tmp_path: Path) -> None:
    spec = f"hf:{save(family, tmp_path / family)}"
    layers = () if family.startswith("clap") else (0, 1, None)
    encoder = load_encoder(spec, layers=layers)
    on_cpu = run_of(load_encoder(spec, layers=layers), precision="float32", device="cpu")
    on_gpu = run_of(encoder, precision=precision, device="cuda")
    rate = encoder.facts.sample_rate_hz
    for seconds in (1.0, 1.75):  # loading has run it on a second, on the CPU
        audio = np.zeros((3, round(seconds * rate)), np.float32)
        n_samples = np.array([audio.shape[1], audio.shape[1] - 99, audio.shape[1] // 2])
        for row, count in enumerate(n_samples):
            audio[row, :count] = noise(count / rate, seed=row, rate=rate)[:count]
        expected = on_cpu(audio, n_samples)
        with on_gpu.at_work():
            begun = [on_gpu.begin(copy.copy(audio), n_samples) for _ in range(3)]
            found = [result() for result in begun]
        for each in found:
            for mine, theirs in zip(each, expected, strict=True):
                apart = np.linalg.norm(mine.utterance - theirs.utterance) / np.linalg.norm(theirs.utterance)
                assert apart < ALLOWED[precision]
                assert [len(frames) for frames in mine.frames or ()] == [len(frames) for frames in theirs.frames or ()]


@pytest.mark.parametrize("precision", sorted(ALLOWED))
def test_texts_on_a_gpu_are_those_of_the_cpu(precision: str, tmp_path: Path) -> None:
    spec, texts = f"hf:{save_with_text(tmp_path / 'clap')}", ["dog barking", "this is a sound of rain"]
    expected = run_of(load_encoder(spec), precision="float32", device="cpu").encode_texts(texts)
    found = run_of(load_encoder(spec), precision=precision, device="cuda").encode_texts(texts)
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < ALLOWED[precision]
