"""The cost of a billion clips: ten million synthetic commit records, planned by the code that plans real ones.

Commit records are created, serialised to a split's document, parsed, and planned like those of a real store. One part is
written and one store opened, to count objects and requests. Larger figures are extrapolated from these constants.
"""

from __future__ import annotations

import gc
import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_child
from benchmarks.peer.grid import Grid
from benchmarks.run import Options, main
from benchmarks.scale import OwnMemory
from benchmarks.table import figure
from featstore.records import Recipe
from featstore.store import FORMAT_VERSION, Commit, Member, ShardIdentity, WindowBlock, open_split_writer
from featstore.store.documents import SplitAddress
from featstore.store.filesystem import LocalObjects
from featstore.store.format import counted_segments, seal, unseal

CLIPS_PER_SHARD = 1_000
SECONDS_PER_CLIP = 10.0
DIM = 768
KEYS_PER_LISTING = 1_000
"""Number of keys that S3 and similar object stores return per request."""

PLANNED_COMMITS, COMMITS_PER_SPLIT = 10_000_000, 1_000_000
DOCUMENT_COMMITS = (1_000, 10_000, 100_000)
SPEEDS = (100, 1_000, 3_000, 10_000)
CLIPS = (10**6, 10**7, 10**8, 10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What was measured, for each commit or each part."""

    document_bytes: float
    write_seconds: float
    read_seconds: float
    read_bytes: float
    plan_seconds: float
    plan_bytes: float
    objects: float
    part_bytes: float
    puts: float
    gets_to_open: float


def tables(options: Options) -> Iterator[Grid]:
    sizes = tuple(n // 100 for n in DOCUMENT_COMMITS) if options.quick else DOCUMENT_COMMITS
    documents = {n: in_child(measure_document, n_commits=n) for n in sizes}
    yield Grid(
        title="The document of a split",
        measures="Commit records are serialised into a sealed document, and parsed back into records and the rows that "
        "count. Memory is the peak of anonymous memory (not backed by files).",
        header=("commits", "document, MB", "write, s", "read, s", "memory to read, MB", "bytes each"),
        rows=tuple(
            (
                f"{n:,}",
                figure(each["bytes"] / 1e6),
                figure(each["write"]),
                figure(each["read"]),
                figure(each["own"] / 1e6),
                figure(each["bytes"] / n),
            )
            for n, each in documents.items()
        ),
    )
    n_planned, per_split = (20_000, 5_000) if options.quick else (options.simulated_commits, COMMITS_PER_SPLIT)
    planned = in_child(measure_planning, n_commits=n_planned, per_split=per_split)
    yield Grid(
        title=f"{n_planned:,} commit records planned",
        measures=f"Measured in splits of at most {per_split:,} records, one after another: planning selects the part that "
        "counts for each shard, with one shard in a hundred extracted twice, and computes the totals of each split. "
        "Creating the records is timed separately.",
        header=("", "splits", "plan, s", "create, s", "us each", "memory, MB", "bytes each", "clips"),
        rows=(
            (
                "planned",
                str(planned["splits"]),
                figure(planned["plan"]),
                figure(planned["make"]),
                figure(planned["plan"] / n_planned * 1e6),
                figure(planned["own"] / 1e6),
                figure(planned["own"] / min(n_planned, per_split)),
                f"{planned['clips']:,}",
            ),
        ),
    )
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        real = in_child(count_requests, folder=folder)
    n, largest = max(documents), documents[max(documents)]
    constants = Constants(
        document_bytes=largest["bytes"] / n,
        write_seconds=largest["write"] / n,
        read_seconds=largest["read"] / n,
        read_bytes=largest["own"] / n,
        plan_seconds=planned["plan"] / n_planned,
        plan_bytes=planned["own"] / min(n_planned, per_split),
        objects=real["objects"],
        part_bytes=real["bytes"],
        puts=real["puts"],
        gets_to_open=real["gets to open"],
    )
    yield _store_grid(constants)
    yield _catalogue_grid(constants)
    yield _index_grid()
    yield Grid(
        title="Hours of extraction",
        measures=f"Clips of {SECONDS_PER_CLIP:g} s, by the speed at which a machine encodes, as a multiple of real time: "
        "extrapolated. Machines divide the shards, so n machines take 1/n of the time.",
        header=("clips", *(f"{speed:,} x" for speed in SPEEDS)),
        rows=tuple(
            (f"{clips:,}", *(figure(clips * SECONDS_PER_CLIP / speed / 3600) for speed in SPEEDS)) for clips in CLIPS
        ),
    )


def _store_grid(constants: Constants) -> Grid:
    return Grid(
        title="The store",
        measures=f"{CLIPS_PER_SHARD:,} clips per shard, utterance vectors of dimension {DIM} and no frames. One written part "
        f"is measured: {constants.objects:.0f} objects, {constants.part_bytes / 1e6:.2f} MB, {constants.puts:.0f} write "
        "requests. Frames add about one object for each 64 MB. The other figures are extrapolated.",
        header=("clips", "parts", "objects", "GB", "requests to write"),
        rows=tuple(
            (
                f"{clips:,}",
                f"{(parts := clips // CLIPS_PER_SHARD):,}",
                f"{parts * constants.objects:,.0f}",
                figure(parts * constants.part_bytes / 1e9),
                f"{parts * constants.puts:,.0f}",
            )
            for clips in CLIPS
        ),
    )


def _catalogue_grid(constants: Constants) -> Grid:
    return Grid(
        title="Opening it as one split",
        measures=f"Opening takes a listing request for each {KEYS_PER_LISTING:,} names, which are the parts and the split's "
        f"own document, and {constants.gets_to_open:.0f} request for documents. Time and memory are extrapolated from the "
        "largest document above. Without a catalogue, every part's own document takes one more request.",
        header=("clips", "listings", "catalogue, MB", "read, s", "memory, MB", "without catalogue, requests"),
        rows=tuple(
            (
                f"{clips:,}",
                f"{(parts := clips // CLIPS_PER_SHARD) // KEYS_PER_LISTING + 1:,}",
                figure(parts * constants.document_bytes / 1e6),
                figure(parts * constants.read_seconds),
                figure(parts * constants.read_bytes / 1e6),
                f"{parts:,}",
            )
            for clips in CLIPS
        ),
    )


def _index_grid() -> Grid:
    from featstore.retrieve.index_plan import plan_ivf

    plans = [(clips, plan_ivf(clips, DIM, "ivf"), plan_ivf(clips, DIM, "ivfpq")) for clips in CLIPS]
    return Grid(
        title="Size of a saved index",
        measures=f"As planned for vectors of dimension {DIM}. Sizes are on disk: lists are memory-mapped, and a search loads "
        "only the lists that it reads. A query is compared with all rows of each list that it searches.",
        header=("clips", "lists", "rows a list", "ivf, GB", "ivfpq, GB", "blocks", "sample, GB"),
        rows=tuple(
            (
                f"{clips:,}",
                f"{ivfpq.n_lists:,}",
                f"{clips // ivfpq.n_lists:,}",
                figure(ivf.index_bytes / 1e9),
                figure(ivfpq.index_bytes / 1e9),
                f"{ivfpq.n_blocks:,}",
                figure(4 * ivfpq.dim * ivfpq.sample_rows / 1e9),
            )
            for clips, ivf, ivfpq in plans
        ),
    )


# --- synthetic commit records


def address() -> SplitAddress:
    recipe = Recipe(
        encoder="encoder",
        encoder_identity={
            "class": "package.module:Encoder",
            "source_sha256": hashlib.sha256(b"source").hexdigest(),
            "state_sha256": hashlib.sha256(b"state").hexdigest(),
            "arguments": {},
        },
        sample_rate_hz=16_000,
        dim=DIM,
        hop_seconds=0.04,
        padding="0.25",
        precision="float32",
        frame_dtype="float16",
        resampler="soxr 1.1.0 HQ",
        format_version=FORMAT_VERSION,
    )
    return SplitAddress(recipe=recipe, spec="encoder", dataset="clips", crop_seconds=None, split="train")


def commits(first: int, until: int) -> Iterator[Commit]:
    """Records of shards [first, until), as an extraction writes them; every hundredth shard a second time."""
    fingerprint = address().recipe.fingerprint
    for number in range(first, until):
        yield _commit(number, fingerprint=fingerprint, times=0)
        if number % 100 == 0:
            yield _commit(number, fingerprint=fingerprint, times=1)


def _commit(number: int, *, fingerprint: str, times: int) -> Commit:
    name, digest = f"wds-audio-train-{number:09d}", hashlib.sha256(f"{number} {times}".encode()).hexdigest()
    shard = ShardIdentity(name=f"{name}.tar", size=320_000_000 + number, etag=digest[:32], sha256=digest)
    member = Member(
        shard=shard,
        clips=CLIPS_PER_SHARD,
        windows=CLIPS_PER_SHARD,
        frames=0,
        audio_seconds=CLIPS_PER_SHARD * SECONDS_PER_CLIP + number / 1e6,
        skipped=(),
    )
    return Commit(
        part=f"{name}.{digest[:8]}",
        members=(member,),
        frames_stored=False,
        recipe_fingerprint=fingerprint,
        crop_seconds=None,
        committed_at=f"2026-01-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.{times:06d}+00:00",
        seconds=1.0 + number / 1e6,
        versions=VERSIONS,
        objects={},
    )


VERSIONS = {"featstore": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0", "zarr": "3.1.6", "soundfile": "0.14.0"}


# --- what runs in children


def measure_document(*, n_commits: int) -> dict[str, float]:
    where, records = address(), list(commits(0, n_commits))[:n_commits]
    began = time.perf_counter()
    document = seal(where.split_document(records))
    write = time.perf_counter() - began
    del records
    gc.collect()
    with OwnMemory() as own:
        began = time.perf_counter()
        content = unseal(document) or {}
        segments = counted_segments(Commit.from_json(raw) for raw in content["catalogue"])
        SplitAddress.from_document(content, path=where.path)
        windows = sum(segment.member.windows for segment in segments)
        read = time.perf_counter() - began
    if windows != len(segments) * CLIPS_PER_SHARD:
        raise ValueError(f"{len(segments)} shards hold {windows} windows")
    return {"bytes": len(document), "write": write, "read": read, "own": own.bytes}


def measure_planning(*, n_commits: int, per_split: int) -> dict[str, float]:
    make, plan, clips, splits = 0.0, 0.0, 0, 0
    with OwnMemory() as own:
        for first in range(0, n_commits, per_split):
            until = min(first + per_split, n_commits)
            began = time.perf_counter()
            records = list(commits(first, until))
            made = time.perf_counter()
            members = [segment.member for segment in counted_segments(records)]
            windows = sum(member.windows for member in members)
            plan += time.perf_counter() - made
            make += made - began
            if windows != (until - first) * CLIPS_PER_SHARD:
                raise ValueError(f"{until - first} shards hold {windows} windows")
            clips, splits = clips + sum(member.clips for member in members), splits + 1
    return {"make": make, "plan": plan, "own": own.bytes, "clips": clips, "splits": splits}


class CountedObjects(LocalObjects):
    """A folder that counts what would be requests."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.counts = {"put": 0, "get": 0, "list": 0}

    def read(self, key: str) -> bytes | None:
        self.counts["get"] += 1
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        self.counts["put"] += 1
        super().write(key, data)

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        self.counts["put"] += 1
        super().put(key, buffers)

    def children(self, prefix: str) -> tuple[str, ...]:
        self.counts["list"] += 1
        return super().children(prefix)


def count_requests(*, folder: str) -> dict[str, float]:
    """Write a part of a usual size, and open the store that it is in."""
    from featstore.store import Store
    from featstore.store.part_writer import PartWriter

    url, where = str(Path(folder) / "s.zarr"), address()
    writer = open_split_writer(
        url, recipe=where.recipe, spec="encoder", dataset="clips", crop_seconds=None, split="train"
    )
    objects, n = CountedObjects(Path(url)), CLIPS_PER_SHARD
    record = next(commits(0, 1))
    meta = '{"label": "speech", "title": "a clip of ten seconds", "license": "CC-BY-4.0"}'
    path = f"{writer.path}/{record.part}"
    with PartWriter(
        objects, path, recipe=where.recipe, crop_seconds=None, generation=0, on_commit=lambda _: None
    ) as part:
        part.add_block(
            WindowBlock(
                keys=[f"clip-{number:010d}" for number in range(n)],
                metas=[meta] * n,
                start_seconds=np.zeros(n),
                seconds=np.full(n, SECONDS_PER_CLIP),
                utterance=np.random.default_rng(0).standard_normal((n, DIM), dtype=np.float32),
                frames=None,
                frame_counts=None,
            )
        )
        part.commit(record.members, frames_stored=False, versions=VERSIONS)
    puts, sizes = objects.counts["put"], objects.sizes(path)
    writer.write_catalogue()
    opened = CountedObjects(Path(url))
    Store(opened).feature_sets()
    return {
        "puts": puts,
        "objects": len(sizes),
        "bytes": sum(sizes.values()),
        "gets to open": opened.counts["get"],
        "lists to open": opened.counts["list"],
    }


if __name__ == "__main__":
    main(only="simulate")
