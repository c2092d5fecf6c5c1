from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.tasks import Manifest, load_manifest

TaskOf = Callable[..., Manifest]
SECONDS = st.floats(min_value=1e-3, max_value=1e5)


@pytest.mark.parametrize(
    ("crop_seconds", "name"), [(None, "birds"), (5, "birds+crop5s"), (5.0, "birds+crop5s"), (2.5, "birds+crop2.5s")]
)
def test_a_crop_is_part_of_the_name_its_features_are_stored_under(
    task: TaskOf, crop_seconds: float | None, name: str
) -> None:
    assert task(data={"dataset": "birds", "crop_seconds": crop_seconds}).feature_dataset == name


@given(one=SECONDS, other=SECONDS)
def test_two_crops_share_a_name_only_when_they_are_equal(task: TaskOf, one: float, other: float) -> None:
    names = [task(data={"dataset": "d", "crop_seconds": crop}).feature_dataset for crop in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    assert not set(names[0]) & set("/\\ ")


@given(st.tuples(*[st.sampled_from(["a*.tar", "b*.tar", "c*.tar"])] * 3))
def test_splits_share_a_feature_set_exactly_when_they_share_their_shards(
    task: TaskOf, patterns: tuple[str, str, str]
) -> None:
    splits = dict(zip(("train", "valid", "test"), patterns, strict=True))
    stored = task(splits=splits).feature_sets
    assert list(stored) == ["train", "valid", "test"]
    for one, pattern in splits.items():
        sharing = [other for other, other_pattern in splits.items() if other_pattern == pattern]
        assert [other for other in splits if stored[other] == stored[one]] == sharing
        assert stored[one] == sharing[-1]


def test_every_fold_is_its_own_feature_set_in_the_order_of_the_file(task: TaskOf) -> None:
    folds = {"b": "b.tar", "a": "a.tar", "10": "c.tar"}
    fold_task = task(splits=None, folds=folds)
    assert list(fold_task.patterns.items()) == list(folds.items())
    assert fold_task.feature_sets == {"b": "b", "a": "a", "10": "10"}


def test_a_hash_sees_what_a_manifest_says_and_not_how_it_is_written(tmp_path: Path) -> None:
    head = 'name = "b"\ntitle = "B"\nkind = "clip"\nmetric = "accuracy"\n'
    tables = (
        '[data]\ndataset = "b"\n[splits]\ntrain = "a*.tar"\nvalid = "v*.tar"\ntest = "t*.tar"\n[label]\nfield = "y"\n'
    )
    texts = {
        "plain": head + "eval_weight = 100\n" + tables,
        "commented": "# birds\n" + head + "\n\neval_weight=100.0 # clips\n" + tables,
        "defaults written out": head + "eval_weight = 100\nprivate = false\n" + tables + "[probe]\nepochs = 10\n",
        "other epochs": head + "eval_weight = 100\n" + tables + "[probe]\nepochs = 11\n",
        "other label": head + "eval_weight = 100\n" + tables.replace('"y"', '"z"'),
    }
    hashes = {}
    for name, text in texts.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        hashes[name] = load_manifest(path).sha256
    assert hashes["plain"] == hashes["commented"] == hashes["defaults written out"]
    assert len({hashes["plain"], hashes["other epochs"], hashes["other label"]}) == 3
    assert len(hashes["plain"]) == 64


@pytest.mark.parametrize(
    ("kind", "label", "wants"),
    [
        ("clip", {"field": "y"}, False),
        ("multilabel", {"field": "y"}, False),
        ("regression", {"field": "y"}, False),
        ("contrastive", {"captions": "*"}, False),
        ("frame", {"field": "y"}, True),
        ("ctc", {"field": "y"}, True),
        ("asr", {"field": "y"}, True),
    ],
)
def test_only_tasks_in_time_want_frames(task: TaskOf, kind: str, label: dict[str, Any], wants: bool) -> None:  # noqa: FBT001
    assert task(kind=kind, label=label).wants_frames is wants
