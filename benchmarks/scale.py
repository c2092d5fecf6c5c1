"""A saved index of five million vectors on one machine: what it takes to make and to search, and what it finds.

Vectors are a mixture of 5,000 clusters in 32 of 256 directions, with a tenth of noise in all of them, in a real store of
100 parts on disk; the queries are a thousand more of the same mixture. Every row is a process of its own, libraries
imported; files are in the page cache as far as there is room.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import PeakMemory, in_child
from benchmarks.peer.grid import Grid
from benchmarks.recipes import commit_made_up, made_up_recipe
from benchmarks.run import Options, main
from benchmarks.table import figure

DIM, LATENT_DIM, CLUSTERS = 256, 32, 5_000
PARTS = 100
QUICK_ROWS = 20_000
QUERIES, K = 1_000, 10
KINDS = ("ivf", "ivfpq")
SAMPLE_SECONDS = 0.02


def tables(options: Options) -> Iterator[Grid]:
    n_rows = QUICK_ROWS if options.quick else options.scale_rows
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        written = in_child(make_store, folder=folder, n_rows=n_rows)
        exact = in_child(measure_exact, folder=folder)
        made = {kind: in_child(measure_making, folder=folder, kind=kind) for kind in KINDS}
        found = {kind: in_child(measure_searching, folder=folder, kind=kind) for kind in KINDS}
    yield Grid(
        title=f"Making an index of {n_rows:,} x {DIM}",
        measures="From the committed store until the index is durable, its own recall measured. Memory of its "
        "own is what no file backs; resident memory counts the pages of mapped files too, which are the page cache's. "
        f"Writing the store itself took {figure(written['seconds'])} s.",
        header=("", "s", "train", "add", "merge", "measure", "own memory, MB", "resident, MB", "on disk, MB", "lists"),
        rows=(
            ("the vectors", "", "", "", "", "", "", "", figure(written["bytes"] / 1e6), ""),
            *(_making_row(kind, made[kind]) for kind in KINDS),
        ),
    )
    yield Grid(
        title=f"{QUERIES:,} queries among {n_rows:,} x {DIM}, k = {K}",
        measures="Exact search compares every row, block by block. Recall is of its neighbours, on these queries; an "
        "index searches as many lists as it found to be enough when it was made. First is the time of the first "
        f"{QUERIES:,} queries after opening, again that of the same once more.",
        header=(
            "",
            "first, s",
            "again, s",
            "x exact",
            f"recall@{K}",
            "recall measured",
            "own memory, MB",
            "lists searched",
        ),
        rows=(
            ("exact", figure(exact["seconds"]), "", "1.00", "1.000", "", figure(exact["own"] / 1e6), ""),
            *(_searching_row(kind, found[kind], exact=exact["seconds"]) for kind in KINDS),
        ),
    )


def _making_row(kind: str, made: dict[str, Any]) -> tuple[str, ...]:
    stages = [figure(made["stages"][stage]) for stage in ("train", "add", "merge", "measure")]
    sizes = [figure(made[what] / 1e6) for what in ("own", "resident", "bytes")]
    return (kind, figure(made["seconds"]), *stages, *sizes, f"{made['lists']:,}")


def _searching_row(kind: str, found: dict[str, Any], *, exact: float) -> tuple[str, ...]:
    return (
        kind,
        figure(found["first"]),
        figure(found["again"]),
        figure(found["again"] / exact),
        f"{found['recall']:.3f}",
        f"{found['measured_recall']:.3f}",
        figure(found["own"] / 1e6),
        str(found["lists searched"]),
    )


# --- what runs in children


def make_store(*, folder: str, n_rows: int) -> dict[str, float]:
    """Write the vectors part by part, and a file of queries."""
    from featstore.store import WindowBlock, open_split_writer

    recipe = made_up_recipe("mixture", dim=DIM)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, LATENT_DIM), dtype=np.float32)
    spread = rng.standard_normal((LATENT_DIM, DIM), dtype=np.float32) / np.float32(LATENT_DIM**0.5)

    def mixture(n: int) -> np.ndarray:
        latent = rng.standard_normal((n, LATENT_DIM), dtype=np.float32)
        latent *= 0.5
        latent += centres[rng.integers(CLUSTERS, size=n)]
        rows = rng.standard_normal((n, DIM), dtype=np.float32)
        rows *= 0.1
        rows += latent @ spread
        return rows

    began = time.perf_counter()
    writer = open_split_writer(
        _store(folder), recipe=recipe, spec="mixture", dataset="bench", crop_seconds=None, split="train"
    )
    per_part = -(-n_rows // PARTS)
    for first in range(0, n_rows, per_part):
        n = min(per_part, n_rows - first)
        name = f"train-{first // per_part:06d}.tar"
        with writer.begin_part(name) as part:
            part.add_block(
                WindowBlock(
                    keys=[f"clip-{number:09d}" for number in range(first, first + n)],
                    metas=["{}"] * n,
                    start_seconds=np.zeros(n),
                    seconds=np.ones(n),
                    utterance=mixture(n),
                    frames=None,
                    frame_counts=None,
                )
            )
            commit_made_up(part, name, clips=n, audio_seconds=n)
    writer.write_catalogue()
    seconds = time.perf_counter() - began
    np.save(_queries(folder), mixture(QUERIES))
    return {"seconds": seconds, "bytes": n_rows * DIM * 4}


def measure_exact(*, folder: str) -> dict[str, float]:
    """Search block by block, and leave the neighbours for the others to be compared with."""
    from featstore.retrieve.index import ExactHeap
    from featstore.retrieve.index_plan import plan_ivf
    from featstore.retrieve.scan import unit_rows

    feature_set, queries = _feature_set(folder), np.load(_queries(folder))
    block_rows = plan_ivf(len(feature_set), DIM, "ivf").block_rows
    with OwnMemory() as own:
        began = time.perf_counter()
        heap = ExactHeap(unit_rows(queries), k=K)
        for first in range(0, len(feature_set), block_rows):
            rows = feature_set.utterance_rows.slice(first, min(first + block_rows, len(feature_set)))
            heap.add(unit_rows(rows), first=first)
        nearest = heap.nearest().rows
        seconds = time.perf_counter() - began
    np.save(_exact(folder), nearest)
    return {"seconds": seconds, "own": own.bytes}


def measure_making(*, folder: str, kind: str) -> dict[str, Any]:
    import faiss  # noqa: F401 - what a library takes when it is imported is not the index's

    from featstore.retrieve import open_index

    feature_set = _feature_set(folder)
    with OwnMemory() as own, PeakMemory() as resident:
        began = time.perf_counter()
        index = open_index(feature_set, kind)
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "stages": dict(index.record.seconds),
        "own": own.bytes,
        "resident": resident.bytes,
        "bytes": index.record.bytes,
        "lists": index.record.plan["n_lists"],
    }


def measure_searching(*, folder: str, kind: str) -> dict[str, Any]:
    from featstore.retrieve import open_index

    queries, exact = np.load(_queries(folder)), np.load(_exact(folder))
    with OwnMemory() as own:
        index = open_index(_feature_set(folder), kind)
        spent = []
        for _ in range(2):
            began = time.perf_counter()
            found = index.search(queries, K)
            spent.append(time.perf_counter() - began)
    recall = np.mean([np.isin(one, other).mean() for one, other in zip(exact, found.rows, strict=True)])
    return {
        "first": spent[0],
        "again": spent[1],
        "recall": float(recall),
        "measured_recall": index.recall,
        "own": own.bytes,
        "lists searched": index.record.n_probe,
    }


class OwnMemory:
    """``with OwnMemory() as own``: then ``own.bytes``, the most memory that no file backs, above what was before.

    Linux keeps no peak of it, so a thread looks often.
    """

    def __enter__(self) -> OwnMemory:
        self.bytes = 0
        self._before = _anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.bytes = max(self.bytes, _anonymous() - self._before)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, _anonymous() - self._before)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _feature_set(folder: str) -> Any:
    import featstore

    return featstore.open(_store(folder)).select()


def _store(folder: str) -> str:
    return str(Path(folder) / "store.zarr")


def _queries(folder: str) -> Path:
    return Path(folder) / "queries.npy"


def _exact(folder: str) -> Path:
    return Path(folder) / "exact.npy"


if __name__ == "__main__":
    main(only="scale")
