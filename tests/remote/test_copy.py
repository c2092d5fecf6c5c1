"""Feature sets moved between folders and buckets: whole, without frames, interrupted, and from damaged stores."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from stores import assert_same_contents, contents_by_plain_zarr, make_store, shard_windows, split_writer, write_part

import featstore
from featstore.cli import cli
from featstore.errors import DamagedPart, RemoteError, StoreError, UnknownFeatureSet
from featstore.store import filesystem as objects
from featstore.store.copy import CopyRecord, copy_store
from featstore.store.filesystem import open_objects
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.verify import verify_store
from featstore.store.writer import SplitWriter
from servers import S3


def copy(source: object, target: object, **asked: str) -> CopyRecord:
    [record] = copy_store(
        str(source), str(target), **{"only": "everything", "encoder": None, "dataset": None, "split": None, **asked}
    )
    return record


@pytest.fixture
def local(tmp_path):
    make_store(tmp_path / "local.zarr")
    return tmp_path / "local.zarr"


def test_a_store_goes_to_a_bucket_and_back_bit_for_bit(local, bucket, s3: S3, tmp_path):
    there = copy(local, f"{bucket}/there.zarr")
    assert (there.parts, there.copied, there.there) == (3, 3, 0)
    assert verify_store(f"{bucket}/there.zarr").sound
    back = copy(f"{bucket}/there.zarr", tmp_path / "back.zarr")
    assert back == there
    assert_same_contents(tmp_path / "back.zarr", local, ignoring=())
    assert verify_store(str(tmp_path / "back.zarr")).sound
    assert (
        featstore.open(str(tmp_path / "back.zarr")).select().content_hash
        == featstore.open(str(local)).select().content_hash
    )
    s3.forget()
    again = copy(local, f"{bucket}/there.zarr")
    assert (again.copied, again.there, again.bytes) == (0, 3, 0)
    assert not s3.asked("PUT", "POST", "DELETE")


def test_without_frames_the_vectors_are_the_same_and_scores_name_the_same_content(local, tmp_path):
    record = copy(local, tmp_path / "small.zarr", only="utterance")
    mine, theirs = featstore.open(str(tmp_path / "small.zarr")).select(), featstore.open(str(local)).select()
    assert not mine.has_frames
    assert (mine.content_hash, mine.n_frames) == (theirs.content_hash, theirs.n_frames)
    np.testing.assert_array_equal(mine.utterance, theirs.utterance)
    assert mine.key.tolist() == theirs.key.tolist()
    assert verify_store(str(tmp_path / "small.zarr")).sound
    assert not list((tmp_path / "small.zarr").rglob("frame*"))
    assert record.objects == 3 * 10
    assert all("frames" not in arrays for arrays in contents_by_plain_zarr(tmp_path / "small.zarr").values())
    assert copy(local, tmp_path / "small.zarr", only="utterance").copied == 0


def test_frames_come_after_the_vectors_and_take_their_place(local, tmp_path):
    copy(local, tmp_path / "other.zarr", only="utterance")
    assert copy(local, tmp_path / "other.zarr").copied == 3
    assert_same_contents(tmp_path / "other.zarr", local, ignoring=())
    assert verify_store(str(tmp_path / "other.zarr")).sound
    assert copy(local, tmp_path / "other.zarr", only="utterance").copied == 0  # what is there says more already


def test_a_copy_that_is_cut_short_reads_as_what_is_committed_and_goes_on(local, bucket, s3: S3, monkeypatch):
    monkeypatch.setenv("FEATSTORE_RETRIES", "0")
    target = f"{bucket}/half.zarr"
    s3.fault = lambda request: (
        "500" if request.method == "PUT" and "/c." in request.path and "/frames/c/" in request.path else ""
    )
    with pytest.raises(StoreError, match=r"\b500\b"):
        copy(local, target)
    s3.forget()
    half = featstore.open(target).select()
    assert [segment.member.shard.name for segment in half.segments] == ["a.tar", "b.tar"]
    assert verify_store(target).sound
    rest = copy(local, target)
    assert (rest.copied, rest.there) == (1, 2)
    assert len(featstore.open(target).select()) == 15


def test_an_object_that_is_not_what_was_committed_is_not_copied(local, tmp_path):
    part = split_writer(local).committed()["b.tar"].commit.part
    [chunk] = local.glob(f"*/*/*/{part}/utterance/c/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedPart, match=f"{part}/utterance/c/0/0"):
        copy(local, tmp_path / "copy.zarr")
    assert verify_store(str(tmp_path / "copy.zarr")).sound
    assert "b.tar" not in split_writer(tmp_path / "copy.zarr").committed()


def test_other_content_of_the_target_is_replaced_whatever_its_clock_and_generation_say(local, tmp_path):
    copy(local, tmp_path / "copy.zarr")
    for seed in (5, 6):
        other = split_writer(tmp_path / "copy.zarr")
        write_part(other, "a.tar", shard_windows("a.tar", seed=seed), size=seed)
    other.write_catalogue()
    record = copy(local, tmp_path / "copy.zarr")
    assert (record.copied, record.there, record.replaced) == (1, 2, 1)
    assert_same_contents(tmp_path / "copy.zarr", local, ignoring=())
    assert verify_store(str(tmp_path / "copy.zarr")).sound
    assert copy(local, tmp_path / "copy.zarr").copied == 0


def test_the_same_content_under_other_parts_is_there_already(local, tmp_path):
    make_store(tmp_path / "again.zarr")
    compact_store(str(tmp_path / "again.zarr"), part_bytes=1 << 20)
    record = copy(local, tmp_path / "again.zarr")
    assert (record.copied, record.there, record.replaced) == (0, 3, 0)


def test_a_shard_that_was_replaced_after_compaction_is_replaced_in_the_copy_too(local, tmp_path):
    """The compacted part holds an older state of one shard; lifted above the target's, it must not hide the newer."""
    compact_store(str(local), part_bytes=1 << 20)
    changed = split_writer(local)
    write_part(changed, "a.tar", shard_windows("a.tar", seed=3), size=2)
    changed.write_catalogue()
    copy(local, tmp_path / "copy.zarr")
    for size in (3, 4, 5, 6):  # generations grow in the target
        write_part(split_writer(tmp_path / "copy.zarr"), "b.tar", shard_windows("b.tar", seed=size), size=size)
    assert copy(local, tmp_path / "copy.zarr").replaced == 1
    mine, theirs = (featstore.open(str(each)).select() for each in (local, tmp_path / "copy.zarr"))
    assert mine.content_hash == theirs.content_hash
    np.testing.assert_array_equal(mine.utterance, theirs.utterance)
    assert copy(local, tmp_path / "copy.zarr").copied == 0


MAPS = """
import sys
from pathlib import Path
import featstore
fs = featstore.open(sys.argv[1]).select()
arrays = [fs.utterance_rows.slice(0, 5), fs.frames[0], fs.utterance]
print("mapped", flush=True)
for _ in sys.stdin:
    print(sum(float(each.sum()) for each in arrays), flush=True)
"""


def test_a_reader_keeps_what_it_has_mapped_while_the_same_parts_are_copied_again(local, tmp_path, monkeypatch):
    """A second run that has planned before the first had committed: it must not open a file of what is committed."""
    target = tmp_path / "copy.zarr"
    copy(local, target)
    write_all, one_at_a_time, sums = objects._write_all, threading.Lock(), set()
    monkeypatch.setattr(SplitWriter, "begin_run", lambda _: {})
    with subprocess.Popen(
        [sys.executable, "-c", MAPS, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout.readline() == "mapped\n"

        def after_it_is_read(file, view):
            """The file is open, and empty: where that is a committed one, the reader dies of SIGBUS now."""
            with one_at_a_time:
                reader.stdin.write("\n")
                reader.stdin.flush()
                sums.add(reader.stdout.readline())
            write_all(file, view)

        monkeypatch.setattr(objects, "_write_all", after_it_is_read)
        record = copy(local, target)
        reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert {float(each) for each in sums} == {sum_of_what_is_mapped(local)}
    assert record.copied == 3
    monkeypatch.undo()
    assert_same_contents(target, local, ignoring=())
    assert verify_store(str(target)).sound


def sum_of_what_is_mapped(store: object) -> float:
    fs = featstore.open(str(store)).select()
    return sum(float(each.sum()) for each in (fs.utterance[:5], fs.frames[0], fs.utterance))


def test_copies_to_one_target_at_once_leave_every_part_committed(local, tmp_path):
    target = str(tmp_path / "copy.zarr")
    command = [sys.executable, "-m", "featstore", "copy", str(local), target, "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [each.communicate(timeout=120)[0] for each in running]
    assert [each.returncode for each in running] == [0, 0, 0]
    assert all(record["parts"] == 3 for out in ended for record in json.loads(out))
    gc_store(target)
    assert_same_contents(target, local, ignoring=())
    report = verify_store(target)
    assert (report.findings, report.parts) == ((), 3)


def test_what_cannot_be_copied_is_said_in_one_line(local, tmp_path, bucket, s3):
    with pytest.raises(StoreError):
        copy(local, local)
    with pytest.raises(UnknownFeatureSet, match="other/"):
        copy(local, tmp_path / "x.zarr", encoder="other")
    with pytest.raises(RemoteError, match="The specified bucket does not exist"):
        copy(local, "s3://no-such-bucket-anywhere/x.zarr")
    with pytest.raises(RemoteError, match="read-only"):
        copy(local, f"http://127.0.0.1:{s3.port}/x.zarr")


def test_the_command_copies_what_is_asked_for_and_is_reported(local, bucket):
    other = split_writer(local, split="test")
    write_part(other, "t.tar", shard_windows("t.tar"))
    asked = ["copy", str(local), f"{bucket}/x.zarr", "--only", "utterance", "--split", "test"]
    outcome = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert re.search(r"words/test: 1 of 1 part copied \([\d.]+ k?B\), 0 ", outcome.output)
    again = CliRunner().invoke(cli, [*asked, "--json"], catch_exceptions=False)
    [record] = json.loads(again.output)
    assert (record["parts"], record["copied"], record["there"]) == (1, 0, 1)
    assert [fs.split for fs in featstore.open(f"{bucket}/x.zarr").feature_sets()] == ["test"]
    assert open_objects(f"{bucket}/x.zarr").children("")[0] == "tiny@f4501fa0"
