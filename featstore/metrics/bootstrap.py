"""How sure a score is: a percentile interval over resampled clips (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from featstore.metrics.registry import Metric

__all__ = ["Interval", "Resampled", "TestSet", "bootstrap_interval", "bootstrap_scores"]

# Weights of a block of resamples are held at once: 16 MiB of float32.
MAX_BLOCK_CELLS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """What was predicted for the samples of one test set.

    Attributes
    ----------
    y_true : (n, ...)
    y_scores : tuple of float (n, n_classes)
        One per seed.
    clip : int64 (n,)
        Which clip each sample is of: clips are drawn, with all of their samples.
    """

    __test__ = False  # not a test class, whatever its name begins with

    y_true: NDArray[Any]
    y_scores: tuple[NDArray[np.floating[Any]], ...]
    clip: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Both ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """A score, and what it would have been on resamples of its clips.

    Attributes
    ----------
    score : float
    values : float64 (resamples,)
        NaN where a resample has no score.
    bounds : tuple of float
        Lowest and highest score there can be.
    """

    score: float
    values: NDArray[np.float64]
    bounds: tuple[float, float]

    @property
    def interval(self) -> Interval:
        """The 95 % interval: the score, and the percentiles of how far resamples are from their own mean.

        Drawing a positive twice raises average precision, so the percentiles as they are can lie beside the score.
        Where no resample has a score nothing is known of its spread: both ends are the score.
        """
        if np.isnan(self.values).all():
            return Interval(low=self.score, high=self.score)
        ends = self.score + np.nanpercentile(self.values, (2.5, 97.5)) - np.nanmean(self.values)
        low, high = np.clip(ends, *self.bounds)
        return Interval(low=float(low), high=float(high))


def bootstrap_interval(
    metric: Metric, test_sets: Sequence[TestSet], *, rng: np.random.Generator, n_resamples: int
) -> Interval:
    """Return the 95 % interval of the mean over test sets and seeds: see `bootstrap_scores`."""
    return bootstrap_scores(metric, test_sets, rng=rng, n_resamples=n_resamples).interval


def bootstrap_scores(
    metric: Metric, test_sets: Sequence[TestSet], *, rng: np.random.Generator, n_resamples: int
) -> Resampled:
    """Score resamples of the clips: means over test sets and seeds.

    Each test set (a fold) is resampled by itself, and all seeds see the same resamples, so that an interval is that of
    the mean over seeds. Test sets are taken in order from one ``rng``: which clips are drawn depends on nothing else
    but their number, so two encoders that are scored on the same clips see the same resamples.
    """
    resampled = np.zeros(n_resamples)
    score = 0.0
    for test_set in test_sets:
        _, clip = np.unique(test_set.clip, return_inverse=True)
        n_clips = int(clip.max()) + 1
        block = max(1, MAX_BLOCK_CELLS // max(n_clips, len(clip)))
        score += _mean_over_seeds(metric, test_set, np.ones((len(clip), 1), np.float32)).item()
        for start in range(0, n_resamples, block):
            weights = _times_drawn(n_clips, min(block, n_resamples - start), rng)[clip]
            resampled[start : start + block] += _mean_over_seeds(metric, test_set, weights)
    return Resampled(score=score / len(test_sets), values=resampled / len(test_sets), bounds=metric.bounds)


def _mean_over_seeds(metric: Metric, test_set: TestSet, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    scores = [metric.weighted(test_set.y_true, y_score, weights) for y_score in test_set.y_scores]
    return np.asarray(np.mean(scores, axis=0))


def _times_drawn(n_clips: int, n_resamples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """How often each clip is among ``n_clips`` draws with replacement: float32 (n_clips, n_resamples)."""
    drawn = rng.integers(n_clips, size=(n_clips, n_resamples)) * n_resamples + np.arange(n_resamples)
    return np.bincount(drawn.ravel(), minlength=n_clips * n_resamples).reshape(n_clips, n_resamples).astype(np.float32)
