"""Indexes that are kept: made once for a feature set, beside its store, and mapped ever after.

    embeddings.zarr.index/logmel@3f9c2a71/words/train/ivfpq/
        index.json        what it belongs to and what was measured: `IndexRecord`; signed
        index.faiss       centroids and codes
        lists.ivfdata     the lists, which are mapped

An index holds the utterance vectors of one feature set at unit length, so that what it finds is nearest by cosine. It
belongs to the set's fingerprint and content hash; one of another is never used, and is replaced. So is one that was not
made by this user on this machine, or of which a byte has changed: `featstore.retrieve.sealing`. It is made under a
temporary name, settled, and renamed. Of a store by URL, or in a folder that cannot be written, it is kept in the cache
folder instead (`featstore.store.cache.cache_folder`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError, UsageError
from featstore.retrieve.index_folder import IndexRecord, index_folders, usable_record, writable_one
from featstore.retrieve.making import make_index
from featstore.retrieve.neighbours import Neighbours
from featstore.retrieve.plan import IvfKind, plan_ivf
from featstore.retrieve.scaling import unit_rows
from featstore.retrieve.sealing import UnusableIndex
from featstore.retrieve.unit_vectors import padded, search_lists, unit_blocks
from featstore.wording import spoken_bytes

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = ["JoinedIndexes", "SavedIndex", "Tell", "open_index"]

Tell = Callable[[str], None]


class SavedIndex:
    """An index of one feature set, as `open_index` opens it. Its rows are the windows of the set, in their order."""

    def __init__(self, feature_set: FeatureSet, folder: Path, record: IndexRecord) -> None:
        from featstore.retrieve.ivf import MappedLists

        self.feature_set = feature_set
        self.folder = folder
        self.record = record
        self._plan = record.ivf_plan
        self._lists = MappedLists(folder)

    def __len__(self) -> int:
        return len(self.feature_set)

    @property
    def recall(self) -> float:
        """Share of the nearest that it was measured to find; ``record`` tells how."""
        return self.record.recall

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Find the ``k`` windows nearest to each query (queries, dim) by cosine, as the index finds them.

        Queries may be of any length. There are fewer than ``k`` neighbours only where the set has fewer windows.

        Raises
        ------
        UsageError
            The queries are not as wide as the set's vectors, or ``k`` is below 1.
        """
        k, unit = _at_most(k, len(self)), self._unit(queries)
        found = search_lists(
            self._lists, self._plan, unit, k=k, n_probe=self.record.n_probe, feature_set=self.feature_set
        )
        few = np.flatnonzero((found.rows < 0).any(axis=1))
        if len(few):  # the lists that were searched hold fewer than k
            exact = self.search_exactly(queries[few], k)
            found.similarities[few], found.rows[few] = exact.similarities, exact.rows
        return found

    def search_exactly(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """The same by comparing every window, read block by block."""
        from featstore.retrieve.ivf import ExactHeap

        heap = ExactHeap(padded(self._unit(queries), self._plan), k=_at_most(k, len(self)))
        for first, rows in unit_blocks(self.feature_set, self._plan):
            heap.add(rows, first=first)
        return heap.nearest()

    def _unit(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        if queries.ndim != 2 or queries.shape[1] != self._plan.dim:
            raise UsageError(f"queries are (queries, {self._plan.dim}), as wide as the set: got {queries.shape}")
        return unit_rows(queries)


class JoinedIndexes:
    """Several indexes searched as one: the rows of each follow those of the one before."""

    def __init__(self, indexes: Sequence[SavedIndex]) -> None:
        self.indexes = tuple(indexes)

    @property
    def recall(self) -> float:
        """The mean of theirs, by rows."""
        return float(np.average([each.recall for each in self.indexes], weights=[len(each) for each in self.indexes]))

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Find the ``k`` nearest of all: they are among the ``k`` nearest of each."""
        similarities, rows, first = [], [], 0
        for index in self.indexes:
            found = index.search(queries, k)
            similarities.append(found.similarities)
            rows.append(found.rows + first)
            first += len(index)
        all_similarities, all_rows = np.concatenate(similarities, axis=1), np.concatenate(rows, axis=1)
        best = np.argsort(-all_similarities, axis=1, kind="stable")[:, :k]
        return Neighbours(
            similarities=np.take_along_axis(all_similarities, best, axis=1),
            rows=np.take_along_axis(all_rows, best, axis=1),
        )


def open_index(feature_set: FeatureSet, kind: IvfKind = "ivf", *, tell: Tell = lambda _: None) -> SavedIndex:
    """Open the saved index of a feature set; where there is none of what the set holds now, make it first.

    Parameters
    ----------
    feature_set : FeatureSet
    kind : "ivf" or "ivfpq"
        Whole vectors, as large on disk as the set's own; or codes of at most 64 bytes, whose best hundred candidates
        (ten for each neighbour, where that is more) are compared again with the stored vectors.
    tell : callable
        Takes a line that says what is about to take its time.

    Raises
    ------
    UsageError
        There is no such kind, or the set is empty.
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
            unusable = unusable or (f"the index in {folder} is not used, for {error}: " if str(error) else "")
    folder = writable_one(folders)
    tell(
        f"{unusable}making the {kind} index of {feature_set.path}, {plan.rows:,} x {plan.dim}, "
        f"{spoken_bytes(plan.index_bytes)}: {folder}"
    )
    make_index(feature_set, plan, folder)
    for _ in range(3):  # another process may be putting its own there
        with contextlib.suppress(UnusableIndex):
            return _opened(folder, feature_set, kind)
    raise StoreError(f"{folder} is being replaced by other processes all the time: try again")


def _opened(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> SavedIndex:
    """The index in a folder; UnusableIndex where it is not to be used."""
    record = usable_record(folder, feature_set, kind)
    try:
        index = SavedIndex(feature_set, folder, record)
    except StoreError as error:  # it has gone this moment
        raise UnusableIndex("FAISS cannot read it") from error
    # Centroids and lists are two files: whoever put another index there in between has left us one of each.
    if usable_record(folder, feature_set, kind) != record:
        raise UnusableIndex("it was replaced while it was opened")
    return index


def _at_most(k: int, rows: int) -> int:
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    return min(k, rows)
