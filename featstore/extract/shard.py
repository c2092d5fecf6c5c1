"""One shard from its first clip to its commit, and the thread that writes its part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import PartLost, ShardError, UnusableClip
from featstore.extract.batching import PendingWindow
from featstore.extract.results import Outcome, StageTimes, StoredShard
from featstore.extract.shard_reader import ClipRead, DecodedClip, ShardBegins
from featstore.extract.windows import Window
from featstore.records import SkippedClip
from featstore.store import EmbeddedWindow, Member, PartWriter, ShardIdentity, SplitWriter
from featstore.store.layout import FILE_BYTES

if TYPE_CHECKING:
    from featstore.encoders.batch_outputs import Encoded

__all__ = ["BackgroundWriter", "PartTarget", "ShardWork"]


_WRITES_AHEAD = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class BackgroundWriter:
    """One thread that writes. A few writes may wait; the first that fails stops the run."""

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

    def begin(self, writer: SplitWriter, shard: str, *, generation: int | None) -> Future[PartWriter]:
        """Start a part. It is deleted at the end if it was never committed."""
        future = self._pool.submit(writer.begin_part, shard, generation=generation)
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


_Vectors = tuple[NDArray[np.float32], NDArray[np.generic] | None]
"""What a window came to, of one output: its utterance vector, and its frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTarget:
    """Where one output of the encoder goes: its place among what `BatchEncoder` returns, and the feature set.

    ``generation`` is that of the part, as `SplitWriter.begin_part` takes it.
    """

    output: int
    writer: SplitWriter
    frames_stored: bool
    generation: int | None = None


class ShardWork:
    """One shard between its first clip and its commit: windows keep their order while batches come back out of it."""

    def __init__(
        self,
        *,
        number: int,
        begins: ShardBegins,
        background: BackgroundWriter,
        targets: Sequence[PartTarget],
        plan: Callable[[int], tuple[Window, ...]],
        sample_rate_hz: int,
        versions: Mapping[str, str],
        times: StageTimes,
    ) -> None:
        self.number = number
        self.shard = begins.shard
        self._identity = begins.identity
        self._background = background
        self._plan = plan
        self._sample_rate_hz = sample_rate_hz
        self._versions = versions
        self._times = times
        self._parts = [
            (target, background.begin(target.writer, begins.shard.name, generation=target.generation))
            for target in targets
        ]
        self._described: list[tuple[str, str, float, float]] = []
        self._begun = 0
        self._encoded: dict[int, list[_Vectors]] = {}
        self._stored = 0
        self._encoded_bytes = 0
        self._stored_bytes = 0
        self._unwritten = 0
        self._clips = 0
        self._audio_seconds = 0.0
        self._skipped: list[SkippedClip] = []

    def take(self, clip: ClipRead) -> DecodedClip | None:
        """Wait for a clip to be decoded, and count it; None where it is left out."""
        began = time.perf_counter()
        try:
            decoded = clip.decoded.result()
        except UnusableClip as reason:
            self._skipped.append(
                SkippedClip(shard=self.shard.name, key=clip.key, reason=str(reason), seconds=reason.seconds)
            )
            return None
        finally:
            self._times.wait_clips += time.perf_counter() - began
        self._clips += 1
        self._audio_seconds += self.seconds_of(decoded)
        return decoded

    def seconds_of(self, clip: DecodedClip) -> float:
        """How long a clip is."""
        return len(clip.samples) / self._sample_rate_hz

    def windows(self, clip: DecodedClip) -> Iterator[PendingWindow]:
        """Plan a clip's windows, and yield them one after another."""
        rate = self._sample_rate_hz
        planned = self._plan(len(clip.samples))
        for nth, window in enumerate(planned, start=1):
            key = clip.key if nth == 1 else f"{clip.key}#{nth}"
            self._described.append((key, clip.meta, window.start / rate, (window.stop - window.start) / rate))
            samples = clip.samples[window.start : window.stop]
            if len(planned) > 1:
                samples = samples.copy()  # a window that waits for its batch must not hold the whole clip
            yield PendingWindow(self.number, len(self._described) - 1, samples, window.padded)

    def key_of(self, index: int) -> str:
        """Key of a window."""
        return self._described[index][0]

    def note_begun(self) -> None:
        """One more of its windows is in a batch that was begun."""
        self._begun += 1

    @property
    def is_all_begun(self) -> bool:
        """Whether each of its windows so far is in a batch that was begun."""
        return self._begun == len(self._described)

    @property
    def waiting_bytes(self) -> int:
        """Embeddings that wait for those of a window before them."""
        return self._encoded_bytes

    @property
    def unwritten_bytes(self) -> int:
        """Embeddings that may be in memory until the commit: of each part, what is less than a file of frames."""
        return min(self._stored_bytes, FILE_BYTES * len(self._parts))

    def keep(self, index: int, outputs: Sequence[Encoded], *, row: int) -> None:
        """Keep what a window came to, which is a row of each of the encoder's outputs."""
        wanted = [outputs[target.output] for target, _ in self._parts]
        self._encoded[index] = [
            (encoded.utterance[row], encoded.frames[row] if encoded.frames is not None else None) for encoded in wanted
        ]
        self._encoded_bytes += _n_bytes(self._encoded[index])

    def store_what_is_next(self) -> None:
        """Hand over the windows that are ready in the order of the shard."""
        ready = []
        while (done := self._encoded.pop(self._stored, None)) is not None:
            key, meta, start, seconds = self._described[self._stored]
            self._encoded_bytes -= _n_bytes(done)
            self._stored_bytes += _n_bytes(done)
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

    def commit(self, sha256: Future[str]) -> Future[Outcome]:
        """All batches are settled: commit in the background."""
        return self._background.submit(self._commit, sha256)

    def give_up(self) -> None:
        """The shard broke off: what was written of it goes."""
        self._background.submit(self._abort)

    def _add(self, windows: list[list[EmbeddedWindow]]) -> None:
        self._unwritten += len(windows)
        for number, (_, future) in enumerate(self._parts):
            part = future.result()
            for of_each_part in windows:
                part.add(of_each_part[number])
        self._unwritten -= len(windows)

    def _commit(self, sha256: Future[str]) -> Outcome:
        """Commit the parts; an error that concerns this shard alone is returned, and the run goes on."""
        try:
            identity = self.shard.identity(sha256=sha256.result())
        except (OSError, ShardError) as error:
            self._abort()
            return ShardError(f"shard {self.shard.name} went away while it was read: {error}")
        before = self._identity
        if (identity.size, identity.mtime_ns, identity.etag) != (before.size, before.mtime_ns, before.etag):
            self._abort()
            return ShardError(f"shard {self.shard.name} changed while it was read: run the same command again")
        if self._unwritten:  # a write failed, which ends the run; this commit was queued behind it by then
            self._abort()
            return ShardError(f"shard {self.shard.name} was not written whole: run the same command again")
        try:
            return {target.output: self._commit_part(target, future, identity) for target, future in self._parts}
        except PartLost as error:
            self._abort()
            return ShardError(f"shard {self.shard.name} was encoded and not committed: {error}")

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
        commit = part.commit([member], frames_stored=target.frames_stored, versions=self._versions)
        self._background.end(future)
        return StoredShard(member=member, n_bytes=sum(entry.size for entry in commit.objects.values()))

    def _abort(self) -> None:
        for _, future in self._parts:
            future.result().abort()
            self._background.end(future)


def _n_bytes(vectors: Sequence[_Vectors]) -> int:
    return sum(utterance.nbytes + (0 if frames is None else frames.nbytes) for utterance, frames in vectors)
