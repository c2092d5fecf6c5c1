"""Times, peak memory, and children: what is measured in one process leaves nothing behind for the next."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["PeakMemory", "Timing", "child_environment", "clip_manifest", "in_child", "timed"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of the same work, in seconds."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)


def timed(
    work: Callable[[], object],
    *,
    repeats: int = 5,
    budget_seconds: float = 4.0,
    before: Callable[[], object] = lambda: None,
) -> Timing:
    """Time `work` up to `repeats` times after a warm-up, as often as fits a budget; `before` is not counted.

    Where the warm-up alone takes the budget, it is the one time there is.
    """
    spent: list[float] = []
    warm_up = _once(work, before)
    if warm_up > budget_seconds:
        return Timing((warm_up,))
    while len(spent) < repeats and (not spent or sum(spent) < budget_seconds):
        spent.append(_once(work, before))
    return Timing(tuple(spent))


def _once(work: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    began = time.perf_counter()
    result = work()
    spent = time.perf_counter() - began
    del result  # freed when the clock has stopped
    return spent


@dataclass(slots=True)
class PeakMemory:
    """``with PeakMemory() as peak``: then ``peak.bytes``, the most that was resident above what was before.

    Pages of mapped files count as resident, though they are the page cache's and cost nothing that is not given back
    under pressure. Linux tells the peak of this process image alone (the ``ru_maxrss`` of a child begins at its
    parent's), and lets it be set back.
    """

    bytes: int = 0
    _before: int = field(default=0)

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _reset_peak()
        self._before = _resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(0, _resident("VmHWM") - self._before)

    def resident_bytes(self) -> int:
        """What is resident now above what was before."""
        return max(0, _resident("VmRSS") - self._before)


def _reset_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _resident(name: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS: the peak so far, for before and after


def child_environment() -> dict[str, str]:
    """Of a child that imports featstore and the benchmarks from this checkout, wherever it runs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def in_child(function: Callable[..., Any], *, threads: int | None = None, **arguments: Any) -> Any:
    """Call a module's function in a process of its own, by default with all threads; arguments and result are JSON."""
    name = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.harness", name, json.dumps(arguments)]
    environment = child_environment() | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def clip_manifest(name: str = "bench", **tables: Any) -> Manifest:
    """A task of kind ``clip``, scored by accuracy; `tables` are the rest of its manifest, such as ``splits``."""
    from featstore.tasks import Manifest

    return Manifest.model_validate(
        {
            "name": name,
            "title": name,
            "kind": "clip",
            "metric": "accuracy",
            "eval_weight": 1.0,
            "data": {"dataset": name},
            "label": {"field": "label"},
            **tables,
        }
    )


@contextmanager
def _stdout_for_the_result() -> Iterator[None]:
    """What the work prints goes to stderr."""
    kept, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = kept


def _child(name: str, arguments: str) -> None:
    module, _, function = name.partition(":")
    with _stdout_for_the_result():
        result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(result))


if __name__ == "__main__":
    _child(*sys.argv[1:])
