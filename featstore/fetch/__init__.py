"""Shards from a public archive to disk: resumed where it broke off, checked, and whole or not there."""

from __future__ import annotations

from featstore.fetch.task import FetchRecord, fetch_task

__all__ = ["FetchRecord", "fetch_task"]
