"""Who encodes which shard. Pure: it is told what happened and says what to hand out; nothing is sent from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

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
