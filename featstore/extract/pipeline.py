"""The extraction pipeline: clips -> windows -> batches -> encoder -> part, each stage timed."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import EncoderContractError, EncoderError, ShardError
from featstore.extract.batching import Batch, Batcher, PendingWindow, stack
from featstore.extract.results import EncodeResult, EncodeSettings, Outcome, Progress, StageTimes, StoredShard
from featstore.extract.shard import BackgroundWriter, PartTarget, ShardWork
from featstore.extract.shard_reader import (
    ClipRead,
    ClipStream,
    Event,
    ShardAwaited,
    ShardBegins,
    ShardBreaks,
    ShardEnds,
    ShardFeed,
)
from featstore.extract.shards import AnyShard
from featstore.extract.windows import Window

if TYPE_CHECKING:
    from featstore.encoders.batch_outputs import Encoded

__all__ = ["BatchEncoder", "BatchWork", "UnderWay", "encode_shards"]


class UnderWay:
    """Batches that were begun, and what is to be done once all before it are settled, in order.

    Parameters
    ----------
    at_most : int
        Batches that may be under way when another thing is asked for.
    """

    def __init__(self, *, at_most: int) -> None:
        self._at_most = at_most
        self._waiting: deque[tuple[Callable[[], None], bool]] = deque()
        self._batches = 0

    def batch(self, settle: Callable[[], None]) -> None:
        """A batch was begun; ``settle`` asks for its result."""
        self._waiting.append((settle, True))
        self._batches += 1
        self.settle(at_most=self._at_most)

    def then(self, action: Callable[[], None]) -> None:
        """Do something after the batches that are under way."""
        self._waiting.append((action, False))
        self.settle(at_most=self._at_most)

    def settle(self, *, at_most: int) -> None:
        """Settle batches until so many are under way, and do what waited for them."""
        while self._waiting and (self._batches > at_most or not self._waiting[0][1]):
            action, is_batch = self._waiting.popleft()
            self._batches -= is_batch
            action()


class BatchEncoder(Protocol):
    """Encodes batches: see `featstore.encoders.runner.EncoderRun`."""

    @property
    def batches_ahead(self) -> int:
        """Batches to begin before the result of the first is asked for."""

    @property
    def busy_seconds(self) -> float:
        """Time that the device has spent on batches."""

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Zeros for a batch to be laid out in."""

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], Sequence[Encoded]]:
        """Begin one batch: audio (batch, samples), n_samples int64 (batch,). The callable gives each output."""


class BatchWork:
    """Windows of the shards that are open, on their way through the encoder.

    Parameters
    ----------
    commit : callable
        Is told of a shard, and of the hash of its file, once all of its windows are encoded.
    most_held_bytes : int or None
        When so much of embeddings waits for others, windows wait no longer; None where none outlasts its shard.
    """

    def __init__(
        self,
        *,
        encoder: BatchEncoder,
        encoder_name: str,
        batcher: Batcher,
        commit: Callable[[ShardWork, Future[str]], None],
        most_held_bytes: int | None,
        settings: EncodeSettings,
        times: StageTimes,
    ) -> None:
        self._encoder = encoder
        self._encoder_name = encoder_name
        self._batcher = batcher
        self._commit = commit
        self._most_held_bytes = most_held_bytes
        self._budget_samples = settings.batch_seconds * settings.sample_rate_hz
        self._times = times
        self._under_way = UnderWay(at_most=encoder.batches_ahead)
        self._open: dict[int, ShardWork] = {}
        self._closed: dict[int, Future[str]] = {}

    def open(self, shard: ShardWork) -> None:
        """Windows of this shard are to come."""
        self._open[shard.number] = shard

    def add(self, window: PendingWindow) -> None:
        """Take a window; begin what has become a batch."""
        for batch in self._batcher.add(window):
            self._begin(batch)
            self._make_room()

    def _make_room(self) -> None:
        """Let as many windows as it takes wait no longer, those first that have waited longest."""
        while self._most_held_bytes is not None and self._held_bytes() > self._most_held_bytes:
            self._under_way.settle(at_most=0)
            if not (batches := tuple(self._batcher.oldest())):
                return
            for batch in batches:
                self._begin(batch)

    def _held_bytes(self) -> int:
        """Embeddings in memory because a window waits: those behind it, and what is unwritten of whole shards."""
        waiting = sum(shard.waiting_bytes for shard in self._open.values())
        return waiting + sum(self._open[number].unwritten_bytes for number in self._closed)

    def end_shard(self, shard: ShardWork) -> None:
        """No more windows of this shard are to come: begin what is to wait no longer."""
        for batch in self._batcher.end_shard(shard.number):
            self._begin(batch)

    def close(self, shard: ShardWork, ended: ShardEnds) -> None:
        """Let the shard be committed once all of its windows are encoded, which may be now."""
        self._closed[shard.number] = ended.sha256
        self._commit_if_all_begun(shard)

    def give_up(self, shard: ShardWork) -> None:
        """The shard broke off: what was written of it goes."""
        self._batcher.forget(shard.number)
        del self._open[shard.number]
        self._under_way.then(shard.give_up)

    def then(self, action: Callable[[], None]) -> None:
        """Do something after the batches that are under way."""
        self._under_way.then(action)

    def settle_all(self) -> None:
        """Nothing comes for now: begin what waits for others, and wait for all that is under way."""
        for batch in self._batcher.flush():
            self._begin(batch)
        self._under_way.settle(at_most=0)

    def _begin(self, batch: Batch) -> None:
        shards = {window.shard: self._open[window.shard] for window in batch}
        with self._told_of(batch, shards):
            audio, n_samples = stack(batch, blank=self._encoder.blank)
            result = self._encoder.begin(audio, n_samples)
        self._times.batches += 1
        self._times.budgets += min(1.0, audio.size / self._budget_samples)
        self._under_way.batch(partial(self._settle, batch, shards, result))
        for window in batch:
            shards[window.shard].note_begun()
        for shard in shards.values():
            self._commit_if_all_begun(shard)

    def _commit_if_all_begun(self, shard: ShardWork) -> None:
        if shard.number in self._closed and shard.is_all_begun:
            del self._open[shard.number]
            self._under_way.then(partial(self._commit, shard, self._closed.pop(shard.number)))

    def _settle(self, batch: Batch, shards: Mapping[int, ShardWork], result: Callable[[], Sequence[Encoded]]) -> None:
        with self._told_of(batch, shards):
            outputs = result()
        for row, window in enumerate(batch):
            shards[window.shard].keep(window.index, outputs, row=row)
        for shard in shards.values():
            shard.store_what_is_next()

    @contextmanager
    def _told_of(self, batch: Batch, shards: Mapping[int, ShardWork]) -> Iterator[None]:
        """Count the time as the encoder's, and let its errors name the clip."""
        from featstore.encoders.runner import NonFiniteRow  # it imports torch: whoever encodes has that already

        began = time.perf_counter()
        try:
            yield
        except NonFiniteRow as problem:
            clip = _told(batch[problem.row], shards)
            raise EncoderContractError(f"{self._encoder_name} failed on {clip}: {problem}") from problem
        except EncoderError as problem:
            others = f" or the {len(batch) - 1} batched with it" if len(batch) > 1 else ""
            raise type(problem)(f"{problem}; it was at {_told(batch[0], shards)}{others}") from problem
        finally:
            self._times.encode += time.perf_counter() - began


def _told(window: PendingWindow, shards: Mapping[int, ShardWork]) -> str:
    work = shards[window.shard]
    return f"clip {work.key_of(window.index)!r} of {work.shard.name}"


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
