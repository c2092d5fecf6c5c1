"""Folds by group and random folds of the same clips: how much of a score depends on the groups being shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from featstore.metrics.comparison import paired_difference
from featstore.metrics.intervals import MIN_GROUPS
from featstore.records import ScoreRecord

__all__ = ["with_random_folds"]


def with_random_folds(grouped: ScoreRecord, at_random: ScoreRecord, *, field: str) -> ScoreRecord:
    """Return the score of the folds by group, with that of random folds of the same clips in its details.

    ``details["random_folds"]`` has the score of random folds and its interval, and ``difference``, random - grouped,
    with its 95 % interval. The interval is that of a paired difference over groups, which are the independent units of
    both scores (`featstore.metrics.comparison`). There is none for fewer than 12 groups, or for a metric that is
    undefined without one of them.

    Parameters
    ----------
    grouped, at_random : ScoreRecord
        Of the same clips, head and number of folds; both resample groups.
    field : str
        Field that holds the group.
    """
    difference = at_random.value - grouped.value
    low, high = _interval(grouped, at_random, difference) or (None, None)
    return replace(
        grouped,
        settings={**grouped.settings, "split_by": field},
        seconds={name: seconds + at_random.seconds.get(name, 0.0) for name, seconds in grouped.seconds.items()},
        details={
            **grouped.details,
            "random_folds": {
                "value": at_random.value,
                "ci_low": at_random.ci_low,
                "ci_high": at_random.ci_high,
                "folds": len(at_random.details["by_round"]),
                "groups": grouped.details["spread"]["n"],
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
            },
        },
    )


def _interval(grouped: ScoreRecord, at_random: ScoreRecord, difference: float) -> tuple[float, float] | None:
    one, other = _spread(at_random), _spread(grouped)
    if one["n"] < MIN_GROUPS or one["deviations"] is None or other["deviations"] is None:
        return None
    seeds = [
        (each.std**2 / len(each.seeds), len(each.seeds) - 1.0)
        for each in (at_random, grouped)
        if each.std and len(each.seeds) > 1
    ]
    deviations = np.array(one["deviations"]) - np.array(other["deviations"])
    of_a_clip = 1.0 / grouped.n_test if grouped.metric == "accuracy" else 0.0
    return paired_difference(difference, deviations, seed_variances=seeds, least_lump=of_a_clip).interval


def _spread(record: ScoreRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = record.details["spread"]
    return found
