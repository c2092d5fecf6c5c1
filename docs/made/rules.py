"""The page of what protocols come to: rounds as they are planned, metrics as they are defined, numbers in force."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from docs.made.markdown import code, table, told
from featstore.evaluation.few_shot import N_SUPPORT_SETS
from featstore.evaluation.scores import MAX_CONFUSED_PAIRS, MAX_CONFUSION_CLASSES
from featstore.metrics import find_metric
from featstore.metrics.intervals import MIN_GROUPS
from featstore.metrics.jackknife import MAX_UNITS
from featstore.metrics.registry import METRICS
from featstore.probe.api import SEEDS
from featstore.probe.asr import SPARE_TOKENS, XARES_MAX_NEW_TOKENS, XARES_REPETITION_PENALTY
from featstore.probe.clips import SUPPORT_STEPS
from featstore.probe.ctc import MAX_UPSAMPLING
from featstore.probe.frame import ONSET_TOLERANCE_SECONDS
from featstore.records import Protocol
from featstore.retrieve.api import MIN_SAVED_WINDOWS, N_RECALL_QUERIES, SCALING_OF_TRAIN
from featstore.tasks.rules import METRICS_BY_KIND
from featstore.tasks.splits import N_HASH_FOLDS, Round, plan_rounds

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
CLIPS = 100
ROLES = {
    "train, valid and test of their own": {"train": "a", "valid": "b", "test": "c"},
    "valid is test": {"train": "a", "valid": "b", "test": "b"},
    "valid is train": {"train": "a", "valid": "a", "test": "b"},
    "all three are one": {"train": "a", "valid": "a", "test": "a"},
    "five folds": None,
}


def rules_page() -> str:
    """Rounds, metrics and numbers of both protocols."""
    return "\n".join(
        [
            "# Protocols in figures\n",
            "What the two [protocols](../protocols.md) come to, read off the code that applies them. That page says "
            "why they differ, and tells of metrics of the kinds contrastive, ctc and asr.\n",
            "## Rounds\n",
            f"Planned for splits or folds of {CLIPS} clips each: so many train, select and are tested in each round.\n",
            table(("declared", "track", *PROTOCOLS), _round_rows()),
            "## Metrics\n",
            table(("metric", "kinds", "better is", *PROTOCOLS, "what it is"), _metric_rows()),
            "## Numbers\n",
            "Epochs, learning rate and batch size of the head `linear` are the [manifest's](manifest.md#probe), k and "
            "temperature too ([there](manifest.md#retrieve)).\n",
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
    """One round in words; Track B selects nothing, and takes every clip that may be looked at."""
    if each.leave_one_out:
        return f"{len(each.test)} tested, each on the other {len(each.train) - 1}"
    if track == "B":
        return f"{len(each.reference)} searched, {len(each.test)} tested" + _shared(each.reference, each)
    alike = " (those that are tested)" if set(each.valid) <= set(each.test) else ""
    return f"{len(each.train)} train, {len(each.valid)} select{alike}, {len(each.test)} tested" + _shared(
        each.train, each
    )


def _shared(learned: Any, each: Round) -> str:
    shared = len(np.intersect1d(learned, each.test))
    return f", {shared} of them learned from" if shared else ""


def _metric_rows() -> Iterator[tuple[str, ...]]:
    for name in METRICS:
        kinds = [kind for kind, metrics in METRICS_BY_KIND.items() if name in metrics]
        metrics = [find_metric(name, protocol) for protocol in PROTOCOLS]
        better = "higher" if metrics[0].higher_is_better else "lower"
        summary = told(type(metrics[0])).prose.split("\n\n")[0].replace("; see `featstore.metrics.Metric`", "")
        yield code(name), ", ".join(map(code, kinds)) or "beside others", better, *map(_parameters, metrics), summary


def _parameters(metric: Any) -> str:
    """What a protocol chooses of a metric."""
    fixed = {"name", "higher_is_better", "bounds", "libraries"}
    fields = [field.name for field in dataclasses.fields(metric) if field.name not in fixed]
    return ", ".join(f"{name.replace('_', ' ')}: {getattr(metric, name)}" for name in fields)


def _number_rows() -> Iterator[tuple[str, ...]]:
    scaling = {each: told_function(SCALING_OF_TRAIN[each]) for each in PROTOCOLS}
    yield (
        "seeds of a head that has any",
        *(", ".join(map(str, SEEDS[each])) for each in PROTOCOLS),
    )
    yield "scaling of what is searched", *(scaling[each] for each in PROTOCOLS)
    both: tuple[tuple[str, object], ...] = (
        ("folds by hash, where all three splits are one (strict, track A)", N_HASH_FOLDS),
        ("units that test clips are merged into", MAX_UNITS),
        ("fewest groups of an interval", MIN_GROUPS),
        ("draws of a few-shot score", N_SUPPORT_SETS),
        ("least steps of a few-shot head that is linear", SUPPORT_STEPS),
        ("classes up to which every confusion is kept", MAX_CONFUSION_CLASSES),
        ("confusions kept of more classes", MAX_CONFUSED_PAIRS),
        ("windows from which on an index is kept beside the store", f"{MIN_SAVED_WINDOWS:,}"),
        ("queries that the recall of an index is measured with", f"{N_RECALL_QUERIES:,}"),
        ("seconds that an onset may be off", ONSET_TOLERANCE_SECONDS),
        ("most repetitions of a frame (ctc)", MAX_UPSAMPLING),
    )
    for what, value in both:
        yield what, str(value), str(value)
    longest = f"as many as the longest transcript, and {SPARE_TOKENS}"
    yield "tokens generated (asr)", longest, str(XARES_MAX_NEW_TOKENS)
    yield "repetition penalty (asr)", "none", str(XARES_REPETITION_PENALTY)


def told_function(function: Any) -> str:
    """The first line of a function's docstring."""
    return str(function.__doc__).partition("\n")[0].rstrip(".").replace("``", "`")
