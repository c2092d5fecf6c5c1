"""Metrics and their confidence. Each scores plain arrays, and never sees a store or a model."""

from __future__ import annotations

from featstore.metrics.bootstrap import Interval, TestSet, bootstrap_interval
from featstore.metrics.registry import Metric, find_metric

__all__ = ["Interval", "Metric", "TestSet", "bootstrap_interval", "find_metric"]
