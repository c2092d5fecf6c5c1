"""Track A: a linear head, trained on embeddings from the store."""

from __future__ import annotations

from featstore.probe.api import probe_task

__all__ = ["probe_task"]
