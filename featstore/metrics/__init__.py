"""Metrics and their confidence. Each scores plain arrays, and never sees a store or a model."""

from __future__ import annotations

from featstore.metrics.bootstrap import Interval, Resampled, TestSet, bootstrap_interval, bootstrap_scores
from featstore.metrics.registry import Metric, find_metric

__all__ = ["Interval", "Metric", "Resampled", "TestSet", "bootstrap_interval", "bootstrap_scores", "find_metric"]
