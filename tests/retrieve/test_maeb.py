"""Protocol ``maeb`` without mteb: lists, intervals, errors and the command; tests/integrations compares with mteb."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import label_ranking_average_precision_score, v_measure_score

import featstore as fs
import tiny
from featstore.errors import LabelError, UsageError
from featstore.evaluation.runner import ScoreFailure
from featstore.report import read_scores
from featstore.retrieve import score_measures
from featstore.retrieve.maeb.clusters import RowClustering
from featstore.retrieve.maeb.definitions import label_ranking_precision
from featstore.retrieve.maeb.lists import N_DIFFERENT, N_SAME, candidates_of, draw_others, pairs_of
from featstore.retrieve.maeb.spread import pair_replicates, v_replicates
from handmade import task_toml

WHOLE = {"splits": {"train": "all*.tar", "valid": "all*.tar", "test": "all*.tar"}}
RNG = np.random.default_rng(3)
Y = RNG.integers(0, 5, 60)
SETS = (RNG.random((60, 4)) < 0.4).astype(np.float32)
NAMES = [f"test/{n:03d}" for n in range(60)]


@pytest.mark.parametrize("values", [Y, np.arange(60) % 20, SETS], ids=["classes", "small classes", "label sets"])
def test_lists_are_of_the_classes_and_the_same_in_any_order(values: np.ndarray) -> None:
    same = values[:, None] == values if values.ndim == 1 else values @ values.T > 0
    drawn = draw_others(values, NAMES)
    pairs = pairs_of(drawn)
    assert np.array_equal(same[pairs.first, pairs.second], pairs.same)
    assert (pairs.first != pairs.second).all()
    queries, candidates = candidates_of(drawn)
    assert same[queries[:, None], candidates[:, :N_SAME]][candidates[:, :N_SAME] >= 0].all()
    different = candidates[:, N_SAME:]
    assert not same[queries[:, None], different][different >= 0].any()
    assert candidates.shape[1] == N_SAME + N_DIFFERENT
    order = RNG.permutation(60)
    shuffled = pairs_of(draw_others(values[order], [NAMES[at] for at in order]))
    listed = {(order[a], order[b]) for a, b in zip(shuffled.first, shuffled.second, strict=True)}
    assert listed == set(zip(pairs.first, pairs.second, strict=True))


@pytest.mark.parametrize(("n", "dim", "n_clusters"), [(400, 12, 7), (90, 30, 50)])
def test_clusters_are_those_of_scikit_learn(n: int, dim: int, n_clusters: int) -> None:
    rng = np.random.default_rng(n)
    X = (rng.standard_normal((n, dim)) + 3).astype(np.float32)
    samples = np.array([random.Random(seed).choices(range(n), k=4000) for seed in (1, 2, 3)])
    labels = RowClustering(X, n_clusters=n_clusters, seed=42).labels(samples)
    for sample, found in zip(samples, labels, strict=True):
        model = MiniBatchKMeans(n_clusters, batch_size=512, init="k-means++", n_init=1, random_state=42)
        assert np.array_equal(found[sample], model.fit_predict(X[sample]))


def test_v_measures_without_a_unit_are_those_of_scikit_learn() -> None:
    clusters, drawn, unit = RNG.integers(0, 6, 60), RNG.integers(0, 4, 60), np.arange(60) % 20
    found = v_replicates([(clusters, drawn)], Y, unit, 20)
    repeated = np.repeat(np.arange(60), drawn)
    assert found.values[0] == pytest.approx(v_measure_score(Y[repeated], clusters[repeated]))
    left = repeated[unit[repeated] != 7]
    assert found.without[0, 7] == pytest.approx(v_measure_score(Y[left], clusters[left]))


def test_pairs_without_a_unit_have_none_of_its_clips() -> None:
    pairs, similarity = pairs_of(draw_others(Y, NAMES)), RNG.standard_normal(120)
    unit = np.arange(60) % 20
    sides = (unit[pairs.first], unit[pairs.second])
    similarity = similarity[: len(pairs.same)]
    found = pair_replicates([similarity], pairs.same, sides, 20)
    left = (sides[0] != 3) & (sides[1] != 3)
    expected = pair_replicates([similarity[left]], pairs.same[left], (), 0).values[0]
    assert found.without[0, 3] == pytest.approx(expected)


def test_label_ranking_precision_is_that_of_scikit_learn() -> None:
    scores = RNG.integers(0, 4, SETS.shape).astype(float)  # with ties
    expected = label_ranking_average_precision_score(SETS, scores)
    assert label_ranking_precision(SETS, scores).mean() == pytest.approx(expected)


def test_every_score_is_in_its_interval_and_groups_make_it_wider() -> None:
    rng = np.random.default_rng(0)
    voices = rng.standard_normal((15, 16))
    made = [
        tiny.Clip(
            key=f"{at}",
            label={"class": f"class-{at // 6 % 3}", "speaker": f"speaker {at // 6}"},
            vectors=voices[at // 6] + rng.standard_normal(16),
        )
        for at in range(90)
    ]
    store = tiny.TinyStore({"test": tiny.TinySet(made)})
    changes = {**WHOLE, "label": {"field": "label.class"}}
    alone = score_measures(store, tiny.task(**changes), protocol="maeb")
    grouped = score_measures(
        store, tiny.task(**{**changes, "splits": {**WHOLE["splits"], "group": "label.speaker"}}), protocol="maeb"
    )
    for one, other in zip(alone, grouped, strict=True):
        assert one.ci_low < one.value < one.ci_high
        assert one.value == other.value
        assert other.details["spread"]["units"] == "groups"
        assert other.details["spread"]["n"] == 15
    by_clip, by_group = alone[-1], grouped[-1]
    assert by_group.ci_high - by_group.ci_low > by_clip.ci_high - by_clip.ci_low


def test_few_clips_have_no_interval_and_the_reason_is_given() -> None:
    few = tiny.TinySet(tiny.clips("all", 12, n_classes=2))
    record = score_measures(tiny.TinyStore({"test": few}), tiny.task(**WHOLE), measures=["pairs"], protocol="maeb")[0]
    assert (record.ci_low, record.ci_high) == (None, None)
    assert record.details["interval"]["reason"]


def test_trials_of_the_manifest_are_scored(tmp_path) -> None:
    clips = tiny.clips("all", 30, n_classes=3)
    path = tmp_path / "trials.csv"
    listed = [(a, b) for a in range(0, 30, 3) for b in range(1, 30, 7) if a != b]
    rows = [f"{clips[a].key},{clips[b].key},{int(clips[a].label == clips[b].label)}" for a, b in listed]
    path.write_text("\n".join(rows))
    manifest = tiny.task(**WHOLE, retrieve={"trials": str(path.name)}).model_copy()
    object.__setattr__(manifest, "_folder", tmp_path)
    record = score_measures(
        tiny.TinyStore({"test": tiny.TinySet(clips)}), manifest, measures=["pairs"], protocol="maeb"
    )[0]
    assert record.settings["pairs"] == len(listed)
    assert record.settings["trials_sha256"]


def test_a_type_that_fails_does_not_stop_the_others() -> None:
    made = [tiny.Clip(f"{at}", ["class-0"], RNG.standard_normal(8)) for at in range(40)]
    sets = {name: tiny.TinySet(made) for name in ("train", "valid", "test")}
    manifest = tiny.task(kind="multilabel", metric="mAP", retrieve={"k": 5})
    found = score_measures(tiny.TinyStore(sets), manifest, protocol="maeb")
    assert [type(each) for each in found[:2]] == [ScoreFailure, ScoreFailure]
    with pytest.raises(LabelError):
        score_measures(tiny.TinyStore(sets), manifest, measures=["multilabel"], protocol="maeb")


@pytest.mark.parametrize(
    ("changes", "measures"),
    [({"kind": "regression", "metric": "pearson"}, None), ({}, ["multilabel"]), ({}, ["knn"])],
)
def test_a_type_that_the_labels_do_not_admit_is_a_usage_error(changes, measures) -> None:
    with pytest.raises(UsageError):
        score_measures(tiny.TinyStore({}), tiny.task(**changes), measures=measures, protocol="maeb")


def test_the_command_and_the_function_give_one_record_for_each_type(tmp_path, run) -> None:
    store, place = tmp_path / "s", {"encoder": "mine", "dataset": "tiny"}
    for split, n in {"train": 60, "valid": 9, "test": 45}.items():
        vectors = (np.eye(6)[np.arange(n) % 3] + 0.6 * RNG.standard_normal((n, 6))).astype(np.float32)
        keys, labels = [f"{split}-{at}" for at in range(n)], [f"c{at % 3}" for at in range(n)]
        fs.import_embeddings(vectors, keys=keys, labels=labels, split=split, store=store, **place)
    task = task_toml(tmp_path, splits={name: f"{name}-*.tar" for name in ("train", "valid", "test")})
    scores = fs.retrieve(task, store=store, protocol="maeb")
    assert not scores.failures
    measures = ["classification", "clustering", "pairs", "reranking", "retrieval"]
    assert [each.settings["measure"] for each in scores] == measures
    assert {(each.protocol, each.track) for each in scores} == {("maeb", "B")}
    with pytest.raises(UsageError):
        fs.retrieve(task, store=store, protocol="maeb", k=3)
    with pytest.raises(UsageError):
        fs.probe(task, store=store, protocol="maeb")
    command = ("retrieve", task, "--store", store, "--protocol", "maeb", "--measure", "pairs,retrieval")
    done = run(*command, "--results", tmp_path / "r", "--json")
    assert done.code == 0, done.err
    printed = {each["settings"]["measure"]: each["value"] for each in json.loads(done.out)}
    assert printed == {each.settings["measure"]: each.value for each in scores if each.settings["measure"] in printed}
    assert len(printed) == 2
    assert {each.key for each in read_scores(tmp_path / "r")} <= {each.key for each in scores}
    assert run("probe", task, "--store", store, "--protocol", "maeb").code == 2
