"""Where there is a GPU, the tests that need one are run: in a process that sees it, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from handmade import environment

SHOWN = os.environ["FEATSTORE_TEST_GPUS"]


@pytest.mark.skipif(not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))), reason="no NVIDIA GPU here")
@pytest.mark.skipif(
    "CUDA_VISIBLE_DEVICES" not in os.environ or os.environ["CUDA_VISIBLE_DEVICES"] != "", reason="shown"
)
def test_all_that_needs_a_gpu() -> None:
    shown = environment() if SHOWN == "all" else environment(CUDA_VISIBLE_DEVICES=SHOWN)
    if SHOWN == "all":
        del shown["CUDA_VISIBLE_DEVICES"]
    cases = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-W", "default", "-p", "no:cacheprovider", *cases]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=shown, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]
