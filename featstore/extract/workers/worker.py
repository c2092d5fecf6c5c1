"""A worker of a fleet: loads the encoder once, then encodes shards as they are handed to it.

It is told things through `tell`, by any thread, and says things through the callable it was made with. What carries
the two, a pipe or Ray, is not its concern.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import EncoderError, FeatstoreError, ShardError
from featstore.extract.job import StaleShard, Workplace
from featstore.extract.results import Outcome, Silent
from featstore.extract.shards import AnyShard
from featstore.extract.workers.engine import EncoderRequest
from featstore.extract.workers.messages import (
    Advanced,
    Begin,
    Describe,
    Described,
    Ended,
    Event,
    Failed,
    Gathered,
    Message,
    Quit,
    Settled,
    Take,
    Wants,
)

__all__ = ["Worker", "WorkerSettings"]

_ADVANCE_EVERY_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Where a worker encodes: on which device, and with how many of the machine's cores."""

    device: str
    cores: int


@dataclass(frozen=True, slots=True)
class _Close:
    """The feed of that job hands out no more."""

    number: int


class _Abandoned(Exception):
    """The worker is to end, and what it encodes is of no use any more."""


class Worker:
    """Encodes for a fleet. `run` is its life; everything else is called by other threads."""

    def __init__(self, request: EncoderRequest, settings: WorkerSettings, *, say: Callable[[Event], None]) -> None:
        self._request = request
        self._settings = settings
        self._say = say
        self._inbox: queue.SimpleQueue[Message | _Close] = queue.SimpleQueue()
        self._quitting = threading.Event()
        self.is_encoding = False

    def tell(self, message: Message) -> None:
        """Hand over a message. `Quit` is heard at once, whatever waits before it."""
        if isinstance(message, Quit):
            self._quitting.set()
        self._inbox.put(message)

    def run(self) -> None:
        """Load the encoder and do as told, until told to quit."""
        try:
            self._live()
        except _Abandoned:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the chief raises it where the user sees it
            self._say(Failed(error=_fit_to_travel(error)))

    def _live(self) -> None:
        workplace = self._load()
        while True:
            message = self._inbox.get()
            if isinstance(message, Quit):
                return
            if isinstance(message, Describe):
                reading = workplace.canary(message.options) if message.canary else None
                self._say(Described(card=workplace.card(message.options), canary=reading))
            elif isinstance(message, Begin):
                self._encode(workplace, message)

    def _load(self) -> Workplace:
        from featstore.encoders.devices import settle_on

        request = self._request
        if not Path(request.folder).is_dir():
            raise EncoderError(
                f"a worker has no folder {request.folder}, from which the command was run and where its relative paths "
                "lead: run the command from a folder that every node has"
            )
        os.chdir(request.folder)
        settle_on(self._settings.device, threads=self._settings.cores)
        return Workplace(request.load(), device=self._settings.device, cores=self._settings.cores)

    def _encode(self, workplace: Workplace, begin: Begin) -> None:
        workplace.check(begin.job)
        self.is_encoding = True
        feed = _Feed(begin.number, inbox=self._inbox, say=self._say)
        reporting = _Reporting(say=self._say, quitting=self._quitting)

        def gathered(shard: AnyShard) -> None:
            reporting.flush()  # what is counted from here on is of the next shard
            self._say(Gathered(number=begin.number, name=shard.name))

        def settled(shard: AnyShard, outcome: Future[Outcome]) -> None:
            feed.last_done = time.perf_counter()
            outcome.add_done_callback(lambda done: self._settled(begin.number, shard, done, feed))

        result = workplace.encode(
            begin.job, feed, stale=feed.taken, progress=reporting, gathered=gathered, settled=settled
        )
        self.is_encoding = False
        reporting.flush()
        result.times.wait_clips = max(0.0, result.times.wait_clips - feed.idle_seconds)
        self._say(Ended(number=begin.number, times=result.times, settings=result.settings))

    def _settled(self, number: int, shard: AnyShard, done: Future[Outcome], feed: _Feed) -> None:
        if done.cancelled() or done.exception() is not None:
            feed.close()  # it is raised where the shard is encoded, which may be waiting for the next
            return
        outcome = done.result()
        broken = isinstance(outcome, ShardError)
        self._say(
            Settled(
                number=number,
                name=shard.name,
                stored={} if isinstance(outcome, ShardError) else outcome,
                broken=str(outcome) if broken else "",
            )
        )


class _Feed:
    """Shards as the chief hands them out.

    Whoever iterates asks for the next; that it is waited for, and not only fetched ahead, `note_read` says.

    Attributes
    ----------
    taken : dict
        What was handed out, by name.
    last_done : float
        When the last shard had been encoded, by `time.perf_counter`; set from outside.
    idle_seconds : float
        How long there was nothing left to encode, at the end, while others were still at work.
    """

    def __init__(
        self, number: int, *, inbox: queue.SimpleQueue[Message | _Close], say: Callable[[Event], None]
    ) -> None:
        self.taken: dict[str, StaleShard] = {}
        self._number = number
        self._inbox = inbox
        self._say = say
        self._closed = False
        self._asking = threading.Lock()
        self._read = 0  # the number of the shard that is waited for
        self._asked = -1  # the number of the shard that was last asked for
        self._at_once = False
        self.last_done = time.perf_counter()
        self.idle_seconds = 0.0

    def __iter__(self) -> Iterator[AnyShard]:
        """Ask, wait, hand on."""
        while not self._closed:
            self._ask(len(self.taken))
            message = self._answer()
            if isinstance(message, Quit):
                self._inbox.put(message)  # for whoever looks next
            if not isinstance(message, Take):
                self.idle_seconds = max(0.0, time.perf_counter() - self.last_done)
                return
            self.taken[message.shard.shard.name] = message.shard
            yield message.shard.shard

    def note_read(self, count: int) -> None:
        """So many shards have been read to their end: say that the next is waited for, if it is asked for already."""
        with self._asking:
            self._read = count
            if self._asked == count and not self._at_once:
                self._say_wants()

    def _ask(self, nth: int) -> None:
        with self._asking:
            self._asked = nth
            self._say_wants()

    def _say_wants(self) -> None:
        self._at_once = self._read >= self._asked
        self._say(Wants(number=self._number, nth=self._asked, at_once=self._at_once))

    def _answer(self) -> Message | _Close:
        while isinstance(message := self._inbox.get(), _Close) and message.number != self._number:
            pass  # an earlier job's, which had ended by itself
        return message

    def close(self) -> None:
        """End the wait for an answer."""
        self._closed = True
        self._inbox.put(_Close(self._number))


class _Reporting(Silent):
    """Tells of clips a few times a second: thousands may go by."""

    def __init__(self, *, say: Callable[[Event], None], quitting: threading.Event) -> None:
        self._say = say
        self._quitting = quitting
        self._clips = 0
        self._audio_seconds = 0.0
        self._said = time.monotonic()

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Count; and leave what is being encoded if the worker is to end."""
        if self._quitting.is_set():
            raise _Abandoned
        self._clips += clips
        self._audio_seconds += audio_seconds
        if time.monotonic() - self._said >= _ADVANCE_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what was counted."""
        if self._clips:
            self._say(Advanced(clips=self._clips, audio_seconds=self._audio_seconds))
        self._clips, self._audio_seconds, self._said = 0, 0.0, time.monotonic()


def _fit_to_travel(error: Exception) -> BaseException:
    """The error itself where it survives pickling; with where it was raised, which a pickled error forgets."""
    where = "".join(traceback.format_exception(error))
    sent: BaseException = error
    try:
        survives = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - somebody's own exception may fail in any way
        survives = False
    if not survives:
        told = " ".join(str(error).split())
        sent = FeatstoreError(f"a worker failed: {type(error).__name__}: {told}")
    sent.add_note(f"In a worker:\n{where}")
    return sent
