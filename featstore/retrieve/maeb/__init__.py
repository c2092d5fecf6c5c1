"""mteb's own scores of a task, computed from a store: protocol ``maeb``."""

from __future__ import annotations

from featstore.retrieve.maeb.task import MEASURES, maeb_task

__all__ = ["MEASURES", "maeb_task"]
