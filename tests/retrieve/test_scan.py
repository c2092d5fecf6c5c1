"""One query against every row, with a naive formula beside it."""

from __future__ import annotations

import numpy as np
import pytest

from featstore.retrieve import scan
from featstore.retrieve.scan import best_cosines


class Rows:
    """Vectors that note which pieces were asked for."""

    def __init__(self, X: np.ndarray) -> None:
        self.X = X
        self.pieces: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.X)

    def slice(self, start: int, stop: int) -> np.ndarray:
        self.pieces.append((start, stop))
        return self.X[start:stop]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_each_row_has_its_cosine_with_the_closest_query(rng, monkeypatch):
    monkeypatch.setattr(scan, "BLOCK_BYTES", 4 * 6 * 10)
    rows, queries = (
        Rows(rng.standard_normal((53, 6)).astype(np.float32)),
        rng.standard_normal((3, 6)).astype(np.float32),
    )
    wanted = [
        max(float(row @ query) / float(np.linalg.norm(row) * np.linalg.norm(query)) for query in queries)
        for row in rows.X
    ]
    np.testing.assert_allclose(best_cosines(rows, queries), wanted, rtol=1e-5)
    assert sorted(rows.pieces) == [(start, min(start + 10, 53)) for start in range(0, 53, 10)]


def test_zeros_are_alike_to_nothing_and_what_is_not_finite_comes_last(rng):
    X = rng.standard_normal((5, 4)).astype(np.float32)
    X[1], X[2, 0], X[3, 1] = 0, np.nan, np.inf
    found = best_cosines(Rows(X), X[:1])
    assert found[0] == pytest.approx(1)
    assert found[1] == 0
    assert found[2] == found[3] == -np.inf
    assert len(best_cosines(Rows(X[:0]), X[:1])) == 0
