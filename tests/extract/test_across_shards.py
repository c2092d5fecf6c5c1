"""On a GPU a batch may hold windows of several shards: what is stored is the same, and no shard waits for ever.

The CPU stands in for a GPU: batches are in flight, and the audio per batch is given.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from featstore.encoders.runner import EncoderRun
from featstore.errors import EncoderContractError, ShardError
from featstore.extract import EncoderRequest
from featstore.extract.pipeline import Pipeline
from featstore.extract.worker import CoordinatorGone, Event, Message, WorkerSettings, work
from featstore.extract.workers import WorkersEngine
from featstore.records import ExtractRecord
from handmade import assert_equal_stores, build, clip, extract, noise, read_with_plain_zarr, write_split
from tiny import task

N_SHARDS = 6


class Batched(torch.nn.Module):
    """Remembers the size of each batch. A loud clip is too much for it."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 2, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(audio))
        steps = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 160)).unflatten(1, (-1, 160))
        frames = torch.stack([steps.mean(2), steps.amax(2)], dim=2)
        return frames / (audio.abs().amax(1) < 0.95)[:, None, None]


@pytest.fixture
def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EncoderRun, "batches_ahead", 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six shards of three clips, each of another length."""
    clips = [clip(f"c{n:02d}", noise((1 + n // N_SHARDS) * 0.25, seed=n)) for n in range(3 * N_SHARDS)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=N_SHARDS)
    return tmp_path / "data"


def run(data: Path, store: Path, module: torch.nn.Module | None = None, *, batch_seconds: float = 3.0) -> ExtractRecord:
    [record] = extract(
        task(), data, store, encoder=build(module or Batched()), frames="always", batch_seconds=batch_seconds
    )
    return record


def assert_same(one: Path, other: Path) -> None:
    first, second = read_with_plain_zarr(one), read_with_plain_zarr(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, second[name], rtol=1e-3, err_msg=name)
        else:
            np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_windows_of_several_shards_share_batches_and_every_part_is_what_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = Batched(), Batched()
    run(data, tmp_path / "alone", alone)
    monkeypatch.setattr(EncoderRun, "batches_ahead", 1)
    record = run(data, tmp_path / "together", together)
    # Each length is there once in a shard; the first pass is over noise, and four are over reference signals.
    assert alone.sizes[5:] == [1] * 18
    assert sorted(together.sizes[5:]) == [2, 4, 6, 6]  # 3 s hold six of the short, six of half a second, four of 0.75 s
    assert (record.shards_done, record.clips) == (N_SHARDS, 18)
    assert_same(tmp_path / "alone", tmp_path / "together")


@pytest.mark.usefixtures("as_a_gpu")
def test_embeddings_that_wait_for_a_window_before_them_take_no_more_memory_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six windows fill a batch, and wait for the first of their shard, which is of a length that is seldom."""
    for shard in range(9):
        seldom, others = noise(0.25, seed=shard), [noise(0.5, seed=10 * shard + n) for n in range(6)]
        clips = [clip(f"{shard}-{n}", wave) for n, wave in enumerate([seldom, *others])]
        write_split(tmp_path / "data/tiny", f"train{shard}", clips)
    held: list[int] = []
    store = Pipeline._store

    def watched(self: Pipeline, *args: Any) -> None:
        store(self, *args)
        held.append(self._pending_bytes())

    monkeypatch.setattr(Pipeline, "_store", watched)
    a_batch = 6 * (50 * 2 * 2 + 2 * 4)  # frames, and the utterance vector
    most = {}
    for may in (10**9, 3 * a_batch):
        held.clear()
        monkeypatch.setattr("featstore.extract.job._max_pending_bytes", lambda _, may=may: may)
        run(tmp_path / "data", tmp_path / f"{may}", batch_seconds=3.0)
        most[may] = max(held)
    assert most[10**9] > 7 * a_batch
    assert most[3 * a_batch] <= 5 * a_batch  # the one that was too many, and the one under way
    assert_same(tmp_path / f"{3 * a_batch}", tmp_path / f"{10**9}")


def test_on_a_cpu_a_part_is_bit_for_bit_what_it_is_alone(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "together")
    for number in range(N_SHARDS):
        for shard in (tmp_path / "apart/tiny").glob("*.tar"):
            shard.unlink()
        (tmp_path / "apart/tiny").mkdir(parents=True, exist_ok=True)
        name = f"train-{number:03d}.tar"
        (tmp_path / "apart/tiny" / name).write_bytes((data / "tiny" / name).read_bytes())
        run(tmp_path / "apart", tmp_path / "store")
    assert_equal_stores(tmp_path / "together", tmp_path / "store")


@pytest.mark.usefixtures("as_a_gpu")
def test_a_shard_that_breaks_off_takes_no_other_with_it(data: Path, tmp_path: Path) -> None:
    broken = data / "tiny/train-002.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2 + 512])
    with pytest.raises(ShardError, match=r"\b1\b.*\b6\b.*train-002\.tar"):
        run(data, tmp_path / "store")
    kept = set(featstore.open(str(tmp_path / "store")).select().key)
    assert kept == {f"c{n:02d}" for n in range(3 * N_SHARDS) if n % N_SHARDS != 2}
    broken.write_bytes(whole)
    assert run(data, tmp_path / "store").shards_done == 1
    run(data, tmp_path / "at once")
    assert_same(tmp_path / "store", tmp_path / "at once")


@pytest.mark.usefixtures("as_a_gpu")
def test_a_clip_that_spoils_a_batch_is_named_with_its_own_shard(tmp_path: Path) -> None:
    wave = noise(0.25)
    clips = [clip("a", wave), clip("b", wave), clip("loud", wave / abs(wave).max()), clip("d", wave)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=4)
    with pytest.raises(EncoderContractError, match=r"'loud'.*train-002\.tar"):
        run(tmp_path / "data", tmp_path / "store")


@pytest.mark.usefixtures("as_a_gpu")
def test_a_run_that_ends_early_keeps_the_shards_that_were_whole_and_goes_on(data: Path, tmp_path: Path) -> None:
    last = data / "tiny/train-005.tar"
    whole = last.read_bytes()
    wave = noise(0.5)
    write_split(data / "tiny", "zz", [clip("loud", wave / abs(wave).max())])
    (data / "tiny/zz-000.tar").replace(last)
    with pytest.raises(EncoderContractError, match="loud"):
        run(data, tmp_path / "store", batch_seconds=0.75)
    kept = len(list((tmp_path / "store").glob("*/*/*/*/utterance")))
    assert 0 < kept < N_SHARDS
    last.write_bytes(whole)
    assert run(data, tmp_path / "store").shards_done == N_SHARDS - kept
    run(data, tmp_path / "at once")
    assert_same(tmp_path / "store", tmp_path / "at once")


class Queues:
    """The link of a worker that is a thread."""

    def __init__(self, said: queue.SimpleQueue[tuple[int, Event]]) -> None:
        self.said = said
        self.messages: queue.SimpleQueue[Message | type[CoordinatorGone]] = queue.SimpleQueue()

    def send(self, event: Event) -> None:
        self.said.put((0, event))

    def receive(self, timeout: float | None = None) -> Message:
        try:
            message = self.messages.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if message is CoordinatorGone:
            raise CoordinatorGone
        return message  # type: ignore[return-value]


@dataclass
class Threads:
    """One worker, a thread of this process: two would set PyTorch's global settings against each other."""

    request: EncoderRequest
    size: int = 1
    said: queue.SimpleQueue[tuple[int, Event]] = field(default_factory=queue.SimpleQueue)

    def start(self, worker: int) -> None:
        self.link = Queues(self.said)
        settings = WorkerSettings(device="cpu", cores=1)
        self.thread = threading.Thread(target=work, args=(self.link, self.request, settings), daemon=True)
        self.thread.start()

    def send(self, worker: int, message: Message) -> None:
        self.link.messages.put(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        return [self.said.get(timeout=20)]  # a coordinator and a worker that wait for each other fail here

    def close(self, *, loading: Collection[int]) -> None:
        self.link.messages.put(CoordinatorGone)
        self.thread.join(timeout=20)  # it puts the settings of torch back


@pytest.mark.usefixtures("as_a_gpu")
def test_a_worker_whose_next_shard_is_long_in_coming_encodes_what_it_has_and_so_the_run_ends(
    data: Path, tmp_path: Path
) -> None:
    with WorkersEngine(Threads(EncoderRequest(spec="logmel")), attempts=2) as engine:
        [record] = extract(task(), data, tmp_path / "worker", encoder=engine, batch_seconds=3.0)  # type: ignore[arg-type]
    assert (record.shards_done, record.clips) == (N_SHARDS, 18)
    extract(task(), data, tmp_path / "alone")
    assert_same(tmp_path / "worker", tmp_path / "alone")
