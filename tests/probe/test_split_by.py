"""Folds by group against random folds: vectors that leak the group, scikit-learn's splitters, and the record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featstore as fs
import tiny
from featstore.errors import DataError, LabelError, UsageError
from featstore.evaluation import load_task
from featstore.probe import probe_task
from featstore.report.results import identity_of
from featstore.tasks.splits import SplitBy
from mapped import Stored, write_set

N_GROUPS, OF_GROUP, DIM = 24, 10, 32


def vectors(*, group_size, class_size, seed=0):
    """A class for each group, a direction for each group and for each class."""
    rng = np.random.default_rng(seed)
    group = np.arange(N_GROUPS * OF_GROUP) % N_GROUPS
    y = group % 3
    X = rng.standard_normal((len(group), DIM)) + group_size * rng.standard_normal((N_GROUPS, DIM))[group]
    return X + class_size * rng.standard_normal((3, DIM))[y], y, group


def write(url, X, y, group, *, shift=0):
    """The clips in declared splits of which each has clips of every group."""
    split_of = np.array(["train", "train", "train", "valid", "test"])[np.arange(len(y)) // N_GROUPS % 5]
    for split in ("train", "valid", "test"):
        clips = [
            Stored(
                f"{at}",
                X[at],
                {"label": f"c{y[at]}", "speaker": f"s{group[at] + shift}", "one": "x", "n": float(X[at, 0])},
            )
            for at in np.flatnonzero(split_of == split)
        ]
        write_set(url, clips, split=split, dataset="tiny")
    return fs.open(url)


def task(**changes):
    patterns = {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"}
    return tiny.task(**{"splits": {**patterns, "group": "speaker"}, **changes})


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    X, y, group = vectors(group_size=2.0, class_size=0.0)
    return write(tmp_path_factory.mktemp("leak") / "s.zarr", X, y, group), X, y, group


@pytest.fixture(scope="module")
def record(leaking):
    return probe_task(leaking[0], task(), split_by="group")


def test_no_group_is_on_both_sides_and_every_clip_is_tested_once(leaking):
    store = leaking[0]
    found = load_task(store, task(), encoder=None, protocol="strict", split_by=SplitBy(field="speaker"))
    groups = np.array(found.groups)
    assert len(found.rounds) == 5
    assert sorted(np.concatenate([each.test for each in found.rounds]).tolist()) == list(range(N_GROUPS * OF_GROUP))
    for each in found.rounds:
        sides = [set(groups[clips]) for clips in (each.train, each.valid, each.test)]
        assert not sides[0] & sides[1]
        assert not sides[2] & (sides[0] | sides[1])
    # classes are spread as evenly as scikit-learn spreads them
    y, clips = found.targets.values, np.arange(len(groups))
    theirs = [test for _, test in StratifiedGroupKFold(5).split(clips, y, groups)]
    ours = [each.test for each in found.rounds]
    spread = [np.std([np.bincount(y[test], minlength=3) for test in folds], axis=0).max() for folds in (ours, theirs)]
    assert spread[0] <= spread[1] + 1.0


def test_random_folds_have_the_same_number_and_share_groups(leaking):
    by = SplitBy(field="speaker", is_grouped=False)
    found = load_task(leaking[0], task(), encoder=None, protocol="strict", split_by=by)
    groups = np.array(found.groups)
    assert len(found.rounds) == 5
    assert all(set(groups[each.test]) & set(groups[each.train]) for each in found.rounds)


def test_both_scores_are_those_of_scikit_learn_s_folds(leaking, record):
    _, X, y, group = leaking
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    by_group = cross_val_score(model, X, y, groups=group, cv=StratifiedGroupKFold(5)).mean()
    at_random = cross_val_score(model, X, y, cv=StratifiedKFold(5, shuffle=True, random_state=0)).mean()
    assert record.details["random_folds"]["value"] == pytest.approx(at_random, abs=0.05)
    assert record.value == pytest.approx(by_group, abs=0.15)  # other groups of 24 are tested together
    assert at_random - by_group > 0.4


def test_the_difference_has_the_paired_interval_of_its_groups(leaking, record):
    found = record.details["random_folds"]
    assert found["difference"] == pytest.approx(found["value"] - record.value)
    assert 0.2 < found["difference_low"] < found["difference"] < found["difference_high"]
    assert (found["groups"], found["folds"], record.n_test) == (N_GROUPS, 5, N_GROUPS * OF_GROUP)
    assert record.details["spread"]["units"] == "groups"


def test_where_the_group_says_nothing_there_is_no_difference(tmp_path):
    X, y, group = vectors(group_size=0.0, class_size=0.3, seed=1)
    record = probe_task(write(tmp_path / "s.zarr", X, y, group), task(), split_by="group")
    found = record.details["random_folds"]
    assert found["difference_low"] < 0.0 < found["difference_high"]
    assert abs(found["difference"]) < 0.05
    assert 0.5 < record.value < 0.95


def test_few_groups_make_as_few_folds_and_no_interval(tmp_path):
    X, y, group = vectors(group_size=1.0, class_size=1.0)
    record = probe_task(write(tmp_path / "s.zarr", X, y, group // 8), task(), split_by="speaker")
    found = record.details["random_folds"]
    assert (found["folds"], found["groups"], len(record.details["by_round"])) == (3, 3, 3)
    assert (found["difference_low"], found["difference_high"]) == (None, None)


def test_a_record_of_folds_is_not_that_of_the_declared_splits(leaking, record, tmp_path, capsys):
    from featstore.cli.evaluate import print_scores

    declared = probe_task(leaking[0], task())
    assert record.settings == {**declared.settings, "split_by": "speaker"}
    assert "random_folds" not in declared.details
    assert identity_of(record) != identity_of(declared)
    assert record.key != declared.key
    scores = fs.Scores([record, declared])
    labels = {each.label for each in scores.leaderboard().tables[0].columns}
    assert labels == {"mel (split_by=speaker)", "mel"}
    (alone,) = fs.Scores([record]).leaderboard().tables[0].columns
    assert alone.label == "mel (split_by=speaker)"
    scores.save(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    print_scores(scores, as_json=False)
    found = record.details["random_folds"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{found['value']:.3f}" in printed
    assert f"{found['difference']:+.3f}" in printed


def test_a_field_of_the_clips_serves_without_a_group_in_the_manifest(leaking, record):
    ungrouped = tiny.task()
    named = probe_task(leaking[0], ungrouped, split_by="speaker")
    assert (named.value, named.settings) == (record.value, record.settings)
    assert replace(named, manifest_sha256=record.manifest_sha256).key == record.key


def test_numbers_are_split_by_group_too(leaking):
    numbers = task(kind="regression", metric="pearson", label={"field": "n"})
    record = probe_task(leaking[0], numbers, split_by="group")
    assert record.value > 0.9
    assert record.details["random_folds"]["folds"] == 5


@pytest.mark.parametrize(
    ("changes", "options", "error", "named"),
    [
        pytest.param({}, {"split_by": "one"}, DataError, "'one'.*two or more groups", id="one group"),
        pytest.param({}, {"split_by": "nothing"}, LabelError, "nothing", id="no such field"),
        pytest.param({}, {"split_by": "group", "protocol": "xares"}, UsageError, "strict", id="xares"),
        pytest.param({"kind": "ctc", "metric": "wer_inv"}, {"split_by": "group"}, UsageError, "ctc", id="kind"),
    ],
)
def test_what_cannot_be_split_by_group_is_one_line(leaking, changes, options, error, named):
    with pytest.raises(error, match=named):
        probe_task(leaking[0], task(**changes), **options)


def test_the_interval_is_that_of_the_means_of_groups(leaking, record):
    """Of accuracy in folds of one size, the deviation of a group is that of its share of right clips, nearly."""
    half = (record.details["random_folds"]["difference_high"] - record.details["random_folds"]["difference_low"]) / 2
    store = leaking[0]
    shares = []
    for is_grouped in (False, True):
        by = SplitBy(field="speaker", is_grouped=is_grouped)
        found = load_task(store, task(), encoder=None, protocol="strict", split_by=by)
        groups, right = np.array(found.groups), np.zeros(len(found.groups))
        for each in found.rounds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
            model.fit(found.X[each.train], found.targets.values[each.train])
            right[each.test] = model.predict(found.X[each.test]) == found.targets.values[each.test]
        shares.append(np.array([right[groups == group].mean() for group in sorted(set(groups))]))
    of_group = (shares[0] - shares[1]) / N_GROUPS
    centred = of_group - of_group.mean()
    # as docs/protocols.md has it: the variance of the mean, and two more units of the largest difference
    variance = N_GROUPS / (N_GROUPS - 1) * np.square(centred).sum() + 2 * np.abs(of_group).max() ** 2
    assert half == pytest.approx(stats.t.ppf(0.975, N_GROUPS - 1) * np.sqrt(variance), rel=0.25)
