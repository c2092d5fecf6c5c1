"""Stores with frames and events, small enough to compute by hand: what the tests of frame tasks stand on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stores import write_part

import tiny
from featstore.store import EmbeddedWindow, Store, open_split_writer, open_store
from featstore.tasks import Manifest

HOP = 0.02
Event = tuple[float, float, str]


@dataclass(frozen=True)
class Clip:
    """A clip whose ``frames`` are cut into windows of so many frames."""

    key: str
    frames: np.ndarray
    events: Sequence[Event]
    seconds: float | None = None
    window_frames: int | None = None


def task(**changes: Any) -> Manifest:
    fixed: dict[str, Any] = {
        "kind": "frame",
        "metric": "segment_f1_macro",
        "metric_args": {"segment_seconds": 0.1},
        "label": {"field": "label", "classes": ["a", "b", "c"]},
        "retrieve": {"enabled": False},
    }
    return tiny.task(**{**fixed, **changes})


def write(
    url: Path | str,
    sets: Mapping[str, Sequence[Clip]],
    *,
    hop: float = HOP,
    dtype: str = "float16",
    frames_stored: bool = True,
    encoder: str = "tiny",
    identity: Mapping[str, Any] | None = None,
) -> Store:
    """Write feature sets of dataset ``tiny``, two shards each, and open the store; keys begin with the split."""
    dim = next(clip.frames.shape[1] for clips in sets.values() for clip in clips)
    recipe = replace(tiny.recipe(dim=dim), hop_seconds=hop, frame_dtype=dtype, encoder=encoder)
    if identity is not None:
        recipe = replace(recipe, encoder_identity=dict(identity))
    for split, clips in sets.items():
        writer = open_split_writer(str(url), recipe=recipe, spec="tiny", dataset="tiny", crop_seconds=None, split=split)
        half = -(-len(clips) // 2)
        named = [replace(clip, key=f"{split}-{clip.key}") for clip in clips]
        for shard, mine in enumerate((named[:half], named[half:])):
            if mine:
                windows = list(_windows(mine, hop=hop, dtype=dtype, frames_stored=frames_stored))
                write_part(writer, f"{split}-{shard}.tar", windows, frames_stored=frames_stored)
    return open_store(str(url))


def _windows(clips: Sequence[Clip], *, hop: float, dtype: str, frames_stored: bool) -> Iterator[EmbeddedWindow]:
    for clip in clips:
        meta = json.dumps([{"onset": on, "offset": off, "label": label} for on, off, label in clip.events])
        step = clip.window_frames or len(clip.frames)
        total = len(clip.frames) * hop if clip.seconds is None else clip.seconds
        for number, start in enumerate(range(0, len(clip.frames), step)):
            frames = clip.frames[start : start + step].astype(dtype)
            is_last = start + step >= len(clip.frames)
            yield EmbeddedWindow(
                key=clip.key if number == 0 else f"{clip.key}#{number + 1}",
                meta=meta,
                start_seconds=start * hop,
                seconds=total - start * hop if is_last else step * hop,
                utterance=frames.astype(np.float32).mean(axis=0),
                frames=frames if frames_stored else None,
            )


def clips(
    name: str,
    n: int,
    *,
    n_frames: int | tuple[int, int] = (30, 60),
    dim: int = 24,
    n_classes: int = 3,
    spread: float = 0.5,
    hop: float = HOP,
    n_events: int = 3,
) -> list[Clip]:
    """Clips with events of classes ``a``, ``b``..., whose frames lie around the sum of the centres of what sounds."""
    centres = 2 * np.random.default_rng(99).standard_normal((n_classes, dim))
    rng = np.random.default_rng([7, *name.encode()])
    made = []
    for number in range(n):
        length = n_frames if isinstance(n_frames, int) else int(rng.integers(*n_frames))
        frames = spread * rng.standard_normal((length, dim))
        events = []
        for _ in range(n_events):
            label = int(rng.integers(n_classes))
            first = int(rng.integers(length))
            last = min(length, first + int(rng.integers(3, 20)))
            frames[first:last] += centres[label]
            events.append((round(first * hop, 4), round(last * hop, 4), chr(ord("a") + label)))
        made.append(Clip(f"{name}-{number}", frames, sorted(events)))
    return made
