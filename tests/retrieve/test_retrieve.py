from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import tiny
from featstore.errors import UsageError
from featstore.evaluation import shots_details
from featstore.evaluation.neighbours import neighbour_vote
from featstore.retrieve import retrieve_task
from featstore.retrieve.index import ExactHeap, Searcher
from featstore.retrieve.knn import Neighbours
from featstore.retrieve.scan import unit_columns, unit_rows

SETS = {
    name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=2.0, windows=windows, n_classes=4))
    for name, n, windows in (("train", 80, 2), ("valid", 20, 1), ("test", 40, 3))
}


def retrieve(sets=SETS, *, changes=None, **options):
    return retrieve_task(tiny.TinyStore(sets), tiny.task(**(changes or {})), **options)


def class_of(tiny_set):
    return np.array([int(tiny_set.clips[at].label[-1]) for at in tiny_set.clip])


def naive_votes(train, classes, queries, *, k, temperature):
    """Votes (queries, 4), one query and one neighbour at a time."""
    votes = np.zeros((len(queries), 4))
    for at, query in enumerate(queries):
        similarity = train.astype(np.float64) @ query
        nearest = np.argsort(-similarity)[:k]
        weights = np.exp(similarity[nearest] / temperature)
        for neighbour, weight in zip(nearest, weights / weights.sum(), strict=True):
            votes[at, classes[neighbour]] += weight
    return votes.astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 10])
def test_strict_is_cosine_and_the_windows_of_a_clip_vote_by_their_seconds(k):
    train, test = SETS["train"], SETS["test"]
    unit = [each.utterance / np.linalg.norm(each.utterance, axis=1, keepdims=True) for each in (train, test)]
    votes = naive_votes(unit[0], class_of(train), unit[1], k=k, temperature=0.07)
    right = []
    for clip in range(len(test.clips)):
        mine = test.clip == clip
        right.append(np.average(votes[mine], axis=0, weights=test.seconds[mine]).argmax() == class_of(test)[mine][0])
    assert retrieve(k=k).value == pytest.approx(np.mean(right))


def test_xares_scores_as_x_ares_does():
    train, test = (torch.from_numpy(SETS[name].utterance.copy()) for name in ("train", "test"))
    memory = torch.nn.functional.normalize(train.T, dim=1)  # (dim, windows): each feature over all windows
    similarity, nearest = (torch.nn.functional.normalize(test, dim=1) @ memory).topk(10)
    classes = torch.from_numpy(class_of(SETS["train"]))[nearest]
    votes = (torch.eye(4)[classes] * torch.softmax(similarity / 0.07, dim=1).unsqueeze(2)).sum(dim=1)
    expected = (votes.argmax(dim=1).numpy() == class_of(SETS["test"])).mean()
    assert retrieve(protocol="xares").value == pytest.approx(expected)


def test_xares_scaling_is_published_as_it_is_and_is_no_cosine():
    X = SETS["train"].utterance
    np.testing.assert_allclose(np.linalg.norm(unit_columns(X), axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit_rows(X), axis=1), 1, rtol=1e-5)
    assert not unit_rows(np.zeros((2, 3), np.float32)).any()


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_folds_are_searched_in_all_other_folds(protocol):
    record = retrieve(protocol=protocol, changes=tiny.folds("train", "valid", "test"))
    assert record.n_test == 140
    assert record.n_train == round(2 * 140 / 3)
    train, test = ("valid", "test"), "train"
    if protocol == "strict":
        X = np.concatenate([unit_rows(SETS[name].utterance) for name in train])
        classes = np.concatenate([class_of(SETS[name]) for name in train])
        votes = naive_votes(X, classes, unit_rows(SETS[test].utterance), k=10, temperature=0.07)
        seconds = SETS[test].seconds[:, None]
        votes = np.add.reduceat(votes * seconds, np.arange(0, 160, 2))
        assert record.details["by_round"]["train"] == pytest.approx(
            (votes.argmax(1) == class_of(SETS[test])[::2]).mean()
        )


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_label_sets_are_scored_by_the_mean_of_the_neighbours_sets(protocol):
    # Where every set has one label, the mean of sets is the vote of classes.
    train, test = SETS["train"], SETS["test"]
    memory = unit_rows(train.utterance) if protocol == "strict" else unit_columns(train.utterance)
    votes = naive_votes(memory, class_of(train), unit_rows(test.utterance), k=5, temperature=0.07)
    y_true = np.eye(4)[class_of(test)]
    if protocol == "strict":
        seconds, first = test.seconds[:, None].astype(np.float32), np.arange(0, len(test), 3)
        votes = np.add.reduceat(votes * seconds, first) / np.add.reduceat(seconds, first)
        y_true = y_true[first]
    # A manifest of label sets has the track switched off unless it is asked for.
    searched = tiny.task(retrieve={"k": 5}).retrieve
    manifest = tiny.task(kind="multilabel", metric="mAP").model_copy(update={"retrieve": searched})
    record = retrieve_task(tiny.TinyStore(SETS), manifest, protocol=protocol)
    assert record.value == pytest.approx(average_precision_score(y_true, votes), abs=1e-6)


def test_two_labels_of_a_neighbour_both_get_its_weight():
    sets = np.array([[[1, 1, 0], [0, 0, 1]]])
    votes = neighbour_vote(np.ones((1, 2), np.float32), sets, n_classes=3, temperature=0.07)
    np.testing.assert_allclose(votes, [[0.5, 0.5, 0.5]])


def test_a_tie_goes_to_the_lowest_class():
    votes = neighbour_vote(np.ones((1, 4), np.float32), np.array([[2, 1, 2, 1]]), n_classes=3, temperature=0.07)
    assert votes.argmax() == 1


def test_neighbours_who_agree_say_exactly_one():
    similarities = np.random.default_rng(0).random((500, 10), dtype=np.float32)
    votes = neighbour_vote(similarities, np.ones((500, 10), np.int64), n_classes=2, temperature=0.07)
    np.testing.assert_array_equal(votes, [[0.0, 1.0]] * 500)


def test_large_similarities_do_not_overflow():
    votes = neighbour_vote(np.array([[900.0, 899.0]], np.float32), np.array([[0, 1]]), n_classes=2, temperature=0.07)
    np.testing.assert_allclose(votes, [[1, 0]], atol=1e-5)


def test_k_is_clamped_to_the_training_windows_and_the_record_tells():
    record = retrieve(k=1000)
    assert record.settings == {"k": 160, "temperature": 0.07, "index": "flat"}
    assert record.value == retrieve(k=160).value
    assert record.details["k_asked"] == 1000


def test_nothing_is_random_and_the_record_is_complete():
    one, two = retrieve(), retrieve()
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}
    assert (one.track, one.seeds, one.std, one.n_train, one.n_valid, one.n_test) == ("B", (), None, 80, 0, 40)
    assert set(one.seconds) == {"read", "index", "search", "score", "warnings"}
    assert set(one.versions) == {"featstore", "numpy", "faiss"}
    assert one.ci_low <= one.value <= one.ci_high


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        pytest.param({"retrieve": {"enabled": False}}, {}, "tiny.*retrieve.enabled = false", id="switched off"),
        pytest.param({"kind": "regression", "metric": "pearson"}, {}, "'regression'", id="kind"),
        pytest.param({}, {"k": 0}, "k .* 0", id="k"),
        pytest.param({}, {"k": (5, 5)}, "k .*5, 5", id="k twice"),
        pytest.param({}, {"index": "tree"}, "'tree'.*flat, hnsw, ivf", id="index"),
    ],
)
def test_what_cannot_be_searched_is_a_usage_error(changes, options, named):
    with pytest.raises(UsageError, match=named):
        retrieve(changes=changes, **options)


def test_one_search_answers_every_k_and_the_value_is_the_manifests():
    record = retrieve(k=(1, 5, 10, 20, 500))
    assert record.details["k_curve"] == {str(k): retrieve(k=k).value for k in (1, 5, 10, 20, 500)}
    assert record.value == record.details["k_curve"]["10"]
    assert retrieve(k=(5, 1)).value == record.details["k_curve"]["5"]
    assert record.settings["ks"] == [1, 5, 10, 20, 500]


WHOLE = {"splits": {"train": "all*.tar", "valid": "all*.tar", "test": "all*.tar"}}


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_a_set_without_a_split_leaves_one_clip_out_at_a_time(index):
    whole = tiny.TinySet(tiny.clips("all", 40, dim=16, spread=2.0, windows=3, n_classes=4))
    record = retrieve({"test": whole}, changes=WHOLE, k=5, index=index)
    unit = unit_rows(whole.utterance).astype(np.float64)
    right = []
    for clip in range(40):
        mine = whole.clip == clip
        votes = naive_votes(unit[~mine], class_of(whole)[~mine], unit[mine], k=5, temperature=0.07)
        right.append(np.average(votes, axis=0, weights=whole.seconds[mine]).argmax() == class_of(whole)[mine][0])
    assert record.value == pytest.approx(np.mean(right), abs=0 if index == "flat" else 0.1)
    assert (record.n_train, record.n_test) == (39, 40)
    assert list(record.details["by_round"]) == ["leave-one-out"]
    assert retrieve({"test": whole}, changes=WHOLE, protocol="xares", k=1).value > record.value  # it finds itself
    assert retrieve({"test": whole}, changes=WHOLE, k=1000).settings["k"] == 3 * 39  # its own windows are none of them


def test_neighbours_are_also_scored_as_the_answers_of_a_search():
    train, test = SETS["train"], SETS["test"]
    found = retrieve(k=(1, 5, 20)).details["neighbours"]["test"]
    similarity = unit_rows(test.utterance) @ unit_rows(train.utterance).T
    hits, average = {1: [], 5: [], 20: []}, []
    for query, row in zip(class_of(test), similarity, strict=True):
        relevant = class_of(train)[np.argsort(-row)[:20]] == query
        for k, seen in hits.items():
            seen.append(relevant[:k].any())
        precisions = [relevant[: at + 1].mean() for at in np.flatnonzero(relevant)]
        average.append(sum(precisions) / min(20, (class_of(train) == query).sum()))
    assert found["recall"] == {str(k): pytest.approx(np.mean(seen)) for k, seen in hits.items()}
    assert (found["k"], found["queries"], found["map"]) == (20, 120, pytest.approx(np.mean(average)))


def test_a_label_set_looks_for_windows_that_share_a_label():
    searched = tiny.task(retrieve={"k": 5}).retrieve
    manifest = tiny.task(kind="multilabel", metric="mAP").model_copy(update={"retrieve": searched})
    sets = retrieve_task(tiny.TinyStore(SETS), manifest).details["neighbours"]
    assert sets == retrieve(k=5).details["neighbours"]  # of one label each


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_approximate_index_tells_the_recall_that_it_measured(index):
    sets = {
        name: tiny.TinySet(tiny.clips(name, n, dim=32, spread=3.0, n_classes=4))
        for name, n in (("train", 1500), ("valid", 10), ("test", 100))
    }
    record, exact = retrieve(sets, index=index), retrieve(sets)
    result = record.details["index_recall"]
    assert result["k"] == 10
    assert 0.2 < result["recall"] <= 1.0
    assert record.settings["index"] == index
    assert abs(record.value - exact.value) < 0.15
    assert "index_recall" not in exact.details


def test_few_shots_of_neighbours_have_a_curve():
    curve = retrieve(shots=(1, 15)).details["shots"]
    assert curve["1"]["mean"] < curve["15"]["mean"]
    assert retrieve(shots=(1,)).details["shots"]["1"] == curve["1"]


def test_a_query_is_never_compared_with_its_own_group():
    """Every speaker has a voice of its own, far from all others, and says classes at random."""
    rng = np.random.default_rng(0)
    voices = 20 * rng.standard_normal((30, 16))
    made = [
        tiny.Clip(
            key=f"{at}",
            label={
                "class": f"class {rng.integers(3) if at // 8 % 2 else at // 8 % 3}",
                "speaker": f"speaker {at // 8}",
            },
            vectors=voices[at // 8] + rng.standard_normal((2, 16)),
            seconds=(1.0, 1.0),
        )
        for at in range(240)
    ]
    changes = {**WHOLE, "label": {"field": "label.class"}}
    alone = retrieve({"test": tiny.TinySet(made)}, changes=changes, k=5)
    splits = {**WHOLE["splits"], "group": "label.speaker"}
    grouped = retrieve({"test": tiny.TinySet(made)}, changes={**changes, "splits": splits}, k=5)
    X, speaker = unit_rows(tiny.TinySet(made).utterance).astype(np.float64), np.repeat(np.arange(240) // 8, 2)
    classes = np.repeat([int(each.label["class"][-1]) for each in made], 2)
    right = []
    for clip in range(240):
        mine = np.arange(480) // 2 == clip
        others = speaker != clip // 8
        votes = naive_votes(X[others], classes[others], X[mine], k=5, temperature=0.07)
        right.append(votes.mean(axis=0).argmax() == classes[2 * clip])
    assert grouped.value == pytest.approx(np.mean(right))
    assert alone.value > grouped.value
    assert (grouped.details["spread"]["units"], grouped.details["spread"]["n"]) == ("groups", 30)
    assert grouped.ci_high - grouped.ci_low > alone.ci_high - alone.ci_low


def test_the_recall_of_an_index_counts_no_window_of_the_query_s_own_clip(monkeypatch):
    """An index that finds each query's own windows, and of all others none that is near."""
    whole = tiny.TinySet(tiny.clips("all", 40, dim=16, spread=2.0, windows=3, n_classes=4))

    def own_and_far(self, queries, *, k):
        similarity = queries @ self.X.T
        own = np.argsort(-similarity, axis=1)[:, :1] // 3 * 3 + np.arange(3)
        rank = np.argsort(similarity, axis=1)
        rows = np.stack(
            [np.r_[mine, [row for row in far if row not in mine]][:k] for mine, far in zip(own, rank, strict=True)]
        )
        return Neighbours(similarities=np.take_along_axis(similarity, rows, axis=1), rows=rows)

    monkeypatch.setattr("featstore.retrieve.index.Searcher.search", own_and_far)
    record = retrieve({"test": whole}, changes=WHOLE, k=5, index="hnsw")
    assert record.details["index_recall"]["recall"] < 0.1


def test_a_support_clip_of_many_windows_is_one_neighbour():
    """What is near is one window of each clip; all the others are alike in every class."""
    rng = np.random.default_rng(0)
    centres = np.eye(6, 16) * 3

    def made(name, n, windows):
        clips = []
        for at in range(n):
            vectors = rng.standard_normal((windows, 16)) * 0.3 + np.eye(16)[10] * 2
            vectors[0] = centres[at % 6] + 0.3 * rng.standard_normal(16)
            clips.append(tiny.Clip(f"{name}{at}", f"class {at % 6}", vectors, tuple([1.0] * windows)))
        return clips

    sets = {
        "train": tiny.TinySet(made("train", 60, 12)),
        "valid": tiny.TinySet(made("valid", 6, 1)),
        "test": tiny.TinySet(made("test", 60, 1)),
    }
    curve = retrieve(sets, shots=(1, 5)).details["shots"]
    assert curve["1"]["mean"] > 0.9
    assert curve["5"]["mean"] > 0.9


def test_the_spread_of_a_few_shot_score_is_that_of_one_draw_however_many_folds_there_are():
    scores = np.random.default_rng(0).normal(0.6, 0.05, (10, 200))
    found = shots_details({5: scores})["5"]
    assert found["mean"] == pytest.approx(scores.mean())
    assert found["std"] == pytest.approx(0.05, rel=0.1)
    assert (found["low"], found["high"]) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.7, abs=0.01))


def test_a_score_is_the_same_to_the_last_bit_with_any_number_of_threads():
    import faiss

    sets = {
        name: tiny.TinySet(tiny.clips(name, n, dim=48, spread=3.0, windows=2, n_classes=4))
        for name, n in (("train", 900), ("valid", 20), ("test", 300))
    }
    before, records = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            records.append(replace(retrieve(sets, shots=(1,)), seconds={}))
    finally:
        faiss.omp_set_num_threads(before)
    assert records[0] == records[1] == records[2]


def test_a_score_does_not_depend_on_the_order_of_clips():
    test = tiny.clips("test", 300, dim=16, spread=2.5, n_classes=4)
    shuffled = [test[at] for at in np.random.default_rng(0).permutation(300)]
    one, two = (retrieve({**SETS, "test": tiny.TinySet(clips)}) for clips in (test, shuffled))
    assert (one.value, one.ci_low, one.ci_high) == (two.value, two.ci_low, two.ci_high)
    assert one.details["spread"] == two.details["spread"]


RNG = np.random.default_rng(5)
VECTORS = {
    "random": unit_rows(RNG.standard_normal((700, 64)).astype(np.float32)),
    "far from the origin": unit_rows((RNG.standard_normal((700, 64)) * 0.1 + 3).astype(np.float32)),
    "scaled by feature": unit_columns(RNG.standard_normal((700, 64)).astype(np.float32)),
    "the same over and over": np.tile(unit_rows(RNG.standard_normal((7, 64)).astype(np.float32)), (100, 1)),
    "all alike": np.ones((700, 64), np.float32),
    "zeros": np.zeros((700, 64), np.float32),
}


@pytest.mark.parametrize("X", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("k", [1, 10, 99])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_exact_search_finds_the_nearest_and_of_equals_the_lowest_rows(X, k, n_queries):
    queries = np.round(X[:n_queries] + RNG.standard_normal((n_queries, 64)).astype(np.float32) / 8, 3)
    exact = queries.astype(np.float64) @ X.astype(np.float64).T
    wanted = np.argsort(-exact.round(12), axis=1, kind="stable")[:, :k]
    blocks = ExactHeap(queries, k=k)
    for first in range(0, len(X), 256):
        blocks.add(X[first : first + 256], first=first)
    for found in (Searcher(X, "flat").search(queries, k=k), blocks.nearest()):
        np.testing.assert_allclose(found.similarities, np.take_along_axis(exact, wanted, axis=1), rtol=1e-5, atol=1e-5)
        gaps = np.take_along_axis(exact, found.rows, axis=1) - np.take_along_axis(exact, wanted, axis=1)
        assert ((found.rows == wanted) | ((np.abs(gaps) < 1e-5) & (gaps != 0))).all()


@pytest.mark.parametrize("k", [1, 3, 20, 120])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_a_nearer_row_that_comes_late_takes_the_place_of_the_highest_of_equals(k, n_queries):
    X = np.random.default_rng(k).integers(0, 3, (300, 2)).astype(np.float32)  # five similarities, exact in float32
    queries = np.ones((n_queries, 2), np.float32)
    wanted = np.argsort(-(queries @ X.T), axis=1, kind="stable")[:, :k]
    blocks = ExactHeap(queries, k=k)
    for first in range(0, len(X), 70):
        blocks.add(X[first : first + 70], first=first)
    for found in (Searcher(X, "flat").search(queries, k=k), blocks.nearest()):
        np.testing.assert_array_equal(found.rows, wanted)
        np.testing.assert_array_equal(found.similarities, np.take_along_axis(queries @ X.T, wanted, axis=1))


def test_the_first_of_many_neighbours_are_those_of_a_search_for_few():
    X = VECTORS["the same over and over"]
    many, few = (Searcher(X, "flat").search(X[:5] + np.float32(0.01), k=k).rows for k in (50, 3))
    np.testing.assert_array_equal(many[:, :3], few)


@pytest.mark.parametrize("X", VECTORS.values(), ids=VECTORS)
def test_a_search_in_blocks_of_queries_finds_the_same(X, monkeypatch):
    queries = np.round(X[:105] + RNG.standard_normal((105, 64)).astype(np.float32) / 8, 3)
    together = Searcher(X, "flat").search(queries, k=10)
    monkeypatch.setattr("featstore.retrieve.index.MIN_WORK_TO_DIVIDE", 0)
    monkeypatch.setattr("featstore.retrieve.index.QUERIES_PER_BLOCK", 25)
    found = Searcher(X, "flat").search(queries, k=10)
    np.testing.assert_allclose(found.similarities, together.similarities, rtol=1e-5, atol=1e-5)
    gaps = np.take_along_axis(queries @ X.T, found.rows, axis=1) - together.similarities
    assert ((found.rows == together.rows) | (np.abs(gaps) < 1e-5)).all()
    assert found.rows.shape == (105, 10)


def test_faiss_multiplies_matrices_by_the_instructions_that_numpy_uses():
    code = """
import json, os, featstore.retrieve.index, threadpoolctl
assert "OPENBLAS_CORETYPE" not in os.environ
found = threadpoolctl.ThreadpoolController().select(internal_api="openblas").info()
print(json.dumps({each["filepath"]: each["architecture"] for each in found}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    detected = json.loads(done.stdout)
    by_numpy = {each for path, each in detected.items() if "numpy" in path}
    by_faiss = {each for path, each in detected.items() if "faiss" in path}
    if not by_numpy <= {"SkylakeX", "Haswell", "Zen"} or not by_faiss:
        pytest.skip(f"NumPy uses {by_numpy}, and FAISS {by_faiss}")
    assert by_faiss == by_numpy
