"""Each measure against a naive formula, and near-duplicates against audio that was stored twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from sklearn.neighbors import NearestCentroid, NearestNeighbors

import featstore
from cached import cached
from featstore.cli import cli
from featstore.diagnostics import examine_health, find_overlap, space_health
from featstore.diagnostics.measures import (
    anisotropy,
    dead_dimensions,
    duplicate_dimensions,
    effective_rank,
    hubness,
    separability,
)
from featstore.errors import LabelError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)], ids=["tall", "wide"])
def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values(rng, shape):
    X = rng.standard_normal(shape) * np.linspace(0.1, 3, shape[1]) + 5
    values = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    assert effective_rank(X) == pytest.approx(np.exp(scipy.stats.entropy(values / values.sum())), rel=1e-6)


def test_directions_that_are_all_alike_count_each_and_a_line_counts_one(rng):
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert effective_rank(axes) == pytest.approx(5)
    assert effective_rank(rng.standard_normal((30, 1)) * np.ones(8)) == pytest.approx(1)


def test_anisotropy_is_the_mean_cosine_over_all_pairs(rng):
    X = rng.standard_normal((25, 4)) + 1
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(X, 2)]
    assert anisotropy(X) == pytest.approx(np.mean(cosines))
    assert anisotropy(np.vstack([X, np.zeros(4)])) == pytest.approx(np.mean(cosines))


def test_dimensions_that_are_constant_are_dead_and_those_that_repeat_another_are_named_with_it(rng):
    X = rng.standard_normal((50, 6))
    X[:, 2] = 7.0
    X[:, 4] = -3 * X[:, 1] + 2
    X[:, 5] = X[:, 0] + 0.1 * rng.standard_normal(50)
    assert dead_dimensions(X).tolist() == [2]
    assert duplicate_dimensions(X) == ((4, 1),)


def test_hubness_is_the_skewness_of_how_often_each_row_is_a_neighbour(rng):
    X = (rng.standard_normal((120, 8)) + 0.5).astype(np.float32)
    nearest = NearestNeighbors(n_neighbors=11, metric="cosine").fit(X).kneighbors(X, return_distance=False)
    counts = np.zeros(len(X))
    for row, found in enumerate(nearest):
        for other in [each for each in found if each != row][:10]:
            counts[other] += 1
    result = hubness(X)
    assert result.skewness == pytest.approx(scipy.stats.skew(counts))
    assert (result.largest, result.orphans) == (counts.max(), pytest.approx((counts == 0).mean()))


def test_a_row_that_stands_many_times_is_not_its_own_neighbour():
    assert hubness(np.ones((40, 4), np.float32)).rows == 40


def test_separability_is_scatter_and_nearest_means_without_the_row_itself(rng):
    classes = np.repeat([0, 1, 2], [20, 15, 10])
    X = rng.standard_normal((45, 5)) + classes[:, None] * 0.8
    right = []
    for row in range(len(X)):
        rest = np.arange(len(X)) != row
        right.append(NearestCentroid().fit(X[rest], classes[rest]).predict(X[[row]])[0] == classes[row])
    means = np.array([X[classes == each].mean(axis=0) for each in range(3)])
    result = separability(X, classes)
    assert result.centroid_accuracy == pytest.approx(np.mean(right))
    assert result.between == pytest.approx(((means[classes] - X.mean(0)) ** 2).sum() / ((X - X.mean(0)) ** 2).sum())
    assert (result.largest_class, result.classes) == (pytest.approx(20 / 45), 3)


@pytest.mark.parametrize(
    "X",
    [
        pytest.param(np.zeros((0, 4)), id="no row"),
        pytest.param(np.ones((1, 4)), id="one row"),
        pytest.param(np.zeros((30, 4)), id="zeros"),
        pytest.param(np.full((30, 4), np.nan), id="nothing finite"),
        pytest.param(np.full((30, 4), 1e30), id="huge and constant"),
    ],
)
def test_a_space_with_nothing_to_measure_is_reported_without_a_warning(X):
    result = space_health(X.astype(np.float32), classes=np.arange(len(X)) % 2)
    assert result.effective_rank is None
    assert result.separability is None
    json.dumps(result.norm_spread, allow_nan=False)


def test_rows_that_are_not_finite_are_counted_and_skipped(rng):
    X = rng.standard_normal((60, 4)).astype(np.float32)
    broken = np.vstack([X, np.full((2, 4), np.nan, np.float32)])
    assert space_health(broken).not_finite == 2
    assert space_health(broken).effective_rank == pytest.approx(space_health(X).effective_rank)


def test_a_clip_that_is_louder_and_noisier_is_found_and_other_clips_are_not(rng):
    # Nearly all variance is in one direction, as loudness is: bare cosines are all next to one.
    loud = rng.standard_normal((400, 1)) * 50 * np.ones(32)
    X = (20 + loud + rng.standard_normal((400, 32))).astype(np.float32)
    train, test = X[:300], X[300:].copy()
    leaked = {3: 17, 40: 299, 41: 0}
    for row, source in leaked.items():
        test[row] = train[source] + 4 + 0.02 * rng.standard_normal(32)
    keys, others = [f"test-{at}" for at in range(100)], [f"train/{at}" for at in range(300)]
    result = find_overlap(test, train, keys=keys, other_keys=others)
    assert {(pair.clip, pair.other) for pair in result.pairs} == {
        (f"test-{a}", f"train/{b}") for a, b in leaked.items()
    }
    assert (result.clips, result.searched, result.total) == (3, 100, 100)
    cosines = [pair.cosine for pair in result.pairs]
    assert cosines == sorted(cosines, reverse=True)


def test_very_many_rows_are_drawn_from_and_the_draw_is_reported(rng, monkeypatch):
    monkeypatch.setattr("featstore.evaluation.leakage.MAX_WORK", 10 * 50 * 4)
    X = rng.standard_normal((80, 4)).astype(np.float32)
    result = find_overlap(X, X[:50], keys=[str(at) for at in range(80)], other_keys=[str(at) for at in range(50)])
    assert (result.searched, result.total) == (10, 80)
    assert all(pair.clip == pair.other for pair in result.pairs)


def test_where_no_other_split_has_a_vector_every_window_was_looked_up_and_none_found(rng):
    X = rng.standard_normal((5, 4)).astype(np.float32)
    result = find_overlap(X, X[:0], keys=list("abcde"), other_keys=[])
    assert (result.clips, result.searched, result.total) == (0, 5, 5)


def test_feature_sets_of_a_store_are_examined_with_what_their_splits_share(tmp_path: Path):
    store = featstore.open(cached(tmp_path).url)
    found = {each.path.partition("@")[0] + each.path[12:]: each for each in examine_health(store.feature_sets())}
    assert {(each.encoder, each.split) for each in found.values()} == {
        ("mel", "train"),
        ("mel", "test"),
        ("bare", "train"),
    }
    [alone] = [each for each in found.values() if each.encoder == "bare"]
    assert alone.overlap is None
    [test] = [each for each in found.values() if each.split == "test"]
    assert test.overlap.total == 1
    drawn = examine_health(store.feature_sets(), max_rows=4)
    assert {each.space.rows for each in drawn if each.split == "train"} == {4}
    assert {each.windows for each in drawn if each.split == "train"} == {7}


def test_inspect_tells_health_as_a_table_and_as_json(tmp_path: Path):
    url = cached(tmp_path).url
    outcome = CliRunner().invoke(
        cli, ["inspect", "mel/words/train", "--store", url, "--health", "--label", "label.word"]
    )
    assert outcome.exit_code == 0, outcome.output
    for words in ("anisotropy", "hubness", "near-duplicates", "separable", " of 8"):
        assert words in outcome.output
    raw = CliRunner().invoke(cli, ["inspect", "mel", "--store", url, "--health", "--json"])
    [_, train] = json.loads(raw.output)
    utterance = featstore.open(url).select(encoder="mel", split="train").utterance
    assert train["space"]["norm_median"] == pytest.approx(np.median(np.linalg.norm(utterance, axis=1)), rel=1e-5)
    assert train["overlap"]["total"] == 7  # with the split that was not asked for


def test_a_label_that_is_not_there_is_one_line(tmp_path: Path):
    store = featstore.open(cached(tmp_path).url)
    with pytest.raises(LabelError, match="'nope'"):
        examine_health(store.feature_sets(), label="nope")


def test_hubness_does_not_depend_on_the_order_of_rows_that_are_equally_near(rng):
    X = np.repeat(rng.standard_normal((60, 8)), rng.integers(1, 6, 60), axis=0).astype(np.float32)
    result = hubness(X)
    for _ in range(3):
        assert hubness(X[rng.permutation(len(X))]).skewness == pytest.approx(result.skewness, abs=1e-6)
