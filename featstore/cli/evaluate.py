"""The output of `probe` and `retrieve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from featstore.cli.options import emit_json, is_quiet, report_problem
from featstore.formatting import counted

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
    """Print leaderboards, tables of further scores, lines about scores, and the seconds by stage."""
    from featstore.cli.tables import leaderboard_tables, lines_below, plain_table, show
    from featstore.report import build

    show(leaderboard_tables(build(scores)))
    for title, rows in _further_tables(scores).items():
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        show(
            plain_table(
                ("Task, encoder", *columns),
                [(label, *(row.get(name, "–") for name in columns)) for label, row in rows.items()],
                title=title,
            )
        )
    show(lines_below(_lines(scores)))
    stages: dict[str, float] = {}
    for record in scores:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    if not is_quiet():
        show(lines_below([", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items())]))


def _further_tables(scores: Sequence[ScoreRecord]) -> dict[str, dict[str, dict[str, str]]]:
    """Other metrics of a measure, HDBSCAN's, of each direction, curves over k and training clips, weights of layers.

    Returns
    -------
    dict
        Title of a table -> task and encoder -> column -> entry.
    """
    from featstore.report.grids import measure_title

    tables: dict[str, dict[str, dict[str, str]]] = {}

    def add(title: str, record: ScoreRecord, entries: Mapping[str, str]) -> None:
        if entries:
            row = tables.setdefault(f"{measure_title(record.measure)}: {title}", {})
            row.setdefault(f"{record.task}, {record.encoder}", {}).update(entries)

    for record in scores:
        details = record.details
        others = {name: each for name, each in details.get("scores", {}).items() if name != record.metric}
        add("other scores", record, _estimates(others))
        by_density = details.get("hdbscan")
        if by_density:
            counts = {"clusters": str(by_density["n_clusters"]), "noise": f"{by_density['noise']:.0%}"}
            add("by HDBSCAN", record, {**_estimates(by_density["scores"]), **counts})
        for direction in ("text_to_audio", "audio_to_text"):
            found = details.get(direction, {})
            if "recall_at_1" in found:  # of folds, each has its own
                add(direction.replace("_", " "), record, {name: f"{value:.3f}" for name, value in found.items()})
        curve = details.get("k_curve", {})
        if len(curve) > 1:
            add(f"{record.metric} by k", record, {f"k={k}": f"{value:.3f}" for k, value in curve.items()})
        weights = details.get("layer_weights")
        if weights:
            shares = zip(weights["layers"], weights["mean"], strict=True)
            add("weights of layers", record, {f"layer {layer}": f"{share:.2f}" for layer, share in shares})
        add(
            f"{record.metric} by number of training clips of a class (middle 95 % of the support sets)",
            record,
            {
                counted(int(shots), "shot"): f"{point['mean']:.3f} ({point['low']:.3f} to {point['high']:.3f})"
                for shots, point in details.get("shots", {}).items()
            },
        )
    return tables


def _lines(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """Yield lines: recall of an index, shared captions, random folds."""
    for record in scores:
        name = f"{record.task} by {record.encoder}"
        measured = record.details.get("index_recall")
        if measured:
            index, recall, k = record.settings["index"], measured["recall"], measured["k"]
            of = f", measured on {measured['of']}" if "of" in measured else ""
            yield f"{name}: index {index} has recall@{k} {recall:.3f} against exact search{of}"
        shared = record.details.get("n_shared_captions")
        n_shared = sum(shared.values()) if isinstance(shared, dict) else shared
        if n_shared:
            yield f"{name}: {n_shared} test captions belong to several clips, of which only one can be ranked first"
        at_random = record.details.get("random_folds")
        if at_random:
            low, high = at_random["difference_low"], at_random["difference_high"]
            interval = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
            yield (
                f"{name}: random folds {at_random['value']:.3f}, folds by {record.settings['split_by']} "
                f"{record.value:.3f}: difference {at_random['difference']:+.3f}{interval}"
            )


def _estimates(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, str]:
    """Metrics with half of their intervals: ``{"purity": "0.512 ±0.052"}``."""
    return {
        name: f"{each['value']:.3f}" + ("" if low is None or high is None else f" ±{(high - low) / 2:.3f}")
        for name, each in scores.items()
        for low, high in [(each["low"], each["high"])]
    }
