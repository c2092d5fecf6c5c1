"""The demo's clips as WebDataset shards on disk: planned purely, made in threads, used again where they are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featstore.demo.synth import COLLECTIONS, SYNTHESIS_VERSION, Collection, synthesise
from featstore.extract.audio import encode_flac
from featstore.extract.tars import write_shard
from featstore.files import write_whole
from featstore.records import canonical_json

__all__ = ["MadeShards", "ShardPlan", "make_shards", "plan_shards"]

MARKER_NAME = "synthesis.json"
MAX_THREADS = 8  # more of them wait for one another: a clip is many short steps of numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard to be: clips ``first`` to ``last`` (excluded) of a split, in the file ``name``."""

    dataset: str
    split: str
    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShards:
    """What `make_shards` did. Sizes and seconds of audio are those of the shards it made, not of those it found."""

    made: int
    reused: int
    clips: int
    audio_seconds: float
    bytes_written: int


def plan_shards(collection: Collection) -> tuple[ShardPlan, ...]:
    """Spread a collection's clips over its shards, every clip once and evenly.

    >>> from featstore.demo.synth import Collection
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


def make_shards(data_dir: Path, *, collections: Sequence[Collection] = COLLECTIONS) -> MadeShards:
    """Make the shards of `collections` under ``data_dir/<dataset>/``, but for those that are there.

    A shard appears in one step, so one that exists is whole. Beside the shards lies a marker of the synthesis and of
    the collection that made them; where it says something else than would be made now, they are all made again.
    """
    plans = [plan for collection in collections for plan in plan_shards(collection)]
    for collection in collections:
        _forget_other_synthesis(data_dir / collection.dataset, collection)
    missing = [plan for plan in plans if not (data_dir / plan.dataset / plan.name).exists()]
    missing.sort(key=lambda plan: plan.first - plan.last)  # the longest first, so that the threads end together
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
    """Remove shards of another synthesis, then say which one makes them now: in this order a kill does no harm."""
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
