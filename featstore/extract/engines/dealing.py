"""Who encodes which shard. Pure: it is told what happened and says what to hand out; nothing is sent from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from featstore.extract.work import StaleShard

__all__ = ["Deal", "Dealt"]

_MOST_AT_A_TIME = 2  # one that is encoded, and the next, which is read meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """A shard for a worker."""

    worker: int
    shard: StaleShard


@dataclass(slots=True)
class _Hand:
    """What a worker has: shards that it reads or encodes, and those that it commits."""

    wants: bool = False
    shards: dict[str, StaleShard] = field(default_factory=dict)
    committing: dict[str, StaleShard] = field(default_factory=dict)


class Deal:
    """One queue of shards for all workers.

    A worker is given a shard when it asks for one: when it has read the one before to its end. So it reads ahead into
    its next shard, and none sits on shards that another could begin. What a worker held that died goes to the front.

    >>> from pathlib import Path
    >>> from featstore.extract.shards import Shard
    >>> deal = Deal(StaleShard(shard=Shard(name=name, path=Path(name)), outputs=(0,)) for name in ("a", "b"))
    >>> deal.wants(7)
    >>> [(dealt.worker, dealt.shard.shard.name) for dealt in deal.hand_out()]
    [(7, 'a')]
    >>> [shard.shard.name for shard in deal.lost(7)]
    ['a']
    """

    def __init__(self, shards: Iterable[StaleShard]) -> None:
        self._waiting = deque(shards)
        self._hands: dict[int, _Hand] = {}
        self._losses: dict[str, int] = {}

    def wants(self, worker: int) -> None:
        """Note that a worker would begin a shard."""
        self._hands.setdefault(worker, _Hand()).wants = True

    def hand_out(self) -> Iterator[Dealt]:
        """Give shards to those who want one; first to those who hold none."""
        for worker in sorted(self._hands, key=lambda worker: (len(self._hands[worker].shards), worker)):
            hand = self._hands[worker]
            if self._waiting and hand.wants and len(hand.shards) < _MOST_AT_A_TIME:
                shard = self._waiting.popleft()
                hand.wants = False
                hand.shards[shard.shard.name] = shard
                yield Dealt(worker=worker, shard=shard)

    def encoded(self, worker: int, name: str) -> None:
        """A shard is on its way to the store, and the worker may take another."""
        hand = self._hands[worker]
        hand.committing[name] = hand.shards.pop(name)

    def settled(self, worker: int, name: str) -> None:
        """A shard is in the store, or broken: nobody need encode it again."""
        hand = self._hands[worker]
        hand.shards.pop(name, None)
        hand.committing.pop(name, None)

    def lost(self, worker: int) -> tuple[StaleShard, ...]:
        """The worker has died: what it held waits for others. Returns that."""
        hand = self._hands.pop(worker, _Hand())
        held = (*hand.committing.values(), *hand.shards.values())
        self._waiting.extendleft(reversed(held))
        for shard in held:
            self._losses[shard.shard.name] = self._losses.get(shard.shard.name, 0) + 1
        return held

    def losses(self, shard: StaleShard) -> int:
        """How many workers died that held a shard."""
        return self._losses.get(shard.shard.name, 0)

    @property
    def is_done(self) -> bool:
        """Whether every shard is settled."""
        return not self._waiting and not any(hand.shards or hand.committing for hand in self._hands.values())
