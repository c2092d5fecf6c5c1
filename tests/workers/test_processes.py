"""A process for each device: the store is what one process makes, whatever becomes of a worker on the way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stores import assert_same_contents

from featstore.errors import EncoderContractError, EncoderError, ShardError, UsageError, WorkerError
from featstore.extract import EncoderRequest, Engine, ExtractOptions, open_engine
from featstore.extract.workers import WorkersEngine
from handmade import XARES_ENCODER, clip, environment, noise, write_split
from servers import web_server
from trippable import (
    CLIPS_PER_SHARD,
    N_SHARDS,
    OPTIONS,
    Counting,
    extract,
    tripping,
)
from watched import n_committed, n_parts, wait_for_commits, wait_until_nobody_is_left

pytestmark = pytest.mark.usefixtures("no_faults")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[WorkersEngine]:
    with open_engine(tripping(), device="cpu,cpu") as engine:
        yield engine


def test_two_processes_make_the_store_of_one_bit_for_bit_and_count_together(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    counting = Counting()
    record = extract(engine, folder, tmp_path / "store", progress=counting)
    assert_same_contents(alone, tmp_path / "store", ignoring=())
    assert (counting.clips, counting.shards) == (N_SHARDS * CLIPS_PER_SHARD, N_SHARDS)
    assert counting.audio_seconds == pytest.approx(record.audio_seconds)
    assert (record.shards_done, record.clips, record.deaths) == (N_SHARDS, N_SHARDS * CLIPS_PER_SHARD, ())
    again = extract(engine, folder, tmp_path / "store")
    assert (again.shards_done, again.shards_reused) == (0, N_SHARDS)


def test_texts_are_encoded_by_one_of_the_processes(folder: Path) -> None:
    method = (
        "    def encode_text(self, texts):\n        return self.weight[:, 0, :2].T[[len(text) for text in texts]]\n"
    )
    (folder / "texts.py").write_text(XARES_ENCODER + "\n" + method)
    options = ExtractOptions(precision="float32")
    found = []
    for device in ("cpu", "cpu,cpu"):
        with open_engine(EncoderRequest(spec="./texts.py"), device=device) as engine:
            assert engine.describe(options).text_sha256 is not None
            found.append(engine.encode_texts(["", "a", ""], options))
    one, several = found
    assert one.shape == (3, 12)
    np.testing.assert_array_equal(one, several)


def test_shards_of_a_url_that_are_fetched_ahead_make_the_same_store(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    with web_server(folder / "data", ranges=True) as (url, requests):
        record = extract(engine, folder, tmp_path / "store", data=url)
    assert (record.shards_done, record.deaths) == (N_SHARDS, ())
    assert len([each for each in requests if each.endswith(".tar")]) == N_SHARDS  # each travels once
    assert_same_contents(alone, tmp_path / "store", ignoring=("mtime_ns", "etag"))


def test_both_processes_take_part_and_their_seconds_are_added_up(engine: Engine, folder: Path, tmp_path: Path) -> None:
    for fault in ("slow", "both"):
        (folder / "faults" / fault).touch()
    record = extract(engine, folder, tmp_path / "store")
    assert record.workers == 2
    assert record.bottleneck == "encode"
    assert record.seconds["encode"] > 3.0  # some 20 passes of 0.2 s; either process alone has about half of them


def test_what_a_killed_worker_held_is_encoded_by_others_and_the_store_is_the_same(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    (folder / "faults/killed-once").touch()
    counting = Counting()
    record = extract(engine, folder, tmp_path / "store", progress=counting)
    assert (counting.clips, counting.shards) == (N_SHARDS * CLIPS_PER_SHARD, N_SHARDS)
    [death] = record.deaths
    assert re.search(r"cpu .*SIGKILL.* train-", death)
    assert_same_contents(alone, tmp_path / "store", ignoring=())
    assert n_parts(tmp_path / "store") == N_SHARDS


@pytest.mark.slow  # `test_coordinator` has workers that die twice
def test_a_shard_that_two_workers_died_over_ends_the_run_and_what_is_committed_stays(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    (folder / "faults/killed-always").touch()
    with pytest.raises(WorkerError) as caught:
        extract(engine, folder, tmp_path / "store")
    result = str(caught.value)
    assert re.search(r"cpu .*SIGKILL.* train-.*memory", result)
    assert n_committed(tmp_path / "store") == n_parts(tmp_path / "store") < N_SHARDS


def test_a_worker_with_other_weights_is_reported_apart_before_it_encodes(
    engine: WorkersEngine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    engine.close()
    engine.describe(OPTIONS)  # the first worker has loaded the encoder; the second will only when it is needed
    for fault in ("skewed", "slow"):
        (folder / "faults" / fault).touch()
    with pytest.raises(EncoderError, match=r"\w+@\w+.*\w+@\w+"):
        extract(engine, folder, tmp_path / "store")


def test_an_encoder_that_fails_in_a_worker_fails_as_it_would_here_and_names_the_clip(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    write_split(tmp_path / "data/tiny", "train", [clip("loud", noise(0.5) / abs(noise(0.5)).max())])
    messages = []
    with open_engine(tripping(), device="cpu") as local:
        for each in (local, engine):
            with pytest.raises(EncoderContractError) as caught:
                extract(each, folder, tmp_path / "store", data=tmp_path / "data")
            messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert re.search(r"'loud'.*train-000\.tar", messages[0])


def test_shards_that_break_in_workers_are_reported_together_and_the_others_are_committed(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    shards = write_split(
        tmp_path / "data/tiny", "train", [clip(f"{n}", noise(0.3, seed=n)) for n in range(6)], shards=6
    )
    for broken in (1, 4):
        shards[broken].write_bytes(shards[broken].read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"\b2\b.*\b6\b") as caught:
        extract(engine, folder, tmp_path / "store", data=tmp_path / "data")
    assert "train-001.tar" in str(caught.value)
    assert "train-004.tar" in str(caught.value)
    assert n_committed(tmp_path / "store") == 4


def start_cli(folder: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "featstore", "extract", "tiny.toml", "--encoder", "tripping.py", "--data", "data",
        "--store", str(store), "--split", "train", "--frames", "always", "--device", "cpu,cpu", *more,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_process_outlives_a_run_that_is_interrupted_or_killed(
    sent: signal.Signals, engine: Engine, folder: Path, alone: Path, tmp_path: Path
) -> None:
    (folder / "faults/slow").touch()
    started = start_cli(folder, tmp_path / "store")
    wait_for_commits(tmp_path / "store", started, 2)
    if sent == signal.SIGINT:
        os.killpg(started.pid, sent)  # as a terminal does: to all of them
    else:
        os.kill(started.pid, sent)
    out, errors = started.communicate(timeout=30)
    wait_until_nobody_is_left(started.pid)
    assert out == ""
    assert "Traceback" not in errors
    committed = n_committed(tmp_path / "store")
    assert committed < N_SHARDS
    if sent == signal.SIGINT:
        assert started.returncode == 130
        assert errors.strip().splitlines()[-1].startswith("featstore: interrupted")
        assert n_parts(tmp_path / "store") == committed
    (folder / "faults/slow").unlink()
    record = extract(engine, folder, tmp_path / "store")
    assert (record.shards_reused, record.shards_done) == (committed, N_SHARDS - committed)
    assert_same_contents(alone, tmp_path / "store", ignoring=())


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_process_outlives_a_run_that_ends_while_workers_load(
    sent: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    (folder / "faults/slow-to-load").touch()
    started = start_cli(folder, tmp_path / "store")
    limit = time.monotonic() + 60
    while not (folder / "faults/loading").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(started.pid, sent)
    started.communicate(timeout=30)
    wait_until_nobody_is_left(started.pid)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("all", "--device all"),
        ("cpu,auto", "--device.*'cpu,auto'"),
        ("cpu,tpu", "--device.*cuda:N.*'tpu'"),
        ("cpu,", "--device.*cuda:N.*''"),
        ("cuda:0,cuda:1", "--device cuda:0"),
    ],
)
def test_devices_that_cannot_be_are_a_usage_error(folder: Path, asked: str, named: str) -> None:
    import torch

    if torch.cuda.is_available() and "cpu" not in asked:
        pytest.skip("they are there")
    with pytest.raises(UsageError, match=named), open_engine(tripping(), device=asked):
        pass


def test_what_is_for_ray_alone_is_a_usage_error_without_it(folder: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"--ray-address.*--engine ray"),
        open_engine(tripping(), ray_address="auto"),
    ):
        pass
