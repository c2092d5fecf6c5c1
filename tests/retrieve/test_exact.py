"""Search by rounded candidates: whatever the vectors are, the neighbours are those of a full comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.retrieve import exact_search as exact
from featstore.retrieve import index as indexes
from featstore.retrieve.index import Searcher
from featstore.retrieve.scan import unit_columns, unit_rows

RNG = np.random.default_rng


def random(n, dim=64):
    return RNG(0).standard_normal((n, dim)).astype(np.float32)


def clusters(n):
    return random(n) * 0.5 + 2 * RNG(1).standard_normal((8, 64)).astype(np.float32)[np.arange(n) % 8]


VECTORS = {
    "random": lambda: unit_rows(random(700)),
    "far from the origin": lambda: unit_rows(random(700) * 0.1 + 3),
    "in clusters": lambda: unit_rows(clusters(700)),
    "scaled by feature": lambda: unit_columns(random(700)),
    "one of them huge": lambda: np.r_[random(699), 1e4 * random(1)],
    "the same over and over": lambda: np.tile(unit_rows(random(7)), (100, 1)),
    "all alike": lambda: np.ones((700, 64), np.float32),
    "zeros": lambda: np.zeros((700, 64), np.float32),
}


def reference(X, queries, k):
    similarities = queries.astype(np.float64) @ X.astype(np.float64).T
    rows = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, rows, axis=1), rows


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(exact, "ROWS_PER_BLOCK", 128)
    monkeypatch.setattr(exact, "QUERIES_PER_BLOCK", 16)
    monkeypatch.setattr(exact, "ROWS_PER_ROUNDING", 100)
    monkeypatch.setattr(exact, "PAIRS_PER_BLOCK", 50)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vectors", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("k", [1, 10, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_neighbours_with_a_proof_are_the_nearest(vectors, k, dtype, monkeypatch):
    monkeypatch.setattr(exact, "WORTH_TRYING", 0.0)
    X = vectors()
    queries = np.r_[X[:20] + 0.1 * RNG(2).standard_normal((20, 64)).astype(np.float32), X[:5]]
    found = exact.search_rounded(exact.round_rows(X, dtype=dtype), queries, k=k)
    similarities, rows = reference(X, queries, k)
    sure = found.proved
    # With a proof no similarity is wrong; of rows whose similarities are equal to the last bits either may stand.
    np.testing.assert_allclose(found.neighbours.similarities[sure], similarities[sure], rtol=1e-6, atol=1e-12)
    differ = found.neighbours.rows[sure] != rows[sure]
    gaps = np.abs(
        similarities[sure]
        - (queries.astype(np.float64) @ X.astype(np.float64).T)[
            np.flatnonzero(sure)[:, None], found.neighbours.rows[sure]
        ]
    )
    assert not (differ & (gaps > 1e-12 * max(1.0, np.abs(similarities).max()))).any()


@pytest.mark.usefixtures("small_blocks")
def test_most_queries_among_ordinary_vectors_have_a_proof():
    X = VECTORS["random"]()
    found = exact.search_rounded(exact.round_rows(X), unit_rows(random(720)[700:]), k=5)
    assert found.proved.mean() > 0.9
    # Rows that are all alike leave nothing to prove, and the rest of the queries is not tried.
    alike = exact.search_rounded(exact.round_rows(VECTORS["all alike"]()), X[:100], k=5)
    assert not alike.proved.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), spread=st.floats(1e-3, 10), offset=st.floats(-5, 5))
def test_a_proof_is_never_wrong(seed, k, spread, offset):
    rng = RNG(seed)
    X = (offset + spread * rng.standard_normal((300, 12))).astype(np.float32)
    queries = rng.standard_normal((9, 12)).astype(np.float32)
    found = exact.search_rounded(exact.round_rows(X), queries, k=k)
    similarities, _ = reference(X, queries, k)
    np.testing.assert_allclose(
        found.neighbours.similarities[found.proved], similarities[found.proved], rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("vectors", VECTORS.values(), ids=VECTORS)
def test_a_searcher_that_rounds_finds_what_one_that_does_not_finds(vectors, monkeypatch):
    X = vectors()
    queries = unit_rows(random(40))
    plain = Searcher(X, "flat").search(queries, k=10)
    monkeypatch.setattr(indexes, "MIN_WORK_TO_ROUND", 0)
    monkeypatch.setattr(exact, "bfloat16_is_faster", lambda _: True)
    rounded = Searcher(X, "flat").search(queries, k=10)
    np.testing.assert_allclose(rounded.similarities, plain.similarities, rtol=1e-4, atol=1e-5)
    if np.ptp(X):
        same = rounded.rows == plain.rows
        assert (same | np.isclose(rounded.similarities, plain.similarities, rtol=1e-4, atol=1e-5)).all()


def test_a_sloppy_product_takes_the_proof_away(monkeypatch):
    X = VECTORS["random"]()
    rows = exact.round_rows(X)
    candidates = exact._candidates

    def sloppy(*arguments, **options):
        scores, found, dropped = candidates(*arguments, **options)
        return scores + 0.5, found, dropped

    monkeypatch.setattr(exact, "_candidates", sloppy)
    assert not exact.search_rounded(rows, X[:20], k=3).proved.any()
