"""A batch holds what keeps the device busy, and what fits."""

from __future__ import annotations

import pytest
import torch

from featstore.encoders import batch_size as budget
from featstore.encoders.batch_size import find_batch_seconds
from handmade import started

RATE = 1000


class Notes(torch.nn.Module):
    """Notes the windows of each batch; takes no more than so many."""

    sampling_rate, output_dim, hop_size_in_ms = RATE, 2, 100

    def __init__(self, most_windows: int = 1000) -> None:
        super().__init__()
        self.most_windows = most_windows
        self.seen: list[int] = []

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        if len(audio) > self.most_windows:
            raise torch.OutOfMemoryError
        self.seen.append(len(audio))
        return audio[:, : len(audio[0]) // 100 * 100].reshape(len(audio), -1, 100)[:, :, :2]


@pytest.fixture(autouse=True)
def four_at_a_time(monkeypatch):
    """A hundredth of a second for up to four windows, and as much again for every four more."""
    monkeypatch.setattr(
        budget, "_seconds", lambda run, audio, n_samples: run(audio, n_samples) and 0.01 * -(-len(audio) // 4)
    )


@pytest.mark.parametrize("free", [None, 10**12])
def test_batches_grow_until_twice_as_many_windows_are_no_faster(free, monkeypatch):
    monkeypatch.setattr(budget, "free_bytes", lambda **_: free)
    monkeypatch.setattr(budget, "peak_bytes", lambda work, **_: work() and None)
    module = Notes()
    assert find_batch_seconds(started(module), sample_rate_hz=RATE, window_seconds=2.0, most_seconds=64.0) == 8.0
    assert max(module.seen) == 8


def test_no_batch_takes_more_than_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(budget, "free_bytes", lambda **_: 100)
    peaks = iter([20, 40, 80, 160])
    monkeypatch.setattr(budget, "peak_bytes", lambda work, **_: work() and next(peaks))
    assert find_batch_seconds(started(Notes()), sample_rate_hz=RATE, window_seconds=2.0, most_seconds=64.0) == 4.0


def test_an_encoder_that_cannot_take_one_window_has_no_budget():
    assert (
        find_batch_seconds(started(Notes(most_windows=2)), sample_rate_hz=RATE, window_seconds=2.0, most_seconds=8.0)
        is not None
    )
    module = Notes()
    run = started(module)
    module.most_windows = 0
    assert find_batch_seconds(run, sample_rate_hz=RATE, window_seconds=2.0, most_seconds=8.0) is None
