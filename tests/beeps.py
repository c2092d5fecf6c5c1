"""Speech that any encoder can hear: a tone for each letter, silence between. And tasks and stores made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import handmade
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


def store_of(folder: Path, task: Manifest, clips: Mapping[str, Sequence[list[handmade.Member]]]) -> Store:
    """Write shards and extract them with logmel; keys begin with the split."""
    for split, members in clips.items():
        named = [[(f"{split}-{name}", data) for name, data in clip] for clip in members]
        handmade.write_split(folder / "data" / "beeps", split, named, shards=2)
    handmade.extract(task, folder / "data", folder / "store.zarr", splits=tuple(clips))
    return open_store(str(folder / "store.zarr"))
