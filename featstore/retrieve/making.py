"""Makes the index of a feature set, in bounded memory, and measures what it finds."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.files import sweep_leftovers
from featstore.retrieve.index_folder import INDEX_FORMAT, IndexRecord, seals_of, whole_folder, write_record
from featstore.retrieve.neighbours import evenly, share_found
from featstore.retrieve.plan import TARGET_RECALL, IvfPlan
from featstore.retrieve.unit_vectors import search_lists, unit_block, unit_blocks
from featstore.wording import spoken_bytes

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = ["RECALL_K", "make_index"]

SAMPLE_FILE = "sample.float32"
RECALL_K = 10
N_RECALL_QUERIES = 200


def make_index(feature_set: FeatureSet, plan: IvfPlan, folder: Path) -> IndexRecord:
    """Make the index of a feature set as planned, in memory of the plan's size, and put it in a folder.

    It reads the set twice: for the sample, and to fill the lists.

    Raises
    ------
    DataError
        A vector is not finite.
    StoreError
        The index cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
        room = shutil.disk_usage(folder.parent).free
        if room < plan.making_bytes:  # a mapped file that a disk has no room for ends the process
            raise StoreError(
                f"the {plan.kind} index of {feature_set.path} takes {spoken_bytes(plan.making_bytes)} while it is "
                f"made: {folder.parent} has {spoken_bytes(room)} free"
            )
        with whole_folder(folder) as temporary:
            record = _build(feature_set, plan, temporary)
            write_record(record, temporary)
    except OSError as error:
        raise StoreError(
            f"cannot keep an index in {folder}: {error.strerror or error}; FEATSTORE_CACHE names another place where "
            "the store's own cannot be written"
        ) from error
    return record


def _build(feature_set: FeatureSet, plan: IvfPlan, folder: Path) -> IndexRecord:
    from featstore.retrieve import ivf

    seconds: dict[str, float] = {}
    with _timed(seconds, "train"):
        sample_rows, sample = _sample(feature_set, plan, folder / SAMPLE_FILE)
        index = ivf.train_index(plan, sample)
        some = evenly(len(sample), wanted=N_RECALL_QUERIES)
        own, queries = sample_rows[some], np.array(sample[some])
        del sample
        (folder / SAMPLE_FILE).unlink()
    exact = ivf.ExactHeap(queries, k=min(RECALL_K + 1, plan.rows))
    with _timed(seconds, "add"):
        for first, rows in unit_blocks(feature_set, plan):
            ivf.write_block(index, rows, first=first, folder=folder)
            exact.add(rows, first=first)
    with _timed(seconds, "merge"):
        ivf.merge_blocks(index, folder)
    with _timed(seconds, "measure"):
        lists = ivf.MappedLists(folder)
        wanted = _others(exact.nearest().rows, own)
        by_probes: dict[int, float] = {}
        for n_probe in plan.n_probes:
            k = min(RECALL_K + 1, plan.rows)
            found = search_lists(lists, plan, queries[:, : plan.dim], k=k, n_probe=n_probe, feature_set=feature_set)
            by_probes[n_probe] = share_found(wanted, _others(found.rows, own))
            if by_probes[n_probe] >= TARGET_RECALL:
                break
    best = max(by_probes)
    sizes, checksums = seals_of(folder)
    return IndexRecord(
        format=INDEX_FORMAT,
        feature_set=feature_set.path,
        fingerprint=feature_set.fingerprint,
        content_hash=feature_set.content_hash,
        kind=plan.kind,
        plan=asdict(plan),
        n_probe=best,
        recall=by_probes[best],
        recall_k=RECALL_K,
        recall_by_probes={str(n_probe): recall for n_probe, recall in by_probes.items()},
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
        files=sizes,
        checksums=checksums,
    )


def _sample(feature_set: FeatureSet, plan: IvfPlan, path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Evenly drawn rows: their numbers, and themselves at unit length, float32 (sample_rows, padded_dim), in a file.

    They are read in order, block by block: of a store by URL a single row costs as much as its chunk.
    """
    drawn = evenly(plan.rows, wanted=plan.sample_rows)
    with path.open("wb") as file:
        for first in range(0, plan.rows, plan.block_rows):
            until = min(first + plan.block_rows, plan.rows)
            begin, end = np.searchsorted(drawn, [first, until])
            rows = feature_set.utterance_rows.slice(first, until)[drawn[begin:end] - first]
            unit_block(rows, feature_set, plan).tofile(file)
    return drawn, np.memmap(path, np.float32, mode="r", shape=(len(drawn), plan.padded_dim))


def _others(rows: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours (queries, k + 1) without the query's own row, or without the last where it was not found."""
    is_own = rows == own[:, None]
    kept = np.argsort(is_own, axis=1, kind="stable")[:, : rows.shape[1] - 1]
    return np.take_along_axis(rows, kept, axis=1)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
