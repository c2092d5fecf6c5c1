"""Turns shards into parts: clips -> windows -> batches -> encoder -> part, each stage timed.

The encoder runs in the calling thread. Threads of `stream` read and decode ahead of it, and one thread behind it
writes, so that the device waits for neither. A batch is begun before the result of the one before is asked for, where
the encoder says so, across the ends of shards too. Batches are settled in the order they began, and a shard is
committed once the last that holds a window of it is settled.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from featstore.errors import ShardError
from featstore.extract.background import BackgroundWriter
from featstore.extract.batch_work import BatchEncoder, BatchWork
from featstore.extract.batches import Batcher
from featstore.extract.outcome import EncodeResult, EncodeSettings, Outcome, StageTimes, StoredShard
from featstore.extract.progress import Progress
from featstore.extract.shard_work import PartTarget, ShardWork
from featstore.extract.shards import AnyShard
from featstore.extract.stream import (
    ClipRead,
    ClipStream,
    Event,
    ShardAwaited,
    ShardBegins,
    ShardBreaks,
    ShardEnds,
    ShardFeed,
)
from featstore.extract.windows import Window

__all__ = ["encode_shards"]


def encode_shards(
    shards: Sequence[AnyShard] | ShardFeed,
    *,
    targets: Callable[[AnyShard], Sequence[PartTarget]],
    encoder: BatchEncoder,
    encoder_name: str,
    plan: Callable[[int], tuple[Window, ...]],
    batcher: Batcher,
    most_held_bytes: int | None,
    settings: EncodeSettings,
    progress: Progress,
    gathered: Callable[[AnyShard], None] | None = None,
    settled: Callable[[AnyShard, Future[Outcome]], None] | None = None,
) -> EncodeResult:
    """Encode `shards` and commit, for each that can be read to its end, a part to each of its targets.

    `most_held_bytes` are of embeddings that wait for a batch of theirs to be full: see `BatchWork`.
    `gathered` is told of each shard when its last clip was taken, or when it breaks. `settled` is told of each when its
    commit is on its way, or when it breaks: the future holds its commits by output, or why there are none.

    Raises
    ------
    EncoderContractError
        The encoder's output is unusable; the message names the clip.
    StoreError
        The store cannot be written.
    """
    began = time.perf_counter()
    times = StageTimes()
    outcomes = _Outcomes()

    def settle(shard: AnyShard, outcome: Future[Outcome]) -> None:
        outcomes.add(shard, outcome)
        if settled is not None:
            settled(shard, outcome)

    def commit(work: ShardWork, sha256: Future[str]) -> None:
        settle(work.shard, work.commit(sha256))
        progress.shard_done()

    stream = ClipStream(
        shards,
        sample_rate_hz=settings.sample_rate_hz,
        max_clip_seconds=settings.max_clip_seconds,
        decode_threads=settings.decode_threads,
    )
    busy_before = encoder.busy_seconds
    with BackgroundWriter(times) as background, stream:
        run = _Run(
            batches=BatchWork(
                encoder=encoder,
                encoder_name=encoder_name,
                batcher=batcher,
                commit=commit,
                most_held_bytes=most_held_bytes,
                settings=settings,
                times=times,
            ),
            open_shard=partial(
                ShardWork,
                background=background,
                plan=plan,
                sample_rate_hz=settings.sample_rate_hz,
                versions=settings.versions,
                times=times,
            ),
            targets=targets,
            progress=progress,
            gathered=gathered or _tell_nobody,
            settle=settle,
        )
        for event in _timed(stream, times):
            run.heed(event)
        run.batches.settle_all()
        times.read, times.decode = stream.read_seconds, stream.decode_seconds
    times.busy = encoder.busy_seconds - busy_before
    times.total = time.perf_counter() - began
    outcomes.wait()
    return EncodeResult(
        stored={output: tuple(shards) for output, shards in outcomes.stored.items()},
        broken=tuple(outcomes.broken),
        times=times,
        settings=settings,
    )


@dataclass(slots=True, kw_only=True)
class _Run:
    """What each event of the stream leads to. At most one shard is read at a time."""

    batches: BatchWork
    open_shard: Callable[..., ShardWork]
    targets: Callable[[AnyShard], Sequence[PartTarget]]
    progress: Progress
    gathered: Callable[[AnyShard], None]
    settle: Callable[[AnyShard, Future[Outcome]], None]
    _read: ShardWork | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def heed(self, event: Event) -> None:
        if isinstance(event, ShardBegins):
            self._read = self.open_shard(number=next(self._numbers), begins=event, targets=self.targets(event.shard))
            self.batches.open(self._read)
        elif isinstance(event, ClipRead) and self._read is not None:
            self._take(event, self._read)
        elif isinstance(event, ShardEnds) and self._read is not None:
            self.batches.end_shard(self._read)
            self.gathered(event.shard)
            self.batches.close(self._read, event)
            self._read = None
        elif isinstance(event, ShardBreaks):
            if self._read is not None:
                self.batches.give_up(self._read)
                self._read = None
            self.gathered(event.shard)
            self.batches.then(partial(self.settle, event.shard, _known(ShardError(str(event.error)))))
        elif isinstance(event, ShardAwaited):
            self.batches.settle_all()

    def _take(self, event: ClipRead, work: ShardWork) -> None:
        clip = work.take(event)
        for window in work.windows(clip) if clip is not None else ():
            self.batches.add(window)
        self.progress.advance(clips=1, audio_seconds=0.0 if clip is None else work.seconds_of(clip))


def _tell_nobody(shard: AnyShard) -> None:
    """Nobody waits to be told."""


class _Outcomes:
    """What shards came to, in the order they ended. A run may have a million: of each as little is kept as will do."""

    def __init__(self) -> None:
        self.stored: dict[int, list[StoredShard]] = {}
        self.broken: list[tuple[AnyShard, str]] = []
        self._coming: deque[tuple[AnyShard, Future[Outcome]]] = deque()

    def add(self, shard: AnyShard, outcome: Future[Outcome]) -> None:
        """A shard has ended; its commit is on its way."""
        self._coming.append((shard, outcome))
        while self._coming and self._coming[0][1].done():
            self._take(*self._coming.popleft())

    def wait(self) -> None:
        """Take what is still on its way."""
        while self._coming:
            self._take(*self._coming.popleft())

    def _take(self, shard: AnyShard, coming: Future[Outcome]) -> None:
        outcome = coming.result()
        if isinstance(outcome, ShardError):
            self.broken.append((shard, str(outcome)))
            return
        for output, stored in outcome.items():
            self.stored.setdefault(output, []).append(stored)


def _known(outcome: ShardError) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def _timed(stream: ClipStream, times: StageTimes) -> Iterator[Event]:
    """The stream's events; waiting for one counts as waiting for clips."""
    events = iter(stream)
    while True:
        began = time.perf_counter()
        event = next(events, None)
        times.wait_clips += time.perf_counter() - began
        if event is None:
            return
        yield event
