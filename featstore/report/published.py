"""Scores that others have published: for reference beside one's own, and never mixed with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featstore.records import Protocol, Track

__all__ = ["PublishedScores", "published_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScores:
    """Figures as printed.

    Attributes
    ----------
    source : str
        Where they are printed.
    protocol : "strict" or "xares"
        The rules that they were made under: they compare with nothing else.
    scores : mapping
        Track -> task -> encoder -> score.
    averages : mapping
        Track -> ``public`` or ``all`` -> encoder -> weighted average, as printed: a check on the others.
    """

    source: str
    protocol: Protocol
    scores: Mapping[Track, Mapping[str, Mapping[str, float]]]
    averages: Mapping[Track, Mapping[str, Mapping[str, float]]]

    def of_track(self, track: Track) -> Mapping[str, Mapping[str, float]]:
        """Task -> encoder -> score."""
        return self.scores[track]


def published_scores() -> PublishedScores:
    """Read the figures that come with featstore: those of X-ARES."""
    raw = json.loads(Path(__file__).with_name("published_scores.json").read_text(encoding="utf-8"))
    return PublishedScores(
        source=raw["source"],
        protocol=raw["protocol"],
        scores={"A": raw["A"], "B": raw["B"]},
        averages=raw["weighted_average"],
    )
