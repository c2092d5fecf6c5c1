"""`gc` deletes what counts for nothing; `compact` makes few parts of many and loses nothing on the way."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from stores import DIM, contents_by_plain_zarr, make_store, shard_windows, split_writer, write_part

import featstore
from featstore.errors import DamagedPart, StoreError
from featstore.store import maintenance
from featstore.store.copy import copy_store
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.verify import verify_store

SHARDS = tuple(f"{letter}.tar" for letter in "abcdefgh")


@pytest.fixture
def url(tmp_path):
    make_store(tmp_path / "embeddings.zarr", shards=SHARDS)
    return str(tmp_path / "embeddings.zarr")


def read(url):
    fs = featstore.open(url).select()
    return fs.key.tolist(), fs.utterance.copy(), [frames.copy() for frames in fs.frames], fs.content_hash


def assert_same(one, other):
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])
    assert all((a == b).all() for a, b in zip(one[2], other[2], strict=True))
    assert one[3] == other[3]


def test_a_compacted_store_reads_as_before_from_fewer_parts(url):
    before = read(url)
    [record] = compact_store(url, part_bytes=1 << 20)
    assert (record.parts_before, record.parts_after) == (8, 1)
    assert_same(read(url), before)
    assert verify_store(url).sound
    assert len(contents_by_plain_zarr(url)) == 1
    assert compact_store(url, part_bytes=1 << 20) == ()


def test_parts_are_gathered_up_to_the_size_asked_for(url):
    compact_store(url, part_bytes=1500)
    sizes = [len(arrays["key"]) for arrays in contents_by_plain_zarr(url).values()]
    assert 1 < len(sizes) < 8
    assert sum(sizes) == 40


@pytest.mark.parametrize("array", ["utterance", "frames", "seconds"])
def test_compaction_does_not_put_its_seal_on_damage(url, tmp_path, array):
    [chunk] = (path for path in tmp_path.glob(f"*/*/*/*/d.*/{array}/c/**/0") if path.is_file())
    raw = bytearray(chunk.read_bytes())
    raw[2] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(DamagedPart, match=rf"/d\.\w+.*{array}/c/0.*`featstore verify"):
        compact_store(url, part_bytes=1 << 20)
    [finding] = verify_store(url).findings
    assert finding.remedy == "drop the part"


def test_a_copy_without_frames_is_compacted_by_the_size_of_what_it_holds(url, tmp_path):
    bare = str(tmp_path / "bare.zarr")
    copy_store(url, bare, only="utterance", encoder=None, dataset=None, split=None)
    [record] = compact_store(bare, part_bytes=40 * 4 * DIM)  # its 40 vectors, which are means of many more frames
    assert (record.parts_before, record.parts_after) == (8, 1)
    copied, whole = (featstore.open(each).select() for each in (bare, url))
    np.testing.assert_array_equal(copied.utterance, whole.utterance)
    assert copied.content_hash == whole.content_hash
    assert verify_store(bare).sound


def test_a_shard_that_changes_after_compaction_is_superseded_alone(url):
    compact_store(url, part_bytes=1 << 20)
    writer = split_writer(url)
    changed = shard_windows("c.tar", seed=9)
    write_part(writer, "c.tar", changed, size=2)
    writer.sweep()
    writer.write_catalogue()
    expected = [w.key for shard in SHARDS for w in (changed if shard == "c.tar" else shard_windows(shard))]
    keys, utterance, frames, _ = read(url)
    assert keys == expected
    np.testing.assert_array_equal(utterance[10:15], np.stack([each.utterance for each in changed]))
    assert all((a == b.frames).all() for a, b in zip(frames[10:15], changed, strict=True))
    assert verify_store(url).sound
    before = read(url)
    compact_store(url, part_bytes=1 << 20)
    assert_same(read(url), before)
    assert verify_store(url).sound


def test_a_compaction_that_dies_before_its_commit_changes_nothing(url, monkeypatch):
    before = read(url)

    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(maintenance.SplitWriter, "sweep", dies)
    with pytest.raises(KeyboardInterrupt):
        compact_store(url, part_bytes=1 << 20)
    assert_same(read(url), before)  # the new part and the old ones are both there, and one of each counts
    monkeypatch.undo()
    assert gc_store(url)[0].deleted
    assert_same(read(url), before)


def test_gc_deletes_superseded_parts_orphans_and_old_temporary_files_only(url, tmp_path):
    before = read(url)
    writer = split_writer(url)
    write_part(writer, "a.tar", shard_windows("a.tar"))
    live = writer.begin_part("z.tar")
    old, new = (tmp_path / "embeddings.zarr" / f".zarr.json.{uuid4().hex}" for _ in range(2))
    for path in (old, new):
        path.write_bytes(b"{")
    os.utime(old, (0, 0))
    records = gc_store(url)
    assert [len(record.deleted) for record in records] == [1, 1]
    assert not old.exists()
    assert new.exists()
    live.abort()
    assert_same(read(url), before)
    assert gc_store(url) == ()


def test_gc_passes_over_a_temporary_file_that_a_live_writer_renames_meanwhile(url, tmp_path, monkeypatch):
    passing = tmp_path / "embeddings.zarr" / f".zarr.json.{uuid4().hex}"
    passing.write_bytes(b"{")
    os.utime(passing, (0, 0))
    is_file = Path.is_file

    def then_it_goes(path):
        found = is_file(path)
        if path == passing:
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", then_it_goes)
    assert gc_store(url) == ()


def test_a_store_is_not_copied_onto_itself_however_it_is_named(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError):
        copy_store(url, "./embeddings.zarr", only="everything", encoder=None, dataset=None, split=None)
