"""One worker: loads the encoder once, then encodes the shards that its coordinator assigns, job after job.

The coordinator sends `Describe` or `Encode`, and a `StaleShard` or None as the answer to each `NextShard`; a worker
sends the events below. Everything is pickled on the way. A worker ends when its coordinator does.
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
from featstore.extract.job import EncodeJob, EncoderCard, StaleShard, Workplace
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
    """Return the encoder's card under these options; with `canary`, also its output for the reference signals."""

    options: ExtractOptions
    canary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Encode shards of this job, asking for one after another."""

    job: EncodeJob


Message = Describe | Encode | StaleShard | None


# --- from a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """The encoder is loaded: the worker waits for `Describe` or `Encode`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The answer to `Describe`."""

    card: EncoderCard
    canary: CanaryReading | None


@dataclass(frozen=True, slots=True)
class NextShard:
    """The worker can read another shard: it waits for one, or for None, which ends the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsDone:
    """N more clips of a shard have been taken for encoding or skipped."""

    shard: str
    clips: int
    audio_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTaken:
    """The last clip of a shard has been taken: its batches and its commit are pending."""

    shard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDone:
    """A shard is committed, with a part for each output; or it failed, and `broken` is why."""

    shard: str
    stored: Mapping[int, StoredShard]
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDone:
    """All shards of the job that this worker took are done: it waits for `Describe` or `Encode`."""

    times: StageTimes
    settings: EncodeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """What was asked for cannot be done, by this worker or any other."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker is dead, and sends nothing more. It is reported by what started the worker."""

    why: str
    advice: str


Event = Loaded | Described | NextShard | ClipsDone | ShardTaken | ShardDone | JobDone | Failed | Died


class CoordinatorGone(Exception):
    """The coordinator has ended or closed the link: what is not committed is of no use to it."""


class Link(Protocol):
    """A worker's end of its connection to the coordinator. `send` may be called by several threads."""

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
    """Load the encoder, then do what messages ask for, until the coordinator is gone or something fails."""
    try:
        workplace = _load(request, settings)
        link.send(Loaded())
        while True:
            message = link.receive()
            if isinstance(message, Describe):
                reading = workplace.canary(message.options) if message.canary else None
                link.send(Described(card=workplace.card(message.options), canary=reading))
            elif isinstance(message, Encode):
                _encode(workplace, message.job, link)
    except CoordinatorGone:
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the coordinator raises it where the user sees it
        with suppress(CoordinatorGone):
            link.send(Failed(error=_picklable(error)))


def _load(request: EncoderRequest, settings: WorkerSettings) -> Workplace:
    from featstore.encoders.devices import settle_on

    if not Path(request.folder).is_dir():
        raise EncoderError(
            f"a worker has no folder {request.folder}, from which the command was run and where its relative paths "
            "lead: run the command from a folder that every node has"
        )
    os.chdir(request.folder)
    settle_on(settings.device, threads=settings.cores)
    return Workplace(request.load(), device=settings.device, cores=settings.cores)


def _encode(workplace: Workplace, job: EncodeJob, link: Link) -> None:
    """Encode the shards of a job, and report on them. Clips are reported a few times a second."""
    workplace.check(job)
    feed = _Feed(link)
    clips, audio_seconds, reported = 0, 0.0, time.monotonic()
    with closing(workplace.encode(job, feed, stale=feed.taken)) as events:
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
    """Report a shard as soon as it is committed: the loop over events may be waiting for the next shard."""
    if done.exception() is not None:
        feed.close()  # the loop raises the error when it has no more shards to wait for
        return
    outcome = done.result()
    with suppress(CoordinatorGone):  # the loop finds that out too
        if isinstance(outcome, ShardError):
            link.send(ShardDone(shard=shard, stored={}, broken=str(outcome)))
        else:
            link.send(ShardDone(shard=shard, stored=outcome))


class _Feed:
    """Shards of one job, as the coordinator assigns them.

    Attributes
    ----------
    taken : dict
        The shards assigned so far, by name.
    last_encoded : float
        When the last shard had been encoded, by `time.perf_counter`; set by the caller.
    idle_seconds : float
        Time at the end of the job in which this worker had nothing to encode and others had.
    """

    def __init__(self, link: Link) -> None:
        self.taken: dict[str, StaleShard] = {}
        self.last_encoded = time.perf_counter()
        self.idle_seconds = 0.0
        self._link = link
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[AnyShard]:
        """Ask for a shard, wait for it, yield it."""
        while not self._closed.is_set():
            self._link.send(NextShard())
            assigned = self._answer()
            if assigned is None:
                self.idle_seconds = max(0.0, time.perf_counter() - self.last_encoded)
                return
            self.taken[assigned.shard.name] = assigned
            yield assigned.shard

    def close(self) -> None:
        """Stop waiting for a shard: another thread has failed."""
        self._closed.set()

    def _answer(self) -> StaleShard | None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                message = self._link.receive(_LOOK_EVERY_SECONDS)
                return message if isinstance(message, StaleShard) else None
        return None


def _picklable(error: Exception) -> BaseException:
    """The error itself if it can be pickled; with its traceback as a note, which pickling would drop."""
    where = "".join(traceback.format_exception(error))
    sent: BaseException = error
    try:
        survives = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - an exception class of the user's may fail in any way
        survives = False
    if not survives:
        sent = FeatstoreError(f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())}")
    sent.add_note(f"In a worker:\n{where}")
    return sent
