"""The demo data set: clips with labels, written as shards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.demo.mixtures import mix
from featstore.demo.music import INSTRUMENTS, play
from featstore.demo.scenes import SCENES, record_scene
from featstore.demo.sounds import SAMPLE_RATE_HZ, generator
from featstore.errors import UsageError
from featstore.extract.audio import encode_flac
from featstore.extract.tar_reader import write_shard
from featstore.files import write_whole
from featstore.records import canonical_json

__all__ = [
    "COLLECTIONS",
    "SYNTHESIS_VERSION",
    "Collection",
    "MadeShards",
    "Sample",
    "ShardPlan",
    "make_shards",
    "plan_shards",
    "synthesise",
]


SYNTHESIS_VERSION = 1
"""Increased with every change of the audio, so that shards of an older demo are synthesised again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One clip: float32 ``(samples,)`` within -1 to 1, and its JSON."""

    key: str
    waveform: NDArray[np.float32]
    sample_rate_hz: int
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """A dataset to synthesise.

    Attributes
    ----------
    dataset : str
        One of the datasets of the demo.
    clips : mapping
        Split or fold -> number of clips.
    shards : mapping
        Split or fold -> number of shards.
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
    """Synthesise one clip, a function of its dataset, split and index only.

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


def _balanced(names: tuple[str, ...], split: str, index: int) -> str:
    """Class of a clip: each block of `len(names)` clips has every class once, in random order."""
    block, place = divmod(index, len(names))
    return names[int(generator(len(names), *split.encode(), block).permutation(len(names))[place])]


_MAKERS: Mapping[str, Callable[[str, int, tuple[int, ...]], tuple[NDArray[np.float32], dict[str, Any]]]] = {
    "demo-instruments": lambda split, index, seed: play(_balanced(tuple(INSTRUMENTS), split, index), *seed),
    "demo-scenes": lambda split, index, seed: record_scene(_balanced(tuple(SCENES), split, index), *seed),
    "demo-mixtures": lambda _split, _index, seed: mix(*seed),
}
"""Dataset -> function of split, index and seed that makes a clip and its labels."""

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
"""The datasets of `featstore demo`. Numbers of instrument and scene clips are multiples of their classes."""


MARKER_NAME = "synthesis.json"
MAX_THREADS = 8  # more threads contend: a clip is many short steps of numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard to write: clips ``first`` to ``last`` (exclusive) of a split, in the file ``name``."""

    dataset: str
    split: str
    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShards:
    """The result of `make_shards`. Sizes and seconds of audio are of the new shards, not of the reused ones."""

    made: int
    reused: int
    clips: int
    audio_seconds: float
    bytes_written: int


def plan_shards(collection: Collection) -> tuple[ShardPlan, ...]:
    """Distribute the clips of a collection evenly over its shards.

    >>> from featstore.demo.shards import Collection
    >>> tiny = Collection(dataset="demo-scenes", clips={"fold1": 5}, shards={"fold1": 2})
    >>> [(plan.name, plan.first, plan.last) for plan in plan_shards(tiny)]
    [('fold1-000000.tar', 0, 2), ('fold1-000001.tar', 2, 5)]
    """
    return tuple(
        ShardPlan(
            dataset=collection.dataset,
            split=split,
            name=f"{split}-{number:06d}.tar",
            first=number * n_clips // collection.shards[split],
            last=(number + 1) * n_clips // collection.shards[split],
        )
        for split, n_clips in collection.clips.items()
        for number in range(collection.shards[split])
    )


def make_shards(data_dir: str | os.PathLike[str], *, collections: Sequence[Collection] = COLLECTIONS) -> MadeShards:
    """Write the shards of `collections` under ``data_dir/<dataset>/``, except those that exist.

    A shard is renamed into place when it is complete. A marker beside the shards records the version of the synthesis
    and the collection; if it differs, all shards are written again.
    """
    data_dir = Path(data_dir)
    plans = [plan for collection in collections for plan in plan_shards(collection)]
    for collection in collections:
        _forget_other_synthesis(data_dir / collection.dataset, collection)
    missing = [plan for plan in plans if not (data_dir / plan.dataset / plan.name).exists()]
    missing.sort(key=lambda plan: plan.first - plan.last)  # the longest first, so that threads finish together
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        audio_seconds = sum(pool.map(lambda plan: _make_shard(data_dir / plan.dataset / plan.name, plan), missing))
    return MadeShards(
        made=len(missing),
        reused=len(plans) - len(missing),
        clips=sum(plan.last - plan.first for plan in missing),
        audio_seconds=audio_seconds,
        bytes_written=sum((data_dir / plan.dataset / plan.name).stat().st_size for plan in missing),
    )


def _forget_other_synthesis(folder: Path, collection: Collection) -> None:
    """Remove shards of another synthesis, then write the marker: in this order a kill is harmless."""
    marker = folder / MARKER_NAME
    made_by = canonical_json(
        {"synthesis_version": SYNTHESIS_VERSION, "clips": dict(collection.clips), "shards": dict(collection.shards)}
    )
    if marker.exists() and marker.read_text(encoding="utf-8") == made_by:
        return
    folder.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"(?:{'|'.join(map(re.escape, collection.clips))})-\d{{6}}\.tar")
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()
    write_whole(marker, made_by)


def _make_shard(path: Path, plan: ShardPlan) -> float:
    audio_seconds = 0.0

    def samples() -> Iterator[dict[str, bytes | str]]:
        nonlocal audio_seconds
        for index in range(plan.first, plan.last):
            sample = synthesise(plan.dataset, plan.split, index)
            audio_seconds += len(sample.waveform) / sample.sample_rate_hz
            yield {
                "__key__": sample.key,
                "flac": encode_flac(sample.waveform, sample.sample_rate_hz),
                "json": canonical_json(sample.meta).encode(),
            }

    write_shard(path, samples())
    return audio_seconds
