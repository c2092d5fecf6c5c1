"""An encoder that a test can trip while workers run it, shards for it, and runs over these."""

from __future__ import annotations

from pathlib import Path

from featstore.extract import EncoderRequest, Engine, ExtractOptions, Silent, extract_task
from featstore.records import ExtractRecord
from featstore.tasks import load_manifest
from handmade import clip, noise, task_toml, write_split

N_SHARDS, CLIPS_PER_SHARD = 8, 6
OPTIONS = ExtractOptions(frames="always", workers=1)

# What goes wrong is decided by files in a folder that a test names in the environment: the recipe knows nothing of it.
ENCODER = """
import os, signal, time
from pathlib import Path

import torch

FAULTS = Path(os.environ["FEATSTORE_TEST_FAULTS"])


def once(name):
    try:
        (FAULTS / name).unlink()
    except FileNotFoundError:
        return False
    return True


class TrippingEncoder(torch.nn.Module):
    sampling_rate, output_dim, hop_size_in_ms = 16_000, 8, 20

    def __init__(self):
        super().__init__()
        if (FAULTS / "slow-to-load").exists():
            (FAULTS / "loading").touch()
            time.sleep(600)
        generator = torch.Generator().manual_seed(1 if once("skewed") else 0)
        self.weight = torch.nn.Parameter(torch.randn(8, 1, 400, generator=generator) / 20)
        self.passes = 0

    def fail_as_told(self):
        self.passes += 1
        while self.passes > 1 and (FAULTS / "skewed").exists():  # the worker with other weights has not loaded them
            time.sleep(0.02)
        if self.passes > 4:  # past the pass over noise, and into a second shard
            if once("killed-once") or (FAULTS / "killed-always").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if (FAULTS / "slow").exists():
                time.sleep(0.2)
        if (FAULTS / "both").exists() and self.passes > 1:  # go on when two are at it
            (FAULTS / f"here-{os.getpid()}").touch()
            limit = time.monotonic() + 60
            while len(list(FAULTS.glob("here-*"))) < 2 and time.monotonic() < limit:
                time.sleep(0.02)

    def forward(self, audio):
        print("an encoder that prints", flush=True)
        if len(audio) > 1:  # reference signals come alone
            self.fail_as_told()
        padded = torch.nn.functional.pad(audio[:, None, :], (40, 360))
        frames = torch.conv1d(padded, self.weight, stride=320).tanh().transpose(1, 2)
        return frames / (audio.abs().max() < 0.95)  # a loud clip is too much for it
"""


def make_folder(folder: Path, *, n_shards: int = N_SHARDS) -> Path:
    """A task, its shards, and an encoder; made once, for every store of a module."""
    clips = [
        clip(f"clip-{number:03d}", noise(0.3 + number % 7 / 10, seed=number), label=f"class-{number % 2}")
        for number in range(n_shards * CLIPS_PER_SHARD)
    ]
    write_split(folder / "data/tiny", "train", clips, shards=n_shards)
    write_split(folder / "data/tiny", "valid", clips[:4])
    write_split(folder / "data/tiny", "test", clips[4:8])
    task_toml(folder)
    (folder / "tripping.py").write_text(ENCODER)
    (folder / "faults").mkdir()
    return folder


def tripping() -> EncoderRequest:
    """The encoder of the folder that a test runs in."""
    return EncoderRequest(spec="./tripping.py")


def extract(
    engine: Engine, folder: Path, store: Path | str, *, data: Path | str | None = None, progress: Silent | None = None
) -> ExtractRecord:
    [record] = extract_task(
        load_manifest(folder / "tiny.toml"),
        engine,
        data_dir=data or folder / "data",
        store_url=str(store),
        options=OPTIONS,
        splits=["train"],
        progress=progress,
    )
    return record


class Counting(Silent):
    def __init__(self) -> None:
        self.clips = self.shards = 0
        self.audio_seconds = 0.0

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        self.clips += clips
        self.audio_seconds += audio_seconds

    def shard_done(self) -> None:
        self.shards += 1
