"""Comparison of two encoders: differences of their scores with paired tests on the same test clips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.errors import UsageError
from featstore.metrics.comparison import ALPHA, Paired
from featstore.records import Protocol, ScoreRecord, Track
from featstore.report.leaderboard import newest_versions
from featstore.report.pairing import average_pair, evidence_of, pair, why_unpaired
from featstore.report.results import CHOSEN_SETTINGS
from featstore.report.tables import LOWER_IS_BETTER, Place, is_averaged, place_of, place_order

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference A - B of one score, or a weighted average of differences.

    Attributes
    ----------
    task : str
        Empty for an average.
    value_a, value_b : float
    low, high : float or None
        95 % interval of the difference; None if the scores cannot be compared.
    p : float or None
        p-value: McNemar's exact test for accuracy, else the paired t test of `featstore.metrics.comparison`.
    unpaired : str
        Reason why the scores cannot be compared; empty if they can.
    measure : str
        Measure of Track B; empty for Track A.
    one_seed : bool
        Whether a head was trained with one seed, so that the test excludes the variance over seeds.
    """

    protocol: Protocol
    track: Track
    task: str
    title: str
    metric: str
    settings: tuple[tuple[str, Any], ...]
    value_a: float
    value_b: float
    low: float | None
    high: float | None
    unpaired: str
    eval_weight: float
    p: float | None = None
    one_seed: bool = False
    measure: str = ""

    @property
    def place(self) -> Place:
        """Protocol, track and measure, as of a table of a leaderboard."""
        return self.protocol, self.track, self.measure

    @property
    def difference(self) -> float:
        """A - B."""
        return self.value_a - self.value_b

    @property
    def better(self) -> str:
        """``A`` or ``B`` if the test is significant at 5 %, else empty."""
        if self.p is None or self.p > ALPHA or self.difference == 0:
            return ""
        return "A" if (self.difference > 0) != (self.metric in LOWER_IS_BETTER) else "B"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "protocol": self.protocol,
            "track": self.track,
            "task": self.task,
            "metric": self.metric,
            "settings": dict(self.settings),
            "value_a": self.value_a,
            "value_b": self.value_b,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "better": self.better,
            "unpaired": self.unpaired,
            "one_seed": self.one_seed,
            "measure": self.measure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two encoders on all tasks that both have scores of.

    Attributes
    ----------
    differences : tuple of Difference
        By protocol, track and task.
    averages : tuple of Difference
        One for each protocol, track and measure with several tasks, which are independent.
    only_a, only_b : int
        Number of scores that the other encoder lacks.
    superseded : tuple of ScoreRecord
        Scores of older protocol versions, which are not comparable with the newest.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    averages: tuple[Difference, ...]
    only_a: int
    only_b: int
    superseded: tuple[ScoreRecord, ...] = ()


def compare(records: Iterable[ScoreRecord], a: str, b: str) -> Comparison:
    """Compare two encoders.

    Parameters
    ----------
    records : iterable of ScoreRecord
        The newest of each, from `featstore.report.read_scores`.
    a, b : str
        ``"logmel"``, or ``"logmel@3f9c2a71"`` if it has several recipes.

    Raises
    ------
    UsageError
        An encoder has no score, a name is ambiguous, or the encoders have no score in common.
    """
    everything = tuple(records)
    _scores_of(everything, a), _scores_of(everything, b)  # a wrong name is reported before a wrong version
    current, superseded = newest_versions(each for each in everything if _is_by(each, a) or _is_by(each, b))
    of_a, of_b = (_scores_of(current, name, none="of the newest protocol version: score it again") for name in (a, b))
    if of_a == of_b:
        raise UsageError(f"--compare needs two encoders, and {a} and {b} are the same")
    common = sorted(of_a.keys() & of_b.keys(), key=lambda key: (place_order(place_of(of_a[key])), key))
    if not common:
        raise UsageError(f"{a} and {b} have no score in common: score both on the same task, track and protocol")
    pairs = [_pair(of_a[place], of_b[place]) for place in common]
    groups: dict[Place, list[tuple[Difference, Paired | None]]] = {}
    for found, tested in pairs:
        groups.setdefault(found.place, []).append((found, tested))
    averages = [_average(group) for group in groups.values()]
    return Comparison(
        a=a,
        b=b,
        differences=tuple(found for found, _ in pairs),
        averages=tuple(average for average in averages if average is not None),
        only_a=len(of_a.keys() - of_b.keys()),
        only_b=len(of_b.keys() - of_a.keys()),
        superseded=superseded,
    )


def _is_by(record: ScoreRecord, name: str) -> bool:
    encoder, _, fingerprint = name.partition("@")
    return record.encoder == encoder and fingerprint in ("", record.fingerprint)


def _scores_of(records: Sequence[ScoreRecord], name: str, *, none: str = "") -> Mapping[tuple[str, ...], ScoreRecord]:
    """Scores of one encoder by the fields that two compared scores share."""
    mine = [each for each in records if _is_by(each, name)]
    if not mine:
        there = sorted({f"{each.encoder}@{each.fingerprint}" for each in records})
        raise UsageError(
            f"there is no score of {name} {none}".rstrip() + f"; there are scores of {', '.join(there) or 'no encoder'}"
        )
    recipes = sorted({f"{each.encoder}@{each.fingerprint}" for each in mine})
    if len(recipes) > 1:
        raise UsageError(f"{name} is ambiguous: choose one of {', '.join(recipes)}")
    return {
        (
            each.protocol,
            each.track,
            each.task,
            each.metric,
            *(json.dumps(each.settings.get(setting)) for setting in CHOSEN_SETTINGS),
        ): each
        for each in mine
    }


def _pair(a: ScoreRecord, b: ScoreRecord) -> tuple[Difference, Paired | None]:
    """The difference of two scores and its test; None if the two cannot be compared."""
    one, other = evidence_of(a), evidence_of(b)
    tested = pair(one, other)
    low, high = tested.interval if tested is not None else (None, None)
    found = Difference(
        protocol=a.protocol,
        track=a.track,
        task=a.task,
        title=a.title,
        metric=a.metric,
        settings=tuple((name, a.settings[name]) for name in CHOSEN_SETTINGS if name in a.settings),
        value_a=a.value,
        value_b=b.value,
        low=low,
        high=high,
        p=None if tested is None else tested.p,
        unpaired=why_unpaired(one, other),
        eval_weight=a.eval_weight,
        one_seed=1 in (len(a.seeds), len(b.seeds)),
        measure=a.measure,
    )
    return found, tested


def _average(pairs: Sequence[tuple[Difference, Paired | None]]) -> Difference | None:
    """Weighted average over the tasks of one protocol, track and measure; None for fewer than two."""
    first = pairs[0][0]
    metrics = {found.metric for found, _ in pairs}
    own = metrics.pop() if len(metrics) == 1 and first.measure not in ("", "knn") else ""
    averaged = [each for each in pairs if each[0].eval_weight > 0 and is_averaged(each[0].metric, own=own)]
    counted = [found for found, _ in averaged]
    tasks = [found.task for found in counted]
    if len(counted) < 2 or len(set(tasks)) < len(tasks):
        return None
    weights = [found.eval_weight for found in counted]
    tested = average_pair([test for _, test in averaged], weights)
    low, high = tested.interval if tested is not None else (None, None)
    return Difference(
        protocol=first.protocol,
        track=first.track,
        task="",
        title=f"Weighted average, {len(counted)} tasks",
        metric=own,
        settings=(),
        value_a=float(np.average([found.value_a for found in counted], weights=weights)),
        value_b=float(np.average([found.value_b for found in counted], weights=weights)),
        low=low,
        high=high,
        p=None if tested is None else tested.p,
        unpaired="" if tested is not None else "a task cannot be compared",
        eval_weight=float(sum(weights)),
        one_seed=any(found.one_seed for found in counted),
        measure=first.measure,
    )
