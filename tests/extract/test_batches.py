"""Batchers lose nothing, repeat nothing and keep their budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.extract.batches import (
    PENDING_BATCHES,
    Batch,
    Batcher,
    FileOrderBatcher,
    LengthBatcher,
    PendingWindow,
    stack,
)

LENGTHS = st.lists(st.integers(1, 12), max_size=60)


def fed(batcher: Batcher, lengths: list[int], *, quantum: int = 4) -> list[Batch]:
    batches: list[Batch] = []
    for index, length in enumerate(lengths):
        samples = np.full(length, index + 1, np.float32)
        batches += batcher.add(PendingWindow(index, samples, -(-length // quantum) * quantum))
    return batches + list(batcher.flush())


@given(lengths=LENGTHS, budget=st.integers(1, 60), pending=st.integers(1, 200))
def test_batches_of_one_length_hold_every_window_once_within_the_budget(
    lengths: list[int], budget: int, pending: int
) -> None:
    batches = fed(LengthBatcher(budget_samples=budget, pending_samples=pending), lengths)
    assert sorted(window.index for batch in batches for window in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({window.padded for window in batch}) == 1
        assert len(batch) == 1 or len(batch) * batch[0].padded <= budget


@given(lengths=LENGTHS, budget=st.integers(1, 60), pending=st.integers(1, 100))
def test_no_more_than_the_pending_samples_ever_wait(lengths: list[int], budget: int, pending: int) -> None:
    batcher = LengthBatcher(budget_samples=budget, pending_samples=pending)
    waiting = 0
    for index, length in enumerate(lengths):
        given_out = list(batcher.add(PendingWindow(index, np.zeros(length, np.float32), length)))
        waiting += length - sum(window.padded for batch in given_out for window in batch)
        assert waiting <= pending


@given(lengths=LENGTHS)
def test_what_is_batched_with_what_depends_on_the_windows_alone(lengths: list[int]) -> None:
    one, two = (fed(LengthBatcher(budget_samples=30, pending_samples=80), lengths) for _ in range(2))
    assert [[w.index for w in batch] for batch in one] == [[w.index for w in batch] for batch in two]


@given(lengths=LENGTHS)
def test_xares_batches_are_sixteen_in_file_order(lengths: list[int]) -> None:
    batches = fed(FileOrderBatcher(size=16), lengths)
    assert [window.index for batch in batches for window in batch] == list(range(len(lengths)))
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


def test_batches_are_full_and_padded_by_less_than_the_quantum_while_clips_of_all_lengths_come() -> None:
    """At a GPU's budget: 640 s in a batch, clips of 1 to 10 s, padded to quarters of a second."""
    rate, quantum, budget = 100, 25, 64_000
    rng = np.random.default_rng(0)
    batcher = LengthBatcher(budget_samples=budget, pending_samples=PENDING_BATCHES * budget)
    used, real, padded = [], 0, 0
    for index in range(40_000):
        length = int(rng.integers(rate, 10 * rate))
        samples = np.empty(length, np.float32)
        for batch in batcher.add(PendingWindow(index, samples, -(-length // quantum) * quantum)):
            used.append(sum(window.padded for window in batch) / budget)
            real += sum(len(window.samples) for window in batch)
            padded += sum(window.padded for window in batch)
            assert all(0 <= window.padded - len(window.samples) < quantum for window in batch)
    assert np.mean(used) >= 0.9
    assert padded / real - 1 < quantum / rate / 5.5  # the quantum over the mean length


@pytest.mark.parametrize(
    ("n_clips", "seconds", "least", "most"),
    [
        pytest.param(100, (1, 10), 0.02, 0.05, id="a hundred clips of all lengths are one batch for each length"),
        pytest.param(1000, (1, 10), 0.2, 0.3, id="a thousand of all lengths fill a quarter"),
        pytest.param(10_000, (1, 10), 0.78, 0.86, id="ten thousand of all lengths fill four fifths"),
        pytest.param(1000, (5, 5), 0.95, 1.0, id="a thousand of one length fill them all"),
    ],
)
def test_what_shards_of_so_many_clips_leave_of_a_gpus_budget(
    n_clips: int, seconds: tuple[int, int], least: float, most: float
) -> None:
    """The figures of the documentation: 640 s in a batch, which never reaches past its shard."""
    budget, quantum = 64_000, 25
    rng = np.random.default_rng(0)
    batcher = LengthBatcher(budget_samples=budget, pending_samples=PENDING_BATCHES * budget)
    lengths = rng.integers(100 * seconds[0], 100 * seconds[1] + 1, n_clips)
    batches = fed(batcher, lengths.tolist(), quantum=quantum)
    assert least <= np.mean([sum(window.padded for window in batch) / budget for batch in batches]) <= most
