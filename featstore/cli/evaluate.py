"""The output of `probe` and `retrieve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from featstore.cli.options import emit_json, is_quiet, report_problem

if TYPE_CHECKING:
    from featstore.api import Scores
    from featstore.records import ScoreRecord

__all__ = ["print_scores"]


def print_scores(scores: Scores, *, as_json: bool) -> None:
    """Print scores, then the failures if several pairs were scored.

    Raises
    ------
    FeatstoreError
        A pair has no score, or a score could not be written; raised after the other scores are printed.
    """
    if scores and as_json:
        emit_json(scores)
    elif scores:
        _print_tables(scores)
    if len(scores) + len(scores.failures) > 1:
        for failure in scores.failures:
            report_problem(str(failure))
    scores.raise_failures()


def _print_tables(scores: Sequence[ScoreRecord]) -> None:
    """Print leaderboards, the details of scores, and the seconds by stage."""
    from featstore.cli.tables import leaderboard_tables, lines_below, show
    from featstore.report import build

    show(leaderboard_tables(build(scores)), lines_below(_details(scores)))
    stages: dict[str, float] = {}
    for record in scores:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    if not is_quiet():
        show(lines_below([", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items())]))


def _random_folds(name: str, record: ScoreRecord) -> Iterator[str]:
    """Random folds against folds by group."""
    at_random = record.details.get("random_folds")
    if at_random:
        low, high = at_random["difference_low"], at_random["difference_high"]
        interval = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
        yield (
            f"{name}: random folds {at_random['value']:.3f}, folds by {record.settings['split_by']} "
            f"{record.value:.3f}: difference {at_random['difference']:+.3f}{interval}"
        )


def _details(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """Yield lines: other metrics of a measure, recall of an index, shared captions, folds, layers, curves."""
    for record in scores:
        name = f"{record.task} by {record.encoder}"
        measured = record.details.get("index_recall")
        if measured:
            index, recall, k = record.settings["index"], measured["recall"], measured["k"]
            of = f", measured on {measured['of']}" if "of" in measured else ""
            yield f"{name}: index {index} has recall@{k} {recall:.3f} against exact search{of}"
        others = {key: each for key, each in record.details.get("scores", {}).items() if key != record.metric}
        if others:
            yield f"{name}: " + _estimates(others)
        by_density = record.details.get("hdbscan")
        if by_density:
            yield (
                f"{name}: HDBSCAN {_estimates(by_density['scores'])}; {by_density['n_clusters']} clusters, "
                f"{by_density['noise']:.0%} noise"
            )
        shared = record.details.get("n_shared_captions")
        n_shared = sum(shared.values()) if isinstance(shared, dict) else shared
        if n_shared:
            yield f"{name}: {n_shared} test captions belong to several clips, of which only one can be ranked first"
        for direction in ("text_to_audio", "audio_to_text"):
            found = record.details.get(direction, {})
            if "recall_at_1" in found:  # of folds, each has its own
                recalls = ", ".join(f"@{k} {found[f'recall_at_{k}']:.3f}" for k in (1, 5, 10))
                yield f"{name}: {direction.replace('_', ' ')}: recall{recalls}, mAP@10 {found['map_at_10']:.3f}"
        curve = record.details.get("k_curve", {})
        if len(curve) > 1:
            yield f"{name}: " + ", ".join(f"k={k} {value:.3f}" for k, value in curve.items())
        yield from _random_folds(name, record)
        weights = record.details.get("layer_weights")
        if weights:
            shares = zip(weights["layers"], weights["mean"], strict=True)
            yield f"{name}: weights of layers: " + ", ".join(f"{layer} {share:.2f}" for layer, share in shares)
        for shots, point in record.details.get("shots", {}).items():
            yield (
                f"{name}: {shots} {'shot' if shots == '1' else 'shots'} {point['mean']:.3f} "
                f"({point['low']:.3f} to {point['high']:.3f} over {point['support_sets']} support sets)"
            )


def _estimates(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """Metrics with their intervals: ``purity 0.512 (0.460 to 0.563)``."""
    return ", ".join(
        f"{name} {each['value']:.3f}"
        + (f" ({each['low']:.3f} to {each['high']:.3f})" if each["low"] is not None else "")
        for name, each in scores.items()
    )
