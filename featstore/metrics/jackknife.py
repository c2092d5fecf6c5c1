"""Contribution of each independent unit of a test set to a score: the delete-one jackknife (Efron and Stein 1981).

A unit is a clip, or a group of clips that the manifest names, such as all clips of a speaker. If there are more than
200 clips or groups, they are merged into 200 blocks by the hash of their names: the unit of a clip depends on names
only, so that it is the same for every order of shards, every encoder and every version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.ranking import EqualErrorRate

if TYPE_CHECKING:
    from featstore.metrics.registry import Metric

__all__ = ["MAX_UNITS", "Spread", "TestSet", "Units", "jackknife", "of_units", "plan_units", "unit_spread"]

MAX_UNITS = 200

# The weights of a block of left-out units are in memory at once: 16 MiB of float32.
MAX_BLOCK_CELLS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """The predictions for the samples of one test set.

    Attributes
    ----------
    y_true : (n, ...)
        Target of each sample.
    y_scores : tuple of float (n, n_classes)
        One array per seed.
    clip : int64 (n,)
        Clip of each sample.
    """

    __test__ = False  # pytest must not collect it

    y_true: NDArray[Any]
    y_scores: tuple[NDArray[np.floating[Any]], ...]
    clip: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The independent units of the test sets.

    Attributes
    ----------
    of_sample : tuple of int64 (n,)
        For each test set, the unit of each sample. A group can be part of several test sets, a clip of one only.
    n : int
        Number of units.
    grouped : bool
        Whether units are groups, or blocks of groups.
    n_independent : int
        Number of clips or groups before they were merged.
    """

    of_sample: tuple[NDArray[np.int64], ...]
    n: int
    grouped: bool
    n_independent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A score, and its variation over test clips.

    Attributes
    ----------
    score : float
        Mean over test sets and seeds.
    deviations : float64 (units,)
        Amount by which each unit raises the score above the mean of all units; NaN if the score is not defined without
        the unit.
    variance : float
        Variance of the score over draws of units.
    bias : float
        Jackknife estimate of the bias of the score.
    seed_noise : float
        Variance of the scores of single seeds about their mean that the test clips explain.
    """

    score: float
    deviations: NDArray[np.float64]
    variance: float
    bias: float
    seed_noise: float = 0.0


def name_order(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the indices that sort names by their SHA-256."""
    return np.array(sorted(range(len(names)), key=lambda at: hashlib.sha256(names[at].encode()).digest()), np.int64)


def plan_units(
    clips: Sequence[NDArray[np.int64]],
    *,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
) -> Units:
    """Plan the units of several test sets; more than `MAX_UNITS` clips or groups are merged.

    Parameters
    ----------
    clips : sequence of int64 (n,)
        Clip of each sample, for each test set.
    names : sequence of str (n_clips,)
        Names of all clips.
    groups : sequence of str (n_clips,), optional
        Group of each clip.
    """
    if groups is not None:
        found = [[groups[clip] for clip in each.tolist()] for each in clips]
        known = sorted({group for each in found for group in each})
        unit = {known[at]: place % MAX_UNITS for place, at in enumerate(name_order(known).tolist())}
        return Units(
            of_sample=tuple(np.array([unit[group] for group in each], np.int64) for each in found),
            n=min(len(known), MAX_UNITS),
            grouped=True,
            n_independent=len(known),
        )
    per_set = [np.unique(each, return_inverse=True) for each in clips]
    total = sum(len(distinct) for distinct, _ in per_set)
    of_sample_by_set: list[NDArray[np.int64]] = []
    first = 0
    for distinct, place in per_set:
        n_units = (
            len(distinct) if total <= MAX_UNITS else min(len(distinct), max(2, MAX_UNITS * len(distinct) // total))
        )
        unit_of_clip = np.empty(len(distinct), np.int64)
        unit_of_clip[name_order([names[clip] for clip in distinct.tolist()])] = np.arange(len(distinct)) % n_units
        of_sample_by_set.append(unit_of_clip[place] + first)
        first += n_units
    return Units(of_sample=tuple(of_sample_by_set), n=first, grouped=False, n_independent=total)


def jackknife(metric: Metric, test_sets: Sequence[TestSet], units: Units) -> Spread:
    """Compute the score without each unit in turn.

    Test sets have equal weight, and so do the seeds of one. For clips, deviations are scaled as in the linear
    approximation. For groups, which can be a large share of the clips, the variance is the more conservative CR3
    estimate of regression (Bell and McCaffrey 2002).
    """
    n_sets = len(test_sets)
    n_seeds = len(test_sets[0].y_scores)
    by_seed, bias, score = np.zeros((n_seeds, units.n)), 0.0, 0.0
    linear = isinstance(metric, EqualErrorRate)
    for test_set, unit in zip(test_sets, units.of_sample, strict=True):
        n = len(unit)
        mine, place = np.unique(unit, return_inverse=True)
        if isinstance(metric, EqualErrorRate):
            score += float(np.mean([metric.score(test_set.y_true, each) for each in test_set.y_scores])) / n_sets
            for seed, y_score in enumerate(test_set.y_scores):
                own = metric.deviations(test_set.y_true, y_score)
                by_seed[seed, mine] += np.bincount(place, weights=own) / n_sets
            continue
        whole = _by_seed(metric, test_set, np.ones((n, 1), np.float32))
        score += float(whole.mean()) / n_sets
        without = np.full((n_seeds, len(mine)), np.nan)
        block = max(1, MAX_BLOCK_CELLS // n)
        for start in range(0, len(mine) if len(mine) > 1 else 0, block):  # nothing is left without the only unit
            some = np.arange(start, min(start + block, len(mine)))
            without[:, some] = _by_seed(metric, test_set, (place[:, None] != some).astype(np.float32))
        share = np.bincount(place) / n
        moved = whole - without
        by_seed[:, mine] += (moved if units.grouped else (1.0 - share) * moved) / n_sets
        bias += (len(mine) - 1) * float((without - whole).mean()) / n_sets
    n_units = max(units.n, 2)
    correction = (n_units - 1) / n_units if units.grouped and not linear else n_units / (n_units - 1)
    deviations = by_seed.mean(axis=0)
    return Spread(
        score=score,
        deviations=deviations,
        variance=float(correction * np.square(deviations).sum()),
        bias=bias,
        seed_noise=float(correction * by_seed.var(axis=0, ddof=1).sum()) if n_seeds > 1 else 0.0,
    )


def of_units(deviations: NDArray[np.float64], units: Units) -> NDArray[np.float64]:
    """Add up the deviations of clips, (..., clips), to those of their units, (..., units), to first order.

    A deviation is the score - the score without the clip, or without the unit. The clips are one test set.
    """
    (unit,) = units.of_sample
    n = len(unit)
    ones = np.zeros((n, units.n))
    ones[np.arange(n), unit] = 1.0
    left = 1.0 - ones.sum(axis=0) / n
    return np.asarray((deviations * (1.0 - 1.0 / n)) @ ones / np.where(left > 0, left, np.nan))


def unit_spread(score: float, deviations: NDArray[np.float64], units: Units) -> Spread:
    """Variation of a score of one test set, from its deviations (units,): score - score without the unit.

    Deviations and variance are scaled as those of `jackknife`.
    """
    (unit,) = units.of_sample
    n_units = max(units.n, 2)
    if not units.grouped:
        deviations = deviations * (1.0 - np.bincount(unit, minlength=units.n) / len(unit))
    correction = (n_units - 1) / n_units if units.grouped else n_units / (n_units - 1)
    return Spread(
        score=score, deviations=deviations, variance=float(correction * np.square(deviations).sum()), bias=0.0
    )


def _by_seed(metric: Metric, test_set: TestSet, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the scores float64 (seeds, columns of ``weights``)."""
    return np.stack([metric.weighted(test_set.y_true, y_score, weights) for y_score in test_set.y_scores])
