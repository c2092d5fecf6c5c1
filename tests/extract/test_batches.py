"""Batchers lose nothing, repeat nothing and keep their budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.extract.batching import (
    Batch,
    Batcher,
    FileOrderBatcher,
    LengthBatcher,
    PendingWindow,
    stack,
)

LENGTHS = st.lists(st.integers(1, 12), max_size=60)
SHARDS = st.lists(st.lists(st.integers(1, 12), max_size=12), max_size=12)


def fed(batcher: Batcher, *shards: list[int], quantum: int = 4) -> list[Batch]:
    """Batches of shards whose windows have these lengths, in samples."""
    batches: list[Batch] = []
    for shard, lengths in enumerate(shards):
        for index, length in enumerate(lengths):
            samples = np.full(length, index + 1, np.float32)
            batches += batcher.add(PendingWindow(shard, index, samples, -(-length // quantum) * quantum))
        batches += batcher.end_shard(shard)
    return batches + list(batcher.flush())


def places(batch: Batch) -> list[tuple[int, int]]:
    return [(window.shard, window.index) for window in batch]


@given(shards=SHARDS, budget=st.integers(1, 60), ahead=st.integers(0, 5))
def test_batches_of_one_length_hold_every_window_once_within_the_budget(
    shards: list[list[int]], budget: int, ahead: int
) -> None:
    batches = fed(LengthBatcher(budget_samples=budget, shards_ahead=ahead), *shards)
    assert sorted(place for batch in batches for place in places(batch)) == [
        (shard, index) for shard, lengths in enumerate(shards) for index in range(len(lengths))
    ]
    for batch in batches:
        assert len({window.padded for window in batch}) == 1
        assert len(batch) == 1 or len(batch) * batch[0].padded <= budget
        assert max(window.shard for window in batch) - batch[0].shard <= ahead


@given(shards=SHARDS, budget=st.integers(1, 60))
def test_where_no_window_outlasts_its_shard_the_batches_of_each_are_as_if_it_were_alone(
    shards: list[list[int]], budget: int
) -> None:
    together = fed(LengthBatcher(budget_samples=budget, shards_ahead=0), *shards)
    alone = [fed(LengthBatcher(budget_samples=budget, shards_ahead=0), lengths) for lengths in shards]
    assert [[place[1] for place in places(batch)] for batch in together] == [
        [place[1] for place in places(batch)] for batches in alone for batch in batches
    ]


@given(shards=SHARDS, ahead=st.integers(0, 5))
def test_at_the_end_of_a_shard_no_window_waits_of_one_that_ended_too_long_ago(
    shards: list[list[int]], ahead: int
) -> None:
    batcher = LengthBatcher(budget_samples=1000, shards_ahead=ahead)
    waiting: set[tuple[int, int]] = set()
    for shard, lengths in enumerate(shards):
        for index, length in enumerate(lengths):
            waiting.add((shard, index))
            for batch in batcher.add(PendingWindow(shard, index, np.zeros(length, np.float32), length)):
                waiting -= set(places(batch))
        for batch in batcher.end_shard(shard):
            waiting -= set(places(batch))
        assert all(of > shard - ahead for of, _ in waiting)


@given(lengths=st.lists(st.integers(1, 12), max_size=300), budget=st.integers(1, 20))
def test_no_more_than_32_budgets_ever_wait_and_none_of_them_longer_than_64(lengths: list[int], budget: int) -> None:
    batcher = LengthBatcher(budget_samples=budget, shards_ahead=0)
    waiting: dict[int, int] = {}
    taken = 0
    for index, length in enumerate(lengths):
        waiting[index] = taken
        taken += length
        for batch in batcher.add(PendingWindow(0, index, np.zeros(length, np.float32), length)):
            for window in batch:
                del waiting[window.index]
        assert sum(lengths[waits] for waits in waiting) <= 32 * budget
        assert all(taken - since <= 64 * budget for since in waiting.values())


@pytest.mark.parametrize("batcher", [LengthBatcher(budget_samples=100, shards_ahead=9), FileOrderBatcher(size=16)])
def test_a_shard_that_is_forgotten_leaves_the_others(batcher: Batcher) -> None:
    for shard in (0, 1, 0, 1):
        for length in (4, 7):
            assert not list(batcher.add(PendingWindow(shard, length, np.zeros(length, np.float32), length)))
    batcher.forget(0)
    assert sorted(place for batch in batcher.flush() for place in places(batch)) == [(1, 4), (1, 4), (1, 7), (1, 7)]
    assert not list(batcher.flush())


@given(lengths=LENGTHS)
def test_xares_batches_are_sixteen_in_file_order(lengths: list[int]) -> None:
    batches = fed(FileOrderBatcher(size=16), lengths)
    assert [place for batch in batches for place in places(batch)] == [(0, index) for index in range(len(lengths))]
    assert all(len(batch) == 16 for batch in batches[:-1])


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=16))
def test_a_stacked_batch_is_samples_then_zeros(lengths: list[int]) -> None:
    for batch in fed(FileOrderBatcher(size=16), lengths):
        audio, n_samples = stack(batch, blank=lambda shape: np.zeros(shape, np.float32))
        assert audio.shape == (len(batch), max(window.padded for window in batch))
        for row, window in enumerate(batch):
            assert n_samples[row] == len(window.samples)
            np.testing.assert_array_equal(audio[row, : n_samples[row]], window.samples)
            assert not audio[row, n_samples[row] :].any()


@pytest.mark.parametrize("clips_per_shard", [1000, 40_000])
def test_batches_are_full_and_padded_by_less_than_the_quantum_while_clips_of_all_lengths_come(
    clips_per_shard: int,
) -> None:
    """At a GPU's budget: 640 s in a batch, clips of 1 to 10 s, padded to quarters of a second."""
    rate, quantum, budget = 100, 25, 64_000
    rng = np.random.default_rng(0)
    batcher = LengthBatcher(budget_samples=budget, shards_ahead=64)
    used, real, padded = [], 0, 0
    for index in range(40_000):
        length = int(rng.integers(rate, 10 * rate))
        window = PendingWindow(
            index // clips_per_shard, index, np.empty(length, np.float32), -(-length // quantum) * quantum
        )
        ready = list(batcher.add(window))
        if (index + 1) % clips_per_shard == 0:
            ready += batcher.end_shard(window.shard)
        for batch in ready:
            used.append(sum(window.padded for window in batch) / budget)
            real += sum(len(window.samples) for window in batch)
            padded += sum(window.padded for window in batch)
            assert all(0 <= window.padded - len(window.samples) < quantum for window in batch)
    assert np.mean(used) >= 0.9
    assert padded / real - 1 < quantum / rate / 5.5  # the quantum over the mean length


@pytest.mark.parametrize(
    ("n_clips", "clips_per_shard", "share"),
    [(1000, 100, 0.24), (5000, 100, 0.69), (5000, 1000, 0.69), (20_000, 1000, 0.87)],
)
def test_a_split_of_so_many_clips_uses_the_documented_share_of_a_gpus_budget_in_shards_of_any_size(
    n_clips: int, clips_per_shard: int, share: float
) -> None:
    """The figures of the how-to: 640 s in a batch, clips of 1 to 10 s."""
    budget = 64_000
    lengths = np.random.default_rng(0).integers(100, 1001, n_clips)
    shards = [part.tolist() for part in np.array_split(lengths, n_clips // clips_per_shard)]
    batches = fed(LengthBatcher(budget_samples=budget, shards_ahead=64), *shards, quantum=25)
    used = [sum(window.padded for window in batch) / budget for batch in batches]
    assert np.mean(used) == pytest.approx(share, abs=0.01)
