"""Comparing two embedding spaces of stores: matching of clips, bounded size, intervals, and the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore
from featstore.diagnostics.diff import MEASURES, SpaceDiff, compare_arrays
from featstore.errors import DataError, UnknownFeatureSet, UsageError
from handmade import Run
from mapped import Stored, write_set

N = 60


def arrays(n: int = N, *, dim: int = 6, other: int = 6, noise: float = 0.3, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, dim))
    mix = np.random.default_rng(99).standard_normal((dim, other))
    return X, X @ mix + noise * rng.standard_normal((n, other))


def write(url: Path, name: str, vectors: dict[str, np.ndarray], *, seconds: tuple[float, ...] = ()) -> None:
    """A feature set with the windows (windows, dim) of each clip by key."""
    write_set(url, [Stored(key, windows, seconds=seconds) for key, windows in vectors.items()], encoder=name)


def by_key(X: np.ndarray, prefix: str = "clip") -> dict[str, np.ndarray]:
    return {f"{prefix}{at}": row[None] for at, row in enumerate(X)}


def test_clips_of_two_stores_are_matched_by_key_whatever_their_order(tmp_path: Path) -> None:
    X, Y = arrays()
    one, other = by_key(X), by_key(Y)
    write(tmp_path / "a.zarr", "one", {**one, "only": X[:1]})
    write(tmp_path / "b.zarr", "other", dict(reversed(list(other.items()))))
    found = featstore.diff(tmp_path / "a.zarr", "one", "other", store_b=tmp_path / "b.zarr")
    assert (found.common, found.clips, found.only_a, found.only_b) == (N, N, 1, 0)
    assert (found.a.partition("@")[0], found.b.partition("@")[0]) == ("one", "other")
    direct = compare_arrays(
        X.astype(np.float32), Y.astype(np.float32), names=list(one), a="", b="", feature_sets=(), common=N, only_a=0,
        only_b=0,
    )  # fmt: skip
    for name in MEASURES:
        assert found.value_of(name) == pytest.approx(direct.value_of(name), abs=1e-6)
    assert [each.clip for each in found.moved] == [f"words/train/{each.clip}" for each in direct.moved]


def test_the_vector_of_a_clip_is_the_mean_of_its_windows_by_duration(tmp_path: Path) -> None:
    X, _ = arrays(20)
    windows = {f"clip{at}": np.stack([row, row + 1]) for at, row in enumerate(X)}
    write(tmp_path / "s.zarr", "cut", windows, seconds=(3.0, 1.0))
    write(tmp_path / "s.zarr", "whole", by_key(X + 0.25))
    found = featstore.diff(tmp_path / "s.zarr", "cut", "whole")
    assert found.largest_change == pytest.approx(0, abs=1e-6)
    assert found.value_of("overlap") == 1.0
    assert found.moved == ()


def test_a_clip_that_moved_is_named_first() -> None:
    X, _ = arrays()
    Y = X.copy()
    Y[17] = -X[17]
    found = compare_arrays(
        X, Y, names=[str(at) for at in range(N)], a="", b="", feature_sets=(), common=N, only_a=0, only_b=0
    )
    assert found.moved[0].clip == "17"
    assert found.moved[0].moved > 1.5
    assert found.moved[0].overlap < 0.5


def test_a_rotated_space_keeps_its_neighbours_and_not_its_index(tmp_path: Path) -> None:
    X, _ = arrays(200, dim=8)
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((8, 8)))[0]
    write(tmp_path / "s.zarr", "old", by_key(X))
    write(tmp_path / "s.zarr", "new", by_key(X @ rotation))
    found = featstore.diff(tmp_path / "s.zarr", "old", "new")
    assert found.value_of("overlap") == 1.0
    assert found.value_of("cka") == pytest.approx(1.0, abs=1e-6)
    assert found.value_of("rank_correlation") == pytest.approx(1.0, abs=1e-6)
    assert (found.value_of("index_overlap") or 0.0) < 0.5


def test_of_many_clips_a_sample_is_compared_the_same_one_each_time(tmp_path: Path) -> None:
    X, Y = arrays(300, other=4)
    write(tmp_path / "s.zarr", "one", by_key(X))
    write(tmp_path / "s.zarr", "other", by_key(Y))
    first, second = (featstore.diff(tmp_path / "s.zarr", "one", "other", max_clips=50) for _ in range(2))
    assert first == second
    assert (first.common, first.clips) == (300, 50)
    assert first.index_overlap is None
    assert first != featstore.diff(tmp_path / "s.zarr", "one", "other", max_clips=50, seed=1)


def test_clips_that_are_not_common_and_vectors_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    X, Y = arrays()
    write(tmp_path / "s.zarr", "one", by_key(X))
    write(tmp_path / "s.zarr", "other", by_key(Y, "clop"))
    write(tmp_path / "s.zarr", "broken", by_key(np.where(X > 2, np.nan, X)))
    for name in ("other", "broken"):
        with pytest.raises(DataError):
            featstore.diff(tmp_path / "s.zarr", "one", name)
    with pytest.raises(UnknownFeatureSet):
        featstore.diff(tmp_path / "s.zarr", "one", "none")
    with pytest.raises(UsageError):
        featstore.diff(tmp_path / "s.zarr", "one", "one", max_clips=2)
    with pytest.raises(UsageError):
        featstore.diff(tmp_path / "s.zarr", "one", "one", k=0)


def test_imported_embeddings_are_compared(tmp_path: Path) -> None:
    X, Y = arrays()
    keys = [f"clip{at}" for at in range(N)]
    for name, vectors in (("one", X), ("other", Y)):
        featstore.import_embeddings(
            vectors.astype(np.float32),
            keys=keys,
            encoder=name,
            dataset="words",
            split="train",
            store=tmp_path / "s.zarr",
        )
    found = featstore.diff(tmp_path / "s.zarr", "one", "other")
    assert found.clips == N
    assert found.feature_sets == ("words/train",)


@pytest.mark.slow
def test_intervals_cover_the_values_of_the_population() -> None:
    """In 200 clips of 3 dimensions the bias of the measures by their number is small."""
    described = {"a": "", "b": "", "feature_sets": (), "common": 0, "only_a": 0, "only_b": 0}

    def compared(n: int, seed: int) -> SpaceDiff:
        X, Y = arrays(n, dim=3, other=3, noise=1.0, seed=seed)
        return compare_arrays(X, Y, names=[""] * n, **described)

    population = compared(4000, 7)
    estimates = [compared(200, 100 + seed) for seed in range(60)]
    for measure in ("cka", "procrustes", "rank_correlation"):
        true = population.value_of(measure)
        assert true is not None
        covered = np.mean([each.low <= true <= each.high for each in (getattr(one, measure) for one in estimates)])
        assert covered >= 0.87, measure  # 95 % less three standard errors


def test_the_command_fails_below_a_threshold_only(tmp_path: Path, run: Run) -> None:
    X, Y = arrays(other=4)
    write(tmp_path / "s.zarr", "one", by_key(X))
    write(tmp_path / "s.zarr", "other", by_key(Y))
    diff = partial(run, "diff", "one", "other", "--store", tmp_path / "s.zarr")
    done = diff("--json")
    [raw] = json.loads(done.out)
    assert done.code == 0
    value = raw["overlap"]["value"]
    assert raw == featstore.diff(tmp_path / "s.zarr", "one", "other").as_json() | {
        name: list(raw[name]) for name in ("feature_sets", "moved")
    }
    assert diff("--min", f"overlap={value - 0.001}", "--max", "procrustes=0.999").code == 0
    for arguments in (("--min", f"overlap={value + 0.001}"), ("--max", "procrustes=0.001")):
        done = diff(*arguments)
        assert done.code == 1
        assert arguments[1].partition("=")[0] in done.err
    for wrong in ("overlap", "nothing=1", "overlap=x", "index_overlap=0.5"):
        assert diff("--min", wrong).code == 2
