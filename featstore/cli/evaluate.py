"""How `probe` and `retrieve` print their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from featstore.cli.options import emit_json, say

if TYPE_CHECKING:
    from featstore.api import Scores
    from featstore.records import ScoreRecord

__all__ = ["print_scores"]


def print_scores(scores: Scores, *, as_json: bool) -> None:
    """Print scores, then the failures of a run in which several pairs were scored.

    Raises
    ------
    FeatstoreError
        Some pair has no score, or some score could not be written: those of the others are printed before.
    """
    if scores and as_json:
        emit_json(scores)
    elif scores:
        _tell(scores)
    if len(scores) + len(scores.failures) > 1:
        for failure in scores.failures:
            say(f"featstore: {failure}", err=True)
    scores.raise_failures()


def _tell(scores: Sequence[ScoreRecord]) -> None:
    """Print leaderboards, what was measured beside them, and where the time went."""
    from featstore.cli.tables import leaderboard_tables, show
    from featstore.report import build

    show(leaderboard_tables(build(scores)))
    for line in _beside(scores):
        say(f"  {line}")
    stages: dict[str, float] = {}
    for record in scores:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    say("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))


def _beside(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """What a score's details add to its value, a line each."""
    for record in scores:
        whose = f"{record.task} by {record.encoder}"
        measured = record.details.get("index_recall")
        if measured:
            index, recall, k = record.settings["index"], measured["recall"], measured["k"]
            of = f", measured on {measured['of']}" if "of" in measured else ""
            yield f"{whose}: index {index} has recall@{k} {recall:.3f} against exact search{of}"
        shared = record.details.get("n_shared_captions")
        n_shared = sum(shared.values()) if isinstance(shared, dict) else shared
        if n_shared:
            yield f"{whose}: {n_shared} test captions belong to several clips, of which at best one can be found first"
        curve = record.details.get("k_curve", {})
        if len(curve) > 1:
            yield f"{whose}: " + ", ".join(f"k={k} {value:.3f}" for k, value in curve.items())
        for shots, point in record.details.get("shots", {}).items():
            yield (
                f"{whose}: {shots} {'shot' if shots == '1' else 'shots'} {point['mean']:.3f} "
                f"({point['low']:.3f} to {point['high']:.3f} over {point['support_sets']} support sets)"
            )
