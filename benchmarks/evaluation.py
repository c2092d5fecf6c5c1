"""The whole evaluation of the challenge from cached embeddings, with one seed.

Random embeddings of the challenge's numbers of clips; see `benchmarks.challenge`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.challenge import ASSUMED, DIM, SIZES, write_challenge
from benchmarks.harness import in_child
from benchmarks.machine import cores
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most

QUICK_SHARE = 0.01
TEN_MINUTES = 600.0


def tables(options: Options) -> Iterator[Table]:
    share = QUICK_SHARE if options.quick else 1.0
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        url = str(Path(folder) / "store.zarr")
        windows = in_child(write_challenge, url=url, names=list(SIZES), share=share)
        measured = in_child(measure_tasks, url=url, names=list(SIZES), jobs=cores())
    yield Table(
        title="The whole evaluation",
        measures=f"Seconds of both tracks under `strict`, one seed, `--jobs {cores()}`, from a store of "
        f"{sum(windows.values()):,} windows x {DIM} to {len(measured) - 1} scores with their intervals: wall time of "
        "all, processes and imports included, and of each score what its process was busy with it, beside another. "
        "Windows of a task in brackets. DESED and MAESTRO are trained on frames of these lengths. LibriSpeech's speech "
        "recognition is not among them: it takes a language model, which cannot be downloaded here. Numbers of clips "
        f"are assumed for {', '.join(ASSUMED)}.",
        unit="s",
        baseline="all of it",
        rows=tuple(
            Row("all of it", spent, (at_most(TEN_MINUTES),))
            if what == "all of it"
            else Row(f"{what} ({windows[what.split(':')[0]]:,})", spent)
            for what, spent in measured.items()
        ),
    )


def measure_tasks(*, url: str, names: list[str], jobs: int) -> dict[str, float]:
    """Wall time of `featstore probe` and `featstore retrieve` over all tasks, and the busy seconds of each score."""
    import featstore
    from featstore.tasks import find_task

    searched = [name for name in names if find_task(name).retrieve.enabled]
    found: dict[str, float] = {}
    began = time.perf_counter()
    scores = featstore.probe(names, store=url, seeds=1, jobs=jobs)
    scores += featstore.retrieve(searched, store=url, jobs=jobs)
    scores.raise_failures()
    for record in scores:
        found[f"{record.task}: {record.track}"] = sum(record.seconds.values())
    found["all of it"] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    main(only="evaluation")
