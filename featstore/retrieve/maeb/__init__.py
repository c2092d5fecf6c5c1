"""mteb's own scores of a task, computed from a store: the measures of the protocol ``maeb``."""

from __future__ import annotations

from featstore.retrieve.maeb.data import MtebData, read_data
from featstore.retrieve.maeb.task import METRICS, score_maeb, why_no_type

__all__ = ["METRICS", "MtebData", "read_data", "score_maeb", "why_no_type"]
