"""Indexes that are kept: made once for a feature set, beside its store, and mapped ever after.

    embeddings.zarr.index/logmel@3f9c2a71/words/train/ivfpq/
        index.json        what it belongs to and what was measured: `IndexRecord`
        index.faiss       centroids and codes
        lists.ivfdata     the lists, which are mapped

An index holds the utterance vectors of one feature set at unit length, so that what it finds is nearest by cosine. It
belongs to the set's fingerprint and content hash; one of another is never used, and is replaced. It is made under a
temporary name, settled, and renamed. Of a store by URL, or in a folder that cannot be written, it is kept in the cache
folder instead (`featstore.store.cache.cache_folder`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, StoreError, UsageError
from featstore.retrieve.neighbours import Neighbours, evenly, reranked, share_found
from featstore.retrieve.plan import TARGET_RECALL, IvfKind, IvfPlan, plan_ivf
from featstore.retrieve.scaling import unit_rows
from featstore.store.cache import cache_folder
from featstore.store.objects import LocalObjects, local_root
from featstore.wording import spoken_bytes

if TYPE_CHECKING:
    from featstore.retrieve.ivf import MappedLists
    from featstore.store import FeatureSet

__all__ = ["IndexRecord", "JoinedIndexes", "SavedIndex", "index_folders", "make_index", "open_index"]

INDEX_FORMAT = 1
RECORD_FILE, SAMPLE_FILE = "index.json", "sample.float32"
RECALL_K = 10
N_RECALL_QUERIES = 200
MIN_CANDIDATES = 100

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """What stands beside an index.

    Attributes
    ----------
    feature_set, fingerprint, content_hash : str
        What it was made of.
    plan : mapping
        `IvfPlan`.
    n_probe : int
        Lists that a search looks through.
    recall, recall_k : float, int
        Share of the ``recall_k`` nearest that a search finds, of rows of the set itself with that row left out.
    recall_by_probes : mapping
        Number of lists searched -> recall, for each that was tried.
    seconds : mapping
        What making it took, by stage.
    files : mapping
        Name -> size in bytes.
    """

    format: int
    feature_set: str
    fingerprint: str
    content_hash: str
    kind: IvfKind
    plan: Mapping[str, Any]
    n_probe: int
    recall: float
    recall_k: int
    recall_by_probes: Mapping[str, float]
    seconds: Mapping[str, float]
    files: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.files.values())


class SavedIndex:
    """An index of one feature set, as `open_index` opens it. Its rows are the windows of the set, in their order."""

    def __init__(self, feature_set: FeatureSet, folder: Path, record: IndexRecord) -> None:
        from featstore.retrieve.ivf import MappedLists

        self.feature_set = feature_set
        self.folder = folder
        self.record = record
        self._plan = IvfPlan(**{**record.plan, "n_probes": tuple(record.plan["n_probes"])})
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
        """
        k, unit = _at_most(k, len(self)), unit_rows(queries)
        found = _search(self._lists, self._plan, unit, k=k, n_probe=self.record.n_probe, feature_set=self.feature_set)
        few = np.flatnonzero((found.rows < 0).any(axis=1))
        if len(few):  # the lists that were searched hold fewer than k
            exact = self.search_exactly(queries[few], k)
            found.similarities[few], found.rows[few] = exact.similarities, exact.rows
        return found

    def search_exactly(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """The same by comparing every window, read block by block."""
        from featstore.retrieve.ivf import ExactHeap

        heap = ExactHeap(_padded(unit_rows(queries), self._plan), k=_at_most(k, len(self)))
        for first, rows in _unit_blocks(self.feature_set, self._plan):
            heap.add(rows, first=first)
        return heap.nearest()


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
    for folder in folders:
        record = _usable(folder, feature_set, kind)
        if record is not None:
            return SavedIndex(feature_set, folder, record)
    folder = next((each for each in folders if _is_writable(each)), folders[-1])
    tell(
        f"making the {kind} index of {feature_set.path}, {plan.rows:,} x {plan.dim}, {spoken_bytes(plan.index_bytes)}: "
        f"{folder}"
    )
    return SavedIndex(feature_set, folder, make_index(feature_set, plan, folder))


def index_folders(feature_set: FeatureSet, kind: IvfKind) -> tuple[Path, ...]:
    """Where a feature set's index may be, the best place first."""
    root = local_root(feature_set.store_url)
    url = feature_set.store_url if root is None else str(root.resolve())
    cached = cache_folder() / "indexes" / hashlib.sha256(url.encode()).hexdigest()[:16] / feature_set.path / kind
    if root is None:
        return (cached,)
    root = root.resolve()
    return (root.with_name(f"{root.name}.index") / feature_set.path / kind, cached)


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
        _sweep(folder)
        room = shutil.disk_usage(folder.parent).free
        if room < plan.making_bytes:  # a mapped file that a disk has no room for ends the process
            raise StoreError(
                f"the {plan.kind} index of {feature_set.path} takes {spoken_bytes(plan.making_bytes)} while it is "
                f"made: {folder.parent} has {spoken_bytes(room)} free"
            )
        temporary = _temporary(folder)
        temporary.mkdir()
        try:
            record = _build(feature_set, plan, temporary)
            (temporary / RECORD_FILE).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
            LocalObjects(temporary.parent).settle(temporary.name)
            _put(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot keep an index in {folder}: {error.strerror or error}; FEATSTORE_CACHE names another place where "
            "the store's own cannot be written"
        ) from error
    return record


# --- making -----------------------------------------------------------------------------------------------------------


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
        for first, rows in _unit_blocks(feature_set, plan):
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
            found = _search(lists, plan, queries[:, : plan.dim], k=k, n_probe=n_probe, feature_set=feature_set)
            by_probes[n_probe] = share_found(wanted, _others(found.rows, own))
            if by_probes[n_probe] >= TARGET_RECALL:
                break
    best = max(by_probes)
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
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    )


def _unit_blocks(feature_set: FeatureSet, plan: IvfPlan) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number of a block's first row, and its rows at unit length: float32 (n, padded_dim)."""
    for first in range(0, plan.rows, plan.block_rows):
        rows = feature_set.utterance_rows.slice(first, min(first + plan.block_rows, plan.rows))
        yield first, _padded(_checked_unit(rows, feature_set), plan)


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
            _padded(_checked_unit(rows, feature_set), plan).tofile(file)
    return drawn, np.memmap(path, np.float32, mode="r", shape=(len(drawn), plan.padded_dim))


def _checked_unit(rows: NDArray[np.float32], feature_set: FeatureSet) -> NDArray[np.float32]:
    unit = unit_rows(rows)
    with np.errstate(invalid="ignore"):
        sums = unit.sum(axis=1)
    if not np.isfinite(sums).all():
        raise DataError(
            f"{feature_set.path} has embeddings that are not finite, which no index can hold: `featstore verify "
            f"--store {feature_set.store_url} --repair` drops damaged parts, extracting makes them again"
        )
    return unit


def _padded(rows: NDArray[np.float32], plan: IvfPlan) -> NDArray[np.float32]:
    if plan.padded_dim == plan.dim:
        return rows
    return np.pad(rows, ((0, 0), (0, plan.padded_dim - plan.dim)))


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


# --- searching --------------------------------------------------------------------------------------------------------


def _search(
    lists: MappedLists, plan: IvfPlan, queries: NDArray[np.float32], *, k: int, n_probe: int, feature_set: FeatureSet
) -> Neighbours:
    """Search the lists for unit queries (queries, dim), and compare candidates again where the plan says so."""
    padded = _padded(queries, plan)
    if not plan.n_codes:
        return lists.search(padded, k=k, n_probe=n_probe)
    wanted = min(plan.rows, max(MIN_CANDIDATES, k * plan.candidates_per_neighbour))
    candidates = lists.search(padded, k=wanted, n_probe=n_probe).rows
    stored = feature_set.utterance_rows
    return reranked(candidates, queries, k=k, vectors_of=lambda rows: unit_rows(stored.take(rows.tolist())))


def _at_most(k: int, rows: int) -> int:
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    return min(k, rows)


# --- keeping ----------------------------------------------------------------------------------------------------------


def _usable(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> IndexRecord | None:
    """The record of an index that belongs to what the feature set holds now, and whose files are all there."""
    try:
        record = IndexRecord(**json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, ValueError, TypeError):
        return None
    belongs = (record.format, record.kind, record.feature_set, record.fingerprint, record.content_hash) == (
        INDEX_FORMAT,
        kind,
        feature_set.path,
        feature_set.fingerprint,
        feature_set.content_hash,
    )
    return record if belongs and sizes == record.files else None


def _put(temporary: Path, folder: Path) -> None:
    """Give an index its name; one that has it goes. Whoever has that mapped keeps it."""
    for _ in range(3):  # another process may be putting its own there
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            aside = _temporary(folder)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            return
    raise StoreError(f"{folder} is being replaced by other processes all the time: try again")


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}")


def _sweep(folder: Path) -> None:
    """Delete what processes of this machine that are gone left half made."""
    for path in folder.parent.glob(f".{folder.name}~{socket.gethostname()}~*~*"):
        pid = path.name.split("~")[-2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError):
            continue


def _is_writable(folder: Path) -> bool:
    there = next(path for path in folder.parents if path.exists())
    return os.access(there, os.W_OK)
