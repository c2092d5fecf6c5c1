"""Extraction beside its own floor: what its three stages take on their own, at their best overlap on the cores.

Reading tars (tarfile), decoding (soundfile, soxr, channels averaged) and the encoder's forward pass are each timed
alone, once over all shards, on inputs that are ready in memory, by the libraries and nothing around them. Tars are
read, and batches encoded, one after another; clips are decoded in as many threads as there are cores. So a pipeline
takes no less than

    floor = max(read, forward, (read + decode + forward on one thread) / cores)

where ``forward`` alone is the better of one thread and of torch's own number. Checks, batching, padding, pooling,
hashing, writing and every fsync count against extraction, and are not in its floor.

The floor decodes with libsndfile, whatever extraction uses: dr_flac (miniaudio) for FLAC, if it is installed, with the
same samples. CONTRIBUTING.md lists what else was tried.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_child, timed
from benchmarks.machine import cores
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most_times

SHARDS = 4
CLIP_SECONDS = (1.0, 10.0)
PADDING = "0.25"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Clips of noise and tones, as FLAC of 16 bits."""

    name: str
    title: str
    n_clips: int
    sample_rate_hz: int
    channels: int
    encoders: tuple[str, ...]


DATA_SETS = (
    DataSet(
        name="mono16",
        title="16 kHz mono",
        n_clips=2400,
        sample_rate_hz=16_000,
        channels=1,
        encoders=("logmel", "mfcc"),
    ),
    DataSet(
        name="stereo44",
        title="44.1 kHz stereo, resampled",
        n_clips=1200,
        sample_rate_hz=44_100,
        channels=2,
        encoders=("logmel",),
    ),
)
TARGETS = {("mono16", "logmel"): (at_most_times(1.3),), ("stereo44", "logmel"): (at_most_times(1.3),)}


def tables(options: Options) -> Iterator[Table]:
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        for data_set in DATA_SETS:
            n_clips = data_set.n_clips // 10 if options.quick else data_set.n_clips
            audio_seconds = in_child(make_shards, folder=folder, data_set={**asdict(data_set), "n_clips": n_clips})
            for encoder in data_set.encoders:
                measured = in_child(measure, folder=folder, dataset=data_set.name, encoder=encoder)
                yield _table(data_set, encoder, measured, n_clips=n_clips, audio_seconds=audio_seconds)


def _table(data_set: DataSet, encoder: str, measured: dict[str, float], *, n_clips: int, audio_seconds: float) -> Table:
    whole = measured["extract_task"]
    targets = TARGETS.get((data_set.name, encoder), ())
    return Table(
        title=f"Extraction with {encoder}, {data_set.title}",
        measures=f"{n_clips} FLAC clips of {CLIP_SECONDS[0]:g} to {CLIP_SECONDS[1]:g} s, {audio_seconds / 60:.0f} min, "
        f"in {SHARDS} shards: each stage alone, and the best of three runs into an empty store, at "
        f"{n_clips / whole:,.0f} clips/s or {audio_seconds / whole:,.0f} x real time. CPU time does not "
        "depend on the load of the machine.",
        unit="s",
        baseline="floor",
        rows=tuple(Row(what, seconds, targets if what == "extract_task" else ()) for what, seconds in measured.items()),
    )


# --- what runs in children


def make_shards(*, folder: str, data_set: dict[str, Any]) -> float:
    """Write the shards of a data set; returns its seconds of audio."""
    from featstore.extract.audio import encode_flac
    from featstore.extract.tar_reader import write_shard

    made = DataSet(**data_set)
    rng = np.random.default_rng(0)
    lengths = rng.uniform(*CLIP_SECONDS, made.n_clips)

    def samples(clips: Sequence[int]) -> Iterator[dict[str, bytes | str]]:
        for i in clips:
            wave = _wave(rng, lengths[i], made)
            yield {
                "__key__": f"clip-{i:05d}",
                "flac": encode_flac(wave, made.sample_rate_hz),
                "json": b'{"label": "%s"}' % (b"ab"[i % 2 : i % 2 + 1]),
            }

    for shard in range(SHARDS):
        write_shard(Path(folder) / made.name / f"shard-{shard:06d}.tar", samples(range(shard, made.n_clips, SHARDS)))
    return float(lengths.sum())


def _wave(rng: np.random.Generator, seconds: float, made: DataSet) -> np.ndarray:
    """Tones that fade, in noise: FLAC packs it to about half, as it does speech and music."""
    n = round(seconds * made.sample_rate_hz)
    at = np.arange(n, dtype=np.float32) / made.sample_rate_hz
    wave = 0.003 * rng.standard_normal((n, made.channels), dtype=np.float32)
    for hz in rng.uniform(100, 3000, 3):
        tone = 0.1 * np.sin(2 * np.pi * np.float32(hz) * at) * np.exp(-at)
        wave += tone[:, None]
    return wave[:, 0] if made.channels == 1 else wave


def measure(*, folder: str, dataset: str, encoder: str) -> dict[str, float]:
    """Seconds of each stage alone, of the floor they make, and of the whole."""
    from featstore.encoders import load_encoder
    from featstore.extract import flac

    loaded = load_encoder(encoder)
    rate = loaded.facts.sample_rate_hz
    shards = sorted((Path(folder) / dataset).glob("*.tar"))
    read = timed(lambda: [_read(shard) for shard in shards], repeats=3).best
    stored = [_read(shard) for shard in shards]
    decoding = timed(lambda: [_decode(data, rate) for shard in stored for data in shard], repeats=3).best
    batches = _batches([[_decode(data, rate) for data in shard] for shard in stored], sample_rate_hz=rate)
    one, own = _forward_seconds(loaded.module, batches)
    vectors, vectors_cpu = _extract_seconds(Path(folder), dataset, loaded, frames="never")
    frames, _ = _extract_seconds(Path(folder), dataset, loaded, frames="always")
    flac._reader = lambda: None  # as if miniaudio was not installed
    without, without_cpu = _extract_seconds(Path(folder), dataset, loaded, frames="never")
    return {
        "read alone": read,
        "decode alone, one thread": decoding,
        "forward alone, one thread": one,
        "forward alone, torch's threads": own,
        "floor": max(read, min(one, own), (read + decoding + one) / cores()),
        "extract_task": vectors,
        "extract_task, its CPU time / cores": vectors_cpu / cores(),
        "extract_task, frames stored": frames,
        "extract_task, without miniaudio": without,
        "extract_task, without miniaudio, its CPU time / cores": without_cpu / cores(),
    }


def _read(shard: Path) -> list[bytes]:
    """The audio of a tar; the other members are read too."""
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return [data for name, data in members if name.endswith(".flac")]


def _decode(data: bytes, sample_rate_hz: int) -> np.ndarray:
    import soundfile
    import soxr

    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = wave[:, 0] if wave.shape[1] == 1 else (wave[:, 0] + wave[:, 1]) / 2
    return mono if rate == sample_rate_hz else soxr.resample(mono, rate, sample_rate_hz, quality="HQ")


def _forward_seconds(module: Any, batches: list[Any]) -> tuple[float, float]:
    """On one thread, and on torch's default number."""
    import torch

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                module(batch)

    threads = torch.get_num_threads()
    own = timed(forward, repeats=3).best
    torch.set_num_threads(1)
    one = timed(forward, repeats=3).best
    torch.set_num_threads(threads)
    return one, own


def _batches(clips_by_shard: list[list[np.ndarray]], *, sample_rate_hz: int) -> list[Any]:
    """Batches as extraction makes them: of one padded length and one shard, up to 64 s of audio."""
    import torch

    from featstore.extract.windows import Padding, plan_windows

    made = []
    for clips in clips_by_shard:
        by_length: dict[int, list[np.ndarray]] = {}
        for clip in clips:
            (window,) = plan_windows(
                len(clip), crop_seconds=None, padding=Padding.parse(PADDING), sample_rate_hz=sample_rate_hz
            )
            by_length.setdefault(window.padded, []).append(np.pad(clip, (0, window.padded - len(clip))))
        for length, rows in by_length.items():
            most = max(1, 64 * sample_rate_hz // length)
            made += [torch.from_numpy(np.stack(rows[at : at + most])) for at in range(0, len(rows), most)]
    return made


def _extract_seconds(folder: Path, dataset: str, encoder: Any, *, frames: Any) -> tuple[float, float]:
    """Wall and CPU time, the least of each."""
    from featstore.extract import ExtractOptions, extract_task
    from featstore.tasks import Manifest

    manifest = Manifest.model_validate(
        {
            "name": "bench",
            "title": "Benchmark",
            "kind": "clip",
            "metric": "accuracy",
            "eval_weight": 1.0,
            "data": {"dataset": dataset},
            "splits": dict.fromkeys(("train", "valid", "test"), "shard-*.tar"),
            "label": {"field": "label"},
        }
    )
    store = folder / "store.zarr"
    options = ExtractOptions(device="cpu", padding=PADDING, frames=frames)
    cpu: list[float] = []

    def extract() -> None:
        began = time.process_time()
        extract_task(manifest, encoder, data_dir=folder, store_url=str(store), options=options, splits=("train",))
        cpu.append(time.process_time() - began)

    wall = timed(extract, repeats=3, budget_seconds=30.0, before=lambda: shutil.rmtree(store, ignore_errors=True))
    return wall.best, min(cpu)


if __name__ == "__main__":
    main(only="extract")
