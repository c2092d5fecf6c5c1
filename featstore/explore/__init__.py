"""Looking into a store: what is nearest to a clip or to a file, and a map of a feature set as a page."""

from __future__ import annotations

__all__: list[str] = []
