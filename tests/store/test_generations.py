"""Which part counts is decided by generations that are read from what is there, not by a clock."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from stores import make_store, shard_windows, split_writer, write_part

import featstore
from featstore.store import part_writer as part_module
from featstore.store.catalogue import look_at_split
from featstore.store.documents import read_document
from featstore.store.filesystem import open_objects
from featstore.store.format import Commit, DamagedDocument
from featstore.store.maintenance import compact_store
from featstore.store.verify import verify_store
from handmade import clip, extract, noise, task_toml, write_tar


@pytest.fixture
def url(tmp_path):
    make_store(tmp_path / "embeddings.zarr")
    return str(tmp_path / "embeddings.zarr")


def set_clock_back(monkeypatch, **by):
    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(**by)

    monkeypatch.setattr(part_module, "datetime", Earlier)


def commits_of(url, path):
    objects = open_objects(url)
    return look_at_split(objects, path, read_document(objects, path)).commits


def generations(url):
    path = split_writer(url).path
    return {commit.part.rpartition(".")[0]: commit.generation for commit in commits_of(url, path)}


def test_a_changed_shard_that_is_extracted_with_a_clock_set_back_by_a_day_is_served_and_not_encoded_again(
    tmp_path, monkeypatch
):
    from featstore.tasks import load_manifest

    task, store = load_manifest(task_toml(tmp_path)), tmp_path / "s.zarr"
    shard = write_tar(tmp_path / "tiny" / "train-0.tar", clip("one", noise(0.4, seed=1)))
    extract(task, tmp_path, store)
    before = featstore.open(str(store)).select().utterance.copy()
    set_clock_back(monkeypatch, days=1)
    write_tar(shard, clip("one", noise(0.4, seed=2)))
    os.utime(shard, (1, 1))
    [record] = extract(task, tmp_path, store)
    assert record.shards_done == 1
    fs = featstore.open(str(store)).select()
    assert not np.allclose(fs.utterance, before)
    [alone] = extract(task, tmp_path, tmp_path / "alone.zarr")
    np.testing.assert_array_equal(fs.utterance, featstore.open(str(tmp_path / "alone.zarr")).select().utterance)
    [again] = extract(task, tmp_path, store)
    assert (again.shards_done, again.shards_reused, alone.shards_done) == (0, 1, 1)
    assert verify_store(str(store)).sound


def test_workers_in_processes_of_their_own_get_the_generation_with_the_shard(tmp_path, monkeypatch):
    """What a worker is handed says the generation: it opens the feature set itself and has not looked at it."""
    from featstore.extract.shards import Shard
    from featstore.extract.task import _FeatureSet, _stale

    make_store(tmp_path / "s.zarr", shards=("a.tar",))
    writer = split_writer(tmp_path / "s.zarr")
    write_part(writer, "a.tar", shard_windows("a.tar", seed=1), size=2)
    cached = split_writer(tmp_path / "s.zarr").begin_run()
    shards = [Shard(name=name, path=tmp_path / name) for name in ("a.tar", "b.tar")]
    sets = [
        _FeatureSet(
            output=None, writer=writer, cached=cached, gone=(), unnamed=(), stale=frozenset(("a.tar", "b.tar"))
        ),
        _FeatureSet(output=None, writer=writer, cached={}, gone=(), unnamed=(), stale=frozenset(("a.tar",))),
    ]
    assert [each.generations for each in _stale(shards, sets)] == [{0: 2, 1: 0}, {0: 0}]


def test_a_new_part_supersedes_what_was_seen_whatever_the_clock_says(url, monkeypatch):
    assert set(generations(url).values()) == {0}
    set_clock_back(monkeypatch, days=400)
    for seed in (1, 2):
        write_part(split_writer(url), "b.tar", shard_windows("b.tar", seed=seed), size=seed + 1)
        writer = split_writer(url)
        writer.sweep()
        writer.write_catalogue()
        expected = np.stack([each.utterance for each in shard_windows("b.tar", seed=seed)])
        np.testing.assert_array_equal(featstore.open(url).select().utterance[5:10], expected)
    assert generations(url) == {"a": 0, "b": 2, "c": 0}
    assert verify_store(url).sound


def test_compaction_supersedes_with_a_clock_set_back_and_is_superseded_by_the_next(url, monkeypatch):
    set_clock_back(monkeypatch, days=1)
    [record] = compact_store(url, part_bytes=1 << 20)
    assert (record.parts_before, record.parts_after) == (3, 1)
    assert generations(url) == {"compacted-a": 1}
    set_clock_back(monkeypatch, days=2)
    changed = shard_windows("c.tar", seed=9)
    write_part(split_writer(url), "c.tar", changed, size=2)
    fs = featstore.open(url).select()
    np.testing.assert_array_equal(fs.utterance[10:], np.stack([each.utterance for each in changed]))


def test_compaction_leaves_a_shard_that_another_writer_replaces_meanwhile(url, monkeypatch):
    from featstore.store import maintenance

    changed = shard_windows("b.tar", seed=4)

    def then_it_changes(*_):
        write_part(split_writer(url), "b.tar", changed, size=2)

    monkeypatch.setattr(maintenance, "_check_parts", then_it_changes)
    compact_store(url, part_bytes=1 << 20)
    fs = featstore.open(url).select()
    np.testing.assert_array_equal(fs.utterance[5:10], np.stack([each.utterance for each in changed]))


def test_writers_that_saw_the_same_parts_lose_nothing_and_the_later_counts(url):
    one, other = split_writer(url), split_writer(url)
    one.begin_run()
    other.begin_run()
    write_part(one, "b.tar", shard_windows("b.tar", seed=1), size=2)
    write_part(other, "b.tar", shard_windows("b.tar", seed=2), size=3)
    assert split_writer(url).committed()["b.tar"].member.shard.size == 3
    assert len(featstore.open(url).select()) == 15


def test_a_record_of_an_older_store_is_of_generation_0_and_is_written_as_it_was(url):
    [commit, *_] = commits_of(url, split_writer(url).path)
    raw = commit.as_json()
    assert "generation" not in raw
    assert Commit.from_json(raw).generation == 0
    assert Commit.from_json(replace(commit, generation=3).as_json()).generation == 3
    for wrong in (-1, "1", 1.5, True, None):
        with pytest.raises(DamagedDocument):
            Commit.from_json({**raw, "generation": wrong})
