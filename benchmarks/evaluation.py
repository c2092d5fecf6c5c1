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
FIFTEEN_MINUTES = 900.0


def tables(options: Options) -> Iterator[Table]:
    share = QUICK_SHARE if options.quick else 1.0
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        url = str(Path(folder) / "store.zarr")
        windows = in_child(write_challenge, url=url, names=list(SIZES), share=share)
        strict = in_child(measure_tasks, url=url, jobs=cores(), head=None)
        schedule = in_child(measure_tasks, url=url, jobs=cores(), head="linear")
    of_tasks = [name for name in strict if name not in WHOLE]

    def named(score: str) -> str:
        return f"{score} ({windows[score.partition(':')[0]]:,})"

    yield Table(
        title="The complete evaluation",
        measures=f"Seconds from a store of {sum(windows.values()):,} windows x {DIM} to {len(of_tasks)} scores with their "
        f"intervals and warnings: wall time of both tracks, one seed, `--jobs {cores()}`, processes and imports included. "
        "The schedule is X-ARES's (`--head linear`, 10 to 50 epochs) in place of models that converge, on the same "
        "tasks. LibriSpeech's speech recognition is not among them: it takes a language model, which cannot be "
        f"downloaded here. Numbers of clips are assumed for {', '.join(ASSUMED)}.",
        unit="s",
        baseline="strict: both tracks",
        rows=(
            Row("strict: both tracks", sum(strict[name] for name in WHOLE), (at_most(FIFTEEN_MINUTES),)),
            *(Row(f"strict: {name}", strict[name]) for name in WHOLE),
            Row("schedule: Track A", schedule["Track A"]),
        ),
    )
    yield Table(
        title="Its scores",
        measures="Seconds that the process of each score was busy with it, beside another process; windows of the task in "
        "brackets. A: strict, then by the schedule where it is used. DESED and MAESTRO are trained on frames of these "
        "lengths.",
        unit="s",
        baseline=named(max(of_tasks, key=lambda name: strict[name])),
        rows=tuple(
            Row(named(name) + of, seconds[name])
            for name in of_tasks
            for of, seconds in (("", strict), (", schedule", schedule))
            if name in seconds
        ),
    )


WHOLE = ("Track A", "Track B")


def measure_tasks(*, url: str, jobs: int, head: str | None) -> dict[str, float]:
    """Wall time of `featstore probe`, and by the default head of `retrieve`, and the busy seconds of each score."""
    import featstore
    from featstore.tasks import find_task

    names = list(SIZES)
    found: dict[str, float] = {}
    began = time.perf_counter()
    scores = featstore.probe(names, store=url, seeds=1, jobs=jobs, head=head)
    scores.raise_failures()
    found["Track A"] = time.perf_counter() - began
    if head is None:
        began = time.perf_counter()
        searched = [name for name in names if find_task(name).retrieve.enabled]
        scores += featstore.retrieve(searched, store=url, jobs=jobs)
        scores.raise_failures()
        found["Track B"] = time.perf_counter() - began
    return {f"{record.task}: {record.track}": sum(record.seconds.values()) for record in scores} | found


if __name__ == "__main__":
    main(only="evaluation")
