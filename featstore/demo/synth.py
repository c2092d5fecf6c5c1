"""The three demo datasets: which clips they hold, and how each one is made from its own seed.

A clip's seed is its place (dataset, split, index), so any clip can be made alone, in any order and in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.demo.instruments import INSTRUMENTS, play
from featstore.demo.mixtures import mix
from featstore.demo.scenes import SCENES, record_scene
from featstore.demo.sounds import SAMPLE_RATE_HZ, generator
from featstore.errors import UsageError

__all__ = ["COLLECTIONS", "SYNTHESIS_VERSION", "Collection", "Sample", "synthesise"]

SYNTHESIS_VERSION = 1
"""Raised with every change of what is heard, so that the shards of an older demo are made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One clip: float32 ``(samples,)`` within -1 to 1, and the JSON that goes with it."""

    key: str
    waveform: NDArray[np.float32]
    sample_rate_hz: int
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A dataset before it is made.

    Attributes
    ----------
    dataset : str
        One of the demo's datasets: what its clips are.
    clips : mapping
        Split or fold -> number of clips.
    shards : mapping
        Split or fold -> number of shards its clips are spread over.
    """

    dataset: str
    clips: Mapping[str, int]
    shards: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.dataset not in _MAKERS:
            raise UsageError(f"a demo dataset is one of {', '.join(sorted(_MAKERS))}, got {self.dataset!r}")
        if set(self.clips) != set(self.shards):
            raise UsageError(
                f"clips and shards must name the same splits, got {sorted(self.clips)} and {sorted(self.shards)}"
            )
        for split, n_clips in self.clips.items():
            if not 1 <= self.shards[split] <= n_clips:
                raise UsageError(f"{split}: 1 to {n_clips} shards can hold {n_clips} clips, got {self.shards[split]}")


def synthesise(dataset: str, split: str, index: int) -> Sample:
    """Make one clip. It depends on nothing but its place.

    >>> sample = synthesise("demo-scenes", "fold1", 3)
    >>> sample.key, sample.waveform.shape, sample.sample_rate_hz
    ('scenes-fold1-00003', (80000,), 16000)
    """
    if dataset not in _MAKERS:
        raise UsageError(f"a demo dataset is one of {', '.join(sorted(_MAKERS))}, got {dataset!r}")
    if index < 0:
        raise UsageError(f"a clip's index is at least 0, got {index}")
    seed = (list(_MAKERS).index(dataset), *split.encode(), index)
    waveform, meta = _MAKERS[dataset](split, index, seed)
    key = f"{dataset.removeprefix('demo-')}-{split}-{index:05d}"
    seconds = len(waveform) / SAMPLE_RATE_HZ
    return Sample(
        key=key, waveform=waveform, sample_rate_hz=SAMPLE_RATE_HZ, meta={**meta, "seconds": seconds, "seed": list(seed)}
    )


_Maker = Callable[[str, int, tuple[int, ...]], tuple[NDArray[np.float32], dict[str, Any]]]


def _instrument(split: str, index: int, seed: tuple[int, ...]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    name = _balanced(tuple(INSTRUMENTS), split, index)
    phrase = play(name, *seed)
    return phrase.wave, {
        "instrument": name,
        "pitch_hz": phrase.pitches_hz[0],
        "pitches_hz": list(phrase.pitches_hz),
        "snr_db": round(phrase.snr_db, 2),
        "peak_db": round(phrase.peak_db, 2),
    }


def _scene(split: str, index: int, seed: tuple[int, ...]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    name = _balanced(tuple(SCENES), split, index)
    scene = record_scene(name, *seed)
    return scene.wave, {
        "scene": name,
        "behind": scene.behind,
        "behind_db": round(scene.behind_db, 2),
        "peak_db": round(scene.peak_db, 2),
    }


def _mixture(split: str, index: int, seed: tuple[int, ...]) -> tuple[NDArray[np.float32], dict[str, Any]]:  # noqa: ARG001
    mixture = mix(*seed)
    return mixture.wave, {
        "labels": ";".join(sorted(event.label for event in mixture.events)),
        "events": [asdict(event) for event in mixture.events],
        "peak_db": round(mixture.peak_db, 2),
    }


def _balanced(names: tuple[str, ...], split: str, index: int) -> str:
    """Name the class of a clip: each run of `len(names)` clips holds every class once, in an order of its own."""
    block, place = divmod(index, len(names))
    return names[int(generator(len(names), *split.encode(), block).permutation(len(names))[place])]


_MAKERS: Mapping[str, _Maker] = {
    "demo-instruments": _instrument,
    "demo-scenes": _scene,
    "demo-mixtures": _mixture,
}

_FOLDS = tuple(f"fold{number}" for number in range(1, 6))

COLLECTIONS: tuple[Collection, ...] = (
    Collection(
        dataset="demo-instruments",
        clips={"train": 996, "valid": 252, "test": 348},
        shards={"train": 4, "valid": 1, "test": 2},
    ),
    Collection(dataset="demo-scenes", clips=dict.fromkeys(_FOLDS, 80), shards=dict.fromkeys(_FOLDS, 1)),
    Collection(
        dataset="demo-mixtures",
        clips={"train": 420, "valid": 100, "test": 180},
        shards={"train": 2, "valid": 1, "test": 1},
    ),
)
"""What `featstore demo` makes. Numbers of instrument and scene clips are multiples of their classes."""
