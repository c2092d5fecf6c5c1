"""What the chief of a fleet says and counts when a worker dies that has read many shards ahead of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from featstore.errors import WorkerError
from featstore.extract.job import StaleShard
from featstore.extract.results import Silent, StageTimes
from featstore.extract.shards import Shard
from featstore.extract.workers.coordinator import FleetEngine
from featstore.extract.workers.messages import (
    Advanced,
    Begin,
    Ended,
    Event,
    Gathered,
    Gone,
    Message,
    NoMore,
    Settled,
    Take,
    Wants,
)

N_SHARDS = 6


class Mortal:
    """A fleet of one worker, which reads every shard, ten clips each, and then dies; its last life settles them."""

    size = 1

    def __init__(self, *, deaths: int) -> None:
        self._lives_left = deaths + 1
        self._taken = 0
        self._number = 0
        self._said: list[tuple[int, Event]] = []

    def start(self, worker: int) -> None:
        self._lives_left -= 1
        self._taken = 0

    def tell(self, worker: int, message: Message) -> None:
        if isinstance(message, Begin):
            self._number = message.number
            self._say(Wants(number=self._number, nth=0, at_once=True))
        elif isinstance(message, Take):
            self._take(message.shard.shard.name)
        elif isinstance(message, NoMore):
            self._say(Ended(number=self._number, times=StageTimes(), settings=None))

    def _take(self, name: str) -> None:
        self._taken += 1
        self._say(Advanced(clips=10, audio_seconds=1.0))
        self._say(Gathered(number=self._number, name=name))
        if not self._lives_left:
            self._say(Settled(number=self._number, name=name, stored={}, broken=""))
        elif self._taken == N_SHARDS:
            self._say(Gone(why="a worker died", advice="look at it"))
            return
        self._say(Wants(number=self._number, nth=self._taken, at_once=True))

    def _say(self, event: Event) -> None:
        self._said.append((0, event))

    def events(self) -> Sequence[tuple[int, Event]]:
        said, self._said = self._said, []
        assert said, "the fleet waits for itself"
        return said

    def close(self) -> None:
        """It has ended by itself."""


class Counting(Silent):
    clips = 0
    shards = 0

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        self.clips += clips

    def shard_done(self) -> None:
        self.shards += 1


def encode(fleet: Mortal, progress: Counting) -> tuple[str, ...]:
    shards = [StaleShard(shard=Shard(name=f"{n}.tar", path=Path(f"{n}.tar")), outputs=(0,)) for n in range(N_SHARDS)]
    job: Any = None  # it is passed on unseen
    return FleetEngine(fleet, attempts=2).encode(job, shards, progress=progress).deaths


def test_of_many_shards_that_a_dead_worker_held_a_few_are_named_and_each_clip_counts_once() -> None:
    progress = Counting()
    assert encode(Mortal(deaths=1), progress) == ("a worker died; others encoded 0.tar, 1.tar, 2.tar and 3 more",)
    assert (progress.clips, progress.shards) == (10 * N_SHARDS, N_SHARDS)


def test_a_run_that_its_workers_die_of_names_one_of_the_shards_and_says_how_many_more_it_may_be() -> None:
    with pytest.raises(WorkerError, match=r"while it encoded 0\.tar or one of 5 more, the last of 2 workers"):
        encode(Mortal(deaths=2), Counting())
