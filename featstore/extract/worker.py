"""A worker: loads the encoder once, then encodes the shards that its coordinator assigns, job after job.

The coordinator sends `Describe` or `Encode`, and answers each `NextShard` with a `StaleShard` or None; the worker sends
the events below. All messages are pickled. A worker ends when its coordinator ends.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featstore.errors import EncoderError, FeatstoreError, ShardError
from featstore.extract.engine import EncoderRequest
from featstore.extract.job import DeviceEncoder, EncodeJob, EncoderCard, StaleShard
from featstore.extract.results import (
    ClipTaken,
    EncodeSettings,
    Outcome,
    ShardEncoded,
    ShardFailed,
    ShardRead,
    StageTimes,
    StoredShard,
)
from featstore.extract.shards import AnyShard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.canary import CanaryReading
    from featstore.extract.options import ExtractOptions

__all__ = [
    "ClipsDone",
    "CoordinatorGone",
    "Describe",
    "Described",
    "Died",
    "Encode",
    "Event",
    "Failed",
    "JobDone",
    "Link",
    "Loaded",
    "Message",
    "NextShard",
    "ShardDone",
    "ShardTaken",
    "WorkerSettings",
    "work",
]

_CLIPS_DONE_EVERY_SECONDS = 0.2
_LOOK_EVERY_SECONDS = 0.2


# --- to a worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe:
    """Return the encoder's card under these options.

    With `canary`, also its output for the reference signals; with `texts`, also their vectors.
    """

    options: ExtractOptions
    canary: bool = False
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Encode shards of this job, requesting one after another."""

    job: EncodeJob


Message = Describe | Encode | StaleShard | None


# --- from a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """The encoder is loaded; the worker waits for `Describe` or `Encode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The answer to `Describe`."""

    card: EncoderCard
    canary: CanaryReading | None
    text_vectors: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class NextShard:
    """The worker can read another shard; it waits for one, or for None, which ends the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsDone:
    """Further clips of a shard have been encoded or skipped."""

    shard: str
    clips: int
    audio_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTaken:
    """All clips of a shard are processed; its batches and its commit are pending."""

    shard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDone:
    """A shard is committed, with a part per output; or it failed for the reason in `broken`."""

    shard: str
    stored: Mapping[int, StoredShard]
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDone:
    """All shards of the job that this worker took are done; it waits for `Describe` or `Encode`."""

    times: StageTimes
    settings: EncodeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request failed, and would fail on any worker."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker has died, and sends nothing more. Reported by the object that started it."""

    why: str
    advice: str


Event = Loaded | Described | NextShard | ClipsDone | ShardTaken | ShardDone | JobDone | Failed | Died


class CoordinatorGone(Exception):
    """The coordinator has ended or closed the link; uncommitted work is discarded."""


class Link(Protocol):
    """A worker's end of its connection to the coordinator. `send` is thread-safe."""

    def send(self, event: Event) -> None:
        """Send an event. Raises CoordinatorGone."""

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for a message. Raises CoordinatorGone, and TimeoutError after `timeout` seconds."""


# --- the worker -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The device that a worker encodes on, and the number of the machine's cores that it uses."""

    device: str
    cores: int


def work(link: Link, request: EncoderRequest, settings: WorkerSettings) -> None:
    """Load the encoder, then process messages until the coordinator is gone or an error occurs."""
    try:
        device_encoder = _load(request, settings)
        link.send(Loaded())
        while True:
            message = link.receive()
            if isinstance(message, Describe):
                reading = device_encoder.canary(message.options) if message.canary else None
                texts = device_encoder.encode_texts(message.texts, message.options) if message.texts else None
                link.send(Described(card=device_encoder.describe(message.options), canary=reading, text_vectors=texts))
            elif isinstance(message, Encode):
                _encode(device_encoder, message.job, link)
    except CoordinatorGone:
        return
    except Exception as error:  # noqa: BLE001 - the coordinator raises it again
        with suppress(CoordinatorGone):
            link.send(Failed(error=_picklable(error)))


def _load(request: EncoderRequest, settings: WorkerSettings) -> DeviceEncoder:
    from featstore.encoders.devices import set_up_device

    if not Path(request.folder).is_dir():
        raise EncoderError(
            f"a worker has no folder {request.folder}, the working directory of the command and the base of relative "
            "paths: run the command in a folder that every node has"
        )
    os.chdir(request.folder)
    set_up_device(settings.device, threads=settings.cores)
    return DeviceEncoder(request.load(), device=settings.device, n_cores=settings.cores)


def _encode(device_encoder: DeviceEncoder, job: EncodeJob, link: Link) -> None:
    """Encode the shards of a job, and report on them; clips are reported a few times per second."""
    device_encoder.check(job)
    feed = _Feed(link)
    clips, audio_seconds, reported = 0, 0.0, time.monotonic()
    with closing(device_encoder.events(job, feed, stale=feed.taken)) as events:
        for event in events:
            if isinstance(event, ClipTaken | ShardRead):
                is_last = isinstance(event, ShardRead)
                if isinstance(event, ClipTaken):
                    clips, audio_seconds = clips + 1, audio_seconds + event.audio_seconds
                if clips and (is_last or time.monotonic() - reported >= _CLIPS_DONE_EVERY_SECONDS):
                    link.send(ClipsDone(shard=event.shard.name, clips=clips, audio_seconds=audio_seconds))
                    clips, audio_seconds, reported = 0, 0.0, time.monotonic()
                if is_last:
                    link.send(ShardTaken(shard=event.shard.name))
            elif isinstance(event, ShardEncoded):
                feed.last_encoded = time.perf_counter()
                event.outcome.add_done_callback(partial(_send_outcome, link, feed, event.shard.name))
            elif isinstance(event, ShardFailed):
                link.send(ShardDone(shard=event.shard.name, stored={}, broken=str(event.error)))
            else:
                event.times.wait_clips = max(0.0, event.times.wait_clips - feed.idle_seconds)
                done = JobDone(times=event.times, settings=event.settings)
    link.send(done)


def _send_outcome(link: Link, feed: _Feed, shard: str, done: Future[Outcome]) -> None:
    """Report a shard when it is committed: the event loop may be waiting for the next shard."""
    if done.exception() is not None:
        feed.close()  # the loop raises the error when it waits for no more shards
        return
    outcome = done.result()
    with suppress(CoordinatorGone):  # the loop detects that too
        if isinstance(outcome, ShardError):
            link.send(ShardDone(shard=shard, stored={}, broken=str(outcome)))
        else:
            link.send(ShardDone(shard=shard, stored=outcome))


class _Feed:
    """Shards of one job, in the order of assignment.

    Attributes
    ----------
    taken : dict
        Shards assigned so far, by name.
    last_encoded : float
        Time when the last shard was encoded, by `time.perf_counter`; set by the caller.
    idle_seconds : float
        Idle time of this worker at the end of the job, while others were encoding.
    """

    def __init__(self, link: Link) -> None:
        self.taken: dict[str, StaleShard] = {}
        self.last_encoded = time.perf_counter()
        self.idle_seconds = 0.0
        self._link = link
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[AnyShard]:
        """Request a shard, wait for it, yield it."""
        while not self._closed.is_set():
            self._link.send(NextShard())
            assigned = self._answer()
            if assigned is None:
                self.idle_seconds = max(0.0, time.perf_counter() - self.last_encoded)
                return
            self.taken[assigned.shard.name] = assigned
            yield assigned.shard

    def close(self) -> None:
        """Stop waiting for a shard, after a failure in another thread."""
        self._closed.set()

    def _answer(self) -> StaleShard | None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                message = self._link.receive(_LOOK_EVERY_SECONDS)
                return message if isinstance(message, StaleShard) else None
        return None


def _picklable(error: Exception) -> BaseException:
    """The error if it can be pickled, with its traceback as a note, which pickling would drop."""
    where = "".join(traceback.format_exception(error))
    sent: BaseException = error
    try:
        survives = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - pickling an exception class of the user may fail in any way
        survives = False
    if not survives:
        sent = FeatstoreError(f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())}")
    sent.add_note(f"In a worker:\n{where}")
    return sent
