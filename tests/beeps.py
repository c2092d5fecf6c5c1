"""Speech that any encoder can hear: a tone for each letter, silence between. And tasks and stores made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import handmade
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.store import Store, open_store
from featstore.tasks import Manifest

SPLITS = {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"}


def spoken(text: str, *, tones: str, tone_seconds: float = 0.16, rng: np.random.Generator) -> np.ndarray:
    """Say a text, each character of ``tones`` at a pitch of its own: one frame is enough to know a space too."""
    rate = handmade.RATE
    pieces = [np.zeros(round(0.08 * rate))]
    for letter in text:
        n = round(tone_seconds * rng.uniform(0.9, 1.1) * rate)
        time = np.arange(n) / rate
        hertz = 300 * 1.4 ** tones.index(letter)
        pieces += [0.3 * np.sin(2 * np.pi * hertz * time), np.zeros(round(0.08 * rate))]
    wave = np.concatenate(pieces)
    return (wave + 0.003 * rng.standard_normal(len(wave))).astype(np.float32)


def clip(key: str, samples: np.ndarray, meta: object) -> list[handmade.Member]:
    return [(f"{key}.flac", handmade.audio_bytes(samples, "flac")), (f"{key}.json", json.dumps(meta).encode())]


def manifest(**changes: Any) -> Manifest:
    raw = {"name": "beeps", "title": "Beeps", "eval_weight": 1.0, "data": {"dataset": "beeps"}, "splits": SPLITS}
    return Manifest.model_validate({**raw, **changes})


def store_of(
    folder: Path, task: Manifest, clips: Mapping[str, Sequence[list[handmade.Member]]], **options: Any
) -> Store:
    """Write shards and extract them with logmel; keys begin with the split."""
    for split, members in clips.items():
        named = [[(f"{split}-{name}", data) for name, data in clip] for clip in members]
        handmade.write_split(folder / "data" / "beeps", split, named, shards=2)
    handmade.extract(task, folder / "data", folder / "store.zarr", splits=tuple(clips), **options)
    return open_store(str(folder / "store.zarr"))


LAYERED = """
import torch

class Ear(torch.nn.Module):
    sampling_rate, output_dim, hop_size_in_ms = 16_000, 64, 20
    n_layers, layer_dim, layer_hop_in_ms = 2, 64, 20

    def forward(self, audio):
        return self.forward_layers(audio, layers=(2,))[0]

    def forward_layers(self, audio, *, layers):
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).reshape(len(audio), -1, 320)
        spectrum = torch.fft.rfft(frames, dim=2).abs()[:, :, 1:65]
        return [torch.log(1e-2 + spectrum) if layer == 2 else DEAF * (layer + 1) for layer in layers]
"""


def layered(folder: Path, *, deaf: str = "torch.frac(1e4 * frames[:, :, :64].abs())") -> Encoder:
    """An encoder of three layers, of which the last alone has the spectrum; all of them are outputs."""
    (folder / "ear.py").write_text(LAYERED.replace("DEAF", deaf))
    return load_encoder(f"{folder / 'ear.py'}:Ear", layers="all")
