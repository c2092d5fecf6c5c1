"""What the coordinator reports and counts when a worker dies that has read many shards ahead of its batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from featstore.errors import WorkerError
from featstore.extract.job import StaleShard
from featstore.extract.results import EncodeResult, EncodeSettings, Silent, StageTimes
from featstore.extract.shards import Shard
from featstore.extract.worker import (
    ClipsDone,
    Describe,
    Described,
    Died,
    Encode,
    Event,
    JobDone,
    Loaded,
    Message,
    NextShard,
    ShardDone,
    ShardTaken,
)
from featstore.extract.workers import WorkersEngine

N_SHARDS = 6
SETTINGS = EncodeSettings(
    device="cpu", batch_seconds=1.0, sample_rate_hz=16_000, max_clip_seconds=10.0, decode_threads=1, versions={}
)


class Mortal:
    """One worker, which reads every shard, ten clips each, and then dies; in its last life it commits them."""

    size = 1

    def __init__(self, *, deaths: int) -> None:
        self._lives_left = deaths + 1
        self._taken = 0
        self._events: list[tuple[int, Event]] = []

    def start(self, worker: int) -> None:
        self._lives_left -= 1
        self._taken = 0
        self._say(Loaded())

    def send(self, worker: int, message: Message) -> None:
        if isinstance(message, Encode):
            self._say(NextShard())
        elif isinstance(message, StaleShard):
            self._take(message.shard.name)
        else:
            self._say(JobDone(times=StageTimes(encode=1.0), settings=SETTINGS))

    def _take(self, name: str) -> None:
        self._taken += 1
        self._say(ClipsDone(shard=name, clips=10, audio_seconds=1.0))
        self._say(ShardTaken(shard=name))
        if not self._lives_left:
            self._say(ShardDone(shard=name, stored={}))
        elif self._taken == N_SHARDS:
            self._say(Died(why="a worker died", advice="look at it"))
            return
        self._say(NextShard())

    def _say(self, event: Event) -> None:
        self._events.append((0, event))

    def events(self) -> Sequence[tuple[int, Event]]:
        events, self._events = self._events, []
        assert events, "coordinator and worker wait for each other"
        return events

    def close(self, *, loading: Collection[int]) -> None:
        """It has ended by itself."""


class Counting(Silent):
    clips = 0
    shards = 0

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        self.clips += clips

    def shard_done(self) -> None:
        self.shards += 1


def encode(workers: Mortal, progress: Counting) -> EncodeResult:
    shards = [
        StaleShard(shard=Shard(name=f"{n}.tar", path=Path(f"{n}.tar")), generations={0: 0}) for n in range(N_SHARDS)
    ]
    job: Any = None  # it is passed on unseen
    return WorkersEngine(workers, attempts=2).encode(job, shards, progress=progress)


def test_of_many_shards_that_a_dead_worker_had_a_few_are_named_and_each_clip_counts_once() -> None:
    progress = Counting()
    result = encode(Mortal(deaths=1), progress)
    assert result.deaths == ("a worker died; others encoded 0.tar, 1.tar, 2.tar and 3 more",)
    assert (progress.clips, progress.shards) == (10 * N_SHARDS, N_SHARDS)
    assert (result.workers, result.times.encode, result.settings) == (1, 1.0, SETTINGS)


def test_a_run_that_its_workers_die_of_names_one_of_the_shards_and_how_many_more_it_may_be() -> None:
    with pytest.raises(WorkerError, match=r" 0\.tar .*\b5\b.*\b2\b"):
        encode(Mortal(deaths=2), Counting())


class Pair:
    """Two workers that commit the shards they get. The second one's death is known together with an answer."""

    size = 2

    def __init__(self) -> None:
        self.living: set[int] = set()
        self._events: list[tuple[int, Event]] = []

    def start(self, worker: int) -> None:
        self.living.add(worker)
        self._events.append((worker, Loaded()))

    def send(self, worker: int, message: Message) -> None:
        assert worker in self.living
        card: Any = None
        if isinstance(message, Describe):
            self._events.append((worker, Described(card=card, canary=None)))
            if 1 in self.living:
                self.living.remove(1)
                self._events.append((1, Died(why="a worker died", advice="look at it")))
        elif isinstance(message, Encode):
            self._events.append((worker, NextShard()))
        elif isinstance(message, StaleShard):
            name = message.shard.name
            events = (ShardTaken(shard=name), ShardDone(shard=name, stored={}), NextShard())
            self._events += [(worker, event) for event in events]
        else:
            self._events.append((worker, JobDone(times=StageTimes(), settings=SETTINGS)))

    def events(self) -> Sequence[tuple[int, Event]]:
        events, self._events = self._events, []
        assert events, "coordinator and worker wait for each other"
        return events

    def close(self, *, loading: Collection[int]) -> None:
        self.living.clear()


def test_a_worker_that_dies_while_another_answers_is_started_again_for_the_next_job() -> None:
    workers = Pair()
    shards = [StaleShard(shard=Shard(name=f"{n}.tar", path=Path(f"{n}.tar")), generations={0: 0}) for n in range(4)]
    job: Any = None
    options: Any = None
    engine = WorkersEngine(workers, attempts=2)
    engine.encode(job, shards, progress=Silent())
    assert workers.living == {0, 1}
    engine.describe(options)
    assert workers.living == {0}
    result = engine.encode(job, shards, progress=Counting())
    assert (workers.living, result.workers) == ({0, 1}, 2)
