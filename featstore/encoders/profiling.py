"""Profiler trace of the first batches, for chrome://tracing and Perfetto."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from featstore.errors import UsageError
from featstore.files import replacing

if TYPE_CHECKING:
    from featstore.encoders.runner import EncoderRun

__all__ = ["traced"]

BATCHES = 50


@contextmanager
def traced(run: EncoderRun, path: Path) -> Iterator[None]:
    """Trace torch during the first 50 batches of a run, and write the trace to `path`.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    if not path.parent.is_dir():
        raise UsageError(f"--profile {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--profile {path}: {path.parent} is not writable")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.device(run.device).type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def write(profiler: torch.profiler.profile) -> None:
        with replacing(path) as temporary:  # if several processes use one path, that of the last one remains
            profiler.export_chrome_trace(str(temporary))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
        # the trace of a complete run would fill memory
        schedule = torch.profiler.schedule(wait=0, warmup=0, active=BATCHES, repeat=1)
        with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profiler:
            before, run.after_batch = run.after_batch, profiler.step
            try:
                yield
            finally:
                run.after_batch = before
