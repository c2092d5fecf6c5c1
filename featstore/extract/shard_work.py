"""One shard between its first clip and its commit: clips -> windows -> batches -> encoder -> part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import EncoderContractError, EncoderError, ShardError, UnusableClip
from featstore.extract.background import BackgroundWriter
from featstore.extract.batches import Batch, Batcher, PendingWindow, stack
from featstore.extract.outcome import EncodeSettings, Outcome, StageTimes, StoredShard
from featstore.extract.stream import ClipRead, DecodedClip, ShardBegins
from featstore.extract.under_way import UnderWay
from featstore.extract.windows import Window
from featstore.records import SkippedClip
from featstore.store import EmbeddedWindow, Member, PartWriter, ShardIdentity, SplitWriter

if TYPE_CHECKING:
    from featstore.encoders.made import Encoded

__all__ = ["BatchEncoder", "PartTarget", "ShardWork"]


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


class ShardWork:
    """One shard between its first clip and its commit: windows keep their order while batches come back out of it."""

    def __init__(
        self,
        *,
        begins: ShardBegins,
        background: BackgroundWriter,
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
        self._unwritten = 0
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

    def commit(self, sha256: Future[str]) -> Future[Outcome]:
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
            audio, n_samples = stack(batch, blank=self._encoder.blank)
            result = self._encoder.begin(audio, n_samples)
        self._times.batches += 1
        self._times.budgets += min(1.0, audio.size / (self._settings.batch_seconds * self._settings.sample_rate_hz))
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
        from featstore.encoders.running import NonFiniteRow  # it imports torch: whoever encodes has that already

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
        self._unwritten += len(windows)
        for number, (_, future) in enumerate(self._parts):
            part = future.result()
            for of_each_part in windows:
                part.add(of_each_part[number])
        self._unwritten -= len(windows)

    def _commit(self, sha256: Future[str]) -> Outcome:
        """Commit the parts; an error that concerns this shard alone is returned, and the run goes on."""
        try:
            identity = self._shard.identity(sha256=sha256.result())
        except (OSError, ShardError) as error:
            self._abort()
            return ShardError(f"shard {self._shard.name} went away while it was read: {error}")
        before = self._identity
        if (identity.size, identity.mtime_ns, identity.etag) != (before.size, before.mtime_ns, before.etag):
            self._abort()
            return ShardError(f"shard {self._shard.name} changed while it was read: run the same command again")
        if self._unwritten:  # a write failed, which ends the run; this commit was queued behind it by then
            self._abort()
            return ShardError(f"shard {self._shard.name} was not written whole: run the same command again")
        return {target.output: self._commit_part(target, future, identity) for target, future in self._parts}

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
