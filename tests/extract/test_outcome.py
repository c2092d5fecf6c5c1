"""What held a run back, and how full its batches were."""

from __future__ import annotations

import pytest

from featstore.extract.results import StageTimes


@pytest.mark.parametrize(
    ("times", "stage"),
    [
        pytest.param({"encode": 9, "wait_clips": 2, "wait_write": 1, "decode": 40}, "encode", id="the encoder"),
        pytest.param({"encode": 1, "wait_clips": 8, "decode": 32, "read": 2}, "decode", id="decoding, in four threads"),
        pytest.param({"encode": 1, "wait_clips": 8, "decode": 4, "read": 7}, "read", id="the disk of the shards"),
        pytest.param({"encode": 1, "wait_clips": 2, "wait_write": 5, "write": 8}, "write", id="the store"),
    ],
)
def test_what_the_encoding_thread_spent_most_of_its_time_on_held_the_run_back(
    times: dict[str, float], stage: str
) -> None:
    assert StageTimes(**times).bottleneck(decode_threads=4) == stage  # type: ignore[arg-type]


def test_batches_are_as_full_as_their_mean_and_none_is_where_there_were_none() -> None:
    assert StageTimes(batches=4, budgets=3.0).batch_fill == 0.75
    assert StageTimes().batch_fill is None
    assert "batches" not in StageTimes(batches=4).as_json()
