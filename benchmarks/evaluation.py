"""The whole evaluation of the challenge from cached embeddings, task by task, with one seed.

Random embeddings of the challenge's numbers of clips; see `benchmarks.challenge`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.challenge import ASSUMED, DIM, SIZES, write_challenge
from benchmarks.harness import in_child
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most

QUICK_SHARE = 0.01
TEN_MINUTES = 600.0


def tables(options: Options) -> Iterator[Table]:
    share = QUICK_SHARE if options.quick else 1.0
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        url = str(Path(folder) / "store.zarr")
        windows = in_child(write_challenge, url=url, names=list(SIZES), share=share)
        seconds = in_child(measure_tasks, url=url, names=list(SIZES))
    total = sum(seconds.values())
    yield Table(
        title="The whole evaluation",
        measures=f"Seconds of both tracks under `strict`, one seed, one task after another in one process, from a store "
        f"of {sum(windows.values()):,} windows x {DIM} to {sum(1 for _ in seconds)} scores with their intervals; "
        "windows of a task in brackets. DESED and MAESTRO are trained on frames of these lengths. LibriSpeech's speech "
        "recognition is not among them: it takes a language model, which cannot be downloaded here. Numbers of clips "
        f"are assumed for {', '.join(ASSUMED)}.",
        unit="s",
        baseline="all of it",
        rows=(
            *(Row(f"{what} ({windows[what.split(':')[0]]:,})", spent) for what, spent in seconds.items()),
            Row("all of it", total, (at_most(TEN_MINUTES),)),
        ),
    )


def measure_tasks(*, url: str, names: list[str]) -> dict[str, float]:
    """Wall time of each task and track; the first carries the imports."""
    import featstore
    from featstore.manifest import find_task
    from featstore.probe import probe_task
    from featstore.retrieve import retrieve_task

    found: dict[str, float] = {}

    def clocked(what: str, score: Any) -> None:
        began = time.perf_counter()
        score(featstore.open(url))
        found[what] = time.perf_counter() - began

    for name in names:
        manifest = find_task(name)
        clocked(f"{name}: A", lambda store, task=manifest: probe_task(store, task, seeds=(0,)))
        if manifest.retrieve.enabled:
            clocked(f"{name}: B", lambda store, task=manifest: retrieve_task(store, task))
    return found


if __name__ == "__main__":
    main(only="evaluation")
