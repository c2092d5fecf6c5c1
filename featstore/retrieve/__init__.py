"""Track B: nearest neighbours among cached embeddings; nothing is trained."""

from __future__ import annotations

from featstore.retrieve.track import retrieve_task

__all__ = ["retrieve_task"]
