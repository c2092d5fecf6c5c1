"""Several workers on one queue of shards: the queue, and the coordinator.

Each worker takes a shard when it can read another. When a worker dies, its unfinished shards return to the front of the
queue and a replacement is started; a shard with which several workers die ends the run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Protocol, Self, cast

from featstore.errors import WorkerError
from featstore.extract.job import EncodeJob, EncoderCard, StaleShard
from featstore.extract.results import EncodeResult, Progress, StageTimes, StoredShard
from featstore.extract.worker import (
    ClipsDone,
    Describe,
    Described,
    Died,
    Encode,
    Event,
    Failed,
    JobDone,
    Loaded,
    Message,
    NextShard,
    ShardDone,
    ShardTaken,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.canary import CanaryReading
    from featstore.extract.options import ExtractOptions

__all__ = ["END_WITHIN_SECONDS", "ShardQueue", "Workers", "WorkersEngine"]

_MOST_READ_AT_A_TIME = 2  # one that is being encoded, and the next, read ahead
_MOST_NAMED = 3  # shards of a dead worker in a message: on a GPU some sixty may be pending
END_WITHIN_SECONDS = 10.0
"""Time for a worker to delete uncommitted parts when a run ends early."""


# --- the queue --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Unfinished:
    """Unfinished shards of one worker: those being read, and those with pending batches or commits."""

    is_asking: bool = False
    read: dict[str, StaleShard] = field(default_factory=dict)
    pending: dict[str, StaleShard] = field(default_factory=dict)


class ShardQueue:
    """The shards of a job, and their assignment to workers.

    A worker without a shard is served first. A worker that reads a shard is assigned the next one, to read or download
    ahead, only while at least one remains for every other worker, so that no worker idles at the end.

    >>> from pathlib import Path
    >>> from featstore.extract.shards import Shard
    >>> shards = [Shard(name=name, path=Path(name)) for name in ("a", "b")]
    >>> queue = ShardQueue(StaleShard(shard=shard, generations={0: 0}) for shard in shards)
    >>> queue.ask(7)
    >>> [(worker, assigned.shard.name) for worker, assigned in queue.assign()]
    [(7, 'a')]
    >>> [returned.shard.name for returned in queue.requeue(7)]
    ['a']
    """

    def __init__(self, shards: Iterable[StaleShard]) -> None:
        self._waiting = deque(shards)
        self._workers: dict[int, _Unfinished] = {}
        self._losses: Counter[str] = Counter()

    def ask(self, worker: int) -> None:
        """Note that a worker can read another shard."""
        self._workers.setdefault(worker, _Unfinished()).is_asking = True

    def assign(self) -> Iterator[tuple[int, StaleShard]]:
        """Assign shards of the queue to the workers that asked."""
        for worker, its in sorted(self._workers.items(), key=lambda each: len(each[1].read)):
            is_free = not its.read or (
                len(its.read) < _MOST_READ_AT_A_TIME and len(self._waiting) >= len(self._workers)
            )
            if its.is_asking and is_free and self._waiting:
                shard = self._waiting.popleft()
                its.is_asking, its.read[shard.shard.name] = False, shard
                yield worker, shard

    def dismiss(self) -> Iterator[int]:
        """Workers that asked after every shard was done."""
        for worker, its in self._workers.items():
            if self.is_done and its.is_asking:
                its.is_asking = False
                yield worker

    def note_taken(self, worker: int, shard: str) -> None:
        """Note that a worker has read a shard completely: it may read another."""
        its = self._workers[worker]
        its.pending[shard] = its.read.pop(shard)

    def note_done(self, worker: int, shard: str) -> None:
        """Note that a shard is committed or has failed by itself: it is not assigned again."""
        its = self._workers[worker]
        its.read.pop(shard, None)
        its.pending.pop(shard, None)

    def requeue(self, worker: int) -> tuple[StaleShard, ...]:
        """Return the unfinished shards of a dead worker to the front of the queue, in order. Returns them."""
        its = self._workers.pop(worker, _Unfinished())
        unfinished = (*its.pending.values(), *its.read.values())
        self._waiting.extendleft(reversed(unfinished))
        self._losses.update(each.shard.name for each in unfinished)
        return unfinished

    def losses(self, shard: StaleShard) -> int:
        """Number of workers that died with a shard unfinished."""
        return self._losses[shard.shard.name]

    @property
    def is_done(self) -> bool:
        """Whether every shard is done."""
        return not self._waiting and not any(its.read or its.pending for its in self._workers.values())


# --- the coordinator --------------------------------------------------------------------------------------------------


class Workers(Protocol):
    """Starts workers, numbered from 0, and connects them to the coordinator."""

    @property
    def size(self) -> int:
        """Maximum number of workers."""

    def start(self, worker: int) -> None:
        """Start a worker, or a replacement for one that has died."""

    def send(self, worker: int, message: Message) -> None:
        """Send a message; it is lost if the worker has died."""

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait for events of any worker. `Died` is the last event of a worker until it is started again."""

    def close(self, *, loading: Collection[int]) -> None:
        """End every worker: `loading` ones at once, others after they have deleted uncommitted parts."""


class _State(Enum):
    LOADING = "loading"
    IDLE = "idle"
    ENCODING = "encoding"


class WorkersEngine:
    """Engine of several workers: see `featstore.extract.engine.Engine`.

    One worker is started to describe the encoder; the others are started when there are shards for them.

    Parameters
    ----------
    workers : Workers
    attempts : int
        Number of workers that may die with one shard unfinished before the run ends.
    """

    def __init__(self, workers: Workers, *, attempts: int) -> None:
        self._workers = workers
        self._attempts = attempts
        self._states: dict[int, _State] = {}
        self._fruitless_deaths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; a later job starts them again."""
        self._workers.close(loading=self._in_state(_State.LOADING))
        self._states.clear()
        self._fruitless_deaths = 0

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """Ask a worker: the encoder is not loaded in this process."""
        return self._answer_to(Describe(options=options)).card

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Ask a worker."""
        return cast("CanaryReading", self._answer_to(Describe(options=options, canary=True)).canary)

    def encode_texts(self, texts: Sequence[str], options: ExtractOptions) -> NDArray[np.float32]:
        """Ask a worker."""
        answer = self._answer_to(Describe(options=options, texts=tuple(texts)))
        return cast("NDArray[np.float32]", answer.text_vectors)

    def _answer_to(self, question: Describe) -> Described:
        asked: int | None = None
        answer: Described | None = None
        with self._closed_on_error():
            while answer is None:
                if asked not in self._states:  # no worker was ready, or the one that was asked has died
                    self._start_until(1)
                    asked = min(self._in_state(_State.IDLE), default=None)
                    if asked is not None:
                        self._workers.send(asked, question)
                for worker, event in self._workers.events():
                    self._note_state(worker, event)
                    if isinstance(event, Described):
                        answer = event
                    elif isinstance(event, Died):
                        self._note_fruitless_death(event)
        return answer

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode shards on as many workers as there are shards, up to the maximum."""
        run = _Run(shards=shards, progress=progress)
        with self._closed_on_error():
            while not (run.queue.is_done and not self._in_state(_State.ENCODING)):
                if not run.queue.is_done:
                    self._start_until(len(shards))
                    for worker in self._in_state(_State.IDLE):
                        self._workers.send(worker, Encode(job=job))
                        self._states[worker] = _State.ENCODING
                for worker, shard in run.queue.assign():
                    self._workers.send(worker, shard)
                for worker in run.queue.dismiss():
                    self._workers.send(worker, None)
                for worker, event in self._workers.events():
                    self._note_state(worker, event)
                    run.note(worker, event)
                    if isinstance(event, ShardDone):
                        self._fruitless_deaths = 0
                    elif isinstance(event, Died):
                        self._note_loss(event, run.note_death(worker, event), run.queue)
        return run.result()

    def _start_until(self, n_workers: int) -> None:
        """Start workers until there are `n_workers`, up to the maximum; loading workers count."""
        missing = [worker for worker in range(self._workers.size) if worker not in self._states]
        for worker in missing[: max(0, n_workers - len(self._states))]:
            self._workers.start(worker)
            self._states[worker] = _State.LOADING

    def _in_state(self, state: _State) -> list[int]:
        return [worker for worker, its in self._states.items() if its is state]

    def _note_state(self, worker: int, event: Event) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Loaded | JobDone):
            self._states[worker] = _State.IDLE
        elif isinstance(event, Died):
            self._states.pop(worker, None)

    def _note_loss(self, event: Died, lost: Sequence[StaleShard], queue: ShardQueue) -> None:
        """End the run if too many workers have died with the same shard unfinished."""
        if not lost:
            self._note_fruitless_death(event)
        fatal = [shard.shard.name for shard in lost if queue.losses(shard) >= self._attempts]
        if fatal:
            others = f" or one of {len(fatal) - 1} more" if len(fatal) > 1 else ""
            raise WorkerError(
                f"{event.why} while it encoded {fatal[0]}{others}, the last of {self._attempts} workers that died with "
                f"that shard: {event.advice}; committed shards are kept, and the same command resumes"
            )

    def _note_fruitless_death(self, event: Died) -> None:
        """Count a worker that died without work: loading the encoder may have killed it."""
        self._fruitless_deaths += 1
        if self._fruitless_deaths > self._attempts:
            raise WorkerError(f"{event.why} before it encoded anything, as did others: {event.advice}")

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


_NO_CLIPS = (0, 0.0)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One job: its queue, and the reports of its workers."""

    shards: Sequence[StaleShard]
    progress: Progress
    queue: ShardQueue = field(init=False)
    _began: float = field(default_factory=time.perf_counter)
    _clips: dict[str, tuple[int, float]] = field(default_factory=dict)  # by shard: clips and their seconds
    _done: dict[str, ShardDone] = field(default_factory=dict)
    _jobs: list[JobDone] = field(default_factory=list)
    _took_part: set[int] = field(default_factory=set)
    _deaths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = ShardQueue(self.shards)

    def note(self, worker: int, event: Event) -> None:
        if isinstance(event, NextShard):
            self.queue.ask(worker)
        elif isinstance(event, ClipsDone):
            clips, seconds = self._clips.get(event.shard, _NO_CLIPS)
            self._clips[event.shard] = clips + event.clips, seconds + event.audio_seconds
            self.progress.advance(clips=event.clips, audio_seconds=event.audio_seconds)
        elif isinstance(event, ShardTaken):
            self.queue.note_taken(worker, event.shard)
        elif isinstance(event, ShardDone):
            self.queue.note_done(worker, event.shard)
            self._clips.pop(event.shard, None)
            self._done[event.shard] = event
            self._took_part.add(worker)
            if not event.broken:
                self.progress.shard_done()
        elif isinstance(event, JobDone):
            self._jobs.append(event)

    def note_death(self, worker: int, event: Died) -> tuple[StaleShard, ...]:
        """Return the worker's shards to the queue, and subtract their clips from the progress."""
        lost = self.queue.requeue(worker)
        names = [shard.shard.name for shard in lost]
        for name in names:
            clips, seconds = self._clips.pop(name, _NO_CLIPS)
            self.progress.advance(clips=-clips, audio_seconds=-seconds)
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            self._deaths.append(f"{event.why}; others encoded {', '.join(names[:_MOST_NAMED])}{more}")
        return lost

    def result(self) -> EncodeResult:
        """Outcomes in the order of the shards; stage times summed over the workers."""
        stored: dict[int, list[StoredShard]] = {}
        broken = []
        for each in self.shards:
            done = self._done[each.shard.name]
            for output, part in done.stored.items():
                stored.setdefault(output, []).append(part)
            if done.broken:
                broken.append((each.shard, done.broken))
        times = StageTimes()
        for stage in fields(StageTimes):
            setattr(times, stage.name, sum(getattr(job.times, stage.name) for job in self._jobs))
        times.total = time.perf_counter() - self._began
        return EncodeResult(
            stored={output: tuple(parts) for output, parts in stored.items()},
            broken=tuple(broken),
            times=times,
            settings=self._jobs[0].settings if self._jobs else None,
            workers=max(1, len(self._took_part)),
            deaths=tuple(self._deaths),
        )
