"""Reads shards ahead of the encoder: one thread reads the tars, a thread pool decodes into a bounded buffer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from featstore.clip_json import parse_clip_json, printable_key, problem_of_key
from featstore.errors import DataError, UnusableClip
from featstore.extract.audio import decode
from featstore.extract.shards import AnyShard, RemoteShard, ShardFile
from featstore.extract.tar_reader import Sample, read_samples
from featstore.files import sha256_of_file
from featstore.store import ShardIdentity

__all__ = [
    "ClipRead",
    "ClipStream",
    "DecodedClip",
    "Event",
    "ShardAwaited",
    "ShardBegins",
    "ShardBreaks",
    "ShardEnds",
    "ShardFeed",
]


class BufferLimit:
    """Bounds a buffer: admits numbered clips while their total size is within a limit, and always admits the oldest.

    Clips leave in the order of their numbers, 0, 1, 2... The oldest must be admitted, or no clip could ever leave.

    Parameters
    ----------
    most_bytes : int
        Maximum total size of the admitted clips; a single clip may be larger.
    most_clips : int
        Maximum difference between an admitted number and the oldest.
    """

    def __init__(self, *, most_bytes: int, most_clips: int) -> None:
        self._most_bytes = most_bytes
        self._most_clips = most_clips
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._bytes = 0
        self._oldest = 0
        self._closed = False

    def enter(self, number: int, n_bytes: int) -> bool:
        """Block until clip `number` is admitted; False if the buffer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(number, n_bytes))
            if self._closed:
                return False
            self._inside[number] = n_bytes
            self._bytes += n_bytes
            return True

    def leave(self) -> None:
        """Release the oldest clip, whether or not it was admitted."""
        with self._changed:
            self._bytes -= self._inside.pop(self._oldest, 0)
            self._oldest += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Reject all waiting and later clips."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, number: int, n_bytes: int) -> bool:
        ahead = number - self._oldest
        return ahead <= 0 or (ahead < self._most_clips and self._bytes + n_bytes <= self._most_bytes)


_CLIPS_AHEAD = 64
_PATIENCE_SECONDS = 1.0
_STORED_BYTES_AHEAD = 256 << 20
_DECODED_BYTES_AHEAD = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedClip:
    """A decoded clip: float32 samples (n,) at the encoder's sample rate."""

    key: str
    meta: str
    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ShardBegins:
    """Start of a shard. ``identity`` was read before its first byte."""

    shard: AnyShard
    identity: ShardIdentity


@dataclass(frozen=True, slots=True)
class ClipRead:
    """A clip. ``decoded`` raises UnusableClip if it is skipped."""

    key: str
    decoded: Future[DecodedClip]


@dataclass(frozen=True, slots=True)
class ShardEnds:
    """End of a shard that was read completely.

    Of a stream of requested clips, ``sha256`` is the hash of nothing, and ``keys`` are the keys of all samples.
    """

    shard: AnyShard
    sha256: Future[str]
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ShardBreaks:
    """A shard that cannot be read, or not completely: its clips are discarded."""

    shard: AnyShard
    error: DataError


@dataclass(frozen=True, slots=True)
class ShardAwaited:
    """The next shard is not available yet: it may be with other workers, or being downloaded."""


Event = ShardBegins | ClipRead | ShardEnds | ShardBreaks | ShardAwaited


class ShardFeed(Protocol):
    """Yields shards one after another while others are encoded.

    The next shard is requested when the current one has been read; a remote shard is requested when reading of the
    current one starts, so that it is downloaded meanwhile.
    """

    def __iter__(self) -> Iterator[AnyShard]:
        """Yield the next shard when it is available; end when there is none."""

    def close(self) -> None:
        """Stop yielding: wake up the reading thread if it waits for a shard."""


@dataclass(slots=True)
class _Spent:
    read: float = 0.0
    decode: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ClipStream:
    """Iterates over the events of `shards` while threads read ahead. Leaving the context stops the threads.

    Parameters
    ----------
    shards : sequence of AnyShard, or ShardFeed
    sample_rate_hz : int
    max_clip_seconds : float
        Clips with a longer claimed duration cannot be used.
    decode_threads : int
    only : mapping, optional
        Name of a shard -> keys of the requested clips. Other clips are located without being read, and shards are not
        hashed.
    """

    def __init__(
        self,
        shards: Sequence[AnyShard] | ShardFeed,
        *,
        sample_rate_hz: int,
        max_clip_seconds: float,
        decode_threads: int,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._shards = shards
        self._only = only
        self._sample_rate_hz = sample_rate_hz
        self._max_clip_seconds = max_clip_seconds
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()
        self._stored = BufferLimit(most_bytes=_STORED_BYTES_AHEAD, most_clips=_CLIPS_AHEAD)
        self._decoded = BufferLimit(most_bytes=_DECODED_BYTES_AHEAD, most_clips=_CLIPS_AHEAD)
        self._clips = 0
        self._stopped = threading.Event()
        self._spent = _Spent()
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)

    @property
    def read_seconds(self) -> float:
        """Time that the reading thread was busy."""
        return self._spent.read

    @property
    def decode_seconds(self) -> float:
        """Total time that the decoding threads were busy."""
        return self._spent.decode

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._stored.close()
        self._decoded.close()
        if not isinstance(self._shards, Sequence):
            self._shards.close()
        # after a complete run only content hashes may be pending, and commits wait for these
        self._pool.shutdown(wait=True, cancel_futures=error[0] is not None)
        self._reader.join()

    def __iter__(self) -> Iterator[Event]:
        while (event := self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, ClipRead):
                self._stored.leave()
                self._decoded.leave()

    def _read(self) -> None:
        fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        shards = iter(self._shards)
        ahead: Future[_NextShard | None] | None = None
        try:
            while True:
                asked = time.perf_counter()
                next_shard = self._wait_for_next(ahead or fetcher.submit(_next, shards))
                ahead = None
                if next_shard is None:
                    break
                self._spent.read += time.perf_counter() - max(asked, next_shard.known_at)
                if self._stopped.is_set():
                    next_shard.close()
                    return
                # one remote shard, which takes disk space, is downloaded while the previous one is read
                ahead = fetcher.submit(_next, shards) if isinstance(next_shard.shard, RemoteShard) else None
                self._events.put(self._read_shard(next_shard.shard, next_shard.fetched))
                if self._stopped.is_set():
                    return
            self._events.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consuming thread
            self._events.put(error)
        finally:
            if ahead is not None and not ahead.cancel():
                ahead.add_done_callback(_close)
            fetcher.shutdown(wait=True, cancel_futures=True)

    def _wait_for_next(self, ahead: Future[_NextShard | None]) -> _NextShard | None:
        """Wait for the next shard, and report a long wait: the feed may wait for earlier shards."""
        if not wait([ahead], timeout=_PATIENCE_SECONDS).done:
            self._events.put(ShardAwaited())
        return ahead.result()

    def _read_shard(self, shard: AnyShard, fetched: _Fetched | DataError) -> Event:
        if isinstance(fetched, DataError):
            return ShardBreaks(shard, fetched)
        identity, file = fetched
        self._events.put(ShardBegins(shard, identity))
        only, keys = (None, None) if self._only is None else (self._only[shard.name], set[str]())
        sha256 = self._pool.submit(str) if self._only is not None else self._pool.submit(sha256_of_file, file.path)
        try:
            self._read_clips(file.path, where=shard.where, only=only, keys=keys)
        except DataError as error:
            return ShardBreaks(shard, error)
        finally:
            sha256.add_done_callback(lambda _: file.close())
        return ShardEnds(shard, sha256, frozenset(keys or ()))

    def _read_clips(self, path: Path, *, where: str, only: Collection[str] | None, keys: set[str] | None) -> None:
        seen: set[str] = set()
        began = time.perf_counter()
        for sample in read_samples(path, where=where, only=only, keys=keys):
            problem = _problem(sample, seen)
            seen.add(sample.key)
            self._spent.read += time.perf_counter() - began
            number, self._clips = self._clips, self._clips + 1
            if not self._stored.enter(number, len(sample.audio) + len(sample.meta)):
                return
            decoded = self._pool.submit(self._decode, number, sample, problem)
            self._events.put(ClipRead(printable_key(sample.key), decoded))
            began = time.perf_counter()
        self._spent.read += time.perf_counter() - began

    def _decode(self, number: int, sample: Sample, problem: str) -> DecodedClip:
        if problem:
            raise UnusableClip(problem)
        began = time.perf_counter()
        waited = 0.0

        def admit(n_bytes: int) -> None:
            nonlocal waited
            asked = time.perf_counter()
            self._decoded.enter(number, n_bytes)
            waited = time.perf_counter() - asked

        try:
            meta = _checked_json(sample.meta)
            samples = decode(
                sample.audio, sample_rate_hz=self._sample_rate_hz, max_seconds=self._max_clip_seconds, admit=admit
            )
        finally:
            with self._spent.lock:
                self._spent.decode += time.perf_counter() - began - waited
        return DecodedClip(key=sample.key, meta=meta, samples=samples)


class _Fetched(NamedTuple):
    """The local file of a shard, and its identity before the first byte was read."""

    identity: ShardIdentity
    file: ShardFile


@dataclass(frozen=True, slots=True)
class _NextShard:
    """The next shard, the time when it was known, and the result of its download."""

    shard: AnyShard
    known_at: float
    fetched: _Fetched | DataError

    def close(self) -> None:
        if not isinstance(self.fetched, DataError):
            self.fetched.file.close()


def _next(shards: Iterator[AnyShard]) -> _NextShard | None:
    """Wait for the next shard and download it; None if there is none."""
    shard = next(shards, None)
    if shard is None:
        return None
    known_at = time.perf_counter()
    try:
        return _NextShard(shard, known_at, _Fetched(shard.identity(), shard.fetch()))
    except DataError as error:
        return _NextShard(shard, known_at, error)


def _close(next_shard: Future[_NextShard | None]) -> None:
    if not next_shard.cancelled() and next_shard.exception() is None and (unread := next_shard.result()) is not None:
        unread.close()


def _problem(sample: Sample, seen: set[str]) -> str:
    """Reason to skip a sample without decoding it; empty if there is none."""
    if sample.problem:
        return sample.problem
    if sample.key in seen:
        return "a clip of this key came before it in the shard"
    return problem_of_key(sample.key)


def _checked_json(raw: bytes) -> str:
    """The JSON text as stored in the shard.

    Raises
    ------
    UnusableClip
        `parse_clip_json` rejects it.
    """
    try:
        text = raw.decode("utf-8")
        parse_clip_json(text)
    except ValueError as error:
        raise UnusableClip(f"its .json is not valid JSON: {' '.join(str(error).split())[:120]}") from error
    return text
