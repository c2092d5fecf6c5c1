"""Intervals of mteb's scores: what each clip contributes, by the delete-one jackknife.

A clip is part of a score in several ways: of an accuracy once, of pairs and lists as one side and as the other. The
jackknife removes it from all of them (Arvesen 1969 for U-statistics). Training clips, clusters and the rest of the
lists stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation import TaskScore
from featstore.metrics import Units, interval_of_units, unit_spread
from featstore.metrics.partition import n_log_n, v_measure_of_sums
from featstore.metrics.ranking import weighted_average_precision
from featstore.records import sha256_of

__all__ = ["Lists", "Replicates", "mean_replicates", "pair_replicates", "ranked_replicates", "scored", "v_replicates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """Scores of each draw, and the same scores without each unit.

    Attributes
    ----------
    values : float64 (draws,)
    without : float64 (draws, units)
        NaN if the score is not defined without a unit.
    """

    values: NDArray[np.float64]
    without: NDArray[np.float64]


def mean_replicates(by_clip: NDArray[np.float64], unit: NDArray[np.int64], n_units: int) -> Replicates:
    """Means of values of clips (draws, clips), whose units are int64 (clips,)."""
    n_clips = np.bincount(unit, minlength=n_units)
    sums = np.stack([np.bincount(unit, each, minlength=n_units) for each in by_clip])
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (sums.sum(axis=1, keepdims=True) - sums) / (len(unit) - n_clips)
    return Replicates(values=by_clip.mean(axis=1), without=without)


def v_replicates(
    rounds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    y: NDArray[np.int64],
    unit: NDArray[np.int64],
    n_units: int,
) -> Replicates:
    """V-measures (Rosenberg and Hirschberg 2007) of clusterings; see `definitions.cluster_rounds`."""
    values, without = [], []
    for clusters, drawn in rounds:
        n = drawn.sum() - np.append(0.0, np.bincount(unit, drawn, n_units))
        cell = y * (clusters.max() + 1) + clusters
        sums = [_n_log_n_without(label, drawn, unit, n_units) for label in (y, clusters, cell)]
        found = np.where(n > 0, v_measure_of_sums(np.maximum(n, 1.0), *sums), np.nan)
        values.append(found[0])
        without.append(found[1:])
    return Replicates(values=np.array(values), without=np.array(without))


def _n_log_n_without(
    label: NDArray[np.int64], drawn: NDArray[np.int64], unit: NDArray[np.int64], n_units: int
) -> NDArray[np.float64]:
    """Sum of n log n over the sizes n of labels: of all clips, and without each unit, float64 (1 + units,)."""
    label = np.unique(label, return_inverse=True)[1]
    n_labels = int(label.max()) + 1
    total: NDArray[np.float64] = np.bincount(label, drawn).astype(np.float64)
    own = np.bincount(unit * n_labels + label, drawn, n_units * n_labels).astype(np.float64)
    cell = np.flatnonzero(own)
    of_unit, of_label = np.divmod(cell, n_labels)
    lost = n_log_n(total[of_label]) - n_log_n(total[of_label] - own[cell])
    return np.asarray(n_log_n(total).sum() - np.append(0.0, np.bincount(of_unit, lost, n_units)))


def pair_replicates(
    similarities: Sequence[NDArray[np.floating[Any]]],
    same: NDArray[np.bool_],
    units: Sequence[NDArray[np.int64]],
    n_units: int,
) -> Replicates:
    """Largest average precision of several similarities of pairs (pairs,).

    ``units`` has the unit of the first and of the second clip of each pair, int64 (pairs,).
    """
    weights = np.ones((len(same), 1 + n_units), np.float32)
    for unit in units:
        weights[np.arange(len(same)), 1 + unit] = 0.0
    found = np.max([weighted_average_precision(same, each, weights) for each in similarities], axis=0)
    return Replicates(values=found[:1], without=found[None, 1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Ranked lists of queries.

    Attributes
    ----------
    query : int64 (queries,)
        Clip of each query.
    ranked : int64 (queries, ranks)
        Clips, the most similar first; -1 behind the end of a list.
    relevant : bool (queries, ranks)
    lost : float (queries, units)
        Number of relevant clips of each unit, whether they are among the first ranks or not.
    """

    query: NDArray[np.int64]
    ranked: NDArray[np.int64]
    relevant: NDArray[np.bool_]
    lost: NDArray[np.floating[Any]]

    @property
    def n_relevant(self) -> NDArray[np.floating[Any]]:
        """Number of relevant clips of each query."""
        return np.asarray(self.lost.sum(axis=1))


ListScore = Callable[[NDArray[np.bool_], NDArray[np.floating[Any]]], NDArray[np.float64]]
"""Takes relevant (queries, ranks) and the number of relevant clips (queries,), and returns scores (queries,)."""


def ranked_replicates(lists: Lists, score: ListScore, unit: NDArray[np.int64]) -> Replicates:
    """Mean score of the lists; a unit is removed as queries and from all lists. `unit` is int64 (clips,)."""
    n_relevant, n_units = lists.n_relevant, lists.lost.shape[1]
    values = score(lists.relevant, n_relevant)
    ranked_unit = np.where(lists.ranked >= 0, unit[lists.ranked], -1)
    has_unit = np.zeros((n_units + 1, len(values)), bool)  # of each list; the last row is of the ranks behind its end
    has_unit[ranked_unit, np.arange(len(values))[:, None]] = True
    without = np.full(n_units, np.nan)
    for each in range(n_units):
        left = n_relevant - lists.lost[:, each]
        changed = np.flatnonzero(has_unit[each] | (left < n_relevant))
        removed = ranked_unit[changed] == each
        moved = np.argsort(removed, axis=1, kind="stable")  # the others move up
        kept = np.take_along_axis(lists.relevant[changed] & ~removed, moved, axis=1)
        new = values.copy()
        new[changed] = score(kept, left[changed])
        asked = (unit[lists.query] != each) & (left > 0)
        if asked.any():
            without[each] = new[asked].mean()
    return Replicates(values=values.mean(keepdims=True), without=without[None])


def scored(
    replicates: Replicates,
    clips: NDArray[np.int64],
    units: Units,
    *,
    clip_ids: Sequence[str],
    groups: Sequence[str] | None,
    other_clips_draw_anew: bool = False,
) -> TaskScore:
    """Build the score of one round from its replicates, with its interval and the values that comparisons use.

    ``other_clips_draw_anew``: other clips would also change the clusters, which the jackknife keeps. The variance of
    one draw stands for it, where that of the mean of the draws would be too small.
    """
    by_draw = replicates.values.tolist()
    deviations = (replicates.values[:, None] - replicates.without).mean(axis=0)
    spread = unit_spread(float(replicates.values.mean()), deviations, units)
    interval = interval_of_units(spread, units, by_seed=by_draw, of_mean=not other_clips_draw_anew)
    by_name = sorted(clips.tolist(), key=clip_ids.__getitem__)
    names = [[clip_ids[clip], *([groups[clip]] if groups else [])] for clip in by_name]
    defined = bool(np.isfinite(spread.variance))
    return TaskScore(
        value=spread.score,
        std=float(np.std(by_draw, ddof=1)) if len(by_draw) > 1 else None,
        interval=interval,
        by_round=(spread.score,),
        by_seed=tuple(by_draw),
        details={
            "interval": interval.as_json(),
            "spread": {
                "clips": sha256_of([names])[:32],
                "units": "groups" if units.grouped else "clips",
                "n": units.n_independent,
                "variance": spread.variance if defined else None,
                "deviations": [float(f"{value:.9g}") for value in spread.deviations.tolist()] if defined else None,
            },
        },
        libraries=(),
    )
