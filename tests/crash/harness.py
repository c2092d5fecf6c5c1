"""Extractions in a child process that a test can kill, over shards that are the same every time."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import soundfile

from featstore.encoders import load_encoder
from featstore.errors import FeatstoreError
from featstore.extract import ExtractOptions, extract_task
from featstore.store import layout
from featstore.tasks import load_manifest

N_SHARDS = 4
CLIPS_PER_SHARD = 6
TASK = """
name = "harm"
title = "Harm"
kind = "clip"
metric = "accuracy"
eval_weight = 1

[data]
dataset = "harm"

[splits]
train = "train-*.tar"
valid = "test-*.tar"
test = "test-*.tar"

[label]
field = "label"
"""

# What an extraction imports takes longer than the extraction: one process has done it, and every child is its fork.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "featstore.encoders.load",
        "featstore.encoders.builtin",
        "featstore.extract.engine",
        "featstore.extract.task",
        "soundfile",
        "soxr",
        "webdataset",
    ]
)


def make_shards(folder: Path) -> Path:
    """Shards of short noise, `N_SHARDS` to train on and one to test on."""
    (folder / "data" / "harm").mkdir(parents=True)
    (folder / "harm.toml").write_text(TASK)
    for shard in [f"train-{number}" for number in range(N_SHARDS)] + ["test-0"]:
        with tarfile.open(folder / "data" / "harm" / f"{shard}.tar", "w") as tar:
            for clip in range(CLIPS_PER_SHARD):
                rng = np.random.default_rng([clip, *shard.encode()])
                audio = io.BytesIO()
                soundfile.write(audio, 0.1 * rng.standard_normal(rng.integers(4000, 16000)), 16000, format="WAV")
                for extension, data in (("wav", audio.getvalue()), ("json", json.dumps({"label": clip % 2}).encode())):
                    member = tarfile.TarInfo(f"{shard}-{clip}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


@dataclass(frozen=True)
class Child:
    """An extraction under way. ``errors`` is its standard error."""

    process: ForkServerProcess
    errors: Path

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> tuple[int | None, str]:
        """Exit code, which is that of a signal with a minus, and standard error."""
        self.process.join(timeout=120)
        return self.process.exitcode, self.errors.read_text()


@contextmanager
def extracting(folder: Path, store: Path | str, **environment: str) -> Iterator[Child]:
    """Begin an extraction, and go on when it has all it needs and will open the store next. It ends with the body."""
    with tempfile.NamedTemporaryFile("r") as errors:
        ours, theirs = _FORKS.Pipe()
        process = _FORKS.Process(
            target=_extract, args=(folder, str(store), {**os.environ, **environment}, errors.name, theirs)
        )
        process.start()
        theirs.close()
        ours.recv()
        try:
            yield Child(process, Path(errors.name))
        finally:
            process.kill()
            process.join()


def run(folder: Path, store: Path | str, **environment: str) -> tuple[int | None, str]:
    """Extract to the end, one way or another: exit code and standard error."""
    with extracting(folder, store, **environment) as child:
        return child.wait()


def _extract(folder: Path, store: str, environment: dict[str, str], errors: str, ready: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    layout.BLOCK_BYTES, layout.FILE_BYTES = 4096, 16384  # several files of frames to a part
    options = ExtractOptions(frames="always", workers=2, device="cpu")
    encoder, manifest = load_encoder("logmel"), load_manifest(folder / "harm.toml")
    ready.send("ready")
    try:
        extract_task(manifest, encoder, data_dir=folder / "data", store_url=store, options=options)
    except FeatstoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")
