"""The benchmark of encoding measures the batches that an extraction has, whichever way they are encoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.encode import make_shards, measure_forward
from featstore.encoders.runner import EncoderRun
from handmade import XARES_ENCODER


def test_forward_passes_are_of_the_batches_that_were_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a batch is launched, and `__call__` has only those that the size of a batch was found with."""

    def launched(run: EncoderRun, audio: np.ndarray, n_samples: np.ndarray) -> Callable[[], Any]:
        encoded = run._encode(audio, n_samples)
        run._busy_seconds += 0.002
        time.sleep(0.05)  # of the host, where the device has long been done
        return lambda: encoded

    monkeypatch.setattr(EncoderRun, "_begin", launched)
    make_shards(folder=str(tmp_path), data={"name": "few", "n_clips": 4, "seconds": (1.0, 1.0)})
    (tmp_path / "my_encoder.py").write_text(XARES_ENCODER)
    found = measure_forward(
        folder=str(tmp_path),
        dataset="few",
        encoder=str(tmp_path / "my_encoder.py"),
        device="cpu",
        precision="float32",
        repeats=1,
    )
    assert found["batches"].split()[0] == "1"
    assert 0 < found["busy"] < 0.05
