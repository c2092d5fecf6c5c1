"""Shards that were taken away or renamed after they were extracted: nothing is lost unasked, nothing counts twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import handmade
import tiny
from featstore.errors import DataError
from featstore.probe import probe_task
from featstore.store import open_store


def test_the_embeddings_of_a_shard_that_is_gone_stay_until_they_are_pruned(tmp_path: Path) -> None:
    task, data, store = tiny.task(), tmp_path / "data", tmp_path / "s.zarr"
    for split in ("train", "valid", "test"):
        clips = [handmade.clip(f"{split}{n}", handmade.noise(0.3, seed=n), label="ab"[n % 2]) for n in range(6)]
        handmade.write_split(data / task.data.dataset, split, clips)
    splits = ("train", "valid", "test")

    handmade.extract(task, data, store, splits=splits)
    [shard] = (data / task.data.dataset).glob("train*.tar")
    shard.rename(shard.with_name("train-renamed.tar"))
    train, *_ = handmade.extract(task, data, store, splits=splits)
    assert train.gone == (shard.name,)
    with pytest.raises(DataError, match=r"stands in 'train' more than once.*--prune"):
        probe_task(open_store(str(store)), task)

    train, *_ = handmade.extract(task, data, store, splits=splits, prune=True)
    assert (train.gone, train.shards_reused, train.shards_done) == ((), 1, 0)
    assert probe_task(open_store(str(store)), task).n_train == train.clips == 6
