"""Saved indexes: built once per feature set in bounded memory, then memory-mapped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, StoreError, UsageError
from featstore.evaluation.scores import Stopwatch
from featstore.files import sweep_leftovers
from featstore.formatting import spoken_bytes
from featstore.retrieve.index_files import (
    INDEX_FORMAT,
    IndexRecord,
    UnusableIndex,
    atomic_folder,
    first_writable,
    index_folders,
    sizes_and_checksums,
    usable_record,
    write_record,
)
from featstore.retrieve.index_plan import IvfKind, IvfPlan, plan_ivf
from featstore.retrieve.knn import Neighbours, evenly, recall_of, reranked
from featstore.retrieve.scan import unit_rows

if TYPE_CHECKING:
    import faiss

    from featstore.store import FeatureSet

__all__ = ["RECALL_K", "JoinedIndexes", "Notify", "SavedIndex", "make_index", "open_index"]


SAMPLE_FILE = "sample.float32"
TARGET_RECALL, RECALL_K = 0.95, 10
"""Recall at 10 that a new index must reach; it searches the smallest number of lists, doubling from 1, that does."""

N_RECALL_QUERIES = 200
LEAST_MOST_LISTS, MOST_SHARE_OF_LISTS = 16, 1 / 4
"""Maximum number of lists to search: a quarter of them, but at least 16."""


def make_index(feature_set: FeatureSet, plan: IvfPlan, folder: Path) -> IndexRecord:
    """Build the planned index of a feature set in bounded memory, and store it in a folder.

    Reads the set twice: for the sample, and to fill the lists.

    Raises
    ------
    DataError
        A vector is not finite.
    StoreError
        The index cannot be written, or the disk has too little space.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
        free_bytes = shutil.disk_usage(folder.parent).free
        if free_bytes < plan.build_bytes:  # a mapped file on a full disk would kill the process
            raise StoreError(
                f"building the {plan.kind} index of {feature_set.path} needs {spoken_bytes(plan.build_bytes)}, but "
                f"{folder.parent} has {spoken_bytes(free_bytes)} free"
            )
        with atomic_folder(folder) as temporary:
            record = _build(feature_set, plan, temporary)
            write_record(record, temporary)
    except OSError as error:
        raise StoreError(
            f"cannot store an index in {folder}: {error.strerror or error}; set FEATSTORE_CACHE to another folder for "
            "indexes of stores that cannot be written"
        ) from error
    return record


def _build(feature_set: FeatureSet, plan: IvfPlan, folder: Path) -> IndexRecord:
    from featstore.retrieve.index import ExactHeap, merge_blocks, read_lists, train_index, write_block

    watch = Stopwatch()
    with watch("train"):
        sample_rows, sample = _sample(feature_set, plan, folder / SAMPLE_FILE)
        index = train_index(plan, sample)
        some = evenly(len(sample), wanted=N_RECALL_QUERIES)
        own, queries = sample_rows[some], np.array(sample[some])
        del sample
        (folder / SAMPLE_FILE).unlink()
    k = min(RECALL_K + 1, plan.rows)
    exact = ExactHeap(queries, k=k)
    with watch("add"):
        for first, rows in _unit_blocks(feature_set, plan):
            write_block(index, rows, first=first, folder=folder)
            exact.add(rows, first=first)
    with watch("merge"):
        merge_blocks(index, folder)
    with watch("measure"):
        lists = read_lists(folder, dim=plan.dim)
        wanted = _others(exact.nearest().rows, own)
        most = min(plan.n_lists, max(LEAST_MOST_LISTS, int(plan.n_lists * MOST_SHARE_OF_LISTS)))
        n_probe, by_probes = 1, dict[int, float]()
        while True:
            found = _search_lists(lists, feature_set, plan, queries, k=k, n_probe=n_probe)
            by_probes[n_probe] = recall_of(wanted, _others(found.rows, own))
            if by_probes[n_probe] >= TARGET_RECALL or 2 * n_probe > most:
                break
            n_probe *= 2
    sizes, checksums = sizes_and_checksums(folder)
    return IndexRecord(
        format=INDEX_FORMAT,
        feature_set=feature_set.path,
        fingerprint=feature_set.fingerprint,
        content_hash=feature_set.content_hash,
        kind=plan.kind,
        plan=asdict(plan),
        n_probe=n_probe,
        recall=by_probes[n_probe],
        recall_k=RECALL_K,
        recall_by_probes={str(n_probe): recall for n_probe, recall in by_probes.items()},
        seconds={stage: round(spent, 3) for stage, spent in watch.seconds.items()},
        files=sizes,
        checksums=checksums,
    )


def _sample(feature_set: FeatureSet, plan: IvfPlan, path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Evenly spaced rows: their numbers, and a memory-mapped file of them at unit length, float32 (sample_rows, dim).

    Rows are read in order, block by block: in a remote store, reading a single row costs as much as its chunk.
    """
    drawn = evenly(plan.rows, wanted=plan.sample_rows)
    with path.open("wb") as file:
        for first in range(0, plan.rows, plan.block_rows):
            until = min(first + plan.block_rows, plan.rows)
            begin, end = np.searchsorted(drawn, [first, until])
            rows = feature_set.utterance_rows.slice(first, until)[drawn[begin:end] - first]
            _unit(rows, feature_set).tofile(file)
    return drawn, np.memmap(path, np.float32, mode="r", shape=(len(drawn), plan.dim))


def _unit_blocks(feature_set: FeatureSet, plan: IvfPlan) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of rows (n, dim) at unit length, each with the number of its first row."""
    for first in range(0, plan.rows, plan.block_rows):
        rows = feature_set.utterance_rows.slice(first, min(first + plan.block_rows, plan.rows))
        yield first, _unit(rows, feature_set)


def _unit(rows: NDArray[np.float32], feature_set: FeatureSet) -> NDArray[np.float32]:
    """Scale rows (n, dim) of a feature set to unit length. Raises DataError if one is not finite."""
    unit = unit_rows(rows)
    with np.errstate(invalid="ignore"):
        sums = unit.sum(axis=1)
    if not np.isfinite(sums).all():
        raise DataError(
            f"{feature_set.path} has non-finite embeddings, which cannot be indexed: run `featstore verify --store "
            f"{feature_set.store_url} --repair` to drop damaged parts, then extract again"
        )
    return unit


def _search_lists(
    index: faiss.Index, feature_set: FeatureSet, plan: IvfPlan, queries: NDArray[np.float32], *, k: int, n_probe: int
) -> Neighbours:
    """Search the lists for unit queries (queries, dim); re-rank candidates of product codes by stored vectors."""
    from featstore.retrieve.index import search_lists

    found = search_lists(index, queries, k=plan.n_candidates(k), n_probe=n_probe)
    if plan.kind == "ivf":
        return found
    stored = feature_set.utterance_rows
    return reranked(found.rows, queries, k=k, vectors_of=lambda rows: unit_rows(stored.take(rows.tolist())))


def _others(rows: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours (queries, k + 1) without the query's own row, or without the last if the own row is missing."""
    is_own = rows == own[:, None]
    kept = np.argsort(is_own, axis=1, kind="stable")[:, : rows.shape[1] - 1]
    return np.take_along_axis(rows, kept, axis=1)


Notify = Callable[[str], object]


class SavedIndex:
    """Saved index of one feature set, opened by `open_index`. Its rows are the windows of the set, in order."""

    def __init__(self, feature_set: FeatureSet, folder: Path, record: IndexRecord) -> None:
        from featstore.retrieve.index import read_lists

        self.feature_set = feature_set
        self.folder = folder
        self.record = record
        self._plan = plan_ivf(len(feature_set), feature_set.recipe.dim, record.kind)
        self._lists = read_lists(folder, dim=self._plan.dim)

    def __len__(self) -> int:
        return len(self.feature_set)

    @property
    def recall(self) -> float:
        """Recall at 10, measured when the index was built."""
        return self.record.recall

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Find the ``k`` windows nearest to each query (queries, dim) by cosine, as the index finds them.

        Queries need not be normalised. A query has fewer than ``k`` neighbours only if the set has fewer windows.

        Raises
        ------
        UsageError
            The queries do not have the dim of the set, or ``k`` is below 1.
        """
        k, unit = _at_most(k, len(self)), self._unit(queries)
        found = _search_lists(self._lists, self.feature_set, self._plan, unit, k=k, n_probe=self.record.n_probe)
        few = np.flatnonzero((found.rows < 0).any(axis=1))
        if len(few):  # the lists searched have fewer than k rows
            exact = self.search_exactly(queries[few], k)
            found.similarities[few], found.rows[few] = exact.similarities, exact.rows
        return found

    def search_exactly(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Exact search: compares every window, read block by block."""
        from featstore.retrieve.index import ExactHeap

        heap = ExactHeap(self._unit(queries), k=_at_most(k, len(self)))
        for first, rows in _unit_blocks(self.feature_set, self._plan):
            heap.add(rows, first=first)
        return heap.nearest()

    def _unit(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        if queries.ndim != 2 or queries.shape[1] != self._plan.dim:
            raise UsageError(f"queries must have the shape (queries, {self._plan.dim}), got {queries.shape}")
        return unit_rows(queries)


class JoinedIndexes:
    """Several indexes searched as one; the rows of each follow the rows of the previous one."""

    def __init__(self, indexes: Sequence[SavedIndex]) -> None:
        self.indexes = tuple(indexes)

    @property
    def recall(self) -> float:
        """Mean recall, weighted by rows."""
        return float(np.average([each.recall for each in self.indexes], weights=[len(each) for each in self.indexes]))

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Find the ``k`` nearest over all indexes."""
        similarities, rows, first = [], [], 0
        for index in self.indexes:
            found = index.search(queries, k)
            similarities.append(found.similarities)
            rows.append(found.rows + first)
            first += len(index)
        found = Neighbours(similarities=np.concatenate(similarities, axis=1), rows=np.concatenate(rows, axis=1))
        return found.at(np.argsort(-found.similarities, axis=1, kind="stable")[:, :k])


def open_index(feature_set: FeatureSet, kind: IvfKind = "ivf", *, notify: Notify = lambda _: None) -> SavedIndex:
    """Open the saved index of a feature set; build it first if there is none for the current content.

    Parameters
    ----------
    feature_set : FeatureSet
    kind : "ivf" or "ivfpq"
        Complete vectors, as large on disk as the set; or product codes of at most 64 bytes, whose best 100 candidates
        (or 10 per neighbour, if more) are compared with the stored vectors.
    notify : callable
        Receives a line of text before a build, which may take long.

    Raises
    ------
    UsageError
        The kind is unknown, or the set is empty.
    DataError
        A vector is not finite.
    StoreError
        The index cannot be written.
    """
    plan = plan_ivf(len(feature_set), feature_set.recipe.dim, kind)
    folders = index_folders(feature_set, kind)
    unusable = ""
    for folder in folders:
        try:
            return _opened(folder, feature_set, kind)
        except UnusableIndex as error:
            unusable = unusable or (f"the index in {folder} is not used: {error}; " if str(error) else "")
    folder = first_writable(folders)
    notify(
        f"{unusable}building the {kind} index of {feature_set.path}, {plan.rows:,} x {plan.dim}, "
        f"{spoken_bytes(plan.index_bytes)}: {folder}"
    )
    make_index(feature_set, plan, folder)
    for _ in range(3):  # another process may replace it at the same time
        with contextlib.suppress(UnusableIndex):
            return _opened(folder, feature_set, kind)
    raise StoreError(f"{folder} is being replaced by other processes: try again")


def _opened(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> SavedIndex:
    """Open the index in a folder. Raises UnusableIndex if it must not be used."""
    record = usable_record(folder, feature_set, kind)
    try:
        index = SavedIndex(feature_set, folder, record)
    except StoreError as error:  # just deleted, or with the padded vectors of an earlier featstore
        raise UnusableIndex("FAISS cannot read it as vectors of the set") from error
    # Centroids and lists are two files: another process may have replaced both between the reads.
    if usable_record(folder, feature_set, kind) != record:
        raise UnusableIndex("it was replaced while it was being opened")
    return index


def _at_most(k: int, rows: int) -> int:
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    return min(k, rows)
