"""Who encodes which shard, whatever happens to workers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from featstore.extract.job import StaleShard
from featstore.extract.shards import Shard
from featstore.extract.workers.coordinator import Deal


def shards(n: int) -> list[StaleShard]:
    names = [f"{number:02d}" for number in range(n)]
    return [StaleShard(shard=Shard(name=name, path=Path(name)), outputs=(0,)) for name in names]


class Table:
    """A deal, and how many shards each worker was given: they ask for them by number."""

    def __init__(self, n: int) -> None:
        self.deal = Deal(shards(n))
        self.given: dict[int, int] = {}

    def want(self, worker: int, *, at_once: bool = True) -> None:
        self.deal.wants(worker, nth=self.given.get(worker, 0), at_once=at_once)

    def names(self) -> list[tuple[int, str]]:
        found = [(dealt.worker, dealt.shard.shard.name) for dealt in self.deal.hand_out()]
        for worker, _ in found:
            self.given[worker] = self.given.get(worker, 0) + 1
        return found

    def lost(self, worker: int) -> list[str]:
        self.given.pop(worker, None)
        return [shard.shard.name for shard in self.deal.lost(worker)]


def test_a_worker_is_given_a_shard_when_it_asks_and_at_most_two_that_are_not_encoded() -> None:
    table = Table(4)
    assert table.names() == []
    table.want(0)
    assert table.names() == [(0, "00")]
    assert table.names() == []
    table.want(0)
    assert table.names() == [(0, "01")]
    table.want(0)
    assert table.names() == []
    table.deal.gathered(0, "00")  # its commit is on its way, and the next may be read
    assert table.names() == [(0, "02")]


def test_who_holds_nothing_comes_first() -> None:
    table = Table(3)
    table.want(0)
    assert table.names() == [(0, "00")]
    table.want(0)
    table.want(1)
    assert table.names() == [(1, "01"), (0, "02")]


def test_a_shard_is_fetched_ahead_only_while_one_is_left_for_every_other_worker() -> None:
    table = Table(4)
    for worker in (0, 1):
        table.want(worker)
    assert table.names() == [(0, "00"), (1, "01")]
    table.want(0, at_once=False)
    assert table.names() == [(0, "02")]
    table.want(1, at_once=False)
    assert table.names() == []  # one is left: it goes to whoever is first done
    table.deal.gathered(0, "00")
    table.want(0)
    assert table.names() == [(0, "03")]


def test_a_worker_alone_fetches_its_last_shard_ahead_too() -> None:
    table = Table(2)
    table.want(0)
    assert table.names() == [(0, "00")]
    table.want(0, at_once=False)
    assert table.names() == [(0, "01")]


def test_a_wish_that_crosses_its_own_answer_is_no_second_wish() -> None:
    table = Table(9)
    table.want(0)
    assert table.names() == [(0, "00")]
    table.want(0, at_once=False)
    assert table.names() == [(0, "01")]
    table.deal.wants(0, nth=1, at_once=True)  # said before the answer came
    table.deal.gathered(0, "00")
    assert table.names() == []


def test_what_a_dead_worker_held_is_next_in_order_and_counted() -> None:
    table = Table(4)
    for _ in range(2):
        table.want(0)
        assert table.names()
    table.deal.gathered(0, "00")
    assert table.lost(0) == ["00", "01"]
    assert [table.deal.losses(shard) for shard in shards(4)] == [1, 1, 0, 0]
    table.want(1)
    assert table.names() == [(1, "00")]
    assert table.lost(5) == []


def test_what_a_dead_worker_had_only_fetched_did_not_kill_it() -> None:
    table = Table(4)
    table.want(0)
    assert table.names() == [(0, "00")]
    table.want(0, at_once=False)
    assert table.names() == [(0, "01")]
    assert table.lost(0) == ["00", "01"]
    assert [table.deal.losses(shard) for shard in shards(2)] == [1, 0]
    for at_once in (True, False, False):  # the third wish says that the second shard is begun
        table.want(1, at_once=at_once)
        table.names()
    assert table.lost(1) == ["00", "01"]
    assert [table.deal.losses(shard) for shard in shards(2)] == [2, 1]


@given(n=st.integers(0, 9), n_workers=st.integers(1, 4), data=st.data())
def test_every_shard_is_settled_once_and_never_held_by_two(n: int, n_workers: int, data: st.DataObject) -> None:
    table, held, settled, deaths = Table(n), {worker: [] for worker in range(n_workers)}, [], 0
    deal = table.deal
    while not deal.is_done:
        for worker, theirs in held.items():
            table.want(worker, at_once=not theirs or data.draw(st.booleans()))
        for worker, name in table.names():
            assert name not in settled
            assert not any(name in theirs for theirs in held.values())
            held[worker].append(name)
            assert len(held[worker]) <= 2
        worker = data.draw(st.sampled_from([worker for worker, theirs in held.items() if theirs]))
        if deaths < 5 and data.draw(st.booleans()):
            deaths += 1
            assert table.lost(worker) == held[worker]
            held[worker] = []
        else:
            name = held[worker].pop(0)
            if data.draw(st.booleans()):
                deal.gathered(worker, name)
            deal.settled(worker, name)
            settled.append(name)
    assert sorted(settled) == [shard.shard.name for shard in shards(n)]
