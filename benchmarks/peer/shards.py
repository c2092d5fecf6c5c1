"""Shards and an encoder that neither side was written for: tones in noise of uneven lengths, by tarfile and soundfile.

Each feature set is one shard of a multiple of sixteen clips, so that the sixteen clips that are padded to one length
are the same on both sides.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

__all__ = [
    "CLASSES",
    "CLIPS_PER_FOLD",
    "FOLDS",
    "SPLITS",
    "write_encoder",
    "write_events",
    "write_folds",
    "write_splits",
]

RATE_HZ = 16_000
CLASSES = ("hum", "beep", "whistle", "chirp")
TONES_HZ = {"hum": 180.0, "beep": 280.0, "whistle": 440.0, "chirp": 700.0}
SPLITS = {"train": 320, "valid": 96, "test": 192}
FOLDS, CLIPS_PER_FOLD = (1, 2, 3, 4, 5), 64
EVENT_CLASSES = ("Cat", "Speech", "Dishes", "Dog")
EVENT_SPLITS = {"train": 320, "eval": 64}

ENCODER = '''"""Two strided convolutions of random weights, times a window over the whole input."""
import math

import torch


class TangleEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sampling_rate = 16_000
        self.output_dim = 64
        self.hop_size_in_ms = 40
        generator = torch.Generator().manual_seed(7)
        self.first = torch.nn.Parameter(torch.randn(16, 1, 400, generator=generator) / 10)
        self.second = torch.nn.Parameter(torch.randn(64, 16, 8, generator=generator) / 10)
        self.bias = torch.nn.Parameter(torch.randn(64, generator=generator) / 10)

    def forward(self, audio):
        hidden = torch.conv1d(torch.nn.functional.pad(audio[:, None, :], (200, 600)), self.first, stride=160).abs()
        frames = torch.conv1d(hidden, self.second, self.bias, stride=4).transpose(1, 2)
        frames = torch.nn.functional.layer_norm(frames, (64,))
        place = torch.linspace(0, math.pi, frames.shape[1])[None, :, None]
        return frames * (1 + torch.sin(place)) + 0.02 * torch.cos(3 * place)
'''


def write_encoder(folder: Path) -> Path:
    """The file of the encoder, whose class is ``TangleEncoder``."""
    path = folder / "tangle_encoder.py"
    path.write_text(ENCODER)
    return path


def write_splits(folder: Path) -> None:
    """``train``, ``valid`` and ``test``, one label to a clip."""
    for split, n_clips in SPLITS.items():
        _write_shard(folder / f"{split}-000000.tar", _clips(split, n_clips))


def write_folds(folder: Path) -> None:
    """Five folds, named as those of ESC-50."""
    for fold in FOLDS:
        clips = _clips(f"fold{fold}", CLIPS_PER_FOLD)
        _write_shard(folder / f"wds-audio-fold-{fold}-000000.tar", clips)


def write_events(folder: Path) -> None:
    """Scenes as DESED has them: clips of one to four seconds with a list of events."""
    for split, n_clips in EVENT_SPLITS.items():
        _write_shard(folder / f"wds-audio-{split}-000000.tar", _scenes(split, n_clips))


def _clips(name: str, n_clips: int) -> Iterator[tuple[str, np.ndarray, Any]]:
    rng = np.random.default_rng([1, *name.encode()])
    for number in range(n_clips):
        what = CLASSES[int(rng.integers(len(CLASSES)))]
        times = np.arange(round(rng.uniform(0.3, 2.4) * RATE_HZ)) / RATE_HZ
        hertz = TONES_HZ[what] * 2 ** rng.normal(0, 0.1)
        wave = rng.uniform(0.06, 0.3) * np.sin(2 * np.pi * (hertz * times + rng.uniform()))
        yield f"{name}-{number:03d}", wave + 0.05 * rng.standard_normal(len(times)), {"label": what}


def _scenes(name: str, n_clips: int) -> Iterator[tuple[str, np.ndarray, Any]]:
    rng = np.random.default_rng([2, *name.encode()])
    for number in range(n_clips):
        seconds = rng.uniform(1.0, 4.0)
        times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        wave = 0.03 * rng.standard_normal(len(times))
        events = []
        for _ in range(int(rng.integers(1, 5))):
            which = int(rng.integers(len(EVENT_CLASSES)))
            onset = rng.uniform(0, seconds - 0.3)
            offset = min(seconds, onset + rng.uniform(0.2, 1.5))
            sounds = (times >= onset) & (times < offset)
            wave[sounds] += 0.15 * np.sin(2 * np.pi * (200 + 170 * which) * times[sounds])
            events.append({"onset": round(onset, 3), "offset": round(offset, 3), "label": EVENT_CLASSES[which]})
        yield f"{name}-{number:03d}", wave, events


def _write_shard(path: Path, clips: Iterable[tuple[str, np.ndarray, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, wave, meta in clips:
            out = io.BytesIO()
            soundfile.write(out, np.clip(wave, -0.9, 0.9), RATE_HZ, format="FLAC", subtype="PCM_16")
            for extension, content in (("flac", out.getvalue()), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
