"""A killed run loses nothing that was committed, and leaves nothing that looks whole and is not."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import harness
import numpy as np
import pytest
from stores import assert_equal_contents, contents_by_plain_zarr

import featstore
from featstore.errors import DamagedPart, StoreNotFound
from featstore.store.faults import FAULT_POINTS
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store

KILLS = 4
AT_THE_END = ("deleting-document", "deleting-arrays")  # a first extraction has nothing to delete


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return harness.make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole") / "embeddings.zarr"
    assert harness.run(folder, store) == (0, "")
    return contents_by_plain_zarr(store)


@pytest.fixture(scope="module")
def lasts(folder, tmp_path_factory):
    """Seconds that an extraction takes."""
    with harness.extracting(folder, tmp_path_factory.mktemp("timed") / "embeddings.zarr") as child:
        begun = time.monotonic()
        assert child.wait() == (0, "")
        return time.monotonic() - begun


class Reader:
    """Reads a store over and over while it is written, and notes whatever was not whole."""

    def __init__(self, store):
        self._store = str(store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.wrong = []
        self.reads = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _read(self):
        missing = ""
        while not self._stop.is_set():
            try:
                for fs in featstore.open(self._store).feature_sets():
                    whole = len(fs) % harness.CLIPS_PER_SHARD == 0 and len(fs.key) == len(fs.frames) == len(fs)
                    means = [np.asarray(frames, np.float32).mean(axis=0) for frames in fs.frames]
                    if not whole or not np.allclose(fs.utterance, means, atol=2e-2):
                        self.wrong.append(fs.path)
                    self.reads += 1
            except StoreNotFound:
                pass
            except DamagedPart as error:
                # one of two writers may replace a part while the store is open; once opened again it does not miss it
                if "changed while it was open" not in str(error) or str(error) == missing:
                    self.wrong.append(repr(error))
                missing = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                self.wrong.append(repr(error))
            time.sleep(0.01)


def killed_at(point, folder, store):
    code, errors = harness.run(folder, store, FEATSTORE_FAULT_POINT=point)
    return code == -signal.SIGKILL, errors


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", [point for point in FAULT_POINTS if point not in AT_THE_END])
def test_killed_at_a_fault_point_the_next_run_completes_the_store_bit_for_bit(
    point, times, folder, uninterrupted, tmp_path
):
    store = tmp_path / "embeddings.zarr"
    with Reader(store) as reader:
        killed, errors = killed_at(f"{point}:{times}", folder, store)
        assert killed, f"the run never came to {point} {times} times: {errors}"
        assert harness.run(folder, store) == (0, "")
    assert reader.wrong == []
    assert_equal_contents(uninterrupted, contents_by_plain_zarr(store), ignoring=())
    gc_store(str(store))
    assert verify_store(str(store)).sound


@pytest.mark.parametrize("point", AT_THE_END)
def test_killed_while_a_superseded_part_is_deleted_the_next_run_deletes_the_rest(
    point, folder, uninterrupted, tmp_path
):
    store = tmp_path / "embeddings.zarr"
    harness.run(folder, store)
    shard = folder / "data" / "harm" / "train-1.tar"
    as_it_was, times = shard.read_bytes(), shard.stat()
    try:
        shard.write_bytes(as_it_was + b"\0" * 10240)
        with Reader(store) as reader:
            killed, errors = killed_at(point, folder, store)
            assert killed, errors
            assert harness.run(folder, store) == (0, "")
        assert reader.wrong == []
    finally:
        shard.write_bytes(as_it_was)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    now = contents_by_plain_zarr(store)
    assert sorted(now) == sorted(uninterrupted)
    assert verify_store(str(store)).sound


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_killed_at_random_moments_the_next_run_completes_the_store_bit_for_bit(
    seed, folder, uninterrupted, lasts, tmp_path
):
    """Some kills for each seed: again and again, sooner or later, and to the end whenever a run got through."""
    rng = random.Random(seed)
    killed = number = 0
    while killed < KILLS:
        store = tmp_path / f"{number}.zarr"
        number += 1
        with Reader(store) as reader:
            for again in range(rng.randrange(2, 6)):
                with harness.extracting(folder, store) as child:
                    moment = rng.uniform(0, 1.2 * lasts)
                    time.sleep(moment)
                    child.kill()
                    code, _ = child.wait()
                if code == 0 and not again:  # a whole extraction took less: the machine is quicker than it was
                    lasts = min(lasts, moment)
                killed += code == -signal.SIGKILL
            assert harness.run(folder, store) == (0, "")
        assert reader.wrong == []
        assert_equal_contents(uninterrupted, contents_by_plain_zarr(store), ignoring=())
        assert verify_store(str(store)).sound


def test_two_writers_on_one_split_make_the_store_that_one_would(folder, uninterrupted, tmp_path):
    store = tmp_path / "embeddings.zarr"
    with Reader(store) as reader, harness.extracting(folder, store) as one, harness.extracting(folder, store) as other:
        for child in (one, other):
            assert child.wait() == (0, "")
    assert reader.wrong == []
    gc_store(str(store))
    assert_equal_contents(uninterrupted, contents_by_plain_zarr(store), ignoring=())
    assert verify_store(str(store)).sound
