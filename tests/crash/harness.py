"""Extractions in a child process that a test can kill, over shards that are the same every time."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile

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

CHILD = """
import os, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
from pathlib import Path
from featstore.encoders import load_encoder
from featstore.errors import FeatstoreError
from featstore.extract import ExtractOptions, extract_task
from featstore.manifest import load_manifest
from featstore.store import layout
layout.BLOCK_BYTES, layout.FILE_BYTES = 4096, 16384  # several files of frames to a part
folder, store = Path(sys.argv[1]), sys.argv[2]
options = ExtractOptions(frames="always", workers=2, device="cpu")
print("ready", flush=True)
try:
    extract_task(load_manifest(folder / "harm.toml"), load_encoder("logmel"), data_dir=folder / "data",
                 store_url=store, options=options)
except FeatstoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


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


def start(folder: Path, store: Path | str, **environment: str) -> subprocess.Popen[str]:
    """Begin an extraction; it says "ready" when its imports are done."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(store)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, store: Path | str, **environment: str) -> tuple[int, str]:
    """Extract to the end, one way or another: exit code and standard error."""
    with start(folder, store, **environment) as child:
        _, errors = child.communicate(timeout=120)
    return child.returncode, errors
