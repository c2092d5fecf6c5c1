"""Downloads the shards of a task from a public archive: resumable, checked against MD5, atomic."""

from __future__ import annotations

from featstore.fetch.task import FetchRecord, Unwatched, fetch_task

__all__ = ["FetchRecord", "Unwatched", "fetch_task"]
