"""Shards, tasks and encoders made by hand: tarfile and soundfile, none of featstore's own writers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.runner import EncoderRun
from featstore.extract import ExtractOptions, extract_task
from featstore.records import ExtractRecord
from featstore.tasks import Manifest

RATE = 16_000
FORMATS = {"wav": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}
Member = tuple[str, bytes]

XARES_ENCODER = '''
import torch


class MyEncoder(torch.nn.Module):
    """As the challenge's template has it: strided convolution, no lengths."""

    def __init__(self, width: int = 12, seed: int = 0):
        super().__init__()
        self.sampling_rate = 16_000
        self.output_dim = width
        self.hop_size_in_ms = 20
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(width, 1, 400, generator=generator) / 20)

    def forward(self, audio):
        padded = torch.nn.functional.pad(audio[:, None, :], (40, 40))
        if padded.shape[-1] < 400:
            padded = torch.nn.functional.pad(padded, (0, 400 - padded.shape[-1]))
        return torch.conv1d(padded, self.weight, stride=320).tanh().transpose(1, 2)
'''


def noise(seconds: float, *, seed: int = 0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A tone in noise, float32 (samples,) or (samples, channels)."""
    return _noise(seconds, seed, rate, channels).copy()


@lru_cache(maxsize=512)
def _noise(seconds: float, seed: int, rate: int, channels: int) -> np.ndarray:
    n = round(seconds * rate)
    rng = np.random.default_rng(seed)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 60 * (seed % 20)) * np.arange(n) / rate)
    wave = wave[:, None] * (1 + np.arange(channels)) / channels + 0.05 * rng.standard_normal((n, channels))
    return np.clip(wave[:, 0] if channels == 1 else wave, -1, 1).astype(np.float32)


def audio_bytes(samples: np.ndarray, extension: str = "wav", *, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    form, subtype = FORMATS[extension]
    soundfile.write(out, samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def clip(
    key: str, samples: np.ndarray, *, label: object = "a", extension: str = "wav", rate: int = RATE
) -> list[Member]:
    return [
        (f"{key}.{extension}", audio_bytes(samples, extension, rate=rate)),
        (f"{key}.json", json.dumps({"label": label}).encode()),
    ]


def tar_bytes(members: Iterable[Member | tarfile.TarInfo], *, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def write_tar(path: Path, members: Iterable[Member | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def write_split(folder: Path, split: str, clips: Sequence[list[Member]], *, shards: int = 1) -> list[Path]:
    """Spread clips over the shards ``<split>-<number>.tar``."""
    return [
        write_tar(
            folder / f"{split}-{number:03d}.tar", [member for members in clips[number::shards] for member in members]
        )
        for number in range(shards)
    ]


def build(module: torch.nn.Module, *, name: str = "handmade") -> Encoder:
    """An encoder from a module that no file defines."""
    return Encoder(module=module.eval(), name=name, spec=name, identity={"class": type(module).__name__})


def started(encoder: Encoder | torch.nn.Module, *, device: str = "cpu", **changes: Any) -> EncoderRun:
    """An encoder on its device, by a recipe with these changes."""
    encoder = encoder if isinstance(encoder, Encoder) else build(encoder)
    settings = {"padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "none"}
    recipe = encoder.recipe(**{**settings, **changes}, format_version=1)
    return EncoderRun(encoder, recipe, device=device, keep_frames=True)


def extract(
    task: Manifest,
    data_dir: Path,
    store: Path,
    *,
    encoder: Encoder | str = "logmel",
    splits: Sequence[str] = ("train",),
    **options: Any,
) -> tuple[ExtractRecord, ...]:
    loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
    return extract_task(
        task,
        loaded,
        data_dir=data_dir,
        store_url=str(store),
        options=ExtractOptions(**{"workers": 2, **options}),
        splits=splits,
    )


def environment(**more: str) -> dict[str, str]:
    """Of a child process that imports featstore from this checkout."""
    root = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1", **more}


def run_cli(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``featstore`` in a process of its own."""
    command = [sys.executable, "-m", "featstore", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def task_toml(folder: Path, *, name: str = "tiny", classes: Sequence[str] = (), **tables: Mapping[str, object]) -> Path:
    """A manifest file of declared splits and class labels."""
    tables = {
        "data": {"dataset": "tiny"},
        "splits": {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"},
        **tables,
    }
    lines = [f'name = "{name}"', 'title = "Tiny"', 'kind = "clip"', 'metric = "accuracy"', "eval_weight = 1.0"]
    for table, entries in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in entries.items())]
    lines += ["[label]", 'field = "label"']
    if classes:
        lines.append(f"classes = {json.dumps(list(classes))}")
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pitches(folder: Path) -> Path:
    """``tiny.toml`` and its shards: clips of three pitches."""
    tones = {"low": 3, "middle": 9, "high": 15}  # the seed that `noise` makes a pitch of
    for split, count in (("train", 24), ("valid", 6), ("test", 9)):
        clips = []
        for number in range(count):
            label, seed = list(tones.items())[number % 3]
            clips.append(clip(f"{split}-{number}", noise(0.3 + number % 5 / 10, seed=seed + 20 * number), label=label))
        write_split(folder / "data/tiny", split, clips, shards=2)
    return task_toml(folder, probe={"epochs": 60, "learning_rate": 0.02, "batch_size": 8})


def read_with_plain_zarr(store: Path) -> dict[str, Any]:
    """Every array of a store by path, the random tail of a part's name cut off, as zarr alone reads it."""
    import zarr

    arrays = {}
    for document in sorted(store.rglob("zarr.json")):
        if json.loads(document.read_text())["node_type"] == "array":
            parts = document.parent.relative_to(store).parts
            name = "/".join((*parts[:-2], parts[-2].rpartition(".")[0], parts[-1]))
            assert name not in arrays, f"{name} is there twice"
            arrays[name] = np.asarray(zarr.open_array(store, path="/".join(parts), mode="r")[...])
    return arrays


def assert_equal_stores(one: Path, other: Path) -> None:
    """Array for array, bit for bit."""
    first, second = read_with_plain_zarr(one), read_with_plain_zarr(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert array.shape == second[name].shape
        assert array.tobytes() == second[name].tobytes() if array.dtype != object else (array == second[name]).all()


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines on stderr, those of progress apart."""
        return [line for line in self.err.splitlines() if not line.startswith(("logmel ", "mfcc ", "MyEncoder "))]


Run = Callable[..., Outcome]
