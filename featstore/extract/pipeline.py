"""Turns shards into parts: clips -> windows -> batches -> encoder -> part, each stage timed.

The encoder runs in the calling thread. Threads of `stream` read and decode ahead of it, and one thread behind it
writes, so that the device waits for neither. A batch is begun before the result of the one before is asked for, where
the encoder says so, across the ends of shards too: batches are settled, and shards committed, in the order they began.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.encoders.made import Encoded
from featstore.encoders.running import NonFiniteRow
from featstore.errors import EncoderContractError, EncoderError, ShardError, UnusableClip
from featstore.extract.batches import Batch, Batcher, PendingWindow, stack
from featstore.extract.progress import Progress
from featstore.extract.shards import Shard
from featstore.extract.stream import ClipRead, ClipStream, DecodedClip, ShardBegins, ShardBreaks, ShardEnds
from featstore.extract.windows import Window
from featstore.records import SkippedClip
from featstore.store import Commit, EmbeddedWindow, Member, PartWriter, ShardIdentity, SplitWriter

__all__ = ["BatchEncoder", "EncodeResult", "EncodeSettings", "PartTarget", "StageTimes", "UnderWay", "encode_shards"]

_WRITES_AHEAD = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


class BatchEncoder(Protocol):
    """Encodes batches: see `featstore.encoders.running.EncoderRun`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTarget:
    """Where one output of the encoder goes: its place among what `BatchEncoder` returns, and the feature set."""

    output: int
    writer: SplitWriter
    frames_stored: bool


@dataclass(slots=True)
class StageTimes:
    """Seconds by stage. ``wait_*`` are of the encoding thread; reading, decoding and writing run beside it.

    ``busy`` is what the device spent on batches, of ``total``.
    """

    read: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    busy: float = 0.0
    write: float = 0.0
    wait_clips: float = 0.0
    wait_write: float = 0.0
    total: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Seconds by name, rounded to the millisecond."""
        return {name: round(getattr(self, name), 3) for name in self.__slots__}

    def bottleneck(self, *, decode_threads: int) -> str:
        """The stage that held the run back: what the encoding thread spent most of its time on or waiting for."""
        ahead = "decode" if self.decode / decode_threads > self.read else "read"
        spent = {"encode": self.encode, ahead: self.wait_clips, "write": self.wait_write}
        return max(spent, key=lambda stage: spent[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How shards are encoded; none of it decides the numbers beyond the last bits."""

    sample_rate_hz: int
    max_clip_seconds: float
    decode_threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """What a run over shards came to: commits in order by output, shards that broke with why, and the time by stage."""

    commits: Mapping[int, tuple[Commit, ...]]
    broken: tuple[tuple[Shard, str], ...]
    times: StageTimes


def encode_shards(
    shards: Sequence[Shard],
    *,
    targets: Callable[[Shard], Sequence[PartTarget]],
    encoder: BatchEncoder,
    encoder_name: str,
    plan: Callable[[int], tuple[Window, ...]],
    new_batcher: Callable[[], Batcher],
    settings: EncodeSettings,
    progress: Progress,
) -> EncodeResult:
    """Encode `shards` and commit, for each that can be read to its end, a part to each of its targets.

    Raises
    ------
    EncoderContractError
        The encoder's output is unusable; the message names the clip.
    StoreError
        The store cannot be written.
    """
    began = time.perf_counter()
    times = StageTimes()
    committing: _Committing = []
    broken: list[tuple[Shard, str]] = []
    stream = ClipStream(
        shards,
        sample_rate_hz=settings.sample_rate_hz,
        max_clip_seconds=settings.max_clip_seconds,
        decode_threads=settings.decode_threads,
    )
    busy_before = encoder.busy_seconds
    with _BackgroundWriter(times) as background, stream:
        under_way = UnderWay(at_most=encoder.batches_ahead)
        work: _ShardWork | None = None
        for event in _timed(stream, times):
            if isinstance(event, ShardBegins):
                work = _ShardWork(
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
                under_way.then(partial(_commit_later, committing, work, event, progress))
                work = None
            elif isinstance(event, ShardBreaks):
                if work is not None:
                    under_way.then(work.give_up)
                    work = None
                broken.append((event.shard, str(event.error)))
        under_way.settle(at_most=0)
        times.read, times.decode = stream.read_seconds, stream.decode_seconds
    times.busy = encoder.busy_seconds - busy_before
    times.total = time.perf_counter() - began
    commits: dict[int, tuple[Commit, ...]] = {}
    for shard, future in committing:
        outcome = future.result()
        if isinstance(outcome, ShardError):
            broken.append((shard, str(outcome)))
        else:
            for output, commit in outcome.items():
                commits[output] = (*commits.get(output, ()), commit)
    return EncodeResult(commits=commits, broken=tuple(broken), times=times)


_Committing = list[tuple[Shard, "Future[Mapping[int, Commit] | ShardError]"]]


def _commit_later(committing: _Committing, work: _ShardWork, ended: ShardEnds, progress: Progress) -> None:
    committing.append((ended.shard, work.commit(ended.sha256)))
    progress.shard_done()


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


class _ShardWork:
    """One shard between its first clip and its commit: windows keep their order while batches come back out of it."""

    def __init__(
        self,
        *,
        begins: ShardBegins,
        background: _BackgroundWriter,
        targets: Sequence[PartTarget],
        encoder: BatchEncoder,
        encoder_name: str,
        under_way: UnderWay,
        plan: Callable[[int], tuple[Window, ...]],
        batcher: Batcher,
        settings: EncodeSettings,
        times: StageTimes,
    ) -> None:
        self._shard = begins.shard
        self._identity = begins.identity
        self._background = background
        self._encoder = encoder
        self._encoder_name = encoder_name
        self._under_way = under_way
        self._plan = plan
        self._batcher = batcher
        self._settings = settings
        self._times = times
        self._parts = [(target, background.begin(target.writer, begins.shard.name)) for target in targets]
        self._described: list[tuple[str, str, float, float]] = []
        self._encoded: dict[int, list[tuple[NDArray[np.float32], NDArray[np.generic] | None]]] = {}
        self._stored = 0
        self._clips = 0
        self._audio_seconds = 0.0
        self._skipped: list[SkippedClip] = []

    def take(self, clip: ClipRead) -> float:
        """Plan a clip's windows, encode what has become a batch. Returns the clip's seconds, 0 where it is left out."""
        began = time.perf_counter()
        try:
            decoded = clip.decoded.result()
        except UnusableClip as reason:
            self._skipped.append(SkippedClip(shard=self._shard.name, key=clip.key, reason=str(reason)))
            return 0.0
        finally:
            self._times.wait_clips += time.perf_counter() - began
        rate = self._settings.sample_rate_hz
        windows = self._plan(len(decoded.samples))
        for number, window in enumerate(windows, start=1):
            index = self._describe(decoded, number, window, rate)
            samples = decoded.samples[window.start : window.stop]
            if len(windows) > 1:
                samples = samples.copy()  # a window that waits for its batch must not hold the whole clip
            for batch in self._batcher.add(PendingWindow(index, samples, window.padded)):
                self._encode(batch)
        self._clips += 1
        seconds = len(decoded.samples) / rate
        self._audio_seconds += seconds
        return seconds

    def encode_rest(self) -> None:
        """The shard has ended: begin the batches that are not full."""
        for batch in self._batcher.flush():
            self._encode(batch)

    def commit(self, sha256: Future[str]) -> Future[Mapping[int, Commit] | ShardError]:
        """All batches are settled: commit in the background."""
        return self._background.submit(self._commit, sha256)

    def give_up(self) -> None:
        """The shard broke off: what was written of it goes."""
        self._background.submit(self._abort)

    def _describe(self, clip: DecodedClip, number: int, window: Window, rate: int) -> int:
        key = clip.key if number == 1 else f"{clip.key}#{number}"
        self._described.append((key, clip.meta, window.start / rate, (window.stop - window.start) / rate))
        return len(self._described) - 1

    def _encode(self, batch: Batch) -> None:
        with self._told_of(batch):
            result = self._encoder.begin(*stack(batch, blank=self._encoder.blank))
        self._under_way.batch(partial(self._settle, batch, result))

    def _settle(self, batch: Batch, result: Callable[[], Sequence[Encoded]]) -> None:
        with self._told_of(batch):
            outputs = result()
        wanted = [outputs[target.output] for target, _ in self._parts]
        for row, window in enumerate(batch):
            self._encoded[window.index] = [
                (encoded.utterance[row], encoded.frames[row] if encoded.frames is not None else None)
                for encoded in wanted
            ]
        self._store_what_is_next()

    @contextmanager
    def _told_of(self, batch: Batch) -> Iterator[None]:
        """Count the time as the encoder's, and let its errors name the clip."""
        began = time.perf_counter()
        try:
            yield
        except NonFiniteRow as problem:
            key = self._described[batch[problem.row].index][0]
            raise EncoderContractError(
                f"{self._encoder_name} failed on clip {key!r} of {self._shard.name}: {problem}"
            ) from problem
        except EncoderError as problem:
            key = self._described[batch[0].index][0]
            others = f" or the {len(batch) - 1} batched with it" if len(batch) > 1 else ""
            raise type(problem)(f"{problem}; it was at clip {key!r} of {self._shard.name}{others}") from problem
        finally:
            self._times.encode += time.perf_counter() - began

    def _store_what_is_next(self) -> None:
        """Hand over the windows that are ready in the order of the shard."""
        ready = []
        while (done := self._encoded.pop(self._stored, None)) is not None:
            key, meta, start, seconds = self._described[self._stored]
            ready.append(
                [
                    EmbeddedWindow(
                        key=key, meta=meta, start_seconds=start, seconds=seconds, utterance=utterance, frames=frames
                    )
                    for utterance, frames in done
                ]
            )
            self._stored += 1
        if ready:
            self._background.submit(self._add, ready)

    def _add(self, windows: list[list[EmbeddedWindow]]) -> None:
        for number, (_, future) in enumerate(self._parts):
            part = future.result()
            for of_each_part in windows:
                part.add(of_each_part[number])

    def _commit(self, sha256: Future[str]) -> Mapping[int, Commit] | ShardError:
        """Commit the parts; an error that concerns this shard alone is returned, and the run goes on."""
        try:
            identity = self._shard.identity(sha256=sha256.result())
        except (OSError, ShardError) as error:
            self._abort()
            return ShardError(f"shard {self._shard.name} went away while it was read: {error}")
        if (identity.size, identity.mtime_ns) != (self._identity.size, self._identity.mtime_ns):
            self._abort()
            return ShardError(f"shard {self._shard.name} changed while it was read: run the same command again")
        return {target.output: self._commit_part(target, future, identity) for target, future in self._parts}

    def _commit_part(self, target: PartTarget, future: Future[PartWriter], identity: ShardIdentity) -> Commit:
        part = future.result()
        member = Member(
            shard=identity,
            clips=self._clips,
            windows=part.windows,
            frames=part.frames,
            audio_seconds=round(self._audio_seconds, 6),
            skipped=tuple(self._skipped),
        )
        commit = part.commit([member], frames_stored=target.frames_stored, versions=self._settings.versions)
        self._background.end(future)
        return commit

    def _abort(self) -> None:
        for _, future in self._parts:
            future.result().abort()
            self._background.end(future)


@dataclass(slots=True)
class _BackgroundWriter:
    """One thread that writes. A few writes may wait; the first that fails stops the run."""

    times: StageTimes
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="write"))
    _waiting: list[Future[Any]] = field(default_factory=list)
    _open: set[Future[PartWriter]] = field(default_factory=set)

    def __enter__(self) -> _BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            began = time.perf_counter()
            try:
                self._wait(0)
            finally:
                self.times.wait_write += time.perf_counter() - began
                self._close()
        else:
            self._close()

    def begin(self, writer: SplitWriter, shard: str) -> Future[PartWriter]:
        """Start a part. It is deleted at the end if it was never committed."""
        future = self._pool.submit(writer.begin_part, shard)
        self._open.add(future)
        return future

    def end(self, part: Future[PartWriter]) -> None:
        """The part was committed or given up: let go of it and of all it holds."""
        self._open.discard(part)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Queue a write behind the others; wait while too many are queued."""
        began = time.perf_counter()
        self._wait(_WRITES_AHEAD - 1)
        self.times.wait_write += time.perf_counter() - began
        future = self._pool.submit(self._timed, partial(work, *args, **kwargs))
        self._waiting.append(future)
        return future

    def _timed(self, work: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.times.write += time.perf_counter() - began

    def _wait(self, at_most: int) -> None:
        while len(self._waiting) > at_most or (self._waiting and self._waiting[0].done()):
            self._waiting.pop(0).result()

    def _close(self) -> None:
        """Let what is queued end, for it may be the commit of a whole shard; then delete what is not committed."""
        self._pool.shutdown(wait=True)
        for future in self._open:
            if future.exception() is None:
                future.result().abort()


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
