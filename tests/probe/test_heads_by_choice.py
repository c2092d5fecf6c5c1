"""The heads of class labels and `--shots`: what validation chooses, what a record tells of it, what test labels do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax

import tiny
from featstore.errors import DataError, UsageError
from featstore.evaluation.data import group_windows
from featstore.probe import log_odds as votes
from featstore.probe import logistic, probe_task, training
from featstore.probe.selection import selection_details
from featstore.probe.training import Fitted
from featstore.tasks.splits import Round

SETS = {
    name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=1.5, windows=windows))
    for name, n, windows in (("train", 120, 1), ("valid", 30, 2), ("test", 60, 2))
}


def probe(sets=SETS, **options):
    changes = options.pop("changes", {})
    return probe_task(tiny.TinyStore(sets), tiny.task(**{"probe": {"epochs": 15}, **changes}), **options)


@pytest.mark.parametrize("head", ["sweep", "logistic"])
@pytest.mark.parametrize("protocol", ["strict", "xares"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one class"),
        pytest.param({"kind": "multilabel", "metric": "mAP"}, id="label sets"),
        pytest.param(tiny.folds("train", "valid", "test"), id="folds"),
    ],
)
def test_every_head_learns_under_both_protocols(head, protocol, changes):
    record = probe(changes=changes, head=head, protocol=protocol)
    assert record.value > 0.8
    assert record.settings["head"] == head
    fit = record.details["fit"]
    assert set(fit["rounds"]) == set(record.details["by_round"])
    assert fit["converged"]
    assert [len(of) for of in fit["rounds"].values()] == [max(1, len(record.seeds))] * len(fit["rounds"])
    assert not record.details["at_or_below_majority"]
    if protocol == "strict":
        again = probe(changes=changes, head=head, protocol=protocol)
        assert {**record.as_json(), "seconds": {}} == {**again.as_json(), "seconds": {}}


def test_the_default_is_the_manifests_head_else_the_converged_model_and_under_xares_that_of_x_ares():
    def head(asked=None, named=None, protocol="strict"):
        changes = {"probe": {"epochs": 2, **({} if named is None else {"head": named})}}
        return probe(changes=changes, head=asked, protocol=protocol).settings["head"]

    assert head() == "logistic"
    assert head(named="linear") == "linear"
    assert head(named="linear", asked="logistic") == "logistic"
    assert head(named="logistic", protocol="xares") == "linear"
    assert head(asked="logreg") == "logistic"


def test_a_set_that_is_too_large_for_full_batches_is_trained_by_minibatches(monkeypatch):
    sets = {
        name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=2.0))
        for name, n in (("train", 1500), ("valid", 300), ("test", 1000))
    }
    full = probe(sets)
    monkeypatch.setattr(logistic, "MAX_PASS", 1500 * 16 * 3 - 1)
    record = probe(sets)
    assert (record.settings["head"], record.settings["solver"]) == ("logistic", "minibatch")
    assert record.value == pytest.approx(full.value, abs=0.01)
    fits = record.details["fit"]["rounds"]["test"]
    assert len({fit["learning_rate"] for fit in fits}) == 1
    assert [len(fit["grid"]) > 1 for fit in fits] == [True, False, False]


class OneWeight(torch.nn.Module):
    """A weight whose loss is itself: each step of Adam takes the learning rate from it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.before = 0.0

    def loss(self, batch):
        self.before = self.weight.item()
        return self.weight * 1.0

    @property
    def rate(self):
        return self.before - self.weight.item()


def sweep(score, *, rates, build=OneWeight):
    return training.sweep_rates(
        lambda _: build(), seed=(0, 0), batches=lambda _: [0], loss=OneWeight.loss, score=score, rates=rates
    )


def test_a_plateau_goes_back_lowers_the_rate_and_stops():
    result, seen = iter([1, 3, 2, 2, 2, 4, 4, 4, 4, 0, 0, 0]), []

    def score(model):
        seen.append((model.before, model.rate))
        return next(result), 0.0

    fitted = sweep(score, rates=(0.1,))
    np.testing.assert_allclose([rate for _, rate in seen], [0.1] * 5 + [0.01] * 4 + [0.001] * 3, atol=1e-6)
    # From the best epoch on: the second, after the fifth; the sixth, after the ninth.
    starts = [0, -0.1, -0.2, -0.3, -0.4, -0.2, -0.21, -0.22, -0.23, -0.21, -0.211, -0.212]
    np.testing.assert_allclose([before for before, _ in seen], starts, atol=1e-6)
    assert (fitted.epoch, fitted.fit["converged"]) == (6, True)
    assert fitted.model.weight.item() == pytest.approx(-0.21, abs=1e-6)
    assert fitted.fit["epochs"] == len(fitted.history) == 12
    assert fitted.fit["gradient_norm"] == 1.0


def test_epochs_that_diverged_are_null_in_a_record():
    fitted = Fitted(epoch=1, history=(0.5, -np.inf), fit=training.unselected(2, 0.1))
    (only,) = tiny_rounds()
    assert selection_details([only], [[fitted]])["validation"] == {"test": [[0.5, None]]}


def tiny_rounds():
    one, two, three = np.arange(3)[:, None]
    return (Round(name="test", protocol="strict", train=one, valid=two, test=three),)


def test_the_best_rate_is_found_beyond_the_grid_and_rates_that_diverge_lose():
    def score(model):
        return (math.nan, 0.0) if model.rate > 0.9 else (0.5, -abs(np.log10(model.rate / 0.3)))

    fitted = sweep(score, rates=(1e-3, 1e-2))
    assert fitted.fit["learning_rate"] == pytest.approx(0.316, abs=0.01)
    assert (fitted.fit["extended"], fitted.fit["at_edge"]) == (True, False)
    assert sweep(score, rates=(1.0,)).epoch == 4  # three epochs in vain, then a tenth of the rate
    with pytest.raises(DataError):
        sweep(lambda _: (math.nan, 0.0), rates=(1.0,))


class SteepOutside(OneWeight):
    """A weight whose gradient is infinite from half a unit on."""

    def loss(self, batch):
        return super().loss(batch) / (self.weight.abs() < 0.5)


def test_a_rate_that_diverged_goes_on_at_a_tenth_from_moments_that_are_finite():
    def score(model):
        return (0.5 - abs(model.weight.item() + 0.1) if abs(model.weight.item()) < 0.5 else math.nan), 0.0

    fitted = training.sweep_rates(
        lambda _: SteepOutside(),
        seed=(0, 0),
        batches=lambda _: [0],
        loss=SteepOutside.loss,
        score=score,
        rates=(1.0,),
    )
    assert fitted.history[:3] == (-math.inf,) * 3
    assert fitted.model.weight.item() == pytest.approx(-0.1, abs=1e-3)
    assert fitted.epoch == 4


def test_ranking_metrics_see_what_float32_probabilities_do_not():
    rng = np.random.default_rng(0)
    margins = rng.uniform(20, 60, 200)  # softmax of any of these is 1 to float32
    samples = group_windows(
        np.arange(200), clip=np.arange(200), seconds=np.ones(200), values=np.zeros(200, int), protocol="strict"
    )
    logits = np.stack([np.zeros(200), margins], axis=1).astype(np.float32)
    for logs in (votes.log_shares_of_one(logits), votes.log_shares_of_sets(logits[:, 1:])):
        found = votes.log_odds(votes.vote(samples, logs))[:, -1]
        np.testing.assert_allclose(found, margins, rtol=1e-6)


def test_windows_vote_with_their_probabilities_weighted_by_seconds():
    rng = np.random.default_rng(0)
    clip, seconds = np.repeat(np.arange(20), 3), rng.uniform(0.5, 2, 60)
    samples = group_windows(np.arange(20), clip=clip, seconds=seconds, values=np.zeros(20, int), protocol="strict")
    logits = rng.standard_normal((60, 4)) * 3
    for logs, shares in (
        (votes.log_shares_of_one(logits), softmax(logits, axis=1)),
        (votes.log_shares_of_sets(logits), expit(logits)),
    ):
        mean = np.stack([np.average(shares[clip == each], axis=0, weights=seconds[clip == each]) for each in range(20)])
        np.testing.assert_allclose(votes.log_odds(votes.vote(samples, logs)), logit(mean), atol=1e-5)


@pytest.mark.parametrize("head", ["logistic", "linear", "sweep"])
@pytest.mark.parametrize("kind", ["clip", "multilabel"])
def test_labels_of_the_test_set_change_nothing_that_is_learned(head, kind):
    # Test labels that are others, of a class that is first in order and that training never shows.
    patterns = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    other = tiny.TinySet(
        [tiny.Clip(c.key, "a class of the test set" if at % 2 else c.label, c.vectors, c.seconds)
         for at, c in enumerate(SETS["test"].clips)]
    )  # fmt: skip
    changes = {"kind": kind, "metric": "mAP", "splits": patterns, "probe": {"epochs": 3}}
    one, two = (
        probe({"train": SETS["train"], "test": test}, changes=changes, head=head, seeds=(0,))
        for test in (SETS["test"], other)
    )
    assert len(two.details["classes"]) == len(one.details["classes"]) + 1
    if head == "linear":
        assert one.details["validation"] == two.details["validation"]
    else:
        assert one.details["fit"] == two.details["fit"]
    assert one.details["by_class"][0] != two.details["by_class"][1]


def test_a_head_that_learns_nothing_or_stops_at_an_edge_is_reported():
    noise = {
        name: tiny.TinySet([tiny.Clip(c.key, c.label, 0 * c.vectors, c.seconds) for c in of.clips])
        for name, of in SETS.items()
    }
    record = probe(noise)
    assert (record.details["at_or_below_majority"], record.details["fit"]["converged"]) == (True, True)
    assert probe(changes={"probe": {"epochs": 1}}, head="linear").details["best_epoch_at_edge"]
    assert not probe(head="logistic").details.get("best_epoch_at_edge", False)


def test_strict_selection_never_sees_the_test_clips():
    # Test embeddings that say another thing change the score, and nothing that was selected.
    spoilt = {**SETS, "test": tiny.TinySet(tiny.clips("test", 60, dim=16, spread=9.0, windows=2, seed=5))}
    for head in ("sweep", "logistic"):
        one, other = probe(head=head, seeds=(0,)), probe(spoilt, head=head, seeds=(0,))
        assert one.value != other.value
        assert one.details["fit"] == other.details["fit"]


@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_more_shots_score_better_and_the_curve_has_mean_and_interval(head):
    sets = {name: tiny.TinySet(tiny.clips(name, n, dim=16, spread=2.0)) for name, n in
            (("train", 90), ("valid", 30), ("test", 60))}  # fmt: skip
    record = probe(sets, shots=(1, 5, 20), seeds=(0,), head=head)
    curve = record.details["shots"]
    assert list(curve) == ["1", "5", "20"]
    assert curve["1"]["mean"] < curve["5"]["mean"] < curve["20"]["mean"]
    for point in curve.values():
        assert point["low"] <= point["mean"] <= point["high"]
        assert point["support_sets"] == 20
    assert record.value == probe(sets, seeds=(0,), head=head).value


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        pytest.param({}, {"head": "svm"}, "'svm'.*logistic, ridge", id="head"),
        pytest.param({}, {"shots": (0,)}, "shots.* 0", id="shots"),
        pytest.param({}, {"shots": (2, 2)}, "shots.*2, 2", id="shots twice"),
        pytest.param(
            {"kind": "regression", "metric": "pearson"}, {"head": "sweep"}, "sweep.*kind regression", id="kind"
        ),
    ],
)
def test_what_cannot_be_trained_is_a_usage_error(changes, options, named):
    with pytest.raises(UsageError, match=named):
        probe(changes=changes, **options)
