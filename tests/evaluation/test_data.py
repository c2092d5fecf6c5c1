from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

import tiny
from featstore.errors import DataError, LabelError, UnknownFeatureSet, UsageError
from featstore.evaluation import load_task, score_outcomes, score_record
from featstore.evaluation.scores import score_test_sets
from featstore.metrics import TestSet, find_metric
from featstore.records import ScoreRecord, SkippedClip
from featstore.store import Member, ShardIdentity, open_split_writer, open_store

SPLITS = {"train": tiny.clips("train", 30), "valid": tiny.clips("valid", 6), "test": tiny.clips("test", 9)}


def load(sets=SPLITS, protocol="strict", **changes):
    return load_task(tiny.TinyStore(sets), tiny.task(**changes), encoder=None, protocol=protocol)


def test_a_task_holds_every_window_with_the_label_of_its_clip():
    sets = {**SPLITS, "test": tiny.clips("test", 9, windows=3)}
    task = load(sets)
    assert task.X.shape == (30 + 6 + 27, 8)
    assert task.classes == ("class-0", "class-1", "class-2")
    for window in range(len(task.X)):
        name, _, key = task.clip_id[task.clip[window]].partition("/")
        clip = next(each for each in sets[name] if each.key == key)
        assert np.abs(clip.vectors.astype(np.float32) - task.X[window]).sum(axis=1).min() == 0
        assert task.classes[task.targets.values[task.clip[window]]] == clip.label


def test_splits_with_one_pattern_are_read_once():
    store = tiny.TinyStore({"train": tiny.clips("train", 30), "test": tiny.clips("test", 9)})
    patterns = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    task = load_task(store, tiny.task(splits=patterns), encoder=None, protocol="strict")
    assert store.read == ["train", "test"]
    assert set(task.features) == {"train", "test"}
    assert len(task.rounds[0].train) == 27
    assert len(task.rounds[0].valid) == 3


def test_folds_share_one_pool():
    names = ("1", "2", "3")
    store = tiny.TinyStore({name: tiny.clips(name, 12) for name in names})
    task = load_task(store, tiny.task(**tiny.folds(*names)), encoder=None, protocol="strict")
    assert store.read == list(names)
    assert len(task.rounds) == 3
    assert len(task.X) == 36


@pytest.mark.parametrize(
    ("there", "remedy"),
    [
        pytest.param(("train", "test"), " --split valid --encoder './my encoder.py' --data DIR", id="one"),
        pytest.param(("train",), " --split valid --split test --encoder './my encoder.py' --data DIR", id="two"),
        pytest.param(("other",), " --encoder './my encoder.py' --data DIR --store tiny.zarr`", id="all"),
    ],
)
def test_a_missing_feature_set_is_one_line_that_says_what_to_run(there, remedy):
    with pytest.raises(UnknownFeatureSet) as caught:
        load({name: tiny.clips(name, 9) for name in there})
    assert f"`featstore extract MANIFEST{remedy}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownFeatureSet, match="`featstore extract esc50 "):  # of a built-in task its name will do
        load({name: tiny.clips(name, 9) for name in there}, name="esc50")


def test_what_is_missing_of_a_layer_or_a_pool_is_asked_for_by_the_spec_that_it_was_made_by(tmp_path):
    made = replace(tiny.recipe(dim=4), encoder="w2v.layer6.std", encoder_identity={"layer": 6}, pool="std")
    writer = open_split_writer(
        str(tmp_path), recipe=made, spec="hf:m/w2v#layer=6", dataset="tiny", crop_seconds=None, split="train"
    )
    empty = Member(
        shard=ShardIdentity(name="a.tar", size=1), clips=0, windows=0, frames=0, audio_seconds=0.0, skipped=()
    )
    with writer.begin_part("a.tar") as part:
        part.commit([empty], frames_stored=False, versions={})
    with pytest.raises(UnknownFeatureSet, match=r"--encoder 'hf:m/w2v#layer=6' --pool std --data DIR --store "):
        load_task(open_store(str(tmp_path)), tiny.task(), encoder=None, protocol="strict")


def test_windows_of_a_clip_vote_by_their_seconds_under_strict_and_stand_alone_under_xares():
    clips = [
        tiny.Clip("a", "class-0", np.zeros((2, 8)), seconds=(3.0, 1.0)),
        tiny.Clip("b", "class-1", np.ones((1, 8)), seconds=(2.0,)),
        tiny.Clip("c", "class-1", np.ones((3, 8)), seconds=(1.0, 1.0, 2.0)),
    ]
    sets = {**SPLITS, "test": clips}
    scores = np.array([[1.0, 0], [0, 1], [0.5, 0.5], [1, 0], [1, 0], [0, 1]])
    strict, xares = (load(sets, protocol=protocol) for protocol in ("strict", "xares"))
    voting = strict.samples(strict.rounds[0].test)
    np.testing.assert_allclose(voting.vote(scores), [[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]])
    assert voting.y_true.tolist() == [0, 1, 1]
    alone = xares.samples(xares.rounds[0].test)
    np.testing.assert_array_equal(alone.vote(scores), scores)
    assert alone.y_true.tolist() == [0, 0, 1, 1, 1, 1]
    assert len(set(alone.clip)) == 3


def test_label_sets_become_rows_of_zeros_and_ones():
    sets = {
        "train": [tiny.Clip(str(at), text, np.zeros((1, 8))) for at, text in enumerate(["a;b", "c", "", "b"] * 5)],
        "valid": [tiny.Clip("v", "a", np.zeros((1, 8)))],
        "test": [tiny.Clip("t", "d;a", np.zeros((1, 8)))],
    }
    task = load(sets, kind="multilabel", metric="mAP", label={"field": "label", "separator": ";"})
    assert task.classes == ("a", "b", "c", "d")
    np.testing.assert_array_equal(
        task.targets.values[[0, 1, 2, -1]], [[1, 1, 0, 0], [0, 0, 1, 0], [0] * 4, [1, 0, 0, 1]]
    )


def test_a_class_that_only_the_test_shows_is_a_class_and_is_reported():
    sets = {**SPLITS, "test": [*SPLITS["test"], tiny.Clip("odd", "unheard", np.zeros((1, 8)))]}
    task = load(sets)
    assert task.classes[-1] == "unheard"
    samples = task.samples(task.rounds[0].test)
    outcome = samples.tested([np.eye(4)[samples.y_true]])
    assert score_outcomes(task, [outcome]).details["classes_not_in_training"] == ["unheard"]


@pytest.mark.parametrize(
    ("sets", "error", "named"),
    [
        pytest.param({**SPLITS, "valid": tiny.TinySet([], [SkippedClip(shard="s", key="k", reason="r")])}, DataError,
                     "'valid'", id="a split without clips"),
        pytest.param({**SPLITS, "train": tiny.clips("train", 9, n_classes=1)}, LabelError,
                     "class-0", id="a single class"),
        pytest.param({**SPLITS, "test": [tiny.Clip("bad", "class-0", np.array([[1.0] * 7 + [np.nan]]))]}, DataError,
                     "test/bad", id="not a number"),
        pytest.param({**SPLITS, "test": [tiny.Clip("t", None, np.zeros((1, 8)))]}, LabelError, "t", id="no label"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_clear_line(sets, error, named):
    with pytest.raises(error) as caught:
        load(sets)
    assert named in str(caught.value)
    assert "tiny" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_whose_sum_overflows_are_still_finite():
    large = [tiny.Clip("large", "class-0", np.full((1, 8), 3e38))]
    assert load({**SPLITS, "test": large}).X.max() == np.float32(3e38)


def test_a_kind_that_is_not_scored_yet_is_a_usage_error():
    with pytest.raises(UsageError, match="'ctc'"):
        load(kind="ctc", metric="wer_inv")


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_a_record_says_everything_and_survives_json(protocol):
    names = ("1", "2")
    sets = {name: tiny.clips(name, 12, windows=2) for name in names}
    task = load(sets, protocol=protocol, **tiny.folds(*names))
    rng = np.random.default_rng(0)
    outcomes = []
    for each in task.rounds:
        samples = task.samples(each.test)
        y_scores = tuple(np.eye(3)[samples.y_true] + rng.standard_normal((len(samples.y_true), 3)) for _ in range(2))
        outcomes.append(samples.tested(y_scores))
    scores = score_outcomes(task, outcomes)
    record = score_record(
        task, scores, track="A", seeds=(0, 1), settings={"head": "linear"}, seconds={"read": 1.0},
        libraries=("torch",), details={},
    )  # fmt: skip
    metric = find_metric("accuracy", protocol)
    table = np.array([[metric.score(each.y_true, y) for y in each.y_scores] for each in outcomes])
    assert record.value == pytest.approx(table.mean())
    assert record.std == pytest.approx(table.mean(axis=0).std(ddof=1))
    assert record.ci_low <= record.value <= record.ci_high
    assert record.details["by_round"] == {"1": pytest.approx(table[0].mean()), "2": pytest.approx(table[1].mean())}
    assert record.details["by_seed"]["1"] == pytest.approx(table[:, 1].mean())
    expected = (11, 1, 24) if protocol == "strict" else (12, 12, 24)
    assert (record.n_train, record.n_valid, record.n_test) == expected
    assert np.sum(record.details["confusion"]) == sum(len(each.y_true) for each in outcomes)
    assert set(record.versions) == {"featstore", "numpy", "torch"}
    assert score_outcomes(task, outcomes) == scores
    assert ScoreRecord.from_json(json.loads(json.dumps(record.as_json(), allow_nan=False))).key == record.key


def scored(sets, *, n_classes, **changes):
    """A record of predictions that are right but for every third, which names the next class."""
    task = load(sets, protocol="xares", **changes)
    [each] = task.rounds
    samples = task.samples(each.test)
    predicted = (samples.y_true + (np.arange(len(samples.y_true)) % 3 == 0)) % n_classes
    outcomes = [samples.tested([np.eye(n_classes)[predicted]])]
    scores = score_outcomes(task, outcomes)
    record = score_record(
        task, scores, track="A", seeds=(), settings={}, seconds={}, libraries=(), details={}
    )  # fmt: skip
    return record, samples.y_true, predicted


def test_support_counts_clips_and_confusion_counts_samples():
    record, true, predicted = scored({**SPLITS, "test": tiny.clips("test", 10, windows=2)}, n_classes=3)
    assert record.details["support"] == [4, 3, 3]
    assert record.details["confusion"] == confusion_matrix(true, predicted).tolist()
    assert "confused" not in record.details


def test_of_many_classes_the_pairs_that_are_confused_most_are_kept():
    sets = {name: tiny.clips(name, 3 * 70, n_classes=70) for name in ("train", "valid", "test")}
    record, true, predicted = scored(sets, n_classes=70)
    counts = confusion_matrix(true, predicted)
    np.fill_diagonal(counts, 0)
    pairs = record.details["confused"]
    assert "confusion" not in record.details
    assert sum(count for _, _, count in pairs) == counts.sum()
    assert all(counts[a, b] == count for a, b, count in pairs)
    assert [count for _, _, count in pairs] == sorted((count for _, _, count in pairs), reverse=True)


def test_a_record_holds_the_recipe_and_names_the_clips_that_were_skipped():
    sets = {
        **SPLITS,
        "train": tiny.TinySet(SPLITS["train"], skipped=(SkippedClip(shard="a.tar", key="x", reason="no"),)),
    }
    record, _, _ = scored(sets, n_classes=3)
    assert record.n_skipped == 1
    assert record.details["left_out"] == [["a.tar", "x", "no"]]
    assert record.details["recipe"] == tiny.recipe(dim=8).as_json()


@pytest.mark.parametrize("protocol", ["strict", "xares"])
@pytest.mark.parametrize("name", ["segment_f1_micro", "segment_f1_macro", "macro_f1"])
def test_a_test_set_without_anything_to_count_is_an_error_and_no_score(name, protocol):
    """Not even a NaN, which no file of results can hold."""
    y_true, y_score = np.zeros((4, 3)), np.full((4, 3, 2) if name.startswith("segment") else (4, 3), 0.0)
    test_set = TestSet(y_true=y_true, y_scores=(y_score,), clip=np.arange(4))
    with pytest.raises(DataError, match=name):
        score_test_sets(find_metric(name, protocol), [test_set], clip_ids=list("abcd"))


def test_the_score_of_a_class_is_weighted_by_its_test_clips():
    sets = {"1": tiny.clips("1", 30), "2": tiny.clips("2", 9)}
    task = load(sets, **tiny.folds("1", "2"))
    rng, outcomes, true, predicted = np.random.default_rng(0), [], [], []
    for each in task.rounds:
        samples = task.samples(each.test)
        y_score = np.eye(3)[samples.y_true] + rng.standard_normal((len(samples.y_true), 3))
        outcomes.append(samples.tested([y_score]))
        true.append(samples.y_true)
        predicted.append(y_score.argmax(axis=1))
    details = score_outcomes(task, outcomes).details
    counts = confusion_matrix(np.concatenate(true), np.concatenate(predicted))
    assert details["support"] == counts.sum(axis=1).tolist()
    assert details["by_class"] == pytest.approx((counts.diagonal() / counts.sum(axis=1)).tolist())


def test_one_seed_has_no_deviation():
    sets = {name: tiny.clips(name, 30) for name in ("train", "valid", "test")}
    record, *_ = scored(sets, n_classes=3)
    assert record.std is None
    assert ScoreRecord.from_json(json.loads(json.dumps(record.as_json()))).std is None


def test_groups_are_read_by_the_field_that_the_manifest_names():
    clips = [
        tiny.Clip(f"{name}{at}", {"class": f"{at % 2}", "speaker": at // 4}, np.zeros((1, 4)) + at)
        for name in ("train", "valid", "test")
        for at in range(40)
    ]
    sets = {name: [clip for clip in clips if clip.key.startswith(name)] for name in ("train", "valid", "test")}
    splits = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar", "group": "label.speaker"}
    task = load(sets, label={"field": "label.class"}, splits=splits)
    assert task.groups is not None
    [each] = task.rounds
    assert len({task.groups[clip] for clip in each.train}) + len({task.groups[clip] for clip in each.valid}) == 10
    without = {"class": "0"}
    with pytest.raises(LabelError, match="speaker"):
        load({**sets, "train": [tiny.Clip("odd", without, np.zeros((1, 4))), *sets["train"]]},
             label={"field": "label.class"}, splits=splits)  # fmt: skip
