"""mteb's own scores of a task, computed from a store: protocol ``maeb``."""

from __future__ import annotations

from featstore.retrieve.maeb.task import METRICS, MaebTask, maeb_task, read_maeb, score_maeb, why_no_type

__all__ = ["METRICS", "MaebTask", "maeb_task", "read_maeb", "score_maeb", "why_no_type"]
