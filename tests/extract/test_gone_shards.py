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
    with pytest.raises(DataError, match=r"'train'.*--prune"):
        probe_task(open_store(str(store)), task)

    train, *_ = handmade.extract(task, data, store, splits=splits, prune=True)
    assert (train.gone, train.shards_reused, train.shards_done) == ((), 1, 0)
    assert probe_task(open_store(str(store)), task).n_train == train.clips == 6


def test_a_task_prunes_no_shard_whose_file_is_there_whatever_its_pattern_names(tmp_path: Path) -> None:
    """Two manifests of one dataset, which assign shards differently, extracted into one store one after the other."""
    data, store = tmp_path / "data", tmp_path / "s.zarr"
    for at, name in enumerate("abcd"):
        clips = [
            handmade.clip(f"{name}{n}", handmade.noise(0.3, seed=10 * at + n), label="ab"[n % 2]) for n in range(3)
        ]
        handmade.write_tar(data / "tiny" / f"{name}.tar", [member for members in clips for member in members])
    splits = ("train", "valid", "test")
    one = tiny.task(splits={"train": "[ab].tar", "valid": "c.tar", "test": "d.tar"})
    other = tiny.task(splits={"train": "a.tar", "valid": "b.tar", "test": "[cd].tar"})
    handmade.extract(one, data, store, splits=splits)
    before = probe_task(open_store(str(store)), one)
    train, valid, test = handmade.extract(other, data, store, splits=splits, prune=True)
    assert [record.gone for record in (train, valid, test)] == [(), (), ()]
    assert (train.unnamed, valid.unnamed, test.unnamed) == (("b.tar",), ("c.tar",), ())
    after = probe_task(open_store(str(store)), one)
    assert (after.value, after.features, after.n_train) == (before.value, before.features, 6)

    (data / "tiny" / "b.tar").unlink()
    one_less = tiny.task(splits={"train": "a.tar", "valid": "c.tar", "test": "d.tar"})
    train, *_ = handmade.extract(one_less, data, store, splits=splits)
    assert (train.gone, train.unnamed) == (("b.tar",), ())
    train, *_ = handmade.extract(one_less, data, store, splits=splits, prune=True)
    assert (train.gone, train.unnamed) == ((), ())
    assert len(open_store(str(store)).select(split="train")) == 3


def test_shards_that_were_encoded_again_because_they_changed_are_named_and_new_ones_are_not(tmp_path: Path) -> None:
    task, data, store = tiny.task(), tmp_path / "data", tmp_path / "s.zarr"
    for name, seed in (("train-0", 0), ("train-1", 1)):
        handmade.write_tar(data / "tiny" / f"{name}.tar", handmade.clip(name, handmade.noise(0.3, seed=seed)))
    [record] = handmade.extract(task, data, store)
    assert record.changed == ()
    handmade.write_tar(data / "tiny" / "train-1.tar", handmade.clip("train-1", handmade.noise(0.4, seed=9)))
    handmade.write_tar(data / "tiny" / "train-2.tar", handmade.clip("train-2", handmade.noise(0.3, seed=2)))
    [record] = handmade.extract(task, data, store)
    assert (record.changed, record.shards_done, record.shards_reused) == (("train-1.tar",), 2, 1)
    [record] = handmade.extract(task, data, store, frames="always")  # all lack their frames, and none changed
    assert (record.changed, record.shards_done) == ((), 3)
