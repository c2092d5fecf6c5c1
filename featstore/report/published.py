"""Published scores of X-ARES, as a reference that is never mixed with own scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featstore.records import Protocol, Track

__all__ = ["PublishedScores", "published_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScores:
    """Published scores.

    Attributes
    ----------
    source : str
        Publication that has the scores.
    protocol : "strict" or "xares"
        Their protocol; scores of other protocols are not comparable.
    scores : mapping
        Track -> task -> encoder -> score.
    averages : mapping
        Track -> ``public`` or ``all`` -> encoder -> weighted average, as published.
    """

    source: str
    protocol: Protocol
    scores: Mapping[Track, Mapping[str, Mapping[str, float]]]
    averages: Mapping[Track, Mapping[str, Mapping[str, float]]]


def published_scores() -> PublishedScores:
    """Read the published scores that featstore ships."""
    raw = json.loads(Path(__file__).with_name("published_scores.json").read_text(encoding="utf-8"))
    return PublishedScores(
        source=raw["source"],
        protocol=raw["protocol"],
        scores={"A": raw["A"], "B": raw["B"]},
        averages=raw["weighted_average"],
    )
