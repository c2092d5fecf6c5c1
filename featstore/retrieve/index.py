"""FAISS search of rows in memory, and of inverted-file indexes built on disk. The only module that imports FAISS.

Rows of an inverted-file index have unit length, so inner products are cosines.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.retrieve.index_plan import IvfPlan, plan_ivf
from featstore.retrieve.knn import IndexName, Neighbours, reranked
from featstore.system import with_numpys_kernels

with with_numpys_kernels():
    import faiss

__all__ = ["ExactHeap", "Searcher", "merge_blocks", "read_lists", "search_lists", "train_index", "write_block"]

INDEX_FILE, LISTS_FILE, BLOCKS = "index.faiss", "lists.ivfdata", "block-*.faiss"

HNSW_LINKS = 32
HNSW_BUILD_BEAM = 80
HNSW_SEARCH_BEAM = 64
CENTROIDS_SEARCH_BEAM = 32
IVF_SHARE_SEARCHED = 1 / 16

MIN_WORK_TO_DIVIDE = 10**11
"""Work (queries x rows x dim) above which every thread searches for its own blocks of queries."""

QUERIES_PER_BLOCK = 512
MORE_OF_EQUALS, MOST_OF_EQUALS = 8, 1 << 22
"""Factor by which k is increased where rows tie for the last place, and the number of results (48 MiB) per block."""

TWO_LEVELS_FROM_LISTS = 1024
ITERATIONS = 10
SAMPLE_PER_CODE = 128
MOST_WORKERS = 16
"""Maximum number of threads; each has about 8 MiB of products and buffers."""

SEED = 1234


# --- rows in memory ---------------------------------------------------------------------------------------------------


class Searcher:
    """In-memory index of rows.

    ``flat`` is exact. ``hnsw`` is a graph (Malkov and Yashunin 2018); its links depend on thread order, so its last
    neighbours may differ between runs. ``ivf`` searches a sixteenth of the lists of a k-means; ``ivfpq`` stores product
    codes in its lists and compares the best ten candidates per neighbour (at least a hundred) with the exact vectors.

    Parameters
    ----------
    X : float32 (n, dim)
    """

    def __init__(self, X: NDArray[np.float32], name: IndexName) -> None:
        self.X = X
        self._index: Any = None
        self._plan: IvfPlan | None = None
        if name == "hnsw":
            self._index = faiss.index_factory(X.shape[1], f"HNSW{HNSW_LINKS},Flat", faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = HNSW_BUILD_BEAM
        elif name != "flat":
            self._plan = plan_ivf(len(X), X.shape[1], name)
            self._index = train_index(self._plan, X)
        if self._index is not None:
            self._index.add(X)

    def search(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        """Find the ``k`` rows with the largest inner product for each query (queries, dim), as the index finds them.

        The index must have at least ``k`` rows. A query for which it finds fewer is compared with all rows.
        """
        if self._index is None:
            return self.search_exactly(queries, k=k)
        if self._plan is None:
            self._index.hnsw.efSearch = max(HNSW_SEARCH_BEAM, 2 * k)
            found = _search(self._index, queries, k=k)
        else:
            n_probe = math.ceil(self._plan.n_lists * IVF_SHARE_SEARCHED)
            found = search_lists(self._index, queries, k=self._plan.n_candidates(k), n_probe=n_probe)
            if self._plan.kind == "ivfpq":
                found = reranked(found.rows, queries, k=k, vectors_of=lambda rows: self.X[rows])
        few = np.flatnonzero((found.rows < 0).any(axis=1))
        if len(few):
            exact = self.search_exactly(queries[few], k=k)
            found.similarities[few], found.rows[few] = exact.similarities, exact.rows
        return found

    def search_exactly(self, queries: NDArray[np.float32], *, k: int) -> Neighbours:
        """Compare each query with every row; ties are ordered by row number.

        Equivalent to FAISS's flat index without its copy of the rows, except that of several rows tied for the last
        place the lowest are returned, where FAISS returns any.
        """
        return _compare_all(queries, self.X, k=k)


class ExactHeap:
    """Top-k search over rows that arrive in blocks."""

    def __init__(self, queries: NDArray[np.float32], *, k: int) -> None:
        self._queries, self._k = queries, k
        self._similarities = np.empty((len(queries), 0), np.float32)
        self._rows = np.empty((len(queries), 0), np.int64)

    def add(self, rows: NDArray[np.float32], *, first: int) -> None:
        """Compare some rows (n, dim), numbered from `first`."""
        found = _compare_all(self._queries, rows, k=min(self._k, len(rows)))
        both = _lowest_first(
            np.concatenate([self._similarities, found.similarities], axis=1),
            np.concatenate([self._rows, found.rows + first], axis=1),
        )
        self._similarities, self._rows = both.similarities[:, : self._k], both.rows[:, : self._k]

    def nearest(self) -> Neighbours:
        """The nearest rows so far, nearest first; ties are ordered by row number."""
        return Neighbours(similarities=self._similarities, rows=self._rows)


def _search(index: faiss.Index, queries: NDArray[np.float32], *, k: int) -> Neighbours:
    similarities, rows = index.search(queries, k)
    return Neighbours(similarities=similarities, rows=rows)


def _compare_all(queries: NDArray[np.float32], X: NDArray[np.float32], *, k: int) -> Neighbours:
    """The ``k`` nearest rows; where more are equally near to the last place, all of these are found before a choice."""
    n_found = min(k + 1, len(X))
    found = _lowest_first(*_nearest(queries, X, k=n_found))
    similarities, rows = found.similarities[:, :k], found.rows[:, :k]
    tied = np.flatnonzero(found.similarities[:, k - 1] == found.similarities[:, -1])
    while n_found < len(X) and len(tied):
        n_found = min(MORE_OF_EQUALS * n_found, len(X))
        at_once = max(1, MOST_OF_EQUALS // n_found)
        still_tied = []
        for some in np.split(tied, range(at_once, len(tied), at_once)):
            found = _lowest_first(*_nearest(queries[some], X, k=n_found))
            similarities[some], rows[some] = found.similarities[:, :k], found.rows[:, :k]
            still_tied.append(some[found.similarities[:, k - 1] == found.similarities[:, -1]])
        tied = np.concatenate(still_tied)
    return Neighbours(similarities=similarities, rows=rows)


def _nearest(
    queries: NDArray[np.float32], X: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Similarities and rows (queries, k), in FAISS's order."""

    def search(some: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = faiss.knn(some, X, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found

    if len(queries) * X.size < MIN_WORK_TO_DIVIDE:
        return search(queries)
    blocks = np.split(queries, range(QUERIES_PER_BLOCK, len(queries), QUERIES_PER_BLOCK))
    with _single_threaded_pool(faiss.omp_get_max_threads()) as pool:
        similarities, rows = zip(*pool.map(search, blocks), strict=True)
    return np.concatenate(similarities), np.concatenate(rows)


def _single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Threads with one OpenMP thread each: FAISS's own threads wait for each other, which is slow on a busy machine."""
    return ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,))


def _lowest_first(similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbours:
    """Sort by similarity, and tied rows by row number, which FAISS lists in descending order."""
    return Neighbours(similarities=similarities, rows=rows).at(np.lexsort((rows, -similarities), axis=1))


# --- inverted-file indexes --------------------------------------------------------------------------------------------


def train_index(plan: IvfPlan, sample: NDArray[np.float32]) -> faiss.Index:
    """Create an empty index whose centroids and codes are learned from a sample (n, dim)."""
    index = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    quantizer: Any = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efConstruction = HNSW_BUILD_BEAM
        quantizer.hnsw.efSearch = CENTROIDS_SEARCH_BEAM
    quantizer.add(np.pad(_centroids(sample, plan), ((0, 0), (0, ivf.d - plan.dim))))
    if plan.kind == "ivfpq":
        ivf.pq.cp.niter, ivf.pq.cp.max_points_per_centroid = ITERATIONS, SAMPLE_PER_CODE
        # repeat rows of a small sample: FAISS 1.15 is five times as slow with fewer rows
        n = SAMPLE_PER_CODE * ivf.pq.ksub
        sample = sample[np.linspace(0, len(sample) - 1, n).astype(np.int64)]
    # The centroids are set; codes of 256 centres with few dimensions remain to be trained. On two busy cores this took
    # 3.3 s with one thread, and 15.9 s with two of FAISS's.
    with _single_threaded_pool(1) as pool:
        pool.submit(index.train, sample).result()
    return index


def write_block(index: faiss.Index, rows: NDArray[np.float32], *, first: int, folder: Path) -> None:
    """Write the lists of some rows (n, dim), numbered from `first`, and empty the index.

    Raises
    ------
    StoreError
        The block cannot be written.
    """
    index.add_with_ids(rows, np.arange(first, first + len(rows)))
    ivf = faiss.extract_index_ivf(index)
    centroids, none = ivf.quantizer, faiss.IndexFlatIP(ivf.d)
    ivf.quantizer = none  # for a billion rows, the centroids would be most of a block
    try:
        _write(ivf, folder / f"block-{first:012d}.faiss")
    finally:
        ivf.quantizer = centroids
    index.reset()


def merge_blocks(index: faiss.Index, folder: Path) -> None:
    """Merge the blocks in a folder into one file of lists, memory-mapped on both sides, and delete the blocks.

    FAISS runs in a child process: this discards its prints, releases its memory maps, and confines a crash of a mapped
    file on a full disk to that process.

    Raises
    ------
    StoreError
        The merge failed.
    """
    _write(index, folder / INDEX_FILE)
    path = os.pathsep.join(filter(None, sys.path))
    child = subprocess.run(
        [sys.executable, "-c", _MERGE, BLOCKS, INDEX_FILE, LISTS_FILE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        reason = child.stderr.strip().splitlines() or [f"its process ended with {child.returncode}"]
        raise StoreError(f"FAISS cannot merge the lists of an index in {folder.parent}: {reason[-1]}")
    for block in folder.glob(BLOCKS):
        block.unlink()


_MERGE = """
import glob, sys
import faiss
from faiss.contrib.ondisk import merge_ondisk

blocks, index_file, lists_file = sys.argv[1:]
index = faiss.read_index(index_file)
merge_ondisk(index, sorted(glob.glob(blocks)), lists_file)
faiss.write_index(index, index_file)
"""


def read_lists(folder: Path, *, dim: int) -> faiss.Index:
    """Open a merged index of vectors (n, dim) read-only, with memory-mapped lists.

    Raises
    ------
    StoreError
        The folder has no such index, or FAISS cannot read it.
    """
    try:
        index = faiss.read_index(str(folder / INDEX_FILE), faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
        # The index names its lists by the original folder. FAISS's IO_FLAG_ONDISK_SAME_DIR prints a line for that.
        ivf: Any = faiss.extract_index_ivf(index)
        lists: Any = faiss.downcast_InvertedLists(ivf.invlists)
        lists.filename = str(folder / LISTS_FILE)
        lists.do_mmap()
    except RuntimeError as error:
        raise StoreError(f"FAISS cannot read the index in {folder}: {_last_line(error)}") from error
    if index.d != dim:
        raise StoreError(f"the index in {folder} has vectors of dim {index.d}, not {dim}")
    return index


def search_lists(index: faiss.Index, queries: NDArray[np.float32], *, k: int, n_probe: int) -> Neighbours:
    """Find the ``k`` best rows in the `n_probe` lists nearest to each query; missing rows are -1."""
    faiss.extract_index_ivf(index).nprobe = n_probe
    return _search(index, queries, k=k)


def _write(index: faiss.Index, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # what FAISS raises for a file that it cannot write
        raise StoreError(f"FAISS cannot write to {path.parent.parent}: {_last_line(error)}") from error


def _last_line(error: RuntimeError) -> str:
    return str(error).splitlines()[-1].strip()


def _centroids(sample: NDArray[np.float32], plan: IvfPlan) -> NDArray[np.float32]:
    """Spherical k-means centroids (n_lists, dim), in two levels if there are many.

    The k-means of `index.train` compares every sample row with every centroid, which dominates the build time. Two
    levels are fast: first sqrt(n_lists) clusters, then in each a number of lists proportional to its rows. FAISS's own
    `faiss.contrib.clustering.two_level_clustering` fails if a cluster has fewer rows than lists.
    """
    if plan.n_lists < TWO_LEVELS_FROM_LISTS:
        return np.asarray(_k_means(sample, plan.n_lists).centroids)
    coarse = _k_means(sample, round(plan.n_lists**0.5))
    _, nearest = coarse.assign(sample)
    counts = np.bincount(nearest, minlength=coarse.k)
    members = np.split(np.argsort(nearest, kind="stable"), np.cumsum(counts)[:-1])
    shares = np.diff(np.round(np.cumsum(counts) * (plan.n_lists / len(sample))), prepend=0).astype(int)
    parts = [(rows, int(share)) for rows, share in zip(members, shares, strict=True) if share]
    # copy rows of the mapped sample, at most one block at a time
    workers = min(faiss.omp_get_max_threads(), MOST_WORKERS, max(1, plan.block_rows // int(counts.max())))
    with _single_threaded_pool(workers) as pool:
        return np.concatenate(list(pool.map(lambda part: _k_means(sample[part[0]], part[1]).centroids, parts)))


def _k_means(rows: NDArray[np.float32], k: int) -> Any:
    means = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=ITERATIONS,
        spherical=True,
        seed=SEED,
        min_points_per_centroid=1,  # suppress the warning about small samples on stderr
        max_points_per_centroid=1 << 30,  # do not subsample
    )
    means.train(rows)
    return means
