"""Exact search by rounded candidates: the one door to torch of Track B.

Most of an exact search is a matrix product whose last digits do not matter: nearly all rows are far from being a
neighbour. So the product is taken in bfloat16, at which some processors are several times faster, the best rows of each
block are kept as candidates, and those that can be a neighbour are compared again in float64. That no other row can be
one is proved for each query; the queries without a proof are told, for another search.

The proof. Let q be a query and x a row less the mean of all rows (which shifts all similarities of a query alike), and
q', x' what they are rounded to. By Cauchy and Schwarz

    |q'.x' - q.x| <= |q - q'| |x| + |q'| |x - x'|

and the sum adds at most ``dim`` roundings of float32: together the *slack* of the query. One more rounding makes a
score of the sum, off by a share of itself, so that the sum behind a score grows with it. A row that was dropped had at
most the score d: where the k-th best similarity of the candidates is above what d can stand for, plus the slack, no
dropped row is among the k nearest. Scores of rows that are compared again are held to the bound as well: one that is
not within it (a product that rounds more than it should) takes the proof from all of its queries.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.retrieve.knn import Neighbours

__all__ = ["Proposed", "RoundedRows", "bfloat16_is_faster", "round_rows", "search_rounded"]

ROWS_PER_ROUNDING = 512
ROWS_PER_BLOCK = 8192
QUERIES_PER_BLOCK = 512
MIN_CANDIDATES, MIN_BLOCK_CANDIDATES = 128, 32
"""Of a search and of one of its blocks; more where many neighbours are asked for. Fewer leave more without a proof."""

PAIRS_PER_BLOCK = 4096
LEAST_GAIN = 2.0
WORTH_TRYING = 0.5
SLACK_OF_SUMS = 2.0**-23
"""Twice the unit roundoff of float32: ``dim`` of them bound the rounding of a sum of products, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedRows:
    """Rows to search, and what they are rounded to.

    Attributes
    ----------
    X : float32 (n, dim)
    rounded : Tensor (n, dim)
        Less their mean.
    mean : float32 (dim,)
    max_norm, max_error : float
        Largest length of a row less the mean, and of its rounding error.
    """

    X: NDArray[np.float32]
    rounded: Tensor
    mean: NDArray[np.float32]
    max_norm: float
    max_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """Neighbours, and for which queries they are proved to be the nearest: bool (queries,)."""

    neighbours: Neighbours
    proved: NDArray[np.bool_]


def round_rows(X: NDArray[np.float32], *, dtype: torch.dtype = torch.bfloat16) -> RoundedRows:
    """Round rows (n, dim), less their mean."""
    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    rounded = torch.empty(X.shape, dtype=dtype)
    max_norm = max_error = 0.0
    centred = np.empty((min(len(X), ROWS_PER_ROUNDING), X.shape[1]), np.float32)
    for start in range(0, len(X), ROWS_PER_ROUNDING):
        rows = slice(start, start + ROWS_PER_ROUNDING)
        block = torch.from_numpy(np.subtract(X[rows], mean, out=centred[: len(X[rows])]))
        rounded[rows] = block
        max_norm = max(max_norm, float(torch.linalg.vector_norm(block, dim=1).max()))
        if dtype != torch.float32:
            error = torch.linalg.vector_norm(block - rounded[rows], dim=1)
            max_error = max(max_error, float(error.max()))
    # The difference and the norms are float32 themselves.
    max_norm *= 1.001
    return RoundedRows(
        X=X, rounded=rounded, mean=mean, max_norm=max_norm, max_error=1.001 * max_error + 2.0**-23 * max_norm
    )


@cache
def bfloat16_is_faster(dim: int) -> bool:
    """Time a small product: some processors have instructions for bfloat16, others imitate it."""
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.ones(256, dim, dtype=dtype), torch.ones(4096, dim, dtype=dtype)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(left, right.T)
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return seconds[torch.float32] > LEAST_GAIN * seconds[torch.bfloat16]


def search_rounded(rows: RoundedRows, queries: NDArray[np.float32], *, k: int) -> Proposed:
    """Find the ``k`` rows of largest inner product with each query (queries, dim); of equals the lowest row.

    There are at least ``k`` rows. Similarities are float64, rounded to float32. Where most of the first queries have no
    proof (rows that are nearly alike), the rest is not tried.
    """
    blocks = [queries[start : start + QUERIES_PER_BLOCK] for start in range(0, len(queries), QUERIES_PER_BLOCK)]
    n_threads = torch.get_num_threads()
    # A block of queries to a core: torch's own threads would wait for one another after every product and every sort.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            first = pool.submit(_search_block, rows, blocks[0], k=k).result()
            try_others = first.proved.mean() >= WORTH_TRYING
            others = pool.map(
                lambda block: _search_block(rows, block, k=k) if try_others else _nothing(len(block), k=k), blocks[1:]
            )
            found = [first, *others]
    finally:
        torch.set_num_threads(n_threads)
    return Proposed(
        neighbours=Neighbours(
            similarities=np.concatenate([each.neighbours.similarities for each in found]),
            rows=np.concatenate([each.neighbours.rows for each in found]),
        ),
        proved=np.concatenate([each.proved for each in found]),
    )


def _nothing(n_queries: int, *, k: int) -> Proposed:
    nobody = Neighbours(
        similarities=np.full((n_queries, k), -np.inf, np.float32), rows=np.zeros((n_queries, k), np.int64)
    )
    return Proposed(neighbours=nobody, proved=np.zeros(n_queries, bool))


def _search_block(rows: RoundedRows, queries: NDArray[np.float32], *, k: int) -> Proposed:
    exact = torch.from_numpy(queries)
    rounded = exact.to(rows.rounded.dtype)
    scores, candidates, dropped = _candidates(rows, rounded, k=k)
    share = torch.finfo(rounded.dtype).eps / 2 * 1.01
    slack = _slack(rows, exact, rounded)[:, None]
    least, most = scores - share * np.abs(scores) - slack, scores + share * np.abs(scores) + slack
    # Similarities are to rows as they are, scores to rows less their mean: one shift for all rows of a query.
    shift = (queries.astype(np.float64) @ rows.mean.astype(np.float64))[:, None]
    possible = most >= least[:, k - 1 : k]
    similarities = _compare_again(rows, queries, candidates=candidates, possible=possible)
    order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
    nearest = np.take_along_axis(similarities, order, axis=1)

    centred = similarities - shift
    within = (~possible | ((least <= centred) & (centred <= most))).all(axis=1)
    beaten = dropped + share * np.abs(dropped) + slack[:, 0] < nearest[:, -1] - shift[:, 0]
    return Proposed(
        neighbours=Neighbours(
            similarities=nearest.astype(np.float32), rows=np.take_along_axis(candidates, order, axis=1)
        ),
        proved=within & beaten | (dropped == -np.inf),
    )


def _candidates(
    rows: RoundedRows, queries: Tensor, *, k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Scores and rows (queries, candidates), best first, and the best score that was dropped (queries,)."""
    n_kept, n_of_block = max(MIN_CANDIDATES, 4 * k), max(MIN_BLOCK_CANDIDATES, 2 * k)
    best = torch.empty(len(queries), 0)
    best_rows = torch.empty(len(queries), 0, dtype=torch.int64)
    dropped = torch.full((len(queries),), -torch.inf)
    products = torch.empty(len(queries) * min(ROWS_PER_BLOCK, len(rows.rounded)), dtype=queries.dtype)
    for start in range(0, len(rows.rounded), ROWS_PER_BLOCK):
        block = rows.rounded[start : start + ROWS_PER_BLOCK]
        product = products[: len(queries) * len(block)].view(len(queries), len(block))
        top = torch.topk(torch.mm(queries, block.T, out=product), min(n_of_block, len(block)), dim=1)
        values = top.values.float()
        if len(block) > n_of_block:
            dropped = torch.maximum(dropped, values[:, -1])
        best = torch.cat([best, values], dim=1)
        best_rows = torch.cat([best_rows, top.indices + start], dim=1)
        if best.shape[1] > n_kept:
            merged = torch.topk(best, n_kept + 1, dim=1)
            dropped = torch.maximum(dropped, merged.values[:, -1])
            best, best_rows = merged.values[:, :-1], best_rows.gather(1, merged.indices[:, :-1])
    return best.double().numpy(), best_rows.numpy(), dropped.double().numpy()


def _slack(rows: RoundedRows, exact: Tensor, rounded: Tensor) -> NDArray[np.float64]:
    """How far the sum of a product may be from the similarity that it stands for (queries,)."""
    norm = rounded.double().norm(dim=1)
    error = (exact.double() - rounded.double()).norm(dim=1)
    sums = SLACK_OF_SUMS * rows.X.shape[1] * norm * (rows.max_norm + rows.max_error)
    return np.asarray(error * rows.max_norm + norm * rows.max_error + sums)


def _compare_again(
    rows: RoundedRows,
    queries: NDArray[np.float32],
    *,
    candidates: NDArray[np.int64],
    possible: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Similarities of the possible candidates, the others at minus infinity: float64 (queries, candidates)."""
    query, column = np.nonzero(possible)
    row = candidates[query, column]
    similarities = np.full(candidates.shape, -np.inf)
    for start in range(0, len(query), PAIRS_PER_BLOCK):
        pairs = slice(start, start + PAIRS_PER_BLOCK)
        left, right = queries[query[pairs]].astype(np.float64), rows.X[row[pairs]].astype(np.float64)
        similarities[query[pairs], column[pairs]] = np.einsum("pd,pd->p", left, right)
    return similarities
