"""The extraction pipeline in one loop, from decoded clips to committed parts.

`Pipeline.run` reads from top to bottom: the clips of a shard are decoded (`shard_reader`), cut into windows
(`ShardExtraction.windows`), gathered into batches (`batching`), encoded and pooled (`encoders.runner`), restored to the
order of their shard (`ShardExtraction.add_embeddings`) and written to a part, which is committed when it is complete.

Reading, decoding and writing run in background threads; everything else runs in the thread that iterates.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import EncoderContractError, EncoderError, PartLost, ShardError, UnusableClip
from featstore.extract.batching import Batch, Batcher, PendingWindow, stack
from featstore.extract.results import (
    ClipTaken,
    EncodeSettings,
    Finished,
    Outcome,
    PipelineEvent,
    ShardEncoded,
    ShardFailed,
    ShardRead,
    StageTimes,
    StoredShard,
)
from featstore.extract.shard_reader import (
    ClipRead,
    ClipStream,
    DecodedClip,
    Event,
    ShardAwaited,
    ShardBegins,
    ShardBreaks,
    ShardEnds,
    ShardFeed,
)
from featstore.extract.shards import AnyShard
from featstore.extract.windows import Window
from featstore.records import SkippedClip
from featstore.store import EmbeddedWindow, Member, PartWriter, ShardIdentity, SplitWriter
from featstore.store.layout import FILE_BYTES

if TYPE_CHECKING:
    from featstore.encoders.batch_outputs import Encoded
    from featstore.encoders.runner import EncoderRun

__all__ = ["PartTarget", "Pipeline", "ShardExtraction", "ShardState"]


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchInFlight:
    """A submitted batch. ``shards`` maps numbers to the shards of its windows."""

    windows: Batch
    shards: Mapping[int, ShardExtraction]
    result: Callable[[], Sequence[Encoded]]


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """Encodes shards with one encoder on one device. Each instance runs once.

    Attributes
    ----------
    targets : callable
        Returns the feature sets that lack a shard; a part is committed to each.
    encoder : EncoderRun
    encoder_name : str
        Name for messages.
    plan : callable
        Returns the windows of a clip by its number of samples.
    batcher : Batcher
    max_pending_bytes : int or None
        Limit of embeddings in memory that wait for windows of other batches; above it, batches are encoded before they
        are full. None if every window is encoded before its shard ends.
    settings : EncodeSettings
    """

    targets: Callable[[AnyShard], Sequence[PartTarget]]
    encoder: EncoderRun
    encoder_name: str
    plan: Callable[[int], tuple[Window, ...]]
    batcher: Batcher
    max_pending_bytes: int | None
    settings: EncodeSettings
    _times: StageTimes = field(default_factory=StageTimes)
    _open: dict[int, ShardExtraction] = field(default_factory=dict)  # by number: shards with unsubmitted windows
    _in_flight: deque[_BatchInFlight | ShardExtraction] = field(default_factory=deque)
    _batches_in_flight: int = 0

    def run(self, shards: Sequence[AnyShard] | ShardFeed) -> Generator[PipelineEvent, None, None]:
        """Encode shards, and commit each that can be read completely.

        If the caller stops before `Finished`, it must close the iterator, which deletes uncommitted parts.

        Raises
        ------
        EncoderContractError
            The encoder's output is invalid; the message names the clip.
        StoreError
            The store cannot be written.
        """
        began, busy_before = time.perf_counter(), self.encoder.busy_seconds
        stream = ClipStream(
            shards,
            sample_rate_hz=self.settings.sample_rate_hz,
            max_clip_seconds=self.settings.max_clip_seconds,
            decode_threads=self.settings.decode_threads,
        )
        with BackgroundWriter(self._times) as background, stream:
            numbers = itertools.count()
            shard: ShardExtraction | None = None  # the shard whose clips are being processed
            for event in self._timed(stream):
                if isinstance(event, ShardBegins):
                    shard = ShardExtraction(
                        number=next(numbers),
                        begins=event,
                        targets=self.targets(event.shard),
                        background=background,
                        settings=self.settings,
                        times=self._times,
                    )
                    self._open[shard.number] = shard
                elif isinstance(event, ClipRead) and shard is not None:
                    clip = shard.decoded(event)
                    if clip is not None:
                        for window in shard.windows(clip, self.plan(len(clip.samples))):
                            for batch in self.batcher.add(window):
                                yield from self._encode(batch)
                                yield from self._limit_pending_bytes()
                    yield ClipTaken(shard.source, 0.0 if clip is None else shard.seconds_of(clip))
                elif isinstance(event, ShardEnds) and shard is not None:
                    for batch in self.batcher.end_shard(shard.number):
                        yield from self._encode(batch)
                    shard.end_reading(event.sha256)
                    yield ShardRead(event.shard)
                    yield from self._commit_once_encoded(shard)
                    shard = None
                elif isinstance(event, ShardBreaks):
                    if shard is not None:
                        self.batcher.forget(shard.number)
                        del self._open[shard.number]
                        shard.fail()
                        shard = None
                    yield ShardRead(event.shard)
                    yield ShardFailed(event.shard, ShardError(str(event.error)))
                elif isinstance(event, ShardAwaited):
                    yield from self._flush()
            yield from self._flush()
            self._times.read, self._times.decode = stream.read_seconds, stream.decode_seconds
        self._times.busy = self.encoder.busy_seconds - busy_before
        self._times.total = time.perf_counter() - began
        yield Finished(self._times, self.settings)

    def _encode(self, windows: Batch) -> Iterator[PipelineEvent]:
        """Submit a batch, complete the batches beyond the limit in flight, and commit shards that are fully encoded."""
        shards = {window.shard: self._open[window.shard] for window in windows}
        with self._naming_the_clip(windows, shards):
            audio, n_samples = stack(windows, blank=self.encoder.blank)
            result = self.encoder.begin(audio, n_samples)
        self._times.batches += 1
        self._times.budgets += min(1.0, audio.size / (self.settings.batch_seconds * self.settings.sample_rate_hz))
        self._in_flight.append(_BatchInFlight(windows=windows, shards=shards, result=result))
        self._batches_in_flight += 1
        yield from self._complete(at_most=self.encoder.batches_ahead)
        for window in windows:
            shards[window.shard].note_submitted()
        for shard in shards.values():
            yield from self._commit_once_encoded(shard)

    def _commit_once_encoded(self, shard: ShardExtraction) -> Iterator[PipelineEvent]:
        """Queue the commit of a shard behind the batches in flight, if all of its windows are submitted."""
        if shard.is_fully_submitted:
            del self._open[shard.number]
            self._in_flight.append(shard)
            yield from self._complete(at_most=self.encoder.batches_ahead)

    def _complete(self, *, at_most: int) -> Iterator[PipelineEvent]:
        """Store the results of the oldest batches until `at_most` are in flight; commit the shards queued between them.

        Shards are therefore committed in the order in which their last windows were submitted.
        """
        while self._in_flight and (
            self._batches_in_flight > at_most or isinstance(self._in_flight[0], ShardExtraction)
        ):
            first = self._in_flight.popleft()
            if isinstance(first, ShardExtraction):
                yield ShardEncoded(first.source, first.commit())
            else:
                self._batches_in_flight -= 1
                self._store(first)

    def _store(self, batch: _BatchInFlight) -> None:
        """Wait for a batch and pass each row to its shard, which writes the rows that are next in order."""
        with self._naming_the_clip(batch.windows, batch.shards):
            outputs = batch.result()
        for row, window in enumerate(batch.windows):
            batch.shards[window.shard].add_embeddings(window.index, outputs, row=row)
        for shard in batch.shards.values():
            shard.write_ready()

    def _flush(self) -> Iterator[PipelineEvent]:
        """Encode all pending windows in partial batches, and complete all batches in flight."""
        for batch in self.batcher.flush():
            yield from self._encode(batch)
        yield from self._complete(at_most=0)

    def _limit_pending_bytes(self) -> Iterator[PipelineEvent]:
        """Encode the windows that have waited longest, until the pending embeddings are within the limit."""
        while self.max_pending_bytes is not None and self._pending_bytes() > self.max_pending_bytes:
            yield from self._complete(at_most=0)
            if not (batches := tuple(self.batcher.oldest())):
                return
            for batch in batches:
                yield from self._encode(batch)

    def _pending_bytes(self) -> int:
        """Embeddings in memory that wait for an earlier window, and unwritten ones of complete shards."""
        return sum(
            shard.encoded_bytes + (shard.unwritten_bytes if shard.state is ShardState.ENCODING else 0)
            for shard in self._open.values()
        )

    @contextmanager
    def _naming_the_clip(self, batch: Batch, shards: Mapping[int, ShardExtraction]) -> Iterator[None]:
        """Count the time as encoding, and add the clip to errors of the encoder."""
        from featstore.encoders.runner import NonFiniteRow  # imports torch, which real encoders have imported already

        began = time.perf_counter()
        try:
            yield
        except NonFiniteRow as problem:
            clip = _clip_of(batch[problem.row], shards)
            raise EncoderContractError(f"{self.encoder_name} failed on {clip}: {problem}") from problem
        except EncoderError as problem:
            others = f" or the {len(batch) - 1} batched with it" if len(batch) > 1 else ""
            raise type(problem)(f"{problem}; it was at {_clip_of(batch[0], shards)}{others}") from problem
        finally:
            self._times.encode += time.perf_counter() - began

    def _timed(self, stream: ClipStream) -> Iterator[Event]:
        """Events of the stream; waiting for an event counts as waiting for clips."""
        events = iter(stream)
        while True:
            began = time.perf_counter()
            event = next(events, None)
            self._times.wait_clips += time.perf_counter() - began
            if event is None:
                return
            yield event


def _clip_of(window: PendingWindow, shards: Mapping[int, ShardExtraction]) -> str:
    shard = shards[window.shard]
    return f"clip {shard.key_of(window.index)!r} of {shard.source.name}"


# --- one shard --------------------------------------------------------------------------------------------------------


class ShardState(Enum):
    """States of a shard in the pipeline."""

    READING = "reading"
    """Its clips are being decoded."""
    ENCODING = "encoding"
    """All clips are decoded; some windows are not encoded yet."""
    WRITING = "writing"
    """All windows are encoded; the commit is queued."""
    COMMITTED = "committed"
    """Its parts are in the store."""
    FAILED = "failed"
    """It could not be read or committed; its parts are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTarget:
    """Destination of one output of the encoder: its index in the result of `EncoderRun`, and the feature set.

    ``generation`` is the generation of the new part: see `SplitWriter.begin_part`.
    """

    output: int
    writer: SplitWriter
    frames_stored: bool
    generation: int


class ShardExtraction:
    """One shard from its first clip to its commit. Windows keep their order, whatever the batches.

    Attributes
    ----------
    number : int
        Number of the shard in this run.
    source : AnyShard
        The file to read.
    state : ShardState
    encoded_bytes : int
        Size of the embeddings that wait for an earlier window.
    """

    def __init__(
        self,
        *,
        number: int,
        begins: ShardBegins,
        targets: Sequence[PartTarget],
        background: BackgroundWriter,
        settings: EncodeSettings,
        times: StageTimes,
    ) -> None:
        self.number = number
        self.source = begins.shard
        self.state = ShardState.READING
        self.encoded_bytes = 0
        self._identity = begins.identity
        self._background = background
        self._settings = settings
        self._times = times
        self._parts = [
            (target, background.begin(target.writer, begins.shard.name, generation=target.generation))
            for target in targets
        ]
        self._sha256: Future[str] = Future()
        self._described: list[tuple[str, str, float, float]] = []  # key, JSON, start and duration of each window
        self._begun = 0
        self._encoded: dict[int, list[_Vectors]] = {}  # by window: those that wait for an earlier window
        self._submitted = 0
        self._submitted_bytes = 0
        self._unwritten = 0
        self._clips = 0
        self._audio_seconds = 0.0
        self._skipped: list[SkippedClip] = []

    def decoded(self, clip: ClipRead) -> DecodedClip | None:
        """Wait for a clip to be decoded, and count it; None if it is skipped."""
        began = time.perf_counter()
        try:
            decoded = clip.decoded.result()
        except UnusableClip as reason:
            self._skipped.append(
                SkippedClip(shard=self.source.name, key=clip.key, reason=str(reason), seconds=reason.seconds)
            )
            return None
        finally:
            self._times.wait_clips += time.perf_counter() - began
        self._clips += 1
        self._audio_seconds += self.seconds_of(decoded)
        return decoded

    def seconds_of(self, clip: DecodedClip) -> float:
        """Duration of a clip."""
        return len(clip.samples) / self._settings.sample_rate_hz

    def windows(self, clip: DecodedClip, planned: Sequence[Window]) -> Iterator[PendingWindow]:
        """Cut a clip into its planned windows."""
        rate = self._settings.sample_rate_hz
        for nth, window in enumerate(planned, start=1):
            key = clip.key if nth == 1 else f"{clip.key}#{nth}"
            self._described.append((key, clip.meta, window.start / rate, (window.stop - window.start) / rate))
            samples = clip.samples[window.start : window.stop]
            if len(planned) > 1:
                samples = samples.copy()  # a pending window must not keep the complete clip in memory
            yield PendingWindow(self.number, len(self._described) - 1, samples, window.padded)

    def end_reading(self, sha256: Future[str]) -> None:
        """End reading; `sha256` is the hash of the file."""
        self._sha256 = sha256
        self.state = ShardState.ENCODING

    def key_of(self, index: int) -> str:
        """Key of a window."""
        return self._described[index][0]

    def note_submitted(self) -> None:
        """Count a window as submitted."""
        self._begun += 1

    @property
    def is_fully_submitted(self) -> bool:
        """Whether every window of the shard has been submitted."""
        return self.state is ShardState.ENCODING and self._begun == len(self._described)

    @property
    def unwritten_bytes(self) -> int:
        """Upper bound of embeddings in memory until the commit: less than one file of frames per part."""
        return min(self._submitted_bytes, FILE_BYTES * len(self._parts))

    def add_embeddings(self, index: int, outputs: Sequence[Encoded], *, row: int) -> None:
        """Add the embeddings of a window: one row of each output of the encoder."""
        if self.state is ShardState.FAILED:
            return
        wanted = [outputs[target.output] for target, _ in self._parts]
        self._encoded[index] = [
            (encoded.utterance[row], encoded.frames[row] if encoded.frames is not None else None) for encoded in wanted
        ]
        self.encoded_bytes += _n_bytes(self._encoded[index])

    def write_ready(self) -> None:
        """Pass the windows that are next in the order of the shard to the writing thread."""
        ready = []
        while (vectors := self._encoded.pop(self._submitted, None)) is not None:
            key, meta, start, seconds = self._described[self._submitted]
            self.encoded_bytes -= _n_bytes(vectors)
            self._submitted_bytes += _n_bytes(vectors)
            ready.append(
                [
                    EmbeddedWindow(
                        key=key, meta=meta, start_seconds=start, seconds=seconds, utterance=utterance, frames=frames
                    )
                    for utterance, frames in vectors
                ]
            )
            self._submitted += 1
        if ready:
            self._background.submit(self._write, ready)

    def commit(self) -> Future[Outcome]:
        """Queue the commit behind the writes. All windows must be encoded."""
        self.state = ShardState.WRITING
        return self._background.submit(self._commit)

    def fail(self) -> None:
        """Delete the parts of a shard that cannot be read completely."""
        self.state = ShardState.FAILED
        self._encoded.clear()
        self.encoded_bytes = 0
        self._background.submit(self._abort)

    # --- in the writing thread ---

    def _write(self, windows: list[list[EmbeddedWindow]]) -> None:
        self._unwritten += len(windows)
        for number, (_, future) in enumerate(self._parts):
            part = future.result()
            for of_each_part in windows:
                part.add(of_each_part[number])
        self._unwritten -= len(windows)

    def _commit(self) -> Outcome:
        """Commit the parts. An error that concerns only this shard is returned, and the run continues."""
        try:
            stored = self._checked_commit()
        except ShardError as error:
            self.state = ShardState.FAILED
            self._abort()
            return error
        self.state = ShardState.COMMITTED
        return stored

    def _checked_commit(self) -> Mapping[int, StoredShard]:
        name, before = self.source.name, self._identity
        try:
            identity = self.source.identity(sha256=self._sha256.result())
        except (OSError, ShardError) as error:
            raise ShardError(f"shard {name} disappeared while it was read: {error}") from error
        if (identity.size, identity.mtime_ns, identity.etag) != (before.size, before.mtime_ns, before.etag):
            raise ShardError(f"shard {name} changed while it was read: run the same command again")
        if self._unwritten:  # an earlier write failed, which ends the run
            raise ShardError(f"shard {name} was not written completely: run the same command again")
        try:
            return {target.output: self._commit_part(target, future, identity) for target, future in self._parts}
        except PartLost as error:
            raise ShardError(f"shard {name} was encoded and not committed: {error}") from error

    def _commit_part(self, target: PartTarget, future: Future[PartWriter], identity: ShardIdentity) -> StoredShard:
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
        return StoredShard(member=member, n_bytes=sum(entry.size for entry in commit.objects.values()))

    def _abort(self) -> None:
        for _, future in self._parts:
            future.result().abort()
            self._background.end(future)


_Vectors = tuple[NDArray[np.float32], NDArray[np.generic] | None]
"""Utterance vector and frames of one output for one window."""


def _n_bytes(vectors: Sequence[_Vectors]) -> int:
    return sum(utterance.nbytes + (0 if frames is None else frames.nbytes) for utterance, frames in vectors)


# --- the thread that writes -------------------------------------------------------------------------------------------


_WRITES_AHEAD = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class BackgroundWriter:
    """One writing thread with a bounded queue. The first failed write ends the run."""

    times: StageTimes
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="write"))
    _waiting: list[Future[Any]] = field(default_factory=list)
    _open: set[Future[PartWriter]] = field(default_factory=set)

    def __enter__(self) -> BackgroundWriter:
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

    def begin(self, writer: SplitWriter, shard: str, *, generation: int) -> Future[PartWriter]:
        """Start a part. It is deleted at the end unless it is committed."""
        future = self._pool.submit(writer.begin_part, shard, generation=generation)
        self._open.add(future)
        return future

    def end(self, part: Future[PartWriter]) -> None:
        """Release a part, and its memory, after its commit or deletion."""
        self._open.discard(part)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Queue a write; block while the queue is full."""
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
        """Wait for queued writes, which may include the commit of a complete shard; then delete uncommitted parts."""
        self._pool.shutdown(wait=True)
        for future in self._open:
            if future.exception() is None:
                future.result().abort()
