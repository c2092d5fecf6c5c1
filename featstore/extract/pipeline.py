"""Turns shards into parts: clips -> windows -> batches -> encoder -> part, each stage timed.

The encoder runs in the calling thread. Threads of `stream` read and decode ahead of it, and one thread behind it
writes, so that the device waits for neither. A batch is begun before the result of the one before is asked for, where
the encoder says so, across the ends of shards too: batches are settled, and shards committed, in the order they began.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from featstore.errors import ShardError
from featstore.extract.background import BackgroundWriter
from featstore.extract.batches import Batcher
from featstore.extract.outcome import EncodeResult, EncodeSettings, Outcome, StageTimes, StoredShard
from featstore.extract.progress import Progress
from featstore.extract.shard_work import BatchEncoder, PartTarget, ShardWork
from featstore.extract.shards import AnyShard
from featstore.extract.stream import ClipRead, ClipStream, ShardBegins, ShardBreaks, ShardEnds, ShardFeed
from featstore.extract.under_way import UnderWay
from featstore.extract.windows import Window

__all__ = ["encode_shards"]


def encode_shards(
    shards: Sequence[AnyShard] | ShardFeed,
    *,
    targets: Callable[[AnyShard], Sequence[PartTarget]],
    encoder: BatchEncoder,
    encoder_name: str,
    plan: Callable[[int], tuple[Window, ...]],
    new_batcher: Callable[[], Batcher],
    settings: EncodeSettings,
    progress: Progress,
    settled: Callable[[AnyShard, Future[Outcome]], None] | None = None,
) -> EncodeResult:
    """Encode `shards` and commit, for each that can be read to its end, a part to each of its targets.

    `settled` is told of each shard when its commit is on its way, or when it breaks: the future holds its commits by
    output, or why there are none.

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

    stream = ClipStream(
        shards,
        sample_rate_hz=settings.sample_rate_hz,
        max_clip_seconds=settings.max_clip_seconds,
        decode_threads=settings.decode_threads,
    )
    busy_before = encoder.busy_seconds
    with BackgroundWriter(times) as background, stream:
        under_way = UnderWay(at_most=encoder.batches_ahead)
        work: ShardWork | None = None
        for event in _timed(stream, times):
            if isinstance(event, ShardBegins):
                work = ShardWork(
                    begins=event,
                    background=background,
                    targets=targets(event.shard),
                    encoder=encoder,
                    encoder_name=encoder_name,
                    under_way=under_way,
                    plan=plan,
                    batcher=new_batcher(),
                    settings=settings,
                    times=times,
                )
            elif isinstance(event, ClipRead) and work is not None:
                seconds = work.take(event)
                progress.advance(clips=1, audio_seconds=seconds)
            elif isinstance(event, ShardEnds) and work is not None:
                work.encode_rest()
                under_way.then(partial(_commit, settle, work, event, progress))
                work = None
            elif isinstance(event, ShardBreaks):
                if work is not None:
                    under_way.then(work.give_up)
                    work = None
                under_way.then(partial(settle, event.shard, _known(ShardError(str(event.error)))))
        under_way.settle(at_most=0)
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


_Settle = Callable[[AnyShard, "Future[Outcome]"], None]


def _commit(settle: _Settle, work: ShardWork, ended: ShardEnds, progress: Progress) -> None:
    settle(ended.shard, work.commit(ended.sha256))
    progress.shard_done()


def _timed(stream: ClipStream, times: StageTimes) -> Iterator[object]:
    """The stream's events; waiting for one counts as waiting for clips."""
    events = iter(stream)
    while True:
        began = time.perf_counter()
        event = next(events, None)
        times.wait_clips += time.perf_counter() - began
        if event is None:
            return
        yield event
