"""Generate the page of the parameters of the protocols: planned rounds, definitions of metrics, constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from docs.made.markdown import code, parse_docstring, table
from featstore.evaluation.few_shot import N_SUPPORT_SETS
from featstore.evaluation.scores import MAX_CONFUSED_PAIRS, MAX_CONFUSION_CLASSES
from featstore.metrics import find_metric
from featstore.metrics.intervals import MIN_GROUPS
from featstore.metrics.jackknife import MAX_UNITS
from featstore.metrics.registry import METRICS
from featstore.metrics.verification import TARGET_PRIOR
from featstore.probe.api import SEEDS
from featstore.probe.asr import SPARE_TOKENS, XARES_MAX_NEW_TOKENS, XARES_REPETITION_PENALTY
from featstore.probe.clips import SUPPORT_STEPS
from featstore.probe.ctc import MAX_UPSAMPLING
from featstore.probe.frame import ONSET_TOLERANCE_SECONDS
from featstore.records import Protocol
from featstore.retrieve.api import MIN_SAVED_WINDOWS, N_RECALL_QUERIES, SCALING_OF_TRAIN
from featstore.retrieve.clip_set import MAX_CLIPS, MAX_STORED_CLIPS
from featstore.retrieve.clustering import SEEDS as CLUSTERING_SEEDS
from featstore.retrieve.pairs import MAX_PAIRS
from featstore.tasks.rules import METRICS_BY_KIND
from featstore.tasks.splits import N_HASH_FOLDS, Round, plan_rounds

PROTOCOLS: tuple[Protocol, ...] = ("strict", "xares")  # maeb has the definitions of mteb
CLIPS = 100
ROLES = {
    "separate train, valid and test": {"train": "a", "valid": "b", "test": "c"},
    "valid is test": {"train": "a", "valid": "b", "test": "b"},
    "valid is train": {"train": "a", "valid": "a", "test": "b"},
    "all three are the same": {"train": "a", "valid": "a", "test": "a"},
    "five folds": None,
}


def rules_page() -> str:
    """Build the page: rounds, metrics and numbers of both protocols."""
    return "\n".join(
        [
            "# Parameters of the protocols\n",
            "The rounds, metrics and numbers of the two [protocols](../protocols.md), generated from the code that "
            "applies them. That page explains their differences, and the metrics of the kinds contrastive, ctc and "
            "asr.\n",
            "## Rounds\n",
            f"Number of clips that train, select and are tested in each round, for splits or folds of {CLIPS} clips.\n",
            table(("declared", "track", *PROTOCOLS), _round_rows()),
            "## Metrics\n",
            table(("metric", "kinds", "better is", *PROTOCOLS, "definition"), _metric_rows()),
            "## Numbers\n",
            "The manifest sets the epochs, learning rate and batch size of the head `linear` "
            "([probe](manifest.md#probe)), and k and temperature ([retrieve](manifest.md#retrieve)).\n",
            table(("number", *PROTOCOLS), _number_rows()),
        ]
    )


def _round_rows() -> Iterator[tuple[str, ...]]:
    for declared, roles in ROLES.items():
        tracks = {track: [_planned(roles, protocol, track) for protocol in PROTOCOLS] for track in "AB"}
        if tracks["A"] == tracks["B"]:
            yield declared, "A, B", *tracks["A"]
        else:
            yield from ((declared, track, *planned) for track, planned in tracks.items())


def _planned(roles: Mapping[str, str] | None, protocol: Protocol, track: str) -> str:
    names = sorted(set(roles.values())) if roles else [str(fold) for fold in range(1, 6)]
    members = {name: np.arange(at * CLIPS, (at + 1) * CLIPS) for at, name in enumerate(names)}
    n = CLIPS * len(names)
    rounds = plan_rounds(
        protocol=protocol,
        members=members,
        roles=roles,
        ids=[f"clip {number}" for number in range(n)],
        stratify=lambda _: np.zeros(n, np.int64),
        leave_one_out=track == "B",
    )
    times = f"{len(rounds)} rounds: " if len(rounds) > 1 else ""
    return times + _round_words(rounds[0], track)


def _round_words(each: Round, track: str) -> str:
    """Describe a round; Track B selects nothing, and searches every permitted clip."""
    if each.leave_one_out:
        return f"{len(each.test)} tested, each on the other {len(each.train) - 1}"
    if track == "B":
        return f"{len(each.reference)} searched, {len(each.test)} tested" + _shared(each.reference, each)
    alike = " (the tested ones)" if set(each.valid) <= set(each.test) else ""
    return f"{len(each.train)} train, {len(each.valid)} select{alike}, {len(each.test)} tested" + _shared(
        each.train, each
    )


def _shared(learned: Any, each: Round) -> str:
    shared = len(np.intersect1d(learned, each.test))
    return f", {shared} of them also in training" if shared else ""


def _metric_rows() -> Iterator[tuple[str, ...]]:
    for name in METRICS:
        kinds = [kind for kind, metrics in METRICS_BY_KIND.items() if name in metrics]
        metrics = [find_metric(name, protocol) for protocol in PROTOCOLS]
        better = "higher" if metrics[0].higher_is_better else "lower"
        summary = (
            parse_docstring(type(metrics[0])).prose.split("\n\n")[0].replace("; see `featstore.metrics.Metric`", "")
        )
        yield code(name), ", ".join(map(code, kinds)) or "secondary", better, *map(_parameters, metrics), summary


def _parameters(metric: Any) -> str:
    """List the parameters of a metric under a protocol."""
    fixed = {"name", "higher_is_better", "bounds", "libraries"}
    fields = [field.name for field in dataclasses.fields(metric) if field.name not in fixed]
    return ", ".join(f"{name.replace('_', ' ')}: {getattr(metric, name)}" for name in fields)


def _number_rows() -> Iterator[tuple[str, ...]]:
    scaling = {each: first_line(SCALING_OF_TRAIN[each]) for each in PROTOCOLS}
    yield (
        "seeds of heads with random initialisation",
        *(", ".join(map(str, SEEDS[each])) for each in PROTOCOLS),
    )
    yield "scaling of the searched vectors", *(scaling[each] for each in PROTOCOLS)
    both: tuple[tuple[str, object], ...] = (
        ("folds by hash, if all three splits are the same (strict, track A)", N_HASH_FOLDS),
        ("maximum number of units into which test clips are merged", MAX_UNITS),
        ("minimum number of groups for an interval", MIN_GROUPS),
        ("draws of a few-shot score", N_SUPPORT_SETS),
        ("minimum number of steps of a linear few-shot head", SUPPORT_STEPS),
        ("maximum number of classes with a complete confusion matrix", MAX_CONFUSION_CLASSES),
        ("confusions stored for more classes", MAX_CONFUSED_PAIRS),
        ("minimum number of windows for a saved index", f"{MIN_SAVED_WINDOWS:,}"),
        ("queries for measuring the recall of an index", f"{N_RECALL_QUERIES:,}"),
        ("maximum number of test clips that are compared with each other (measures except knn)", f"{MAX_CLIPS:,}"),
        ("maximum number of pairs that are scored (measure pairs)", f"{MAX_PAIRS:,}"),
        ("maximum number of clips of HDBSCAN (measure clustering)", f"{MAX_STORED_CLIPS:,}"),
        ("seeds of k-means (measure clustering)", ", ".join(map(str, CLUSTERING_SEEDS))),
        ("share of same pairs that minDCF assumes (measure pairs)", TARGET_PRIOR),
        ("tolerance of an onset, in seconds", ONSET_TOLERANCE_SECONDS),
        ("maximum repetitions of a frame (ctc)", MAX_UPSAMPLING),
    )
    for what, value in both:
        yield what, str(value), str(value)
    longest = f"length of the longest transcript + {SPARE_TOKENS}"
    yield "tokens generated (asr)", longest, str(XARES_MAX_NEW_TOKENS)
    yield "repetition penalty (asr)", "none", str(XARES_REPETITION_PENALTY)


def first_line(function: Any) -> str:
    """Return the first line of a function's docstring."""
    return str(function.__doc__).partition("\n")[0].rstrip(".").replace("``", "`")
