"""Reads shards ahead of the encoder: one thread walks the tars, a pool decodes, and a bounded buffer follows."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from featstore.clip_json import parse_clip_json
from featstore.errors import DataError, UnusableClip
from featstore.extract.audio import decode
from featstore.extract.shards import AnyShard, RemoteShard, ShardFile, sha256_of_file
from featstore.extract.tar_reader import Sample, read_samples
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
    """Bounds a buffer: admits numbered clips while those inside stay under a limit, and the oldest always.

    Clips leave in the order of their numbers, 0, 1, 2... If the oldest had to wait to enter, none could ever leave.

    Parameters
    ----------
    most_bytes : int
        Limit of the clips inside together; one clip alone may be larger.
    most_clips : int
        How many numbers may be ahead of the oldest.
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
        """Wait until clip `number` is admitted; False where the buffer was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(number, n_bytes))
            if self._closed:
                return False
            self._inside[number] = n_bytes
            self._bytes += n_bytes
            return True

    def leave(self) -> None:
        """The oldest clip leaves, whether or not it had entered."""
        with self._changed:
            self._bytes -= self._inside.pop(self._oldest, 0)
            self._oldest += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Admit none of those that wait, and none later."""
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
MAX_KEY_CHARACTERS = 1024
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedClip:
    """A decoded clip: samples float32 (n,) at the encoder's rate."""

    key: str
    meta: str
    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ShardBegins:
    """The clips that follow are of this shard. ``identity`` is from before its first byte was read."""

    shard: AnyShard
    identity: ShardIdentity


@dataclass(frozen=True, slots=True)
class ClipRead:
    """One clip. ``decoded`` raises UnusableClip where it is skipped."""

    key: str
    decoded: Future[DecodedClip]


@dataclass(frozen=True, slots=True)
class ShardEnds:
    """The shard was read to its end."""

    shard: AnyShard
    sha256: Future[str]


@dataclass(frozen=True, slots=True)
class ShardBreaks:
    """The shard cannot be read to its end, or not at all: none of its clips count."""

    shard: AnyShard
    error: DataError


@dataclass(frozen=True, slots=True)
class ShardAwaited:
    """The next shard has not arrived yet, and may take long: other workers may have it, or it is being fetched."""


Event = ShardBegins | ClipRead | ShardEnds | ShardBreaks | ShardAwaited


class ShardFeed(Protocol):
    """Yields shards one after another while others are encoded.

    The next is asked for when the one before has been read to its end; a remote shard, when the reading of the one
    before begins, so that it is fetched meanwhile.
    """

    def __iter__(self) -> Iterator[AnyShard]:
        """Yield the next shard when there is one; end when there will be none."""

    def close(self) -> None:
        """Yield no more: end the reading thread's wait for the next."""


@dataclass(slots=True)
class _Spent:
    read: float = 0.0
    decode: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ClipStream:
    """Iterates over the events of `shards` while threads read ahead. A context manager: leaving it stops them."""

    def __init__(
        self,
        shards: Sequence[AnyShard] | ShardFeed,
        *,
        sample_rate_hz: int,
        max_clip_seconds: float,
        decode_threads: int,
    ) -> None:
        self._shards = shards
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
        """Time the reading thread was busy."""
        return self._spent.read

    @property
    def decode_seconds(self) -> float:
        """Time the decoding threads were busy, added up."""
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
        # at the end of a whole run only content hashes may be waiting, and commits wait for these
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
        ahead: Future[_Coming | None] | None = None
        try:
            while True:
                asked = time.perf_counter()
                coming = self._when_it_comes(ahead or fetcher.submit(_next, shards))
                ahead = None
                if coming is None:
                    break
                self._spent.read += time.perf_counter() - max(asked, coming.known_at)
                if self._stopped.is_set():
                    coming.close()
                    return
                # one remote shard is fetched while the one before it is read; it takes disk space meanwhile
                ahead = fetcher.submit(_next, shards) if isinstance(coming.shard, RemoteShard) else None
                self._events.put(self._read_shard(coming.shard, coming.fetched))
                if self._stopped.is_set():
                    return
            self._events.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where clips are taken
            self._events.put(error)
        finally:
            if ahead is not None and not ahead.cancel():
                ahead.add_done_callback(_close)
            fetcher.shutdown(wait=True, cancel_futures=True)

    def _when_it_comes(self, ahead: Future[_Coming | None]) -> _Coming | None:
        """Wait for the next shard, and report it if that takes long: the feed may wait for shards before it."""
        if not wait([ahead], timeout=_PATIENCE_SECONDS).done:
            self._events.put(ShardAwaited())
        return ahead.result()

    def _read_shard(self, shard: AnyShard, fetched: _Fetched | DataError) -> Event:
        if isinstance(fetched, DataError):
            return ShardBreaks(shard, fetched)
        identity, file = fetched
        self._events.put(ShardBegins(shard, identity))
        sha256 = self._pool.submit(sha256_of_file, file.path)
        try:
            self._read_clips(file.path, where=shard.where)
        except DataError as error:
            return ShardBreaks(shard, error)
        finally:
            sha256.add_done_callback(lambda _: file.close())
        return ShardEnds(shard, sha256)

    def _read_clips(self, path: Path, *, where: str) -> None:
        seen: set[str] = set()
        began = time.perf_counter()
        for sample in read_samples(path, where=where):
            problem = _problem(sample, seen)
            seen.add(sample.key)
            self._spent.read += time.perf_counter() - began
            number, self._clips = self._clips, self._clips + 1
            if not self._stored.enter(number, len(sample.audio) + len(sample.meta)):
                return
            decoded = self._pool.submit(self._decode, number, sample, problem)
            self._events.put(ClipRead(_printable(sample.key), decoded))
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
    """A shard's bytes on this machine, and its identity from before the first of them was read."""

    identity: ShardIdentity
    file: ShardFile


@dataclass(frozen=True, slots=True)
class _Coming:
    """A shard, when it was known to be the next, and the result of fetching it."""

    shard: AnyShard
    known_at: float
    fetched: _Fetched | DataError

    def close(self) -> None:
        if not isinstance(self.fetched, DataError):
            self.fetched.file.close()


def _next(shards: Iterator[AnyShard]) -> _Coming | None:
    """Wait for the next shard and fetch it; None where there will be none."""
    shard = next(shards, None)
    if shard is None:
        return None
    known_at = time.perf_counter()
    try:
        return _Coming(shard, known_at, _Fetched(shard.identity(), shard.fetch()))
    except DataError as error:
        return _Coming(shard, known_at, error)


def _close(coming: Future[_Coming | None]) -> None:
    if not coming.cancelled() and coming.exception() is None and (unread := coming.result()) is not None:
        unread.close()


def _problem(sample: Sample, seen: set[str]) -> str:
    """Why a sample is skipped without decoding it; empty if it is not."""
    if sample.problem:
        return sample.problem
    if sample.key in seen:
        return "a clip of this key came before it in the shard"
    if len(sample.key) > MAX_KEY_CHARACTERS:
        return f"its key has {len(sample.key):,} characters, more than {MAX_KEY_CHARACTERS:,}"
    if not _is_text(sample.key):
        return "its key is not UTF-8 text"
    if _CONTROLS.search(sample.key):
        return "its key has control characters"
    return ""


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(key: str) -> str:
    """A key as a record names it: bytes that are not text, and control characters, escaped; a long one shortened."""
    text = key.encode("utf-8", "backslashreplace").decode()
    text = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text if len(text) <= MAX_KEY_CHARACTERS else f"{text[:64]}... ({len(text):,} characters)"


def _checked_json(raw: bytes) -> str:
    """JSON text, as it is in the shard.

    Raises
    ------
    UnusableClip
        `parse_clip_json` rejects it.
    """
    try:
        text = raw.decode("utf-8")
        parse_clip_json(text)
    except ValueError as error:
        raise UnusableClip(f"its .json is no JSON: {' '.join(str(error).split())[:120]}") from error
    return text
