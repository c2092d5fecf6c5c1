"""Profiler trace of the first batches, for chrome://tracing and Perfetto."""

from __future__ import annotations

import os
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
    trace = _Trace(torch.profiler.profile(activities=activities), path)
    before, run.after_batch = run.after_batch, trace.count
    try:
        yield
    finally:
        run.after_batch = before
        trace.end()


class _Trace:
    """A profiler that stops after a fixed number of batches, since the trace of a complete run would fill memory."""

    def __init__(self, profiler: torch.profiler.profile, path: Path) -> None:
        self._profiler, self._path = profiler, path
        self._left = BATCHES
        profiler.start()

    def count(self) -> None:
        """Count one batch."""
        if self._left:
            self._left -= 1
            if not self._left:
                self._write()

    def end(self) -> None:
        """Stop the profiler if the run ends early."""
        if self._left:
            self._left = 0
            self._write()

    def _write(self) -> None:
        """Write the trace. If several processes use one path, the file is the complete trace of the last one."""
        self._profiler.stop()
        with replacing(self._path) as temporary:
            self._profiler.export_chrome_trace(str(temporary))
