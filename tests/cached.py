"""A small store written by hand: two encoders, one of them with frames, windows of cropped clips, a clip left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stores import write_part

import tiny
from featstore.records import SkippedClip
from featstore.store import EmbeddedWindow, open_split_writer

DIM = 8
LENGTHS = {"a.tar": (3, 1, 4), "b.tar": (1, 5, 9, 2)}
LEFT_OUT = SkippedClip(shard="b.tar", key="broken\x1b[2J", reason="it has no samples")


@dataclass(frozen=True)
class Cached:
    """The store, and what is in ``mel/words/train``."""

    url: str
    windows: tuple[EmbeddedWindow, ...]

    def column(self, name: str) -> list[Any]:
        return [getattr(window, name) for window in self.windows]

    @property
    def labels(self) -> list[str]:
        return [json.loads(window.meta)["label"]["word"] for window in self.windows]


def cached(folder: Path, *, dim: int = DIM) -> Cached:
    url = str(folder / "embeddings.zarr")
    shards = {
        shard: [_window(f"{shard[0]}{at}", n_frames=n, dim=dim) for at, n in enumerate(lengths)]
        for shard, lengths in LENGTHS.items()
    }
    _write(url, encoder="mel", split="train", shards=shards, skipped=[LEFT_OUT], frames=True)
    _write(url, encoder="mel", split="test", shards={"c.tar": [_window("c0", n_frames=2, dim=dim)]}, frames=True)
    _write(url, encoder="bare", split="train", shards=shards, frames=False)
    return Cached(url, tuple(window for windows in shards.values() for window in windows))


def _window(key: str, *, n_frames: int, dim: int) -> EmbeddedWindow:
    frames = np.random.default_rng(list(key.encode())).standard_normal((n_frames, dim)).astype(np.float16)
    return EmbeddedWindow(
        key=f"é/{key}",
        meta=json.dumps({"label": {"word": "jä" if n_frames % 2 else "no"}, "n": n_frames}, ensure_ascii=False),
        start_seconds=0.0,
        seconds=n_frames * 0.04,
        utterance=frames.mean(axis=0, dtype=np.float32),
        frames=frames,
    )


def _write(
    url: str,
    *,
    encoder: str,
    split: str,
    shards: dict[str, list[EmbeddedWindow]],
    frames: bool,
    skipped: list[SkippedClip] | None = None,
) -> None:
    recipe = replace(
        tiny.recipe(dim=len(next(iter(shards.values()))[0].utterance)),
        encoder=encoder,
        encoder_identity={"class": "Mel", "arguments": {"mels": 8}},
        hop_seconds=0.04,
    )
    writer = open_split_writer(url, recipe=recipe, spec=encoder, dataset="words", crop_seconds=None, split=split)
    for shard, windows in shards.items():
        stored = windows if frames else [replace(each, frames=None) for each in windows]
        left_out = [clip for clip in skipped or () if clip.shard == shard]
        write_part(writer, shard, stored, skipped=left_out, frames_stored=frames)
    writer.write_catalogue()
