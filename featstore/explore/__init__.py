"""Exploration of a store: the clips nearest to a clip or a file, and a map of a feature set as a page."""

from __future__ import annotations

__all__: list[str] = []
