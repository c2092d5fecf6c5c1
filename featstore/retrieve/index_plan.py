"""The size and the `faiss.index_factory` description of an inverted-file index, planned before anything is read. Pure.

The numbers follow FAISS's own guidelines (its wiki, "Guidelines to choose an index"): four times the square root of the
rows in lists, 30 to 256 training vectors a list, product codes of at most 64 bytes, and a graph over the centroids
where there are many. One rule is featstore's: memory is bounded by a number of bytes, whatever the rows. The training
sample is a mapped file; the centroids are in memory and bound the lists. At the default of 1 GiB that is 174,762 lists
of 256 numbers, or 58,254 of 768: enough for 1.9 billion rows, or for 212 million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from featstore.errors import UsageError

__all__ = ["IvfKind", "IvfPlan", "plan_ivf"]

IvfKind = Literal["ivf", "ivfpq"]

MEMORY_BYTES = 1 << 30
LISTS_PER_ROOT = 4
MIN_ROWS_PER_LIST = 64
SAMPLE_PER_LIST = 64
MIN_SAMPLE_ROWS = 256 * 256
MAX_CODES = 64
MIN_DIMS_PER_CODE = 4
GRAPH_FROM_LISTS = 4096
"""Fewer centroids are compared with all at once, as fast as the graph is walked (measured at 256 numbers)."""

GRAPH_LINKS = 32
ID_BYTES = 8
MIN_CANDIDATES = 100
CANDIDATES_PER_NEIGHBOUR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPlan:
    """An inverted-file index, before it is made.

    Attributes
    ----------
    kind : "ivf" or "ivfpq"
        Lists of vectors, or of product codes (Jegou et al. 2011) whose best candidates are compared again with the
        stored vectors.
    rows, dim : int
    factory : str
        Takes `faiss.index_factory` to the empty index. Vectors that cannot be divided into equal codes are padded with
        zeros.
    n_lists : int
    row_bytes : int
        Bytes of one row in its list.
    sample_rows : int
        Rows, evenly drawn, that the index is trained on.
    block_rows : int
        Rows that are read and added at a time.
    """

    kind: IvfKind
    rows: int
    dim: int
    factory: str
    n_lists: int
    row_bytes: int
    sample_rows: int
    block_rows: int

    @property
    def index_bytes(self) -> int:
        """Approximate bytes of the index on disk."""
        links = 2 * 4 * GRAPH_LINKS if self.n_lists >= GRAPH_FROM_LISTS else 0
        return self.rows * self.row_bytes + self.n_lists * (4 * self.dim + links + 64)

    @property
    def making_bytes(self) -> int:
        """Bytes on disk while it is made: the sample, then every row in a block of lists and in the merged lists."""
        return self.index_bytes + max(self.rows * self.row_bytes, 4 * self.dim * self.sample_rows)

    @property
    def n_blocks(self) -> int:
        """Blocks of lists that are merged."""
        return -(-self.rows // self.block_rows)

    def n_candidates(self, k: int) -> int:
        """Rows that are compared again for the ``k`` nearest; ``k`` where lists hold the vectors."""
        if self.kind == "ivf":
            return k
        return min(self.rows, max(MIN_CANDIDATES, k * CANDIDATES_PER_NEIGHBOUR))


def plan_ivf(rows: int, dim: int, kind: IvfKind, *, memory_bytes: int = MEMORY_BYTES) -> IvfPlan:
    """Plan an index of `rows` vectors of `dim` numbers that is made in `memory_bytes`, mapped files apart.

    FAISS's own workspace is the minimum: 16 MiB of products, about 8 MiB for each core up to 16, and 32,768 vectors
    twice where it learns codes.

    >>> plan = plan_ivf(5_000_000, 256, "ivfpq")
    >>> plan.factory, f"{plan.index_bytes / 1e9:.2f} GB"
    ('IVF8944_HNSW32,PQ64x8np', '0.37 GB')

    Raises
    ------
    UsageError
        There is no row, or no index of that kind.
    """
    if kind not in ("ivf", "ivfpq"):
        raise UsageError(f"there is no saved index of kind {kind!r}; there are ivf and ivfpq")
    if rows < 1 or dim < 1:
        raise UsageError(f"an index takes at least one row of at least one number: got {rows} of {dim}")
    # Half for the centroids, which are there three times while they are learned. Then an eighth for a block: there
    # are the rows as they are stored, at unit length, and in lists that have grown by doubling.
    most_lists = max(1, min(rows // MIN_ROWS_PER_LIST, memory_bytes // 2 // (3 * 4 * dim)))
    n_lists = min(LISTS_PER_ROOT * math.isqrt(rows), most_lists)
    graph = f"_HNSW{GRAPH_LINKS}" if n_lists >= GRAPH_FROM_LISTS else ""
    factory, row_bytes = f"IVF{n_lists}{graph},Flat", 4 * dim
    if kind == "ivfpq":
        dims_per_code = max(MIN_DIMS_PER_CODE, -(-dim // MAX_CODES))
        n_codes = row_bytes = -(-dim // dims_per_code)
        padding = f"Pad{n_codes * dims_per_code}," if dim % dims_per_code else ""
        factory = f"{padding}IVF{n_lists}{graph},PQ{n_codes}x8np"
    return IvfPlan(
        kind=kind,
        rows=rows,
        dim=dim,
        factory=factory,
        n_lists=n_lists,
        row_bytes=ID_BYTES + row_bytes,
        sample_rows=min(rows, max(SAMPLE_PER_LIST * n_lists, MIN_SAMPLE_ROWS)),
        block_rows=max(1, min(rows, memory_bytes // 8 // (4 * dim))),
    )
