"""What an encoder costs, as `featstore check` tells it: memory that is measured, batches that are suggested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders.check.length import Step, foresee, why_stop
from featstore.encoders.check.speed import BatchSpeed, suggest_batch_seconds
from featstore.encoders.memory import peak_bytes
from featstore.system import free_memory_bytes

GB = 1_000_000_000


def speeds(*points: tuple[float, float, int | None]) -> list[BatchSpeed]:
    return [BatchSpeed(batch_seconds=s, times_real_time=x, peak_bytes=peak) for s, x, peak in points]


@pytest.mark.parametrize(
    ("points", "free", "suggested"),
    [
        ([(4, 100, GB), (8, 190, GB), (16, 200, GB), (32, 198, GB)], 10 * GB, 8),
        ([(4, 100, GB), (8, 189, GB), (16, 200, GB), (32, 198, GB)], 10 * GB, 16),
        ([(4, 100, GB), (8, 150, 2 * GB), (16, 300, 4 * GB)], 5 * GB, 8),
        ([(4, 100, 3 * GB)], 5 * GB, None),
        ([(4, 100, None), (8, 200, None)], 5 * GB, 8),
        ([(4, 100, 3 * GB), (8, 200, 9 * GB)], None, 8),
    ],
    ids=[
        "the smallest within five per cent of the best",
        "and none below",
        "of those in half of the free memory",
        "none where the smallest takes more",
        "memory that cannot be told is no hindrance",
        "nor is a machine that does not tell what is free",
    ],
)
def test_the_suggested_batch_is(points: list[tuple], free: int | None, suggested: float | None) -> None:
    assert suggest_batch_seconds(speeds(*points), free_bytes=free) == suggested


@given(exponent=st.floats(1.0, 2.0), scale=st.floats(0.01, 100))
def test_a_growth_between_linear_and_quadratic_is_foreseen(exponent: float, scale: float) -> None:
    known = [(x, scale * x**exponent) for x in (10.0, 30.0)]
    assert foresee(known, 60.0) == pytest.approx(scale * 60.0**exponent, rel=1e-6)


def step(audio_seconds: float, seconds: float, peak_bytes: int | None) -> Step:
    return Step(audio_seconds=audio_seconds, seconds=seconds, peak_bytes=peak_bytes, frames=1)


def test_a_length_is_not_tried_whose_memory_is_foreseen_not_to_last() -> None:
    quadratic = [step(30, 1, GB), step(60, 2, 4 * GB)]
    assert why_stop(quadratic, 120, left_seconds=99, free_bytes=10 * GB) == (
        "2 min would take about 16.0 GB of the 10.0 GB that are free"
    )
    assert not why_stop(quadratic, 120, left_seconds=99, free_bytes=21 * GB)
    assert not why_stop(quadratic, 120, left_seconds=99, free_bytes=None)


def test_a_length_is_not_tried_that_is_foreseen_to_take_longer_than_is_left() -> None:
    steps = [step(30, 1, None), step(60, 4, None)]
    assert "16 s" in why_stop(steps, 120, left_seconds=15, free_bytes=GB)
    assert not why_stop(steps, 120, left_seconds=17, free_bytes=GB)
    assert not why_stop([], 10, left_seconds=0, free_bytes=0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_peak_memory_is_of_the_work_alone() -> None:
    """Of work that takes 200 MB for a moment, before and after work that takes 20."""

    def takes(megabytes: int) -> None:
        np.ones(megabytes * 1_000_000, np.uint8)

    peaks = [peak_bytes(lambda n=n: takes(n), device="cpu") for n in (20, 200, 20)]
    assert peaks == pytest.approx([20e6, 200e6, 20e6], abs=8e6)


def test_memory_that_is_free_is_what_the_machine_and_the_group_of_processes_leave(tmp_path: Path) -> None:
    assert free_memory_bytes(root=tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert free_memory_bytes(root=tmp_path) == 5000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert free_memory_bytes(root=tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    assert free_memory_bytes(root=tmp_path) == 600_000
