"""Inverted-file indexes: trained on a sample, filled block by block on disk, merged, and searched where they lie.

With `featstore.retrieve.index` the door to FAISS. Rows come at unit length, so that inner products are cosines.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.retrieve.index_plan import IvfPlan
from featstore.retrieve.knn import Neighbours

__all__ = ["ExactHeap", "MappedLists", "merge_blocks", "train_index", "write_block"]

INDEX_FILE, LISTS_FILE, BLOCKS = "index.faiss", "lists.ivfdata", "block-*.faiss"
_T = TypeVar("_T")

TWO_LEVELS_FROM_LISTS = 1024
PQ_SAMPLE = 128 * 256
"""Rows that codes are learned from, some of them several times where there are fewer: FAISS 1.15 takes a way through
its k-means that is five times as slow where a sample is smaller than this."""

ITERATIONS = 10
MOST_WORKERS = 16
"""Each has products and buffers of about 8 MiB."""

GRAPH_BUILD_BEAM = 80
GRAPH_SEARCH_BEAM = 32
SEED = 1234


def train_index(plan: IvfPlan, sample: NDArray[np.float32]) -> faiss.IndexIVF:
    """Make an empty index: centroids and codes are learned from a sample (n, padded_dim)."""
    centroids = _centroids(sample, plan)
    n_lists, dim = centroids.shape
    quantizer: faiss.Index = faiss.IndexFlatIP(dim)
    if plan.graph_links:
        graph: Any = faiss.IndexHNSWFlat(dim, plan.graph_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = GRAPH_BUILD_BEAM
        graph.hnsw.efSearch = GRAPH_SEARCH_BEAM
        quantizer = graph
    quantizer.add(centroids)
    if not plan.n_codes:
        index = faiss.IndexIVFFlat(quantizer, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
        index.train(sample[:1])  # it has its centroids already
        return index
    coded: Any = faiss.IndexIVFPQ(quantizer, dim, n_lists, plan.n_codes, 8, faiss.METRIC_INNER_PRODUCT)
    _learn_codes(coded, centroids, sample[np.linspace(0, len(sample) - 1, PQ_SAMPLE).astype(np.int64)])
    return cast(faiss.IndexIVF, coded)


def write_block(index: faiss.IndexIVF, rows: NDArray[np.float32], *, first: int, folder: Path) -> None:
    """Write the lists of some rows (n, padded_dim), numbered from `first` on, and leave the index empty.

    Raises
    ------
    StoreError
        It cannot be written.
    """
    index.add_with_ids(rows, np.arange(first, first + len(rows)))
    centroids, none = index.quantizer, faiss.IndexFlatIP(index.d)
    index.quantizer = none  # of a billion rows, they would be most of a block
    try:
        _write(index, folder / f"block-{first:012d}.faiss")
    finally:
        index.quantizer = centroids
    index.reset()


def merge_blocks(index: faiss.IndexIVF, folder: Path) -> None:
    """Join the lists of the blocks in a folder into one file, mapped on both sides, and delete the blocks.

    FAISS does it in a process of its own. There it prints to nobody's stdout, what it maps goes with it, and a disk
    that fills up under a mapped file ends no other.

    Raises
    ------
    StoreError
        It failed.
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
        said = child.stderr.strip().splitlines() or [f"its process ended with {child.returncode}"]
        raise StoreError(f"FAISS cannot join the lists of an index in {folder.parent}: {said[-1]}")
    for block in folder.glob(BLOCKS):
        block.unlink()


def _write(index: faiss.Index, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS has no other for a file that it cannot write
        raise StoreError(f"FAISS cannot write to {path.parent.parent}: {_last_line(error)}") from error


def _last_line(error: RuntimeError) -> str:
    return str(error).splitlines()[-1].strip()


_MERGE = """
import glob, sys
import faiss
from faiss.contrib.ondisk import merge_ondisk

blocks, index_file, lists_file = sys.argv[1:]
index = faiss.read_index(index_file)
merge_ondisk(index, sorted(glob.glob(blocks)), lists_file)
faiss.write_index(index, index_file)
"""


class MappedLists:
    """A merged index, read only, whose lists stay in their file.

    Raises
    ------
    StoreError
        The folder holds none that FAISS can read.
    """

    def __init__(self, folder: Path) -> None:
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY
        try:
            index: Any = faiss.read_index(str(folder / INDEX_FILE), flags)
            # The index knows its lists by the folder where it was made.
            lists: Any = faiss.downcast_InvertedLists(index.invlists)
            lists.filename = str(folder / LISTS_FILE)
            lists.read_only = True
            lists.do_mmap()
        except RuntimeError as error:
            raise StoreError(f"FAISS cannot read the index in {folder}: {_last_line(error)}") from error
        self._index = index

    def search(self, queries: NDArray[np.float32], *, k: int, n_probe: int) -> Neighbours:
        """Find the ``k`` best rows of the `n_probe` lists nearest to each query; a row is -1 where they hold fewer."""
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = n_probe
        similarities, rows = self._index.search(queries, k, params=parameters)
        return Neighbours(similarities=similarities, rows=rows)


class ExactHeap:
    """The nearest of rows that come block by block."""

    def __init__(self, queries: NDArray[np.float32], *, k: int) -> None:
        self._queries = queries
        self._heap = faiss.ResultHeap(len(queries), k, keep_max=True)

    def add(self, rows: NDArray[np.float32], *, first: int) -> None:
        """Look at some rows (n, dim), numbered from `first` on."""
        k = min(self._heap.k, len(rows))
        similarities, found = faiss.knn(self._queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        self._heap.add_result(similarities, found + first)

    def nearest(self) -> Neighbours:
        """What was found, nearest first; nothing can be added after it."""
        self._heap.finalize()
        return Neighbours(similarities=self._heap.D, rows=self._heap.I)


def _centroids(sample: NDArray[np.float32], plan: IvfPlan) -> NDArray[np.float32]:
    """Centres (about n_lists, dim) of a k-means on the sphere; of many, in two levels.

    A k-means of thousands of lists is most of the time that an index takes. In two levels (root of the lists first,
    then in each of these its share by rows), it is next to none; FAISS's wiki has it for millions of lists.
    """
    n_lists = plan.n_lists
    if n_lists < TWO_LEVELS_FROM_LISTS:
        return _centroids_of(_k_means(sample, n_lists))
    coarse = _k_means(sample, round(n_lists**0.5))
    _, nearest = coarse.assign(sample)
    counts = np.bincount(nearest, minlength=coarse.k)
    members = np.split(np.argsort(nearest, kind="stable"), np.cumsum(counts)[:-1])
    shares = np.maximum(1, np.round(counts * (n_lists / len(sample)))).astype(int)
    some = [(rows, int(share)) for rows, share in zip(members, shares, strict=True) if len(rows)]
    at_most = max(1, plan.block_rows // int(counts.max()))  # their rows are copied out of the mapped sample
    fine = _side_by_side(lambda each: _centroids_of(_k_means(sample[each[0]], each[1])), some, at_most=at_most)
    return np.concatenate(fine)


def _learn_codes(coded: Any, centroids: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
    """Learn the product codes from rows (n, padded_dim), which are changed, number for number as ``coded.train`` would.

    That learns one code after another, each with all threads, which wait for one another after every few milliseconds.
    Where others use the machine too, they wait for whoever was put off: measured, 1.8 s of work took 17.7 s on two busy
    cores, and 3.4 s with a thread for each code.
    """
    _, nearest = coded.quantizer.search(rows, 1)
    residuals = rows
    for start in range(0, len(rows), 4096):  # in place, for of these rows there are many
        residuals[start : start + 4096] -= centroids[nearest[start : start + 4096, 0]]
    width = coded.pq.dsub

    def centres(code: int) -> NDArray[np.float32]:
        part = np.ascontiguousarray(residuals[:, code * width : (code + 1) * width])
        return _centroids_of(_k_means(part, coded.pq.ksub, spherical=False))

    learned = _side_by_side(centres, range(coded.pq.M), at_most=coded.pq.M)
    faiss.copy_array_to_vector(np.concatenate(learned).ravel(), coded.pq.centroids)
    coded.is_trained = True


def _side_by_side(work: Callable[[_T], NDArray[np.float32]], items: Iterable[_T], *, at_most: int) -> list[Any]:
    """Do small pieces of FAISS's work in threads of their own, in which it starts no others."""
    workers = min(at_most, faiss.omp_get_max_threads(), MOST_WORKERS)
    if workers <= 1:
        return list(map(work, items))
    with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def _centroids_of(means: faiss.Kmeans) -> NDArray[np.float32]:
    return np.asarray(means.centroids, dtype=np.float32)


def _k_means(rows: NDArray[np.float32], k: int, *, spherical: bool = True) -> faiss.Kmeans:
    means = faiss.Kmeans(
        rows.shape[1],
        k,
        niter=ITERATIONS,
        spherical=spherical,
        seed=SEED,
        min_points_per_centroid=1,  # a small set is no reason to write to stderr
        max_points_per_centroid=1 << 30,  # the sample is as large as it is meant to be
    )
    means.train(rows)
    return means
