"""Which worker encodes which shard, whatever happens to workers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from featstore.extract.job import StaleShard
from featstore.extract.shards import Shard
from featstore.extract.workers import ShardQueue


def shards(n: int) -> list[StaleShard]:
    names = [f"{number:02d}" for number in range(n)]
    return [StaleShard(shard=Shard(name=name, path=Path(name)), generations={0: 0}) for name in names]


def assigned(queue: ShardQueue, *asking: int) -> list[tuple[int, str]]:
    for worker in asking:
        queue.ask(worker)
    return [(worker, shard.shard.name) for worker, shard in queue.assign()]


def requeued(queue: ShardQueue, worker: int) -> list[str]:
    return [shard.shard.name for shard in queue.requeue(worker)]


def test_a_worker_is_given_a_shard_when_it_asks_and_reads_two_at_most() -> None:
    queue = ShardQueue(shards(4))
    assert assigned(queue) == []
    assert assigned(queue, 0) == [(0, "00")]
    assert assigned(queue) == []
    assert assigned(queue, 0) == [(0, "01")]
    assert assigned(queue, 0) == []
    queue.note_taken(0, "00")  # its commit is pending, and the next may be read
    assert assigned(queue) == [(0, "02")]


def test_a_worker_that_reads_nothing_comes_first() -> None:
    queue = ShardQueue(shards(4))
    assert assigned(queue, 0) == [(0, "00")]
    assert assigned(queue, 0, 1) == [(1, "01"), (0, "02")]


def test_a_second_shard_is_given_only_while_one_is_left_for_every_other_worker() -> None:
    queue = ShardQueue(shards(4))
    assert assigned(queue, 0, 1) == [(0, "00"), (1, "01")]
    assert assigned(queue, 0, 1) == [(0, "02")]
    queue.note_taken(1, "01")
    assert assigned(queue) == [(1, "03")]


def test_a_worker_alone_has_its_last_shard_ahead_too() -> None:
    queue = ShardQueue(shards(2))
    assert assigned(queue, 0) == [(0, "00")]
    assert assigned(queue, 0) == [(0, "01")]


def test_workers_are_dismissed_once_when_every_shard_is_done() -> None:
    queue = ShardQueue(shards(1))
    assert assigned(queue, 0, 1) == [(0, "00")]
    assert list(queue.dismiss()) == []
    queue.note_taken(0, "00")
    queue.ask(0)
    assert list(queue.dismiss()) == []  # its commit is pending: if its worker dies, another encodes it
    queue.note_done(0, "00")
    assert sorted(queue.dismiss()) == [0, 1]
    assert list(queue.dismiss()) == []


def test_the_unfinished_shards_of_a_dead_worker_are_next_in_order_and_counted() -> None:
    queue = ShardQueue(shards(4))
    assigned(queue, 0)
    assigned(queue, 0)
    queue.note_taken(0, "00")
    assert requeued(queue, 0) == ["00", "01"]
    assert [queue.losses(shard) for shard in shards(4)] == [1, 1, 0, 0]
    assert assigned(queue, 1) == [(1, "00")]
    assert requeued(queue, 5) == []


@given(n=st.integers(0, 9), n_workers=st.integers(1, 4), data=st.data())
def test_every_shard_is_done_once_and_never_with_two_workers(n: int, n_workers: int, data: st.DataObject) -> None:
    queue, reading, done, deaths = ShardQueue(shards(n)), {worker: [] for worker in range(n_workers)}, [], 0
    while not queue.is_done:
        asking = [worker for worker, theirs in reading.items() if not theirs or data.draw(st.booleans())]
        for worker, name in assigned(queue, *asking):
            assert name not in done
            assert not any(name in theirs for theirs in reading.values())
            reading[worker].append(name)
            assert len(reading[worker]) <= 2
        worker = data.draw(st.sampled_from([worker for worker, theirs in reading.items() if theirs]))
        if deaths < 5 and data.draw(st.booleans()):
            deaths += 1
            assert requeued(queue, worker) == reading[worker]
            reading[worker] = []
        else:
            name = reading[worker].pop(0)
            if data.draw(st.booleans()):
                queue.note_taken(worker, name)
            queue.note_done(worker, name)
            done.append(name)
    assert sorted(done) == [shard.shard.name for shard in shards(n)]
