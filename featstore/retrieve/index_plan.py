"""How large an inverted-file index becomes, planned from rows and width before anything is read. Pure.

The numbers follow FAISS's own guidelines (its wiki, "Guidelines to choose an index"): four times the square root of the
rows in lists, 30 to 256 training vectors a list, product codes of at most 64 bytes, and a graph over the centroids
where there are many. One rule is ours: what is held in memory is bounded whatever the rows, by a number of bytes. The
training sample lies in a file; what bounds the lists is that their centroids are in memory. At the default of 1 GiB
that is 174,762 lists of 256 numbers, and 58,254 of 768: enough for 1.9 billion rows, and for 212 million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from featstore.errors import UsageError

__all__ = ["TARGET_RECALL", "IvfKind", "IvfPlan", "plan_ivf"]

IvfKind = Literal["ivf", "ivfpq"]

MEMORY_BYTES = 1 << 30
TARGET_RECALL = 0.95
"""Of the ten nearest: a new index searches the fewest lists, of a rising series, that reach it."""

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
        Lists of whole vectors, or of product codes (Jegou et al. 2011) whose best are compared again with the stored
        vectors.
    rows, dim : int
    padded_dim : int
        Width in the index: codes are of equally many numbers each, the last filled up with zeros.
    n_lists : int
    graph_links : int
        Of the graph over the centroids, 0 where all are compared.
    n_codes : int
        Bytes of a product code; 0 of whole vectors.
    sample_rows : int
        Rows, evenly drawn, that the index is trained on.
    block_rows : int
        Rows that are read and added at a time.
    n_probes : tuple of int
        Numbers of lists to search that are tried, rising.
    candidates_per_neighbour : int
        Rows that are compared again for each neighbour asked for; 0 where nothing is.
    """

    kind: IvfKind
    rows: int
    dim: int
    padded_dim: int
    n_lists: int
    graph_links: int
    n_codes: int
    sample_rows: int
    block_rows: int
    n_probes: tuple[int, ...]
    candidates_per_neighbour: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in its list."""
        return ID_BYTES + (self.n_codes or 4 * self.padded_dim)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index on disk, about."""
        links = 2 * 4 * self.graph_links
        return self.rows * self.row_bytes + self.n_lists * (4 * self.padded_dim + links + 64)

    @property
    def making_bytes(self) -> int:
        """Bytes on disk while it is made: the sample, then every row in a block of lists and in the merged lists."""
        return self.index_bytes + max(self.rows * self.row_bytes, 4 * self.padded_dim * self.sample_rows)

    def n_candidates(self, k: int) -> int:
        """Rows that are compared again for the ``k`` nearest."""
        return min(self.rows, max(MIN_CANDIDATES, k * self.candidates_per_neighbour))

    @property
    def n_blocks(self) -> int:
        """Blocks of lists that are merged."""
        return -(-self.rows // self.block_rows)


def plan_ivf(rows: int, dim: int, kind: IvfKind, *, memory_bytes: int = MEMORY_BYTES) -> IvfPlan:
    """Plan an index of `rows` vectors of `dim` numbers that is made in `memory_bytes`, mapped files apart.

    At the least it takes what FAISS works with: 16 MiB of products, 8 MiB or so for each core up to 16, and 32,768
    vectors twice where it learns codes.

    >>> plan = plan_ivf(5_000_000, 256, "ivfpq")
    >>> plan.n_lists, plan.n_codes, f"{plan.index_bytes / 1e9:.2f} GB"
    (8944, 64, '0.37 GB')

    Raises
    ------
    UsageError
        There is no row, or no index of that kind.
    """
    if kind not in ("ivf", "ivfpq"):
        raise UsageError(f"there is no saved index of kind {kind!r}; there are ivf and ivfpq")
    if rows < 1 or dim < 1:
        raise UsageError(f"an index takes at least one row of at least one number: got {rows} of {dim}")
    per_code = max(MIN_DIMS_PER_CODE, -(-dim // MAX_CODES)) if kind == "ivfpq" else 1
    padded_dim = -(-dim // per_code) * per_code
    # Half for the centroids, which are there three times while they are learned. Then an eighth for a block: there
    # are the rows as they are stored, at unit length, and in lists that have grown by doubling.
    most_lists = max(1, min(rows // MIN_ROWS_PER_LIST, memory_bytes // 2 // (3 * 4 * padded_dim)))
    n_lists = min(LISTS_PER_ROOT * math.isqrt(rows), most_lists)
    return IvfPlan(
        kind=kind,
        rows=rows,
        dim=dim,
        padded_dim=padded_dim,
        n_lists=n_lists,
        graph_links=GRAPH_LINKS if n_lists >= GRAPH_FROM_LISTS else 0,
        n_codes=padded_dim // per_code if kind == "ivfpq" else 0,
        sample_rows=min(rows, max(SAMPLE_PER_LIST * n_lists, MIN_SAMPLE_ROWS)),
        block_rows=max(1, min(rows, memory_bytes // 8 // (4 * padded_dim))),
        n_probes=tuple(2**power for power in range(n_lists.bit_length()) if 2**power <= max(16, n_lists // 4)),
        candidates_per_neighbour=CANDIDATES_PER_NEIGHBOUR if kind == "ivfpq" else 0,
    )
