"""The coverage-guided fuzzer, for a while; it starts from whole shards, documents and a manifest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import handmade
from featstore.store.format import seal
from featstore.store.layout import plain_layout, sharded_layout

TARGET = Path(__file__).with_name("fuzz_target.py")


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    clip = handmade.clip("a", handmade.noise(0.02))
    seeds = [
        b"\0" + handmade.tar_bytes(clip),
        b"\1" + clip[0][1],
        b"\1" + handmade.audio_bytes(handmade.noise(0.02), "flac"),
        b'\2name = "t"\ntitle = "T"\nkind = "clip"\nmetric = "accuracy"\neval_weight = 1\n[data]\ndataset = "d"\n',
        b"\3" + seal({"commit": {"part": "a", "members": []}}),
        b"\4" + plain_layout((3, 2), "float32").document(),
        b"\4" + sharded_layout((3, 2), "float16").document(),
    ]
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed)


def fuzz(tmp_path: Path, *, runs: int) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: `pip install atheris` where it has a wheel")
    write_corpus(tmp_path / "corpus")
    command = [sys.executable, str(TARGET), f"-runs={runs}", "-timeout=20", "-rss_limit_mb=1500", "-max_len=20000"]
    # a child has the peak memory of the test's process as its own, to which libFuzzer compares; a grandchild has not
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command, "-seed=1", str(tmp_path / "corpus")],
        cwd=tmp_path,
        env=handmade.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr


@pytest.mark.slow
def test_twenty_thousand_inputs_are_read_or_reported(tmp_path: Path) -> None:
    fuzz(tmp_path, runs=20_000)
