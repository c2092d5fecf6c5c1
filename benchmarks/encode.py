"""Extraction with an encoder that takes its time: beside its bare forward passes, and beside X-ARES's encode stage.

The encoder is a transformer of wav2vec2-base's size with random weights; on CUDA one of wav2vec2-large's as well.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.harness import PeakMemory, clip_manifest, in_child
from benchmarks.peer.environment import NoPeerError, make_environment, run_xares
from benchmarks.peer.grid import Grid
from benchmarks.peer.shards import write_encoder
from benchmarks.peer.transformer import Size, write_transformer
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_least, at_most_times, figure

RATE_HZ = 16_000
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Shards of FLAC clips of noise and tones, of lengths that are drawn between two bounds."""

    name: str
    n_clips: int
    seconds: tuple[float, float]
    clips_per_shard: int = 32

    def summary(self) -> str:
        low, high = self.seconds
        return (
            f"{self.n_clips:,} clips of {low:g} s"
            if low == high
            else f"{self.n_clips:,} clips of {low:g} to {high:g} s"
        )


def tables(options: Options) -> Iterator[Table | Grid]:
    few = 32 if options.quick else 64
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as name:
        folder = Path(name)
        yield from _beside_forward(folder, n_clips=few, quick=options.quick)
        yield _beside_xares(folder, n_clips=few, n_light=160 if options.quick else 1280)
        for clips_per_shard in (500, 32):
            numbers = (200, 1000) if options.quick else (1000, 10_000, 50_000)
            yield from _memory(folder, clips_per_shard=clips_per_shard, numbers=numbers)


# --- beside the bare forward passes


def _beside_forward(folder: Path, *, n_clips: int, quick: bool) -> Iterator[Table]:
    cuda = in_child(has_cuda)
    if not cuda:
        print("no CUDA device: the rows of a GPU are not measured", file=sys.stderr)
    cases: list[tuple[str, Size, Precision, int]] = [("cpu", "base", "float32", n_clips)]
    if cuda:
        cases += [("cuda", "base", "bfloat16", 100 * n_clips), ("cuda", "large", "bfloat16", 50 * n_clips)]
    for device, size, precision, clips in cases:
        data = DataSet(name=f"variable{clips}", n_clips=clips, seconds=(1.0, 10.0))
        in_child(make_shards, folder=str(folder), data=asdict(data))
        encoder = write_transformer(folder, size=size)
        measured = in_child(
            measure_forward, folder=str(folder), dataset=data.name, encoder=str(encoder), device=device,
            precision=precision, repeats=1 if quick else 2,
        )  # fmt: skip
        what, share, batches = measured.pop("device"), measured.pop("busy"), measured.pop("batches")
        after = ", after one that found the size of batches," if device == "cuda" else ""
        yield Table(
            title=f"Extraction with a transformer of wav2vec2-{size}'s size, {device}",
            measures=f"{data.summary()}, {precision}, on {what}: the best of {1 if quick else 2} runs into an empty store{after or ','} beside the forward passes "
            f"alone of the same batches, which are ready in memory ({batches}). The device was busy for {share:.1%} of the run.",
            unit="s",
            baseline="bare forward passes",
            rows=(
                Row("bare forward passes", measured["forward"]),
                Row("extract_task", measured["extract"], (at_most_times(1.05),)),
                Row("extract_task, frames stored", measured["extract_frames"]),
            ),
        )
        if device == "cuda":
            yield Table(
                title=f"The device's busy share, wav2vec2-{size}'s size",
                measures="Of the wall time of the run above, by CUDA events around every batch.",
                unit="share",
                baseline="extract_task",
                rows=(Row("extract_task", share, (at_least(0.95),)),),
            )


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def measure_forward(
    *, folder: str, dataset: str, encoder: str, device: str, precision: str, repeats: int
) -> dict[str, Any]:
    import torch

    from featstore.encoders import load_encoder

    loaded = load_encoder(encoder)
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"device": device, "precision": precision}
    for frames in ("never", "always"):
        seconds, records = [], []
        for _ in range(repeats + (device == "cuda")):  # the first on a GPU finds the size of batches for the others
            began = time.perf_counter()
            records.append(_extract(folder, dataset, loaded, frames=frames, **settings))
            seconds.append(time.perf_counter() - began)
            settings["batch_seconds"] = found["batch_seconds"] = records[-1].settings["batch_seconds"]
        found["extract" if frames == "never" else "extract_frames"] = min(seconds)
        if frames == "never":
            best = records[int(np.argmin(seconds))]
            found["busy"] = best.seconds["busy"] / best.seconds["total"]
            found["audio_seconds"] = best.audio_seconds
    batches = _recorded_batches(folder, dataset, loaded, **settings)
    module = loaded.module.to(device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    ready = [torch.from_numpy(audio).to(device) for audio, _ in batches]

    def forward() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device, dtype=dtype, enabled=precision != "float32"):
            for audio in ready:
                module(audio)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    found["forward"] = min(forward() for _ in range(repeats + (device == "cuda")))
    found["device"] = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    padded = sum(audio.size for audio, _ in batches)
    real = sum(int(n_samples.sum()) for _, n_samples in batches)
    found["batches"] = (
        f"{len(batches)} batches of {padded / len(batches) / RATE_HZ:.0f} s, {1 - real / padded:.1%} of it padding"
    )
    return found


def _recorded_batches(folder: str, dataset: str, encoder: Any, **settings: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of an extraction, taken down as its own encoder run begins them."""
    from featstore.encoders.runner import EncoderRun

    taken: list[tuple[np.ndarray, np.ndarray]] = []
    begin = EncoderRun.begin

    def note(run: Any, audio: np.ndarray, n_samples: np.ndarray) -> Any:
        taken.append((audio.copy(), n_samples.copy()))
        return begin(run, audio, n_samples)

    EncoderRun.begin = note
    try:
        _extract(folder, dataset, encoder, frames="never", **settings)
    finally:
        EncoderRun.begin = begin
    return taken


def _extract(
    folder: str,
    dataset: str,
    encoder: Any,
    *,
    frames: Any,
    device: str,
    precision: str,
    progress: Any = None,
    **options: Any,
) -> Any:
    from featstore.extract import ExtractOptions, extract_task

    store = Path(folder) / "store.zarr"
    shutil.rmtree(store, ignore_errors=True)
    (record,) = extract_task(
        _manifest(dataset),
        encoder,
        data_dir=Path(folder) / "data",
        store_url=str(store),
        options=ExtractOptions(device=device, precision=precision, frames=frames, **options),
        splits=("test",),
        progress=progress,
    )
    return record


def _manifest(dataset: str) -> Any:
    return clip_manifest(dataset, splits=dict.fromkeys(("train", "valid", "test"), "wds-audio-fold-1-*.tar"))


# --- beside X-ARES


def _beside_xares(folder: Path, *, n_clips: int, n_light: int) -> Grid:
    heavy, light = write_transformer(folder), write_encoder(folder)
    try:
        make_environment()
        reason = "X-ARES 0.1.3"
    except NoPeerError as problem:
        reason = str(problem).splitlines()[0]
    rows: list[tuple[str, ...]] = []
    for title, encoder, kind, clips in (
        ("transformer", heavy, "LookalikeEncoder", n_clips),
        ("two convolutions", light, "TangleEncoder", n_light),
    ):
        for lengths, seconds, faster, smaller in (
            ("variable", (1.0, 10.0), 2.5, 0.4),
            ("equal", (5.0, 5.0), 1.5, 0.52),
        ):
            data = DataSet(name=f"{lengths}{clips}", n_clips=clips, seconds=seconds)
            in_child(make_shards, folder=str(folder), data=asdict(data))
            ours = in_child(
                measure_ours, folder=str(folder), dataset=data.name, encoder=str(encoder), bfloat16=encoder == heavy
            )
            theirs = None
            if reason == "X-ARES 0.1.3":
                theirs = _xares_encodes(folder, data.name, encoder=encoder, kind=kind)
            rows += _xares_rows(f"{title}, {data.summary()}", ours, theirs, faster=faster, smaller=smaller)
    return Grid(
        title="Beside X-ARES's encode stage",
        measures=f"The same shards and encoder on the CPU, seconds and bytes written. X-ARES ({reason}): its own "
        "`make_encoded_tar`, two threads, batches of 16 padded to their longest. featstore: `extract_task` as it is by "
        "default, with frames or another precision where it says so. Bytes are of the embeddings with all that lies "
        "beside them.",
        header=("", "X-ARES", "featstore", "ratio", "target", ""),
        rows=tuple(rows),
    )


def _xares_rows(
    what: str, ours: dict[str, float], theirs: dict[str, float] | None, *, faster: float, smaller: float
) -> Iterator[tuple[str, ...]]:
    for name, unit, key, least, limit in (
        (what, "s", "seconds", True, faster),
        ("... with frames", "s", "frames_seconds", True, faster),
        ("... --precision bfloat16", "s", "bfloat16_seconds", True, faster),
        ("... bytes, with frames", "MB", "frames_megabytes", False, smaller),
        ("... bytes, vectors alone", "MB", "megabytes", False, 0.04),
    ):
        if key not in ours:
            continue
        mine = ours[key]
        peer = None if theirs is None else theirs["seconds" if unit == "s" else "megabytes"]
        ratio = None if peer is None else peer / mine if least else mine / peer
        verdict = "" if ratio is None else "met" if (ratio >= limit if least else ratio <= limit) else "missed"
        yield (
            name,
            "-" if peer is None else f"{figure(peer)} {unit}",
            f"{figure(mine)} {unit}",
            "-" if ratio is None else f"{figure(ratio)} x",
            f"at {'least' if least else 'most'} {limit:g} x",
            verdict,
        )


def _xares_encodes(folder: Path, dataset: str, *, encoder: Path, kind: str) -> dict[str, float]:
    root = folder / "data"
    shutil.rmtree(root / dataset / "embeddings", ignore_errors=True)
    task = {"name": dataset, "classes": ["a", "b"], "folds": [1], "epochs": 1, "learning_rate": 1e-3, "batch_size": 32}
    done = run_xares(
        "score",
        root=str(root),
        task=task,
        encoder={"file": str(encoder), "class": kind},
        stages=("encode",),
        seeds=(0,),
    )
    written = sum(path.stat().st_size for path in (root / dataset / "embeddings").rglob("*.tar"))
    return {"seconds": done["encode"][0]["seconds"], "megabytes": written / 1e6}


def measure_ours(*, folder: str, dataset: str, encoder: str, bfloat16: bool) -> dict[str, float]:
    """Seconds and megabytes of each variant. Imports are made before the clock runs, as X-ARES's are."""
    from featstore.encoders import load_encoder

    make_shards(folder=folder, data={"name": "first", "n_clips": 1, "seconds": (1.0, 1.0)})
    _extract(folder, "first", load_encoder("logmel"), device="cpu", precision="auto", frames="always")
    found: dict[str, float] = {}
    variants = [("", "never", "auto"), ("frames_", "always", "auto")]
    variants += [("bfloat16_", "never", "bfloat16")] if bfloat16 else []
    for prefix, frames, precision in variants:
        loaded = load_encoder(encoder)
        began = time.perf_counter()
        _extract(folder, dataset, loaded, device="cpu", precision=precision, frames=frames)
        found[f"{prefix}seconds"] = time.perf_counter() - began
        written = sum(path.stat().st_size for path in (Path(folder) / "store.zarr").rglob("*") if path.is_file())
        found[f"{prefix}megabytes"] = written / 1e6
    return found


# --- memory


def _memory(folder: Path, *, clips_per_shard: int, numbers: tuple[int, ...]) -> Iterator[Table]:
    found: dict[int, dict[str, float]] = {}
    for n_clips in numbers:
        data = DataSet(
            name=f"short{n_clips}by{clips_per_shard}",
            n_clips=n_clips,
            seconds=(0.2, 1.0),
            clips_per_shard=clips_per_shard,
        )
        in_child(make_shards, folder=str(folder), data=asdict(data))
        found[n_clips] = in_child(measure_memory, folder=str(folder), dataset=data.name)
    for which, title, measures in (
        ("peak", "Peak memory of extraction", "the most that became resident above what was before"),
        (
            "usual",
            "Memory of extraction at the ends of shards",
            "the median of what was resident above what was before",
        ),
    ):
        rows = [
            Row(f"{n_clips:,} clips", each[which], (at_most_times(1.2),) if n_clips > numbers[0] else ())
            for n_clips, each in found.items()
        ]
        yield Table(
            title=f"{title}, {clips_per_shard} clips in a shard",
            measures=f"logmel, clips of 0.2 to 1 s, frames stored: {measures}.",
            unit="MB",
            baseline=rows[0].what,
            rows=tuple(rows),
        )


def measure_memory(*, folder: str, dataset: str) -> dict[str, float]:
    """The most that became resident, and the median of what was whenever a shard was committed, in megabytes."""
    from featstore.encoders import load_encoder
    from featstore.extract import Silent

    class Sampling(Silent):
        def __init__(self) -> None:
            self.resident: list[int] = []

        def shard_done(self) -> None:
            self.resident.append(peak.resident_bytes())

    encoder, sampling = load_encoder("logmel"), Sampling()
    with PeakMemory() as peak:
        _extract(folder, dataset, encoder, device="cpu", precision="auto", frames="always", progress=sampling)
    return {"peak": peak.bytes / 1e6, "usual": float(np.median(sampling.resident)) / 1e6}


# --- shards


def make_shards(*, folder: str, data: dict[str, Any]) -> None:
    """Write ``data/NAME/wds-audio-fold-1-*.tar``: X-ARES encodes a fold by itself, and splits only all three."""
    from featstore.extract.audio import encode_flac
    from featstore.extract.tar_reader import write_shard

    made = DataSet(**{**data, "seconds": tuple(data["seconds"])})
    rng = np.random.default_rng(0)
    target = Path(folder) / "data" / made.name

    def samples(first: int, stop: int) -> Iterator[dict[str, bytes | str]]:
        for number in range(first, stop):
            wave = _wave(rng, float(rng.uniform(*made.seconds)))
            label = b"ab"[number % 2 : number % 2 + 1]
            yield {
                "__key__": f"clip-{number:06d}",
                "flac": encode_flac(wave, RATE_HZ),
                "json": b'{"label": "%s"}' % label,
            }

    for first in range(0, made.n_clips, made.clips_per_shard):
        stop = min(made.n_clips, first + made.clips_per_shard)
        write_shard(target / f"wds-audio-fold-1-{first // made.clips_per_shard:06d}.tar", samples(first, stop))


def _wave(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A tone that fades, in noise."""
    at = np.arange(round(seconds * RATE_HZ), dtype=np.float32) / RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * np.float32(rng.uniform(100, 3000)) * at) * np.exp(-at)
    return tone + 0.003 * rng.standard_normal(len(at), dtype=np.float32)


if __name__ == "__main__":
    main(only="encode")
