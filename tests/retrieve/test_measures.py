"""Measures of Track B against scikit-learn and naive formulas, on clips in memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, KMeans, kmeans_plusplus
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    ndcg_score,
    roc_auc_score,
    roc_curve,
    v_measure_score,
)

import tiny
from featstore.errors import DataError, UsageError
from featstore.evaluation.runner import ScoreFailure
from featstore.retrieve import MEASURES, score_measures

SETS = {
    name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=2.0, windows=windows, n_classes=4))
    for name, n, windows in (("train", 60, 2), ("valid", 21, 1), ("test", 45, 3))
}
FOLDS = tiny.folds("train", "valid", "test")
OTHERS = ("retrieval", "clustering", "pairs")


def measured(*measures, sets=SETS, changes=None, **options):
    return score_measures(tiny.TinyStore(sets), tiny.task(**(changes or {})), measures=measures, **options)


def vectors(*names, sets=SETS):
    """Unit vectors of clips, their classes, and the number of their fold."""
    X, y, fold = [], [], []
    for number, name in enumerate(names):
        for clip in sets[name].clips:
            mean = np.average(clip.vectors.astype(np.float32), axis=0, weights=clip.seconds)
            X.append(mean / np.linalg.norm(mean))
            y.append(int(clip.label[-1]))
            fold.append(number)
    return np.array(X), np.array(y), np.array(fold)


def compared(names, sets=SETS):
    """Cosines, same classes and comparable pairs of the test clips."""
    X, y, fold = vectors(*names, sets=sets)
    comparable = ~np.eye(len(X), dtype=bool)
    if len(names) > 1:
        comparable &= fold[:, None] != fold
    return X @ X.T, y[:, None] == y, comparable


CASES = [pytest.param({}, ("test",), id="splits"), pytest.param(FOLDS, ("train", "valid", "test"), id="folds")]


def values_of(record):
    return {name: each["value"] for name, each in record.details["scores"].items()}


def naive_retrieval(similarity, same, comparable):
    scores = []
    for query in range(len(similarity)):
        others = comparable[query]
        relevant, near = same[query, others], similarity[query, others]
        ranked = relevant[np.argsort(-near)]
        scores.append(
            [
                average_precision_score(relevant, near),
                *(ranked[:k].any() for k in (1, 5, 10)),
                ndcg_score(relevant[None].astype(int), near[None], k=10),
            ]
        )
    return np.mean(scores, axis=0)


@pytest.mark.parametrize(("changes", "names"), CASES)
def test_retrieval_is_that_of_scikit_learn_and_a_clip_finds_neither_itself_nor_its_fold(changes, names):
    [record] = measured("retrieval", changes=changes)
    expected = naive_retrieval(*compared(names))
    assert list(values_of(record).values()) == pytest.approx(expected, abs=1e-6)
    assert (record.metric, record.value) == ("mAP", values_of(record)["mAP"])
    assert (record.track, record.measure, record.settings) == ("B", "retrieval", {"measure": "retrieval"})
    assert record.ci_low < record.value < record.ci_high
    assert record.n_test == record.details["clips"] == record.details["queries"] == len(vectors(*names)[1])


@pytest.mark.parametrize(("changes", "names"), CASES)
def test_pairs_are_those_of_scikit_learn(changes, names):
    [record] = measured("pairs", changes=changes)
    similarity, same, comparable = compared(names)
    above = np.triu(comparable)
    score, truth = similarity[above], same[above]
    alarms, found, _ = roc_curve(truth, score, drop_intermediate=False)
    at = int(np.argmin(np.abs(1 - found - alarms)))
    values = values_of(record)
    assert record.metric == "eer"
    assert values["eer"] == pytest.approx((1 - found[at] + alarms[at]) / 2, abs=0.005)
    assert values["min_dcf"] == pytest.approx((1 - found + 99 * alarms).min(), abs=1e-6)
    assert values["average_precision"] == pytest.approx(average_precision_score(truth, score), abs=1e-6)
    assert values["roc_area"] == pytest.approx(roc_auc_score(truth, score), abs=1e-6)
    assert record.details["pairs"] == {"same": truth.sum(), "different": (~truth).sum(), "scored": len(truth)}
    assert all(each["low"] <= each["value"] <= each["high"] for each in record.details["scores"].values())


def test_clustering_is_k_means_of_scikit_learn_and_hdbscan_of_scikit_learn():
    sets = {**SETS, "test": tiny.TinySet(tiny.clips("test", 160, dim=16, spread=0.5, n_classes=4))}
    [record] = measured("clustering", sets=sets)
    X, y, _ = vectors("test", sets=sets)
    dense = HDBSCAN(copy=False).fit(X.astype(np.float64)).labels_
    found = record.details["hdbscan"]["scores"]
    assert found["v_measure"]["value"] == pytest.approx(v_measure_score(y, dense))
    assert found["adjusted_rand"]["value"] == pytest.approx(adjusted_rand_score(y, dense))
    assert record.details["hdbscan"]["n_clusters"] == dense.max() + 1
    assert record.details["hdbscan"]["noise"] == pytest.approx(np.mean(dense < 0))
    assert found["v_measure"]["low"] < found["v_measure"]["value"] <= found["v_measure"]["high"]
    order = sorted(range(160), key=lambda at: hashlib.sha256(f"test/test-{at}".encode()).digest())
    by_seed = []
    for seed in range(5):
        means = KMeans(4, init=plus_plus, n_init=1, random_state=seed).fit(X[order].astype(np.float32))
        by_seed.append(v_measure_score(y[order], means.labels_))
    assert list(record.details["by_seed"].values()) == pytest.approx(by_seed)
    assert (record.metric, record.seeds, record.value) == (
        "v_measure",
        (0, 1, 2, 3, 4),
        pytest.approx(np.mean(by_seed)),
    )
    assert record.std == pytest.approx(np.std(by_seed, ddof=1))


def plus_plus(X, k, random_state):
    return kmeans_plusplus(X.astype(np.float64), k, random_state=random_state, n_local_trials=1)[0]


def test_measures_are_those_that_each_has_alone_and_read_the_task_once():
    store = tiny.TinyStore(SETS)
    measures = [name for name in MEASURES if name not in ("zero-shot", "text")]  # see test_zero_shot.py
    together = score_measures(store, tiny.task(), measures=measures)
    assert store.read == ["train", "valid", "test"]
    assert [each.measure for each in together] == measures
    for record in together:
        [alone] = measured(record.measure)
        assert (alone.value, alone.ci_low, alone.ci_high, alone.key) == (
            record.value,
            record.ci_low,
            record.ci_high,
            record.key,
        )


def test_scores_do_not_depend_on_the_order_of_clips():
    turned = {name: tiny.TinySet(each.clips[::-1]) for name, each in SETS.items()}
    for one, other in zip(measured(*OTHERS), measured(*OTHERS, sets=turned), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)
        assert one.details["spread"]["clips"] == other.details["spread"]["clips"]
        assert one.details["spread"]["deviations"] == pytest.approx(other.details["spread"]["deviations"], abs=1e-6)


def test_label_sets_of_one_label_score_as_classes_do():
    manifest = {"kind": "multilabel", "metric": "mAP"}  # without a [retrieve] table: no vote, but the other measures
    for one, other in zip(measured(*OTHERS, changes=manifest), measured(*OTHERS), strict=True):
        assert one.value == pytest.approx(other.value)


def test_a_clip_finds_no_other_of_its_group_and_intervals_count_groups():
    rng = np.random.default_rng(0)
    voices = 5 * rng.standard_normal((30, 16))
    made = [
        tiny.Clip(
            key=f"{at}",
            label={"class": f"class {at // 8 % 3}", "speaker": f"s{at // 8}"},
            vectors=voices[at // 8] + rng.standard_normal((1, 16)),
        )
        for at in range(240)
    ]
    sets = {"train": tiny.TinySet(made[:24]), "valid": tiny.TinySet(made[24:48]), "test": tiny.TinySet(made[48:])}
    changes = {"label": {"field": "label.class"}}
    splits = {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"}
    for measure, better in (("retrieval", 1), ("pairs", -1)):
        [alone] = measured(measure, sets=sets, changes={**changes, "splits": splits})
        [grouped] = measured(measure, sets=sets, changes={**changes, "splits": {**splits, "group": "label.speaker"}})
        assert better * grouped.value < better * alone.value
        assert (grouped.details["spread"]["units"], grouped.details["spread"]["n"]) == ("groups", 24)
        assert grouped.ci_high - grouped.ci_low > 1.5 * (alone.ci_high - alone.ci_low)


def test_constant_vectors_retrieve_nothing_and_verify_nothing():
    same = {
        name: tiny.TinySet([tiny.Clip(key=c.key, label=c.label, vectors=np.ones((1, 8))) for c in each.clips])
        for name, each in SETS.items()
    }
    retrieval, pairs = measured("retrieval", "pairs", sets=same)
    assert values_of(retrieval)["recall_at_10"] == 0.0
    assert pairs.value == pytest.approx(0.5)


def test_a_sample_of_pairs_scores_as_all_pairs_do(monkeypatch):
    sets = {**SETS, "test": tiny.TinySet(tiny.clips("test", 300, dim=16, spread=2.0, n_classes=4))}
    [everything] = measured("pairs", sets=sets)
    monkeypatch.setattr("featstore.retrieve.pairs.MAX_PAIRS", 20_000)
    [sampled] = measured("pairs", sets=sets)
    assert sampled.details["pairs"]["scored"] < 20_400
    assert sampled.details["pairs"]["same"] == everything.details["pairs"]["same"]
    for name, value in values_of(everything).items():
        assert values_of(sampled)[name] == pytest.approx(value, abs=0.03), name


def test_many_clips_are_compared_block_by_block_and_sampled_by_name(monkeypatch):
    [whole] = measured("retrieval", changes=FOLDS)
    monkeypatch.setattr("featstore.retrieve.clip_set.MAX_STORED_CLIPS", 10)
    monkeypatch.setattr("featstore.retrieve.clip_set.MAX_BLOCK_CELLS", 126 * 7)
    [blocked] = measured("retrieval", changes=FOLDS)
    assert values_of(blocked) == pytest.approx(values_of(whole), abs=1e-6)
    assert blocked.details["spread"]["deviations"] == pytest.approx(whole.details["spread"]["deviations"], abs=1e-6)


# --- trials -----------------------------------------------------------------------------------------------------------


def with_trials(tmp_path, text):
    from featstore.tasks import load_manifest

    (tmp_path / "trials.csv").write_text(text, encoding="utf-8")
    table = 'kind = "clip"\nmetric = "accuracy"\n'
    splits = '[splits]\ntrain = "train*.tar"\nvalid = "valid*.tar"\ntest = "test*.tar"\n'
    (tmp_path / "tiny.toml").write_text(
        f'name = "tiny"\ntitle = "Tiny"\neval_weight = 1.0\n{table}[data]\ndataset = "tiny"\n{splits}'
        '[label]\nfield = "label"\n[retrieve]\ntrials = "trials.csv"\n',
        encoding="utf-8",
    )
    return load_manifest(tmp_path / "tiny.toml")


def test_a_list_of_trials_is_scored_in_place_of_all_pairs(tmp_path):
    X, y, _ = vectors("test")
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a, b in rng.integers(45, size=(400, 2)).tolist() if a != b]
    rows = [f"test-{a}, test/test-{b}, {'same' if y[a] == y[b] else 'different'}" for a, b in pairs]
    manifest = with_trials(tmp_path, "\n".join(["first,second,answer", *rows]))
    [record] = score_measures(tiny.TinyStore(SETS), manifest, measures=["pairs"])
    a, b = np.array(pairs).T
    cosines = np.einsum("pd,pd->p", X[a], X[b])
    assert values_of(record)["roc_area"] == pytest.approx(roc_auc_score(y[a] == y[b], cosines), abs=1e-6)
    assert record.details["pairs"]["scored"] == len(pairs)
    flipped = with_trials(tmp_path, "\n".join([*rows, "test-0,test-1,1"]))
    [other] = score_measures(tiny.TinyStore(SETS), flipped, measures=["pairs"])
    assert other.key != record.key
    assert other.details["spread"]["clips"] != record.details["spread"]["clips"]  # they are not compared


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("test-0,test-1,same\ntest-0,test-99,different", "line 2: 'test-99'"),
        ("test-0,test-1,same\ntest-0,test-2", "line 2.*2 fields"),
        ("test-0,test-1,same\ntest-0,test-2,maybe", "line 2.*'maybe'"),
        ("test-0,test-0,same\n", "line 1.*itself"),
        ("test-0,test-1,same\n", "both same and different"),
        ("", "both same and different"),
        ('test-0,"test-1,same\n', "line"),
    ],
)
def test_a_wrong_list_of_trials_is_one_line(tmp_path, text, named):
    manifest = with_trials(tmp_path, text)
    with pytest.raises(DataError, match=named) as error:
        score_measures(tiny.TinyStore(SETS), manifest, measures=["pairs"])
    assert "\n" not in str(error.value)


def test_trials_stay_in_the_folder_of_the_manifest_and_the_hash_does_not_depend_on_it(tmp_path):
    here = with_trials(tmp_path, "")
    (tmp_path / "other").mkdir()
    there = with_trials(tmp_path / "other", "")
    assert here.sha256 == there.sha256
    assert here.trials_path == tmp_path / "trials.csv"
    (tmp_path / "trials.csv").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        score_measures(tiny.TinyStore(SETS), here, measures=["pairs"])
    with pytest.raises(ValueError, match="inside the manifest's folder"):
        tiny.task(retrieve={"trials": "../trials.csv"})


# --- refusals and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measures", "changes", "options", "named"),
    [
        (("rank",), {}, {}, "'rank'.*knn, retrieval"),
        ((), {}, {}, "no measure"),
        (("pairs", "pairs"), {}, {}, "unique"),
        (("pairs",), {}, {"protocol": "xares"}, "xares.*'pairs'"),
        (("retrieval",), {"kind": "regression", "metric": "pearson"}, {}, "'regression'"),
        (("knn",), {"retrieve": {"enabled": False}}, {}, "enabled = false"),
    ],
)
def test_what_a_task_does_not_have_is_a_usage_error(measures, changes, options, named):
    with pytest.raises(UsageError, match=named):
        measured(*measures, changes=changes, **options)


def test_a_measure_that_a_task_does_not_have_is_skipped_among_others():
    lines = []
    records = measured("knn", "pairs", changes={"retrieve": {"enabled": False}}, notify=lines.append)
    assert [each.measure for each in records] == ["pairs"]
    assert len(lines) == 1
    assert "knn" in lines[0]


def test_one_failing_measure_does_not_lose_the_others(tmp_path):
    manifest = with_trials(tmp_path, "nonsense")
    records = score_measures(tiny.TinyStore(SETS), manifest, measures=("knn", "pairs", "retrieval"))
    assert [getattr(each, "metric", None) for each in records] == ["accuracy", None, "mAP"]
    failure = records[1]
    assert isinstance(failure, ScoreFailure)
    assert (failure.measure, failure.error, failure.task) == ("pairs", "DataError", "tiny")
