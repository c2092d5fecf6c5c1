"""95 % intervals of scores. Each metric has a rule whose coverage is verified by simulation (docs/protocols.md).

An interval is computed from the variance of the score over its units (`featstore.metrics.jackknife`) and over seeds, on
a scale on which the metric is approximately normal. It is deterministic. If no rule reaches its coverage, as with a few
clips of rare classes, there is no interval, and the reason is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.classification import as_label_sets
from featstore.metrics.jackknife import Spread, TestSet, Units

if TYPE_CHECKING:
    from featstore.metrics.registry import Metric

__all__ = [
    "MIN_GROUPS",
    "Interval",
    "degrees_of_freedom",
    "interval_of",
    "interval_of_units",
    "seed_variance",
    "student",
]

MIN_GROUPS = 12
MIN_CLIPS = 20
MANY_ERRORS = 0.5  # below it, 1 - WER is treated as an error rate, above it as a share of words

Scale = Literal["share", "area", "error", "correlation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % interval, or the reason why there is none.

    Attributes
    ----------
    low, high : float or None
    method : str
        Name of the rule; empty if there is no interval.
    reason : str
        Empty if there is an interval.
    """

    low: float | None
    high: float | None
    method: str = ""
    reason: str = ""

    def as_json(self) -> dict[str, str]:
        """Return method and reason, as records store them."""
        return {"method": self.method, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How the interval of a metric is computed.

    Attributes
    ----------
    scale : str
        ``share``: Wilson's score interval with an effective number of clips. ``area``: the same, for the area under the
        ROC curve that d' is computed from. ``error``: Hall's (1992) transformation for skewed means. ``correlation``:
        Fisher's z.
    least_clips : int
        Minimum number of test clips.
    least_of_class : int
        Minimum number of clips of each class and, with ``both_sides``, of clips without it.
    both_sides : bool
    unbiased : bool
        Whether the jackknife estimate of the bias is subtracted from the centre of the interval. There is no interval
        where that bias exceeds the standard error: the estimate leaves some of it, which the interval would miss.
    clustered : bool
        Whether a clip has several trials, such as captions or words, whose failures can be correlated.
    """

    scale: Scale
    least_clips: int = MIN_CLIPS
    least_of_class: int = 0
    both_sides: bool = False
    unbiased: bool = False
    clustered: bool = False


RULES: Mapping[str, Rule] = {
    "accuracy": Rule(scale="share", least_clips=2),
    "recall_at_1": Rule(scale="share", least_clips=50, clustered=True),
    "macro_f1": Rule(scale="share", least_clips=50, least_of_class=3),
    "mAP": Rule(scale="share", least_of_class=8, unbiased=True),
    "eer": Rule(scale="share", least_of_class=7),
    "d_prime": Rule(scale="area", least_clips=50, least_of_class=5, both_sides=True),
    "segment_f1_macro": Rule(scale="share", least_of_class=3),
    "segment_f1_micro": Rule(scale="share"),
    "event_f1": Rule(scale="share", least_of_class=3),
    "wer_inv": Rule(scale="share"),
    "mae": Rule(scale="error"),
    "mse": Rule(scale="error", least_clips=300),
    "pearson": Rule(scale="correlation"),
    "spearman": Rule(scale="correlation"),
}

METHODS: Mapping[Scale, str] = {
    "share": "Wilson score interval, effective sample size by the jackknife",
    "area": "Wilson score interval of the area under the ROC curve",
    "error": "t interval, corrected for skewness (Hall 1992)",
    "correlation": "Fisher's z, variance by the jackknife",
}


def interval_of(
    metric: Metric, spread: Spread, units: Units, test_sets: Sequence[TestSet], *, by_seed: Sequence[float]
) -> Interval:
    """Compute the 95 % interval of a score over other test clips and other seeds."""
    rule = RULES[metric.name]
    reason = why_none(rule, spread, units, test_sets)
    if not reason and metric.name == "wer_inv" and spread.score <= 0.0:
        reason = "there are as many errors as words or more: the score is at its lower limit"
    if not reason and rule.unbiased and spread.bias**2 > spread.variance:
        reason = (
            f"the bias of {metric.name} for so few clips of a class, about {spread.bias:+.3f}, exceeds its standard "
            f"error of {spread.variance**0.5:.3f}"
        )
    if reason:
        return Interval(low=None, high=None, reason=reason)
    variance, df = spread.variance, float(units.n - 1)
    if len(by_seed) > 1:
        # The scores of the seeds also vary by chance on these clips, which the variance over clips includes already.
        # The variance component of the seeds is thus a difference of two, with the degrees of freedom of the first.
        between = seed_variance(by_seed)
        component = max(0.0, between - spread.seed_noise / len(by_seed))
        df = degrees_of_freedom([(variance, df), (between, len(by_seed) - 1.0)], total=variance + component)
        variance += component
    quantile = student(df)
    if rule.scale == "error":
        low, high = _skewed(spread, variance, quantile)
    elif metric.name == "wer_inv" and spread.score < MANY_ERRORS:
        # an error rate is not a share of trials: it can exceed 1
        rate = replace(spread, score=1.0 - spread.score, deviations=-spread.deviations)
        low, high = (1.0 - end for end in reversed(_skewed(rate, variance, quantile)))
        low = max(low, 0.0)
    elif rule.scale == "correlation":
        low, high = _correlated(spread.score, variance, quantile)
    elif rule.scale == "area":
        low, high = _separated(spread.score, variance, df, test_sets)
    else:
        score = spread.score
        if rule.unbiased:
            score = min(max(score - spread.bias, 0.0), 1.0)
        n_effective = (
            score * (1.0 - score) / variance
            if 0.0 < score < 1.0 and variance > 0.0
            else _n_trials(metric, units, test_sets)
        )
        if rule.clustered:
            n_effective = _fewer_trials(n_effective, spread, units)
        low, high = wilson(score, n_effective, quantile)
    if not np.isfinite([low, high]).all():
        return Interval(low=None, high=None, reason="the classes are separated without an error: d' has no upper limit")
    # subtracting the bias can move the score itself out of the interval
    return Interval(low=min(low, spread.score), high=max(high, spread.score), method=METHODS[rule.scale])


def interval_of_units(
    spread: Spread,
    units: Units,
    *,
    by_seed: Sequence[float] = (),
    of_mean: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Compute the 95 % interval of a bounded score of one test set, over other clips of this number and other seeds.

    Wilson's, with the number of trials that gives the variance; without a variance, with the number of clips or groups.
    The variance of a single seed is added and not that of the mean: other clips start an algorithm elsewhere, too. With
    ``of_mean`` it is that of the mean, for draws that do not depend on the test clips.
    """
    n_clips = len(units.of_sample[0])
    reason = ""
    if units.grouped and units.n_independent < MIN_GROUPS:
        reason = f"{units.n_independent} groups of test clips, and an interval takes {MIN_GROUPS} or more"
    elif n_clips < MIN_CLIPS:
        reason = f"{n_clips} test clips, and an interval takes {MIN_CLIPS} or more"
    elif not np.isfinite(spread.variance):
        reason = "without some of its clips the score is not defined"
    if reason:
        return Interval(low=None, high=None, reason=reason)
    lowest, width = bounds[0], bounds[1] - bounds[0]
    parts = [(spread.variance / width**2, units.n - 1.0)]
    if len(by_seed) > 1:
        between = seed_variance(by_seed) if of_mean else float(np.var(by_seed, ddof=1))
        parts.append((between / width**2, len(by_seed) - 1.0))
    variance = sum(part for part, _ in parts)
    share = min(max((spread.score - lowest) / width, 0.0), 1.0)
    trials = share * (1.0 - share) / variance if 0.0 < share < 1.0 and variance > 0.0 else float(units.n_independent)
    low, high = wilson(share, trials, student(degrees_of_freedom(parts)))
    ends = lowest + width * low, lowest + width * high
    return Interval(low=min(ends[0], spread.score), high=max(ends[1], spread.score), method=METHODS["share"])


def why_none(rule: Rule, spread: Spread, units: Units, test_sets: Sequence[TestSet]) -> str:
    """Return the reason why a score has no interval, or an empty string."""
    n_clips = sum(len(np.unique(each.clip)) for each in test_sets)
    if units.grouped and units.n_independent < MIN_GROUPS:
        return f"{units.n_independent} groups of test clips, and an interval takes {MIN_GROUPS} or more"
    if n_clips < rule.least_clips:
        return f"{n_clips} test clips, and an interval of this metric takes {rule.least_clips} or more"
    if not np.isfinite(spread.variance):
        return "without one of its clips the score is not defined"
    if rule.least_of_class:
        fewest = min(_fewest_of_class(each, both_sides=rule.both_sides) for each in test_sets)
        if fewest < rule.least_of_class:
            return (
                f"a class has {fewest} of the clips of a test set, and an interval of this metric takes "
                f"{rule.least_of_class} or more of each class"
            )
    return ""


def wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of ``n`` trials.

    >>> low, high = wilson(1.0, 30, 1.96)
    >>> f"{low:.3f} {high:.3f}"
    '0.886 1.000'
    """
    z = quantile**2 / n
    centre, half = (share + z / 2.0) / (1.0 + z), np.sqrt(z * share * (1.0 - share) + z**2 / 4.0) / (1.0 + z)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def student(df: float) -> float:
    """Return the quantile of Student's t distribution for a 95 % interval: with probability 0.025 above it."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.975))


def degrees_of_freedom(parts: Sequence[tuple[float, float]], *, total: float | None = None) -> float:
    """Degrees of freedom of a sum of variances, each with its own degrees of freedom (Satterthwaite 1946).

    ``total`` is the variance if it is not their sum, as for a difference of mean squares.
    """
    if total is None:
        total = sum(variance for variance, _ in parts)
    if total <= 0:
        return max(df for _, df in parts)
    return total**2 / sum(variance**2 / df for variance, df in parts if variance > 0)


def seed_variance(by_seed: Sequence[float]) -> float:
    """Variance of the mean over seeds; 0 for one seed, from which no variance can be estimated."""
    return float(np.var(by_seed, ddof=1)) / len(by_seed) if len(by_seed) > 1 else 0.0


def _fewer_trials(n_effective: float, spread: Spread, units: Units) -> float:
    """Reduce the effective number of trials if few clips determine how correlated the trials of a clip are.

    The jackknife variance has the weight of the units that it is estimated from, (sum of squares)^2 / sum of fourth
    powers; it is combined with the variance of fully correlated trials, which has the weight of one unit.
    """
    squares = np.square(spread.deviations)
    if n_effective <= units.n_independent or not squares.any():
        return min(n_effective, float(units.n_independent))
    n_informative = float(squares.sum() ** 2 / np.square(squares).sum())
    return (n_informative + 1.0) / (n_informative / n_effective + 1.0 / units.n_independent)


def _skewed(spread: Spread, variance: float, quantile: float) -> tuple[float, float]:
    squares = float(np.square(spread.deviations).sum())
    if squares == 0:
        half = quantile * np.sqrt(variance)
        return max(0.0, spread.score - half), spread.score + half
    skew = float((spread.deviations**3).sum()) / squares**1.5

    def solved(value: float) -> float:
        """Return the t value whose transform is ``value``."""
        if abs(skew) < 1e-6:
            return value
        return float((np.cbrt(1.0 + skew * (value - skew / 6.0)) - 1.0) * 3.0 / skew)

    error = np.sqrt(variance)
    return max(0.0, spread.score - solved(quantile) * error), spread.score - solved(-quantile) * error


def _correlated(score: float, variance: float, quantile: float) -> tuple[float, float]:
    if abs(score) >= 1.0:
        return score, score
    half = quantile * np.sqrt(variance) / (1.0 - score**2)
    return float(np.tanh(np.arctanh(score) - half)), float(np.tanh(np.arctanh(score) + half))


def _separated(score: float, variance: float, df: float, test_sets: Sequence[TestSet]) -> tuple[float, float]:
    """Interval of d' from that of the area, with at least the variance of two normal distributions at that distance.

    A few wrong pairs of nearly separated classes give a poor estimate of the variance, which is often too small. The
    degrees of freedom are at most twice the number of clips of the rarest class.
    """
    from scipy.special import ndtr, ndtri, owens_t

    z = score / np.sqrt(2.0)
    area = float(ndtr(z))
    # probability that one sample is on the correct side of two samples of the other class
    twice = area - 2.0 * float(owens_t(z, 3.0**-0.5))
    least = 0.0
    for each in test_sets:
        n_positive, n_negative = _class_sizes(each)
        pairs = n_positive * n_negative
        of_class = (area * (1.0 - area) + (n_positive + n_negative - 2.0) * (twice - area**2)) / pairs
        least += float(of_class.sum()) / len(of_class) ** 2 / len(test_sets) ** 2
    density = np.exp(-(z**2) / 2.0) / np.sqrt(2.0 * np.pi)
    n_effective = area * (1.0 - area) / max(variance * density**2 / 2.0, least)
    fewest = min(float(np.minimum(*_class_sizes(each)).min()) for each in test_sets)
    low, high = wilson(area, n_effective, student(min(df, 2.0 * fewest)))
    return float(np.sqrt(2.0) * ndtri(low)), float(np.sqrt(2.0) * ndtri(high))


def _class_sizes(test_set: TestSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the samples with and without each class, for classes that have both."""
    sets = as_label_sets(test_set.y_true, test_set.y_scores[0].shape[1])
    with_class = sets.sum(axis=0).astype(np.float64)
    both = (with_class > 0) & (with_class < len(sets))
    return with_class[both], len(sets) - with_class[both]


def _fewest_of_class(test_set: TestSet, *, both_sides: bool) -> int:
    """Count the clips of the rarest class among the classes that occur."""
    y_true = test_set.y_true
    present = as_label_sets(y_true, test_set.y_scores[0].shape[1]) if test_set.y_scores[0].ndim == 2 else y_true > 0
    _, clip = np.unique(test_set.clip, return_inverse=True)
    order = np.argsort(clip, kind="stable")
    starts = np.flatnonzero(np.diff(clip[order], prepend=-1))
    by_clip = np.logical_or.reduceat(present[order], starts, axis=0)
    n_present = by_clip.sum(axis=0)
    fewest = int(n_present[n_present > 0].min(initial=len(by_clip)))
    return min(fewest, int((len(by_clip) - n_present).min())) if both_sides else fewest


def _n_trials(metric: Metric, units: Units, test_sets: Sequence[TestSet]) -> float:
    """Number of binary trials of a score whose jackknife variance is 0, so that it gives no estimate.

    For groups it is the number of groups, since the correlation of clips within a group is unknown as well.
    """
    if units.grouped:
        return float(units.n_independent)
    per_set = [_trials_of(metric, each) for each in test_sets]
    return len(per_set) ** 2 / sum(1.0 / each for each in per_set)


def _trials_of(metric: Metric, test_set: TestSet) -> float:
    y_true, y_score = test_set.y_true, test_set.y_scores[0]
    n_clips = float(len(np.unique(test_set.clip)))
    if metric.name in ("segment_f1_macro", "segment_f1_micro", "event_f1"):
        counted = (y_true.sum(axis=0) + y_score[..., 0].sum(axis=0)) / 2.0
        return max(1.0, float(counted.sum()))
    if metric.name == "wer_inv":
        return max(1.0, float(y_true.sum()))
    if metric.name == "eer":
        positives = float((y_true == 1).sum())
        return 4.0 / (1.0 / positives + 1.0 / (len(y_true) - positives))
    if metric.name in ("macro_f1", "mAP"):
        of_class = as_label_sets(y_true, y_score.shape[1]).sum(axis=0)
        of_class = of_class[of_class > 0]
        return float(len(of_class) ** 2 / np.sum(1.0 / of_class))
    return n_clips
