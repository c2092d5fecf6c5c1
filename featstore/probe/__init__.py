"""Track A of the evaluation: train a linear head on stored embeddings and score it."""

from __future__ import annotations

from featstore.probe.api import probe_task

__all__ = ["probe_task"]
