"""Do 95 % intervals hold the true score in about 95 % of all experiments? Simulated ones, whose truth is known.

The complete table, with every population and number of clips, is made by `python -m benchmarks.coverage` (slow lane).
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.stats

from benchmarks import coverage
from benchmarks.coverage import POPULATIONS, SIZES
from featstore.metrics import TestSet, find_metric, jackknife, plan_units
from intervals import interval

LEAST_PRINTED = 0.05
FAST = {
    ("accuracy", "p = 0.98"): 100,
    ("accuracy", "5 folds, p = 0.9"): 100,
    ("accuracy", "speakers of 3 clips, p = 0.9"): 100,
    ("macro_f1", "p = 0.98"): 100,
    ("mAP", "20 % positives, distance 1.2"): 100,
    ("eer", "10 % positives, distance 1.5"): 100,
    ("d_prime", "distance 3.0"): 100,
    ("segment_f1_macro", "found 0.97, false 0.03"): 30,
    ("wer_inv", "WER 0.02"): 30,
    ("recall_at_1", "p = 0.97"): 100,
    ("pearson", "rho = 0.95"): 30,
    ("spearman", "rho = 0.5"): 30,
    ("mae", "errors Laplace"): 30,
}


def holds(found: coverage.Coverage, n_experiments: int) -> bool:
    """Whether coverage is within 92 to 98 %, by three standard deviations of the simulation; or nothing is printed."""
    error = 3 * np.sqrt(0.95 * 0.05 / max(1, n_experiments * found.printed))
    return found.printed < LEAST_PRINTED or 0.92 - error <= found.held <= 0.98 + error


@pytest.mark.parametrize(("metric", "name"), FAST)
def test_an_interval_holds_the_true_score_as_often_as_it_says(metric: str, name: str) -> None:
    (population,) = (each for each in POPULATIONS if (each.metric, each.name) == (metric, name))
    n = FAST[metric, name]
    found = coverage.coverage(population, n, n_experiments=100, truth=coverage.true_score(population))
    assert found.printed > 0.5
    assert holds(found, 100), found


def test_every_metric_is_among_those_simulated() -> None:
    from featstore.metrics.intervals import RULES
    from featstore.metrics.registry import METRICS

    assert set(METRICS) <= set(RULES)
    simulated = {each.metric for each in POPULATIONS}
    assert set(RULES) - simulated == {"event_f1"}  # the arithmetic of segment_f1_macro


@pytest.mark.slow
@pytest.mark.parametrize("population", POPULATIONS, ids=lambda each: f"{each.metric}, {each.name}")
def test_every_interval_of_the_table_holds_the_true_score(population: coverage.Population) -> None:
    truth = coverage.true_score(population)
    for n in SIZES:
        found = coverage.coverage(population, n, n_experiments=600, truth=truth)
        assert holds(found, 600), (n, found)


def accuracy_of(right: np.ndarray, **more: object) -> TestSet:
    y_true = np.zeros(len(right), np.int64)
    return TestSet(y_true=y_true, y_scores=(np.eye(2)[1 - right.astype(int)],), clip=np.arange(len(right)), **more)


@pytest.mark.parametrize("n_right", [0, 1, 15, 29, 30])
def test_the_interval_of_accuracy_is_wilsons(n_right: int) -> None:
    found = interval(find_metric("accuracy", "strict"), accuracy_of(np.arange(30) < n_right))
    z = scipy.stats.t.ppf(0.975, 29)
    level = 2 * scipy.stats.norm.cdf(z) - 1
    expected = scipy.stats.binomtest(n_right, 30).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert found.high - found.low > 0.1
    assert "Wilson" in found.method


def test_clips_of_one_group_count_as_the_group_does() -> None:
    """Ten clips of a speaker that are right or wrong together say no more than one of them."""
    right = np.random.default_rng(0).random(40) < 0.7
    metric = find_metric("accuracy", "strict")
    speakers = [f"speaker {at // 10}" for at in range(400)]
    grouped = interval(metric, accuracy_of(np.repeat(right, 10)), groups=speakers)
    alone, apart = interval(metric, accuracy_of(right)), interval(metric, accuracy_of(np.repeat(right, 10)))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert grouped.high - grouped.low > 2.5 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("metric", "test_set", "groups", "reason"),
    [
        ("accuracy", accuracy_of(np.arange(60) % 3 > 0), [f"speaker {at % 4}" for at in range(60)], "4 groups"),
        ("macro_f1", accuracy_of(np.arange(10) > 2), None, "10 test clips"),
        (
            "mAP",
            TestSet(
                y_true=(np.random.default_rng(0).random((400, 50)) < 0.01).astype(np.float32),
                y_scores=(np.random.default_rng(1).random((400, 50)),),
                clip=np.arange(400),
            ),
            None,
            "takes 8 or more of each class",
        ),
    ],
)
def test_where_no_rule_reaches_its_coverage_there_is_a_reason_and_no_interval(metric, test_set, groups, reason) -> None:
    found = interval(find_metric(metric, "strict"), test_set, groups=groups)
    assert (found.low, found.high, found.method) == (None, None, "")
    assert reason in found.reason


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "mAP", "eer", "d_prime", "pearson", "mae"])
def test_deviations_are_those_of_leaving_each_clip_out(name: str) -> None:
    rng = np.random.default_rng(0)
    y_true = np.arange(60) % 2 if name not in ("pearson", "mae") else rng.standard_normal(60)
    y_score = rng.standard_normal((60, 2)) + (np.eye(2)[y_true] if name not in ("pearson", "mae") else 0)
    y_score = y_score[:, :1] + y_true[:, None] if name in ("pearson", "mae") else y_score
    metric = find_metric(name, "strict")
    test_set = TestSet(y_true=y_true, y_scores=(y_score,), clip=np.arange(60))
    spread = jackknife(metric, [test_set], plan_units([test_set.clip], names=[str(at) for at in range(60)]))
    whole = metric.score(y_true, y_score)
    assert spread.score == pytest.approx(whole, abs=1e-6)
    left_out = np.array([metric.score(np.delete(y_true, at), np.delete(y_score, at, axis=0)) for at in range(60)])
    error = np.sqrt(59 / 60 * np.square(left_out - left_out.mean()).sum())
    # the equal error rate is no smooth function: leaving clips out does not measure its variance
    assert np.sqrt(spread.variance) == pytest.approx(error, rel=0.05 if name != "eer" else 0.8)


@pytest.mark.parametrize("n", [50, 1000])
def test_units_depend_on_names_and_not_on_the_order_of_clips(n: int) -> None:
    rng = np.random.default_rng(0)
    right, order, names = rng.random(n) < 0.8, rng.permutation(n), [f"clip {at}" for at in range(n)]
    metric = find_metric("accuracy", "strict")
    found = [
        jackknife(
            metric,
            [accuracy_of(right[some])],
            plan_units([np.arange(n)], names=[names[at] for at in some]),
        ).deviations
        for some in (np.arange(n), order)
    ]
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == min(n, 200)


def test_many_clips_are_scored_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    test_set = accuracy_of(rng.random(500) < 0.8)
    units = plan_units([test_set.clip], names=[str(at) for at in range(500)])
    metric = find_metric("accuracy", "strict")
    whole = jackknife(metric, [test_set], units)
    monkeypatch.setattr(sys.modules["featstore.metrics.jackknife"], "MAX_BLOCK_CELLS", 500 * 7)
    np.testing.assert_array_equal(jackknife(metric, [test_set], units).deviations, whole.deviations)


def test_chance_corrected_average_precision_does_not_depend_on_how_many_clips_there_are() -> None:
    from featstore.metrics.ranking import chance_corrected

    rng = np.random.default_rng(0)

    def mean(n: int, distance: float) -> tuple[float, float]:
        found = []
        for _ in range(60 if n < 1000 else 5):
            y_true = (rng.random((n, 20)) < 0.05).astype(np.float32)
            y_score = distance * y_true + rng.standard_normal((n, 20))
            found.append((chance_corrected(y_true, y_score), find_metric("mAP", "strict").score(y_true, y_score)))
        return tuple(np.mean(found, axis=0))

    few, many = mean(60, 0.0), mean(4000, 0.0)
    assert few[0] == pytest.approx(0.0, abs=0.02)
    assert many[0] == pytest.approx(0.0, abs=0.02)
    assert few[1] > many[1] + 0.05  # what the plain one does
    assert chance_corrected(np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 2, 0]]) == 1.0


def test_seeds_that_vary_add_their_variance_less_the_noise_of_the_clips() -> None:
    """The variance between seeds is counted less the part that the clips explain: here NumPy's figure for accuracy."""
    rng = np.random.default_rng(0)
    right = rng.random((3, 200)) < 0.7
    y_true = np.zeros(200, np.int64)
    scores = tuple(np.eye(2)[1 - each.astype(int)] for each in right)
    test_set = TestSet(y_true=y_true, y_scores=scores, clip=np.arange(200))
    spread = jackknife(
        find_metric("accuracy", "strict"), [test_set], plan_units([test_set.clip], names=list(map(str, range(200))))
    )
    expected = (right - right.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).sum() / (200 * 199)
    assert spread.seed_noise == pytest.approx(expected, rel=1e-4)
    # Wilson's interval solves |p - mean| = t sqrt(p (1 - p) / n), with Satterthwaite's degrees of freedom.
    by_seed, mean = right.mean(axis=1), right.mean()
    of_clips, between = right.mean(axis=0).var(ddof=1) / 200, by_seed.var(ddof=1) / 3
    variance = of_clips + max(0.0, between - expected / 3)
    df = variance**2 / (of_clips**2 / 199 + between**2 / 2)
    z = scipy.stats.t.ppf(0.975, df) ** 2 * variance / (mean * (1 - mean))
    low, high = sorted(np.roots([1 + z, -2 * mean - z, mean**2]))
    found = interval(find_metric("accuracy", "strict"), test_set)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_map_has_no_interval_where_its_bias_exceeds_its_standard_error() -> None:
    (population,) = (each for each in POPULATIONS if each.name == "50 classes of 2 %, distance 1.5")
    found = coverage.coverage(population, 1000, n_experiments=1, truth=0.19)
    assert found.printed == 0.0
