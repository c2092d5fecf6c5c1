"""Two encoders side by side: the difference of their scores, with an interval from paired resamples of the clips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.records import Protocol, ScoreRecord, Track
from featstore.report.leaderboard import LOWER_IS_BETTER
from featstore.report.pairing import interval_about, paired_resamples, why_unpaired
from featstore.report.results import CHOSEN_SETTINGS

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One score of A less that of B, or the weighted average of such.

    Attributes
    ----------
    task : str
        Empty for an average.
    value_a, value_b : float
    low, high : float or None
        95 % interval of their difference; None where the scores cannot be paired.
    unpaired : str
        Why they cannot; empty where they can.
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

    @property
    def difference(self) -> float:
        """A less B."""
        return self.value_a - self.value_b

    @property
    def better(self) -> str:
        """``A`` or ``B`` where the interval is on one side of zero, else empty."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return ""
        return "A" if (self.low > 0) != (self.metric in LOWER_IS_BETTER) else "B"

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
            "better": self.better,
            "unpaired": self.unpaired,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two encoders on everything that both are scored on.

    Attributes
    ----------
    differences : tuple of Difference
        By protocol, track and task.
    averages : tuple of Difference
        For each protocol and track of more than one task; resamples of tasks are independent of each other.
    only_a, only_b : int
        Scores that the other does not have.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    averages: tuple[Difference, ...]
    only_a: int
    only_b: int


def compare(records: Iterable[ScoreRecord], a: str, b: str) -> Comparison:
    """Compare two encoders.

    Parameters
    ----------
    records : iterable of ScoreRecord
        The newest of each, from `featstore.report.read_scores`.
    a, b : str
        ``"logmel"``, or ``"logmel@3f9c2a71"`` where there are several recipes of it.

    Raises
    ------
    UsageError
        An encoder has no score, or a name is of several, or the two have no score in common.
    """
    everything = tuple(records)
    of_a, of_b = _scores_of(everything, a), _scores_of(everything, b)
    if of_a == of_b:
        raise UsageError(f"--compare takes two encoders, and {a} and {b} are one")
    common = sorted(of_a.keys() & of_b.keys())
    if not common:
        raise UsageError(f"{a} and {b} have no score in common: score both on the same task, track and protocol")
    pairs = [_pair(of_a[place], of_b[place]) for place in common]
    groups: dict[tuple[Protocol, Track], list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.found.protocol, pair.found.track), []).append(pair)
    averages = [_average(group) for group in groups.values()]
    return Comparison(
        a=a,
        b=b,
        differences=tuple(pair.found for pair in pairs),
        averages=tuple(average for average in averages if average is not None),
        only_a=len(of_a.keys() - of_b.keys()),
        only_b=len(of_b.keys() - of_a.keys()),
    )


def _scores_of(records: Sequence[ScoreRecord], name: str) -> Mapping[tuple[str, ...], ScoreRecord]:
    """Scores of one encoder by everything that two scores must have in common."""
    encoder, _, fingerprint = name.partition("@")
    mine = [each for each in records if each.encoder == encoder and fingerprint in ("", each.fingerprint)]
    if not mine:
        there = sorted({f"{each.encoder}@{each.fingerprint}" for each in records})
        raise UsageError(f"there is no score of {name}; there are scores of {', '.join(there) or 'nothing'}")
    recipes = sorted({f"{each.encoder}@{each.fingerprint}" for each in mine})
    if len(recipes) > 1:
        raise UsageError(f"{name} is the name of several: say which of {', '.join(recipes)}")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A difference, and its resamples about their mean (resamples,); None where they cannot be paired."""

    found: Difference
    resamples: NDArray[np.float64] | None


def _pair(a: ScoreRecord, b: ScoreRecord) -> _Pair:
    resamples = paired_resamples(a, b)
    low, high = _interval(a.value - b.value, resamples)
    return _Pair(
        found=Difference(
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
            unpaired=why_unpaired(a, b),
            eval_weight=a.eval_weight,
        ),
        resamples=resamples,
    )


def _interval(difference: float, resamples: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    return interval_about(difference, resamples) or (None, None)


def _average(pairs: Sequence[_Pair]) -> Difference | None:
    """Weighted average over the tasks of one protocol and track; None where fewer than two count."""
    counted = [pair for pair in pairs if pair.found.eval_weight > 0 and pair.found.metric not in LOWER_IS_BETTER]
    tasks = [pair.found.task for pair in counted]
    if len(counted) < 2 or len(set(tasks)) < len(tasks):
        return None
    weights = np.array([pair.found.eval_weight for pair in counted])
    weights /= weights.sum()
    value_a = float(weights @ [pair.found.value_a for pair in counted])
    value_b = float(weights @ [pair.found.value_b for pair in counted])
    paired = [pair.resamples for pair in counted if pair.resamples is not None]
    whole = len(paired) == len(counted) and len({len(each) for each in paired}) == 1
    low, high = _interval(value_a - value_b, weights @ np.array(paired) if whole else None)
    first = counted[0].found
    return Difference(
        protocol=first.protocol,
        track=first.track,
        task="",
        title=f"Weighted average, {len(counted)} tasks",
        metric="",
        settings=(),
        value_a=value_a,
        value_b=value_b,
        low=low,
        high=high,
        unpaired="" if whole else "a task cannot be paired",
        eval_weight=float(sum(pair.found.eval_weight for pair in counted)),
    )
