"""Intervals of test sets, as scoring makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featstore.metrics import Interval, Metric, TestSet, interval_of, jackknife, plan_units


def interval(metric: Metric, *test_sets: TestSet, groups: Sequence[str] | None = None) -> Interval:
    n_clips = 1 + max(int(each.clip.max()) for each in test_sets)
    units = plan_units([each.clip for each in test_sets], names=[f"clip {at}" for at in range(n_clips)], groups=groups)
    spread = jackknife(metric, test_sets, units)
    n_seeds = len(test_sets[0].y_scores)
    by_seed = [np.mean([metric.score(of.y_true, of.y_scores[seed]) for of in test_sets]) for seed in range(n_seeds)]
    return interval_of(metric, spread, units, test_sets, by_seed=by_seed)
