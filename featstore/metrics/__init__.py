"""Metrics and their intervals. Metrics take plain arrays and depend on no store and no model."""

from __future__ import annotations

from featstore.metrics.intervals import Interval, interval_of, interval_of_units
from featstore.metrics.jackknife import Spread, TestSet, Units, jackknife, of_units, plan_units, unit_spread
from featstore.metrics.registry import Metric, find_metric

__all__ = [
    "Interval",
    "Metric",
    "Spread",
    "TestSet",
    "Units",
    "find_metric",
    "interval_of",
    "interval_of_units",
    "jackknife",
    "of_units",
    "plan_units",
    "unit_spread",
]
