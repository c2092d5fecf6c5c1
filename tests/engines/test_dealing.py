"""Who encodes which shard, whatever happens to workers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from featstore.extract.engines.dealing import Deal
from featstore.extract.shards import Shard
from featstore.extract.work import StaleShard


def shards(n: int) -> list[StaleShard]:
    names = [f"{number:02d}" for number in range(n)]
    return [StaleShard(shard=Shard(name=name, path=Path(name)), outputs=(0,)) for name in names]


def names(deal: Deal) -> list[tuple[int, str]]:
    return [(dealt.worker, dealt.shard.shard.name) for dealt in deal.hand_out()]


def test_a_worker_is_given_a_shard_when_it_asks_and_at_most_two_that_are_not_encoded() -> None:
    deal = Deal(shards(4))
    assert names(deal) == []
    deal.wants(0)
    assert names(deal) == [(0, "00")]
    assert names(deal) == []
    deal.wants(0)
    assert names(deal) == [(0, "01")]
    deal.wants(0)
    assert names(deal) == []
    deal.encoded(0, "00")  # its commit is on its way, and the next may be read
    assert names(deal) == [(0, "02")]


def test_who_holds_nothing_comes_first() -> None:
    deal = Deal(shards(3))
    deal.wants(0)
    assert names(deal) == [(0, "00")]
    deal.wants(0)
    deal.wants(1)
    assert names(deal) == [(1, "01"), (0, "02")]


def test_what_a_dead_worker_held_is_next_in_order_and_counted() -> None:
    deal = Deal(shards(4))
    for _ in range(2):
        deal.wants(0)
        assert names(deal)
    deal.encoded(0, "00")
    lost = deal.lost(0)
    assert [shard.shard.name for shard in lost] == ["00", "01"]
    assert [deal.losses(shard) for shard in shards(4)] == [1, 1, 0, 0]
    deal.wants(1)
    assert names(deal) == [(1, "00")]
    assert deal.lost(5) == ()


@given(n=st.integers(0, 9), n_workers=st.integers(1, 4), data=st.data())
def test_every_shard_is_settled_once_and_never_held_by_two(n: int, n_workers: int, data: st.DataObject) -> None:
    deal, held, settled, deaths = Deal(shards(n)), {worker: [] for worker in range(n_workers)}, [], 0
    while not deal.is_done:
        for worker in held:
            deal.wants(worker)
        for worker, name in names(deal):
            assert name not in settled
            assert not any(name in theirs for theirs in held.values())
            held[worker].append(name)
            assert len(held[worker]) <= 2
        worker = data.draw(st.sampled_from([worker for worker, theirs in held.items() if theirs]))
        if deaths < 5 and data.draw(st.booleans()):
            deaths += 1
            assert [shard.shard.name for shard in deal.lost(worker)] == held[worker]
            held[worker] = []
        else:
            name = held[worker].pop(0)
            if data.draw(st.booleans()):
                deal.encoded(worker, name)
            deal.settled(worker, name)
            settled.append(name)
    assert sorted(settled) == [shard.shard.name for shard in shards(n)]
