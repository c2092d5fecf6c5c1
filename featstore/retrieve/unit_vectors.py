"""The vectors of a feature set as an index holds them: at unit length, and as wide as its plan says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.retrieve.index_plan import IvfPlan
from featstore.retrieve.knn import Neighbours, reranked
from featstore.retrieve.scan import unit_rows

if TYPE_CHECKING:
    from featstore.retrieve.ivf import MappedLists
    from featstore.store import FeatureSet

__all__ = ["padded", "search_lists", "unit_block", "unit_blocks"]


def unit_blocks(feature_set: FeatureSet, plan: IvfPlan) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number of a block's first row, and its rows at unit length: float32 (n, padded_dim).

    Raises
    ------
    DataError
        A vector is not finite.
    """
    for first in range(0, plan.rows, plan.block_rows):
        rows = feature_set.utterance_rows.slice(first, min(first + plan.block_rows, plan.rows))
        yield first, unit_block(rows, feature_set, plan)


def unit_block(rows: NDArray[np.float32], feature_set: FeatureSet, plan: IvfPlan) -> NDArray[np.float32]:
    """Some rows (n, dim) of a feature set as `unit_blocks` has them."""
    unit = unit_rows(rows)
    with np.errstate(invalid="ignore"):
        sums = unit.sum(axis=1)
    if not np.isfinite(sums).all():
        raise DataError(
            f"{feature_set.path} has embeddings that are not finite, which no index can hold: `featstore verify "
            f"--store {feature_set.store_url} --repair` drops damaged parts, extracting makes them again"
        )
    return padded(unit, plan)


def padded(rows: NDArray[np.float32], plan: IvfPlan) -> NDArray[np.float32]:
    """Rows (n, dim) as wide as the index: (n, padded_dim)."""
    if plan.padded_dim == plan.dim:
        return rows
    return np.pad(rows, ((0, 0), (0, plan.padded_dim - plan.dim)))


def search_lists(
    lists: MappedLists, plan: IvfPlan, queries: NDArray[np.float32], *, k: int, n_probe: int, feature_set: FeatureSet
) -> Neighbours:
    """Search the lists for unit queries (queries, dim), and compare candidates again where the plan says so."""
    wide = padded(queries, plan)
    if not plan.n_codes:
        return lists.search(wide, k=k, n_probe=n_probe)
    candidates = lists.search(wide, k=plan.n_candidates(k), n_probe=n_probe).rows
    stored = feature_set.utterance_rows
    return reranked(candidates, queries, k=k, vectors_of=lambda rows: unit_rows(stored.take(rows.tolist())))
