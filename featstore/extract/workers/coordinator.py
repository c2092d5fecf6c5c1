"""The coordinator of several workers: assigns shards, gathers results, and replaces dead workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

from featstore.errors import WorkerError
from featstore.extract.job import EncodeJob, EncoderCard, StaleShard
from featstore.extract.results import EncodeResult, Progress, StageTimes, StoredShard
from featstore.extract.workers.messages import (
    Advanced,
    Begin,
    Describe,
    Described,
    Ended,
    Event,
    Failed,
    Gathered,
    Gone,
    Message,
    NoMore,
    Settled,
    Take,
    Wants,
)

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading
    from featstore.extract.options import ExtractOptions

__all__ = ["Deal", "Dealt", "Fleet", "FleetEngine"]


_MOST_AT_A_TIME = 2  # one that is encoded, and the next, which is read meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """A shard for a worker."""

    worker: int
    shard: StaleShard


@dataclass(slots=True)
class _Hand:
    """What a worker has: shards that it reads, and those that it has read, whose batches or commits are on their way.

    ``dealt`` is how many it was ever given; the last of them, while it is only fetched, is ``ahead``.
    """

    wants: Literal["nothing", "ahead", "at once"] = "nothing"
    dealt: int = 0
    ahead: str | None = None
    shards: dict[str, StaleShard] = field(default_factory=dict)
    gathered: dict[str, StaleShard] = field(default_factory=dict)


class Deal:
    """One queue of shards for all workers.

    A worker is given a shard when it asks for one: when it has read the one before to its end. So it reads ahead into
    its next shard, and none sits on shards that another could begin. A shard that lies elsewhere it may be given while
    it reads the one before, to fetch it meanwhile; but only while one is left for every other worker, so that at the
    end none waits for what another has fetched and not begun. What a worker held that died goes to the front.

    >>> from pathlib import Path
    >>> from featstore.extract.shards import Shard
    >>> deal = Deal(StaleShard(shard=Shard(name=name, path=Path(name)), outputs=(0,)) for name in ("a", "b"))
    >>> deal.wants(7, nth=0, at_once=True)
    >>> [(dealt.worker, dealt.shard.shard.name) for dealt in deal.hand_out()]
    [(7, 'a')]
    >>> [shard.shard.name for shard in deal.lost(7)]
    ['a']
    """

    def __init__(self, shards: Iterable[StaleShard]) -> None:
        self._waiting = deque(shards)
        self._hands: dict[int, _Hand] = {}
        self._losses: dict[str, int] = {}

    def wants(self, worker: int, *, nth: int, at_once: bool) -> None:
        """Note that a worker would begin its `nth` shard, or fetch it ahead. It has begun the one before."""
        hand = self._hands.setdefault(worker, _Hand())
        if nth == hand.dealt:  # else the answer was on its way already
            hand.wants, hand.ahead = "at once" if at_once else "ahead", None

    def hand_out(self) -> Iterator[Dealt]:
        """Give shards to those who wait for one, first to those who hold none; then to those who would fetch ahead."""
        in_turn = sorted(self._hands, key=lambda worker: (len(self._hands[worker].shards), worker))
        for wish, left_for_others in (("at once", 0), ("ahead", len(self._hands) - 1)):
            for worker in in_turn:
                hand = self._hands[worker]
                is_free = hand.wants == wish and len(hand.shards) < _MOST_AT_A_TIME
                if is_free and len(self._waiting) > left_for_others:
                    yield self._dealt(worker, hand)

    def _dealt(self, worker: int, hand: _Hand) -> Dealt:
        shard = self._waiting.popleft()
        hand.ahead = shard.shard.name if hand.wants == "ahead" else None
        hand.wants, hand.dealt = "nothing", hand.dealt + 1
        hand.shards[shard.shard.name] = shard
        return Dealt(worker=worker, shard=shard)

    def gathered(self, worker: int, name: str) -> None:
        """All of a shard was read: it waits for its batches or for its commit, and the worker may take another."""
        hand = self._hands[worker]
        hand.gathered[name] = hand.shards.pop(name)

    def settled(self, worker: int, name: str) -> None:
        """A shard is in the store, or broken: nobody need encode it again."""
        hand = self._hands[worker]
        hand.shards.pop(name, None)
        hand.gathered.pop(name, None)

    def lost(self, worker: int) -> tuple[StaleShard, ...]:
        """The worker has died: what it held waits for others. Returns that. What it had not begun did not kill it."""
        hand = self._hands.pop(worker, _Hand())
        held = (*hand.gathered.values(), *hand.shards.values())
        self._waiting.extendleft(reversed(held))
        for shard in held:
            if shard.shard.name == hand.ahead:
                continue
            self._losses[shard.shard.name] = self._losses.get(shard.shard.name, 0) + 1
        return held

    def losses(self, shard: StaleShard) -> int:
        """How many workers died that held a shard."""
        return self._losses.get(shard.shard.name, 0)

    @property
    def is_done(self) -> bool:
        """Whether every shard is settled."""
        return not self._waiting and not any(hand.shards or hand.gathered for hand in self._hands.values())


_NAMED = 3  # of the shards that a dead worker held: on a GPU it may have read some sixty that wait for their batches


class Fleet(Protocol):
    """Workers by number, from 0 on, wherever they are. A context manager: leaving it ends them all."""

    @property
    def size(self) -> int:
        """How many there may be."""

    def start(self, worker: int) -> None:
        """Start a worker, or another in place of one that has gone."""

    def tell(self, worker: int, message: Message) -> None:
        """Send a message; it is no error if the worker has died."""

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait until any worker says something, and return all that was said.

        After `Gone` nothing comes from that worker until it is started again.
        """

    def close(self) -> None:
        """End every worker; what they had not committed is given up."""


class FleetEngine:
    """An engine of several workers.

    A run without stale shards needs one of them, to say what the encoder is; the others are started when there is
    something to encode.

    Parameters
    ----------
    fleet : Fleet
    attempts : int
        How many workers may die over one shard before the run ends.
    """

    def __init__(self, fleet: Fleet, *, attempts: int) -> None:
        self._fleet = fleet
        self._attempts = attempts
        self._started: set[int] = set()
        self._fruitless = 0
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; a later job would start them afresh."""
        self._fleet.close()
        self._started.clear()
        self._fruitless = 0

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """Ask the first worker that can say: the encoder is never loaded in this process, which needs no second one."""
        return self._answer_to(Describe(options=options)).card

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Ask in the same way."""
        return cast("CanaryReading", self._answer_to(Describe(options=options, canary=True)).canary)

    def _answer_to(self, question: Describe) -> Described:
        try:
            for worker in self._enough(1):
                self._ask(worker, question)
            while True:
                for worker, event in self._fleet.events():
                    # another worker may still be answering an earlier question
                    if isinstance(event, Described) and (event.canary is not None) == question.canary:
                        return event
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Gone):
                        self._started.discard(worker)
                        self._note_fruitless(event)
                        self._ask(worker, question)
        except BaseException:
            self.close()
            raise

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode shards on as many workers as there are shards, at most all."""
        self._number += 1
        session = _Session(number=self._number, deal=Deal(shards))
        began = time.perf_counter()
        try:
            for worker in self._enough(len(shards)):
                self._ask(worker, Begin(number=self._number, job=job))
            while not session.is_over:
                for worker, event in self._fleet.events():
                    self._hear(worker, event, session, job=job, progress=progress)
                self._answer(session)
        except BaseException:
            self.close()
            raise
        return session.result(shards, seconds=time.perf_counter() - began)

    def _enough(self, n_workers: int) -> tuple[int, ...]:
        """All that are started, for some may be waiting for room; and others, to so many where there are so many."""
        others = [worker for worker in range(self._fleet.size) if worker not in self._started]
        return (*sorted(self._started), *others[: max(0, n_workers - len(self._started))])

    def _ask(self, worker: int, message: Message) -> None:
        if worker not in self._started:
            self._fleet.start(worker)
            self._started.add(worker)
        self._fleet.tell(worker, message)

    def _hear(self, worker: int, event: Event, session: _Session, *, job: EncodeJob, progress: Progress) -> None:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Advanced):
            session.tally.advance(worker, event)
            progress.advance(clips=event.clips, audio_seconds=event.audio_seconds)
        elif isinstance(event, Gone):
            self._started.discard(worker)
            self._note_loss(worker, event, session, progress=progress)
            if not session.deal.is_done:
                self._ask(worker, Begin(number=session.number, job=job))
        elif isinstance(event, Wants | Gathered | Settled | Ended) and event.number == session.number:
            session.note(worker, event)
            if isinstance(event, Settled):
                self._fruitless = 0
                if not event.broken:
                    progress.shard_done()

    def _answer(self, session: _Session) -> None:
        """Hand out what can be handed out; at the end say so to all, those too that are still loading."""
        for dealt in session.deal.hand_out():
            self._fleet.tell(dealt.worker, Take(shard=dealt.shard))
        if session.deal.is_done and not session.told_the_end:
            session.told_the_end = True
            for worker in self._started:
                self._fleet.tell(worker, NoMore())

    def _note_loss(self, worker: int, event: Gone, session: _Session, *, progress: Progress) -> None:
        """Let others encode what a dead worker held, unless that has killed too many."""
        lost = session.lost(worker, event.why)
        undone = session.tally.take_back(worker, lost)
        progress.advance(clips=-undone.clips, audio_seconds=-undone.audio_seconds)
        if not lost:
            self._note_fruitless(event)
        fatal = [shard.shard.name for shard in lost if session.deal.losses(shard) >= self._attempts]
        if fatal:
            others = f" or one of {len(fatal) - 1} more" if len(fatal) > 1 else ""
            raise WorkerError(
                f"{event.why} while it encoded {fatal[0]}{others}, the last of {self._attempts} workers that died over "
                f"that shard: {event.advice}; what is committed is kept, and the same command goes on from there"
            )

    def _note_fruitless(self, event: Gone) -> None:
        """A worker died that had nothing to encode: it may have died of loading the encoder."""
        self._fruitless += 1
        if self._fruitless > self._attempts:
            raise WorkerError(f"{event.why} before it encoded anything, and so did others: {event.advice}")


class _Tally:
    """Clips that progress was told of and that count for nothing if their worker dies."""

    def __init__(self) -> None:
        self._under_way: dict[int, Advanced] = {}
        self._by_shard: dict[str, Advanced] = {}

    def advance(self, worker: int, event: Advanced) -> None:
        self._under_way[worker] = _sum(self._under_way.get(worker, _NOTHING), event)

    def end_of_shard(self, worker: int, name: str) -> None:
        if name not in self._by_shard:  # a shard may break after it was encoded, when its worker is at the next
            self._by_shard[name] = self._under_way.pop(worker, _NOTHING)

    def take_back(self, worker: int, lost: Iterable[StaleShard]) -> Advanced:
        undone = self._under_way.pop(worker, _NOTHING)
        for shard in lost:
            undone = _sum(undone, self._by_shard.pop(shard.shard.name, _NOTHING))
        return undone


_NOTHING = Advanced(clips=0, audio_seconds=0.0)


def _sum(one: Advanced, other: Advanced) -> Advanced:
    return Advanced(clips=one.clips + other.clips, audio_seconds=one.audio_seconds + other.audio_seconds)


@dataclass(slots=True, kw_only=True)
class _Session:
    """One job on its way: who takes part, and what has come of it."""

    number: int
    deal: Deal
    present: set[int] = field(default_factory=set)
    took_part: set[int] = field(default_factory=set)
    settled: dict[str, Settled] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    tally: _Tally = field(default_factory=_Tally)
    told_the_end: bool = False

    @property
    def is_over(self) -> bool:
        """Whether every shard is settled, and every worker that has taken part has said how long it took."""
        return self.told_the_end and not self.present

    def note(self, worker: int, event: Wants | Gathered | Settled | Ended) -> None:
        if isinstance(event, Wants):
            self.deal.wants(worker, nth=event.nth, at_once=event.at_once)
            self.present.add(worker)
        elif isinstance(event, Gathered):
            self.deal.gathered(worker, event.name)
            self.tally.end_of_shard(worker, event.name)
        elif isinstance(event, Settled):
            self.deal.settled(worker, event.name)
            self.tally.end_of_shard(worker, event.name)
            self.settled[event.name] = event
            self.took_part.add(worker)
        else:
            self.present.discard(worker)
            self.ended.append(event)

    def lost(self, worker: int, why: str) -> tuple[StaleShard, ...]:
        self.present.discard(worker)
        lost = self.deal.lost(worker)
        if lost:
            names = [shard.shard.name for shard in lost]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            self.deaths.append(f"{why}; others encoded {', '.join(names[:_NAMED])}{more}")
        return lost

    def result(self, shards: Iterable[StaleShard], *, seconds: float) -> EncodeResult:
        outcomes = [(each.shard, self.settled[each.shard.name]) for each in shards]
        stored: dict[int, list[StoredShard]] = {}
        for _, outcome in outcomes:
            for output, shard in outcome.stored.items():
                stored.setdefault(output, []).append(shard)
        return EncodeResult(
            stored={output: tuple(shards) for output, shards in stored.items()},
            broken=tuple((shard, outcome.broken) for shard, outcome in outcomes if outcome.broken),
            times=_added_up((ended.times for ended in self.ended), total=seconds),
            settings=next((ended.settings for ended in self.ended if ended.settings is not None), None),
            workers=max(1, len(self.took_part)),
            deaths=tuple(self.deaths),
        )


def _added_up(times: Iterable[StageTimes], *, total: float) -> StageTimes:
    """Busy seconds of all workers, and the time that passed."""
    sums = StageTimes()
    for each in times:
        for stage in fields(StageTimes):
            setattr(sums, stage.name, getattr(sums, stage.name) + getattr(each, stage.name))
    sums.total = total
    return sums
