"""A task and encoder whose measures are scored, and the record of a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation import Stopwatch, TaskData, TaskScore, load_task, score_record
from featstore.evaluation.scores import spread_details
from featstore.metrics import Interval, Spread, Units, interval_of_units, unit_spread
from featstore.records import Protocol, ScoreRecord
from featstore.retrieve.clip_set import ClipSet, clip_set
from featstore.retrieve.maeb import MtebData, read_data
from featstore.retrieve.saved_index import Notify

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Estimate", "MeasuredTask", "measure_record"]


@dataclass(frozen=True, kw_only=True)
class MeasuredTask:
    """A task and encoder. Its embeddings are read once for all measures.

    Attributes
    ----------
    k, index, shots, notify
        Options of the nearest-neighbour vote; see `featstore.retrieve.retrieve_task`.
    """

    store: Store
    manifest: Manifest
    encoder: str | None
    protocol: Protocol
    k: int | Sequence[int] | None = None
    index: str = "flat"
    shots: tuple[int, ...] = ()
    notify: Notify = lambda _: None

    @cached_property
    def task(self) -> TaskData:
        """Embeddings, labels and rounds; see `featstore.evaluation.load_task` for the errors."""
        return load_task(self.store, self.manifest, encoder=self.encoder, protocol=self.protocol, leave_one_out=True)

    @cached_property
    def maeb(self) -> MtebData:
        """The task as mteb sees it."""
        return read_data(self.store, self.manifest, encoder=self.encoder)

    @cached_property
    def clips(self) -> ClipSet:
        """The test clips, one vector each."""
        return clip_set(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval, and the spread of which the interval is computed."""

    value: float
    interval: Interval
    spread: Spread

    @classmethod
    def of(cls, value: float, deviations: NDArray[np.float64], units: Units) -> Estimate:
        """Estimate a score from 0 to 1 by its deviations (units,): score - score without the unit."""
        spread = unit_spread(value, deviations, units)
        return cls(value=value, interval=interval_of_units(spread, units), spread=spread)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"value": self.value, "low": self.interval.low, "high": self.interval.high, **self.interval.as_json()}


def measure_record(
    of: MeasuredTask,
    clips: ClipSet,
    *,
    measure: str,
    estimates: Mapping[str, Estimate],
    watch: Stopwatch,
    details: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    by_seed: Mapping[int, float] | None = None,
    std: float | None = None,
    identity: Sequence[str] = (),
) -> ScoreRecord:
    """Build the record of a measure.

    Parameters
    ----------
    clips : ClipSet
        The clips that were scored.
    estimates : mapping
        Name of each metric to its estimate; the first is the score, and all are in ``details["scores"]``.
    identity : sequence of str
        What else two encoders must have in common to be compared, such as the list of trials.
    """
    task = of.task
    metric, headline = next(iter(estimates.items()))
    seeds = tuple(by_seed or {})
    found = [[name, *([clips.group_names[at]] if clips.group_names else [])] for at, name in enumerate(clips.names)]
    score = TaskScore(
        value=headline.value,
        std=std,
        interval=headline.interval,
        by_round=(),
        by_seed=tuple((by_seed or {}).values()),
        details={
            "interval": headline.interval.as_json(),
            "spread": spread_details(headline.spread, clips.units, compared=[*found, *identity]),
        },
        libraries=("sklearn",),
    )
    return score_record(
        task,
        score,
        track="B",
        metric=metric,
        # clips of one round are compared with each other and not with training clips
        with_leakage=len(task.rounds) > 1 or task.rounds[0].leave_one_out,
        n_train=[0] * len(task.rounds),
        n_valid=[0] * len(task.rounds),
        seeds=seeds,
        settings={"measure": measure, **(settings or {})},
        seconds=watch.seconds,
        libraries=(),
        details={
            "scores": {name: each.as_json() for name, each in estimates.items()},
            "clips": len(clips),
            **details,
        },
    )
