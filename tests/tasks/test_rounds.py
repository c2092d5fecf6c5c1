from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.tasks.splits import (
    Round,
    grouped_folds,
    grouped_tenth,
    plan_rounds,
    stratified_folds,
    stratified_tenth,
)

ROLES = {"train": "train", "valid": "valid", "test": "test"}


def pool(sizes: dict[str, int], n_classes: int = 3):
    """Members, names and strata of sets of the given sizes, behind one another."""
    members, start = {}, 0
    for name, size in sizes.items():
        members[name] = np.arange(start, start + size)
        start += size
    ids = [f"{name}/{number}" for name, size in sizes.items() for number in range(size)]
    return {"members": members, "ids": ids, "stratify": lambda _: np.arange(start) % n_classes}


def strata_lists(min_size: int = 0, max_size: int = 200):
    return st.lists(st.integers(0, 9), min_size=min_size, max_size=max_size).map(lambda s: np.array(s, np.int64))


@given(sizes=st.lists(st.integers(3, 40), min_size=2, max_size=6), n_classes=st.integers(1, 5))
def test_with_strict_folds_every_clip_is_tested_once_and_never_by_a_head_that_saw_it(sizes, n_classes):
    folds = pool({f"fold-{at}": size for at, size in enumerate(sizes)}, n_classes)
    rounds = plan_rounds(protocol="strict", roles=None, **folds)
    tested = np.concatenate([each.test for each in rounds])
    assert sorted(tested) == list(range(sum(sizes)))
    for each in rounds:
        seen = np.concatenate([each.train, each.valid, each.test])
        assert sorted(seen) == list(range(sum(sizes)))
        assert set(each.reference) == set(each.train) | set(each.valid)


@given(sizes=st.tuples(st.integers(15, 60), st.integers(3, 20), st.integers(15, 40)))
@pytest.mark.parametrize(
    ("roles", "n_rounds"),
    [
        pytest.param(ROLES, 1, id="three sets"),
        pytest.param({**ROLES, "valid": "test"}, 1, id="validation is the test set"),
        pytest.param({**ROLES, "valid": "train"}, 1, id="validation is the training set"),
        pytest.param({"train": "test", "valid": "test", "test": "test"}, 5, id="one set for everything"),
        pytest.param({"train": "test", "valid": "valid", "test": "test"}, 5, id="training set is the test set"),
    ],
)
def test_strict_never_selects_or_tests_on_what_it_trained_on(roles, n_rounds, sizes):
    sets = pool(dict(zip(("train", "valid", "test"), sizes, strict=True)))
    rounds = plan_rounds(protocol="strict", roles=roles, **sets)
    assert len(rounds) == n_rounds
    tested = np.concatenate([each.test for each in rounds])
    assert sorted(tested) == sets["members"][roles["test"]].tolist()
    for each in rounds:
        parts = [set(each.train.tolist()), set(each.valid.tolist()), set(each.test.tolist())]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_a_sound_validation_set_is_used_as_it_is_declared():
    sets = pool({"train": 30, "valid": 9, "test": 12})
    (only,) = plan_rounds(protocol="strict", roles=ROLES, **sets)
    for role in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(only, role), sets["members"][role])
    np.testing.assert_array_equal(only.reference, only.train)


def test_xares_folds_select_and_test_on_the_fold_itself():
    rounds = plan_rounds(protocol="xares", roles=None, **pool({"a": 4, "b": 5, "c": 6}))
    assert [each.name for each in rounds] == ["a", "b", "c"]
    np.testing.assert_array_equal(rounds[1].train, [*range(4), *range(9, 15)])
    np.testing.assert_array_equal(rounds[1].valid, range(4, 9))
    np.testing.assert_array_equal(rounds[1].test, range(4, 9))


def test_xares_takes_splits_as_declared_even_where_one_set_is_all_three():
    (only,) = plan_rounds(protocol="xares", roles=dict.fromkeys(ROLES, "all"), **pool({"all": 7}))
    assert only.train.tolist() == only.valid.tolist() == only.test.tolist() == list(range(7))


@given(strata=strata_lists(min_size=1), data=st.data())
def test_a_stratified_tenth_depends_on_names_alone(strata, data):
    ids = [f"clip-{at}" for at in range(len(strata))]
    chosen = {ids[at] for at in stratified_tenth(np.arange(len(ids)), ids=ids, strata=strata)}
    order = np.array(data.draw(st.permutations(range(len(ids)))))
    shuffled = [ids[at] for at in order]
    again = stratified_tenth(np.arange(len(ids)), ids=shuffled, strata=strata[order])
    assert {shuffled[at] for at in again} == chosen


@given(strata=strata_lists(min_size=1))
def test_a_stratified_tenth_is_a_tenth_and_leaves_every_class_for_training(strata):
    clips = np.arange(len(strata))
    chosen = stratified_tenth(clips, ids=[f"clip-{at}" for at in clips], strata=strata)
    n_spare = len(strata) - len(np.unique(strata))
    assert len(chosen) == len(set(chosen)) == min(max(1, round(len(strata) / 10)), n_spare)
    assert set(strata[np.setdiff1d(clips, chosen)]) == set(strata)


def test_a_stratified_tenth_takes_its_share_of_every_class():
    strata = np.repeat(np.arange(20), 50)
    chosen = stratified_tenth(np.arange(1000), ids=[f"clip-{at}" for at in range(1000)], strata=strata)
    assert np.bincount(strata[chosen]).tolist() == [5] * 20


def test_the_choice_by_hash_is_the_same_in_every_version():
    chosen = stratified_tenth(np.arange(40), ids=[f"clip-{at}" for at in range(40)], strata=np.arange(40) % 2)
    assert chosen.tolist() == [0, 25, 33, 38]


@settings(max_examples=50)
@given(strata=strata_lists(), n_folds=st.integers(2, 7))
def test_stratified_folds_deal_every_clip_once_and_every_class_evenly(strata, n_folds):
    ids = [f"clip-{at}" for at in range(len(strata))]
    folds = stratified_folds(np.arange(len(strata)), ids=ids, strata=strata, n_folds=n_folds)
    assert sorted(np.concatenate(folds)) == list(range(len(strata)))
    for values in ([len(fold) for fold in folds], *([(strata[f] == s).sum() for f in folds] for s in set(strata))):
        assert max(values) - min(values) <= 1


def test_a_strict_round_refuses_a_clip_in_two_parts():
    one, two = np.array([1, 2]), np.array([2, 3])
    with pytest.raises(ValueError, match=r"\b1\b.*\btrain\b.*\btest\b"):
        Round(name="r", protocol="strict", train=one, valid=np.array([9]), test=two)
    with pytest.raises(ValueError, match=r"reference.*\btest\b"):
        Round(name="r", protocol="strict", train=one, valid=np.array([9]), test=np.array([3]), reference=two + 1)


# --- groups -----------------------------------------------------------------------------------------------------------


@given(
    n_groups=st.integers(4, 30),
    n_classes=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    roles=st.sampled_from(
        [None, {"train": "a", "valid": "b", "test": "b"}, dict.fromkeys(("train", "valid", "test"), "a")]
    ),
)
def test_what_featstore_draws_never_divides_a_group(n_groups, n_classes, seed, roles):
    rng = np.random.default_rng(seed)
    n = 12 * n_groups
    group = rng.integers(n_groups, size=n)
    names = [f"speaker {each}" for each in group]
    members = {"a": np.flatnonzero(group % 2 == 0), "b": np.flatnonzero(group % 2 == 1)}
    if roles is not None and set(roles.values()) == {"a"}:
        members = {"a": np.arange(n)}
    ids = [f"clip {at}" for at in range(n)]
    strata = rng.integers(n_classes, size=n)
    rounds = plan_rounds(
        protocol="strict", members=members, roles=roles, ids=ids, stratify=lambda _: strata, groups=names
    )
    for each in rounds:
        parts = [{names[clip] for clip in clips} for clips in (each.train, each.valid, each.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
    if roles is not None:
        tested = np.concatenate([each.test for each in rounds])
        assert sorted(tested) == members[roles["test"]].tolist()


def test_a_tenth_of_groups_is_about_a_tenth_of_the_clips_and_leaves_every_class_for_training():
    rng = np.random.default_rng(0)
    strata, groups = rng.integers(5, size=1000), [f"speaker {each}" for each in rng.integers(60, size=1000)]
    chosen = grouped_tenth(np.arange(1000), groups=groups, strata=strata)
    assert 70 <= len(chosen) <= 130
    left = np.setdiff1d(np.arange(1000), chosen)
    assert set(strata[left]) == set(range(5))
    order = rng.permutation(1000)
    again = grouped_tenth(np.arange(1000), groups=[groups[at] for at in order], strata=strata[order])
    assert set(order[again]) == set(chosen)  # by names, whatever the order of clips


def test_where_every_group_is_the_only_one_of_its_class_none_is_spared():
    assert not len(grouped_tenth(np.arange(9), groups=list("aaabbbccc"), strata=np.repeat([0, 1, 2], 3)))


def test_folds_of_groups_are_about_equal_and_no_more_than_there_are_groups():
    rng = np.random.default_rng(0)
    groups = [f"speaker {each}" for each in rng.integers(40, size=800)]
    folds = grouped_folds(np.arange(800), groups=groups, strata=rng.integers(4, size=800), n_folds=5)
    assert sorted(np.concatenate(folds)) == list(range(800))
    assert max(map(len, folds)) - min(map(len, folds)) < 40
    assert len(grouped_folds(np.arange(6), groups=list("aabbcc"), strata=np.zeros(6, int), n_folds=5)) == 3
