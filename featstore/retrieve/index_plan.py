"""Plan the size and the `faiss.index_factory` string of an inverted-file index. Pure.

The numbers follow FAISS's wiki ("Guidelines to choose an index"): 4 sqrt(n) lists, 30 to 256 training vectors per list,
product codes of at most 64 bytes, and an HNSW graph over many centroids. In addition, memory is bounded independently
of the number of rows. The training sample is a memory-mapped file; the centroids are in memory, which limits the number
of lists. The default of 1 GiB allows 174,762 lists at dim 256 or 58,254 at dim 768: enough for 1.9 billion rows, or 212
million.
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
"""Up to this many centroids, exhaustive search is as fast as the graph (measured at dim 256)."""

GRAPH_LINKS = 32
ID_BYTES = 8
MIN_CANDIDATES = 100
CANDIDATES_PER_NEIGHBOUR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class IvfPlan:
    """Plan of an inverted-file index.

    Attributes
    ----------
    kind : "ivf" or "ivfpq"
        Lists of vectors; or lists of product codes (Jegou et al. 2011), whose best candidates are compared with the
        stored vectors.
    rows, dim : int
    factory : str
        Argument of `faiss.index_factory`. Vectors whose dim is not divisible into equal codes are padded with zeros.
    n_lists : int
    row_bytes : int
        Bytes of one row in its list.
    sample_rows : int
        Evenly spaced rows on which the index is trained.
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
    def build_bytes(self) -> int:
        """Peak disk usage of the build: the sample, then every row in block files and in the merged lists."""
        return self.index_bytes + max(self.rows * self.row_bytes, 4 * self.dim * self.sample_rows)

    @property
    def n_blocks(self) -> int:
        """Number of block files that are merged."""
        return -(-self.rows // self.block_rows)

    def n_candidates(self, k: int) -> int:
        """Candidates to compare with stored vectors for ``k`` neighbours; ``k`` if lists hold the vectors."""
        if self.kind == "ivf":
            return k
        return min(self.rows, max(MIN_CANDIDATES, k * CANDIDATES_PER_NEIGHBOUR))


def plan_ivf(rows: int, dim: int, kind: IvfKind, *, memory_bytes: int = MEMORY_BYTES) -> IvfPlan:
    """Plan an index of `rows` vectors of `dim` numbers that is built in `memory_bytes`, memory-mapped files excluded.

    FAISS's workspace is the minimum: 16 MiB of products, about 8 MiB per core up to 16 cores, and two copies of 32,768
    vectors for learning codes.

    >>> plan = plan_ivf(5_000_000, 256, "ivfpq")
    >>> plan.factory, f"{plan.index_bytes / 1e9:.2f} GB"
    ('IVF8944_HNSW32,PQ64x8np', '0.37 GB')

    Raises
    ------
    UsageError
        `rows` or `dim` is below 1, or `kind` is unknown.
    """
    if kind not in ("ivf", "ivfpq"):
        raise UsageError(f"there is no saved index of kind {kind!r}; choose ivf or ivfpq")
    if rows < 1 or dim < 1:
        raise UsageError(f"an index needs at least one row of at least one number, got {rows} of {dim}")
    # Half of the memory is for the centroids, three copies of which exist in training. An eighth is for a block: rows
    # as stored, rows at unit length, and lists that grow by doubling.
    max_lists = max(1, min(rows // MIN_ROWS_PER_LIST, memory_bytes // 2 // (3 * 4 * dim)))
    n_lists = min(LISTS_PER_ROOT * math.isqrt(rows), max_lists)
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
