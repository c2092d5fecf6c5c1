from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import tiny
from featstore.errors import DataError, UsageError
from featstore.probe import probe_task

SETS = {
    name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=1.5, windows=windows))
    for name, n, windows in (("train", 120, 1), ("valid", 30, 2), ("test", 60, 2))
}
PROBE = {"epochs": 15, "learning_rate": 1e-2}


def probe(sets=SETS, **options):
    changes = options.pop("changes", {})
    return probe_task(tiny.TinyStore(sets), tiny.task(**{"probe": PROBE, **changes}), **options)


def test_a_probe_scores_as_logistic_regression_does():
    record = probe(protocol="xares")
    train, test = SETS["train"], SETS["test"]
    scaler = StandardScaler().fit(train.utterance)
    model = LogisticRegression().fit(scaler.transform(train.utterance), [clip.label for clip in train.clips])
    expected = model.score(scaler.transform(test.utterance), [test.clips[at].label for at in test.clip])
    assert record.value == pytest.approx(expected, abs=0.04)


def test_windows_that_vote_together_score_better_than_windows_alone():
    assert probe(protocol="strict").value > probe(protocol="xares").value


def test_a_schedule_has_three_seeds_with_their_spread_and_under_xares_the_one_of_x_ares():
    strict, xares = probe(head="linear"), probe(protocol="xares")
    assert (strict.seeds, xares.seeds) == ((0, 1, 2), (42,))
    assert (xares.std, len(xares.details["by_seed"])) == (None, 1)
    assert strict.value == pytest.approx(np.mean(list(strict.details["by_seed"].values())))
    assert strict.std == pytest.approx(np.std(list(strict.details["by_seed"].values()), ddof=1))
    assert strict.ci_low <= strict.value <= strict.ci_high


@pytest.mark.parametrize("protocol", ["strict", "xares"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one class"),
        pytest.param({"kind": "multilabel", "metric": "mAP"}, id="label sets"),
        pytest.param(tiny.folds("train", "valid", "test"), id="folds"),
    ],
)
def test_a_run_repeats_to_the_last_digit(protocol, changes):
    one, two = (probe(protocol=protocol, changes=changes) for _ in range(2))
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}
    searched = {"neighbours"} if protocol == "strict" else set()
    assert set(one.seconds) == {"read", "train", "score", "warnings"} | searched
    assert one.value > 0.6


def test_folds_test_every_clip_once_and_select_on_a_tenth_of_the_others():
    record = probe(changes=tiny.folds("train", "valid", "test"))
    assert record.n_test == 210
    assert np.sum(record.details["confusion"]) == 210
    assert (record.n_train, record.n_valid) == (126, 14)
    assert record.value == pytest.approx(np.mean(list(record.details["by_round"].values())))


def test_the_test_set_has_no_say_in_the_selection_of_strict():
    patterns = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    flipped = tiny.TinySet(
        [tiny.Clip(c.key, f"class-{(int(c.label[-1]) + 1) % 3}", c.vectors, c.seconds) for c in SETS["test"].clips]
    )
    true, false = (
        probe({"train": SETS["train"], "test": test}, changes={"splits": patterns}) for test in (SETS["test"], flipped)
    )
    assert true.details["fit"] == false.details["fit"]
    assert true.value != false.value


def test_a_record_names_what_it_was_made_with():
    record = probe(head="linear")
    assert record.settings == {"head": "linear", "epochs": 15, "learning_rate": 1e-2, "batch_size": 32}
    assert set(record.versions) == {"featstore", "numpy", "torch"}
    assert set(record.features) == {"train", "valid", "test"}
    assert (record.track, record.n_train, record.n_valid, record.n_test) == ("A", 120, 30, 60)
    assert [len(history) for history in record.details["validation"]["test"]] == [15] * 3
    converged = probe()
    assert converged.settings == {"head": "logistic", "solver": "lbfgs"}
    assert (converged.seeds, converged.std) == ((), None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"head": "forest"}, "'forest'.*logistic", id="head"),
        pytest.param({"seeds": ()}, r"seeds.*\(\)", id="no seed"),
        pytest.param({"seeds": (1, 1)}, r"seeds.*\(1, 1\)", id="a seed twice"),
        pytest.param({"seeds": (-1,)}, r"seeds.*\(-1,\)", id="a negative seed"),
    ],
)
def test_what_cannot_be_probed_is_a_usage_error(options, named):
    with pytest.raises(UsageError, match=named):
        probe(**options)


@pytest.mark.parametrize("changes", [{"metric": "mAP"}, {"kind": "multilabel", "metric": "mAP"}])
def test_a_head_that_diverged_is_one_line_with_a_remedy(changes):
    with pytest.raises(DataError, match=r"\[probe\] learning_rate"):
        probe(changes={**changes, "probe": {"epochs": 2, "learning_rate": 1e30}}, head="linear")


@pytest.mark.parametrize("head", ["linear", "logistic", "sweep"])
def test_validation_clips_that_cannot_select_are_named_with_their_round(head):
    alone = {**SETS, "valid": tiny.TinySet([clip for clip in SETS["valid"].clips if clip.label == "class-0"])}
    with pytest.raises(DataError, match=r"tiny.*'test'.*\b10\b.*d_prime"):
        probe(alone, changes={"metric": "d_prime"}, head=head)


def test_test_clips_that_cannot_be_scored_are_reported_as_such():
    alone = {**SETS, "test": tiny.TinySet([clip for clip in SETS["test"].clips if clip.label == "class-0"])}
    with pytest.raises(DataError, match=r"tiny.*\btest\b.*d_prime"):
        probe(alone, changes={"metric": "d_prime"})
