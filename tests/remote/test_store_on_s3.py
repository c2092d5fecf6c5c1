"""A store in a bucket of a real S3 server: what it holds, what it costs in requests, and what it survives."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import (
    DEAD_HERE,
    assert_equal_contents,
    contents_by_plain_zarr,
    make_store,
    shard_windows,
    split_writer,
    write_part,
    writing,
)
from zarr.storage import ObjectStore

import featstore
from featstore.errors import DamagedPart, StoreError
from featstore.store import Member, ShardIdentity
from featstore.store import remote_arrays as ranged_rows
from featstore.store.arrays import ZarrRows, open_rows
from featstore.store.cache import PartCache
from featstore.store.catalogue import look_at_split, read_split
from featstore.store.documents import read_document
from featstore.store.filesystem import open_objects
from featstore.store.format import GROUP_DOCUMENT, seal
from featstore.store.liveness import SILENCE_SECONDS
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.repair import repair_store
from featstore.store.verify import verify_store
from servers import S3, Request

SHARDS = ("a.tar", "b.tar", "c.tar")


@pytest.fixture
def url(s3: S3, bucket: str) -> str:
    url = f"{bucket}/deep/embeddings.zarr"
    make_store(url)
    s3.forget()
    return url


def folders_of(cache: PartCache) -> list[Path]:
    return sorted(path for path in cache.parts.iterdir() if path.is_dir())


def mirrored(url: str, folder: Path) -> Path:
    """The objects of a store as files, fetched one by one by the client that is tested elsewhere."""
    objects = open_objects(url)
    for key in objects.sizes(""):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(objects.read(key) or b"")
    return folder


def test_what_a_bucket_holds_is_what_a_folder_would_and_plain_zarr_reads_it(url, tmp_path):
    make_store(tmp_path / "local.zarr")
    mirror = mirrored(url, tmp_path / "mirror.zarr")
    left, right = contents_by_plain_zarr(mirror), contents_by_plain_zarr(tmp_path / "local.zarr")
    assert_equal_contents(left, right)
    mine, theirs = featstore.open(url).select(), featstore.open(str(tmp_path / "local.zarr")).select()
    np.testing.assert_array_equal(mine.utterance, theirs.utterance)
    assert mine.key.tolist() == theirs.key.tolist()
    assert mine.meta_json.tolist() == theirs.meta_json.tolist()
    np.testing.assert_array_equal(mine.seconds, theirs.seconds)
    for one, two in zip(mine.frames, theirs.frames, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(mine.frames[[9, 0, 14]].values, theirs.frames[[9, 0, 14]].values)
    assert mine.content_hash == theirs.content_hash


def test_a_part_costs_its_objects_and_two_documents(url, s3):
    writer = split_writer(url)
    s3.forget()
    write_part(writer, "d.tar", shard_windows("d.tar"))
    [commit] = [each.commit for name, each in writer.committed().items() if name == "d.tar"]
    written = s3.asked("PUT", "POST", "DELETE", "HEAD")
    n_objects = sum(1 for key in open_objects(url).sizes(f"{writer.path}/{commit.part}")) - 1
    assert len(written) <= 2 + n_objects
    assert written[0].key == written[-1].key
    assert written[-1].key.endswith(f"{commit.part}/zarr.json")  # the commit comes last
    s3.forget()
    open_objects(url).write("large", b"\0" * (12 << 20))  # whatever its size, an object is one request
    assert len(s3.requests) == 1


def test_names_that_one_answer_holds_are_planned_with_their_catalogue_and_a_listing(url, s3, monkeypatch):
    """S3 lists a thousand names at a time, and this one a hundred: 99 parts and the split's document are one answer."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "100")
    writer, objects = split_writer(url), open_objects(url)
    document = read_document(objects, writer.path)
    [like, *_] = document["catalogue"]
    records = []
    for number in range(96):
        shard = {**like["members"][0]["shard"], "name": f"{number:04}.tar"}
        part = f"{number:04}.0badc0de"
        records.append({**like, "part": part, "members": [{**like["members"][0], "shard": shard}]})
        objects.put(f"{writer.path}/{part}/key/zarr.json", [b"{}"])
    objects.sync(writer.path)
    document["catalogue"] += records
    objects.write(f"{writer.path}/zarr.json", seal(document))

    s3.forget()
    assert len(split_writer(url).begin_run()) == 99
    assert len(s3.requests) == 2

    s3.forget()
    assert len(read_split(open_objects(url), writer.path).segments) == 99
    assert len(s3.requests) == 2

    document["catalogue"].append({**records[0], "part": f"x{records[0]['part']}"})
    objects.write(f"{writer.path}/zarr.json", seal(document))
    objects.write(f"{writer.path}/x{records[0]['part']}/key/zarr.json", b"{}")
    s3.forget()
    assert len(read_split(open_objects(url), writer.path).segments) == 99  # of two parts of a shard one counts
    assert len(s3.requests) == 3  # with the hundredth part the document is on a second page


def test_what_was_read_once_is_not_asked_for_again(url, s3, tmp_path):
    first = featstore.open(url).select()
    vectors = np.array(first.utterance)
    assert len(first.key) == len(first.meta_json) == len(first.seconds) == 15
    s3.forget()
    again = featstore.open(url).select()
    np.testing.assert_array_equal(again.utterance, vectors)
    assert again.meta_json.tolist() == first.meta_json.tolist()
    # of the parts their records alone, each once: they vouch for what is here
    of_parts = [request.key for request in s3.requests if "/train/" in request.path]
    of_parts = [key for key in of_parts if not key.endswith("/train/zarr.json")]
    assert len(of_parts) == len(set(of_parts)) == len(SHARDS)
    assert all(key.endswith("/zarr.json") and key.count("/") == 6 for key in of_parts)
    # a copy that was damaged on this machine is fetched again
    copy, *_ = (tmp_path / "cache").glob("featstore-parts/*/utterance/c/0/0")
    copy.write_bytes(b"\0" * copy.stat().st_size)
    s3.forget()
    np.testing.assert_array_equal(featstore.open(url).select().utterance, vectors)
    assert sum("utterance/c/0/0" in request.path for request in s3.requests) == 1


def test_the_cache_forgets_what_was_opened_longest_ago(url, tmp_path):
    featstore.open(url).select().utterance.sum()
    cache = PartCache.from_environment()
    parts = folders_of(PartCache.from_environment())
    for age, part in enumerate(parts):
        os.utime(part / "zarr.json", (1000 - age, 1000 - age))
    size = sum(path.stat().st_size for path in parts[0].rglob("*") if path.is_file())
    PartCache(cache.folder, most_bytes=round(size * 1.5)).trim(keep_since=2000)
    assert folders_of(PartCache.from_environment()) == parts[:1]
    PartCache(cache.folder, most_bytes=0).trim(keep_since=500)  # a process that still runs has opened it
    assert folders_of(PartCache.from_environment()) == parts[:1]
    assert featstore.open(url).select().utterance.shape == (15, 6)


def test_the_cache_counts_and_forgets_what_a_killed_process_left_without_a_record(url, tmp_path):
    featstore.open(url).select().utterance.sum()
    cache = PartCache.from_environment()
    [left, *rest] = folders_of(cache)
    (left / "zarr.json").unlink()
    for path in left.rglob("*"):
        os.utime(path, (1000, 1000))
    cache.trim(keep_since=0)
    assert left.exists()
    size = sum(path.stat().st_size for part in rest for path in part.rglob("*") if path.is_file())
    PartCache(cache.folder, most_bytes=size).trim(keep_since=2000)
    assert folders_of(cache) == rest


def test_a_copy_that_another_process_made_room_of_is_fetched_again(url, tmp_path):
    fs = featstore.open(url).select()
    keys = fs.key.tolist()
    shutil.rmtree(tmp_path / "cache")
    assert fs.metas_of([0, 14])
    del fs.key
    assert fs.key.tolist() == keys


def test_a_cache_on_a_disk_that_cannot_be_written_is_read_all_the_same(url, monkeypatch):
    vectors = np.array(featstore.open(url).select().utterance)

    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("featstore.store.cache.os.utime", refuses)
        np.testing.assert_array_equal(featstore.open(url).select().utterance, vectors)
    for record in PartCache.from_environment().parts.glob("*/zarr.json"):
        record.unlink()  # a process was killed before it put one
    monkeypatch.setattr(Path, "write_bytes", refuses)
    np.testing.assert_array_equal(featstore.open(url).select().utterance, vectors)


def test_blocks_of_frames_are_kept_within_one_bound_whatever_the_parts(s3, bucket, monkeypatch):
    url = f"{bucket}/many.zarr"
    make_store(url, shards=[f"{letter}.tar" for letter in "abcdef"])
    frames = featstore.open(url).select().frames
    whole = sum(each.nbytes for each in frames)
    kept = ranged_rows._KeptBlocks()
    monkeypatch.setattr(ranged_rows, "_KEPT_BLOCKS", kept)
    monkeypatch.setattr(ranged_rows, "_most_bytes_kept", lambda: whole // 2)
    again = featstore.open(url).select().frames
    for mine, theirs in zip(again, frames, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    held = [block for source in again._sources for block in source.rows._kept.values()]
    assert 0 < sum(block.nbytes for block in held) <= whole // 2
    s3.forget()
    np.testing.assert_array_equal(again[29], frames[29])  # the last is here
    assert not s3.requests
    np.testing.assert_array_equal(again[0], frames[0])
    assert s3.requests


def test_frames_travel_by_the_blocks_that_a_clip_needs(s3, bucket, monkeypatch):
    from featstore.store import layout

    monkeypatch.setattr(layout, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(layout, "FILE_BYTES", 16384)
    url = f"{bucket}/many.zarr"
    writer = split_writer(url, dim=64)
    windows = shard_windows("a.tar", n=200, dim=64)
    write_part(writer, "a.tar", windows)
    frames = featstore.open(url).select().frames
    s3.forget()
    np.testing.assert_array_equal(frames[150], windows[150].frames)
    assert len(s3.requests) <= 3  # the index of a file, and a block or two that lie together
    s3.forget()
    batch = frames.ragged(range(200))
    np.testing.assert_array_equal(batch.values, np.concatenate([each.frames for each in windows]))
    files = {request.path for request in s3.requests}
    assert len(s3.requests) <= 2 * len(files) + 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames))[7], windows[7].frames)


def test_a_server_that_stalls_now_and_then_changes_nothing(s3, bucket, tmp_path, monkeypatch):
    """`test_extraction` has a server that breaks off, fails, and asks for patience."""
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "1")
    failed: list[Request] = []

    def every_seventh_once(request: Request) -> str:
        if request.number == 1 and len(s3.requests) % 7 == 3 and len(failed) < 3:
            failed.append(request)
            return "stall"
        return ""

    s3.fault = every_seventh_once
    url = f"{bucket}/faulty.zarr"
    make_store(url)
    fs = featstore.open(url).select()
    assert fs.utterance.shape == (15, 6)
    assert verify_store(url).sound
    assert failed
    s3.forget()
    make_store(tmp_path / "local.zarr")
    theirs = featstore.open(str(tmp_path / "local.zarr")).select()
    np.testing.assert_array_equal(fs.utterance, theirs.utterance)
    np.testing.assert_array_equal(np.concatenate(fs.frames[:]), np.concatenate(theirs.frames[:]))


def test_a_server_that_fails_for_ever_ends_in_one_line_and_loses_nothing(url, s3, monkeypatch):
    monkeypatch.setenv("FEATSTORE_RETRIES", "1")
    writer = split_writer(url)
    s3.fault = lambda request: "500" if request.method == "PUT" and "d." in request.path else ""
    with pytest.raises(StoreError, match=r"s3://.*\b500\b") as caught:
        write_part(writer, "d.tar", shard_windows("d.tar"))
    assert "\n" not in str(caught.value)
    s3.fault = lambda request: "500" if "utterance/c" in request.path and request.method == "PUT" else ""
    with pytest.raises(StoreError, match=r"\b500\b"):
        write_part(writer, "d.tar", shard_windows("d.tar"))
    s3.forget()
    assert sorted(split_writer(url).committed()) == list(SHARDS)
    assert verify_store(url).sound
    assert len(open_objects(url).children(writer.path)) == len(SHARDS) + 1  # what was written of it went


def test_two_writers_at_once_leave_one_part_for_each_shard(s3, bucket):
    url = f"{bucket}/two.zarr"
    errors: list[BaseException] = []

    def write(shards: tuple[str, ...]) -> None:
        try:
            writer = split_writer(url)
            writer.begin_run()
            for shard in shards:
                write_part(writer, shard, shard_windows(shard))
            writer.write_catalogue()
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(some,)) for some in (("a.tar", "b.tar"), ("b.tar", "c.tar"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    fs = featstore.open(url).select()
    assert [segment.member.shard.name for segment in fs.segments] == list(SHARDS)
    assert fs.key.tolist() == [each.key for shard in SHARDS for each in shard_windows(shard)]
    objects = open_objects(url)
    # the last writer of the catalogue listed the parts again: all four are there
    assert look_at_split(objects, fs.path, read_document(objects, fs.path)).catalogued
    [record] = gc_store(url)
    assert len(record.deleted) == 1
    assert verify_store(url).sound


def test_a_catalogue_that_lost_a_race_is_written_again(url, monkeypatch):
    """Another writer commits, and writes its catalogue, between this one's listing and its document."""
    from featstore.store import writer as module

    mine, other = split_writer(url), split_writer(url)
    write_part(mine, "d.tar", shard_windows("d.tar"))
    look = module.look_at_split

    def then_the_other(*args, **kwargs):
        state = look(*args, **kwargs)
        monkeypatch.setattr(module, "look_at_split", look)
        write_part(other, "e.tar", shard_windows("e.tar"))
        other.write_catalogue()
        return state

    monkeypatch.setattr(module, "look_at_split", then_the_other)
    mine.write_catalogue()
    objects = open_objects(url)
    catalogue = read_document(objects, mine.path)["catalogue"]
    assert sorted(raw["members"][0]["shard"]["name"] for raw in catalogue) == [*SHARDS, "d.tar", "e.tar"]


def test_a_part_that_is_committed_while_another_writer_sweeps_stays(url, monkeypatch):
    """The other has listed the split, and takes the part for one that is still being made."""
    from featstore.store import writer as module

    mine, other = split_writer(url), split_writer(url)
    part = mine.begin_part("d.tar")
    for each in shard_windows("d.tar"):
        part.add(each)
    look = module.look_at_split

    def then_the_commit(*args, **kwargs):
        state = look(*args, **kwargs)
        monkeypatch.setattr(module, "look_at_split", look)
        shard = ShardIdentity(name="d.tar", size=1, mtime_ns=1)
        member = Member(shard=shard, clips=5, windows=5, frames=part.frames, audio_seconds=1.0, skipped=())
        part.commit([member], frames_stored=True, versions={})
        return state

    monkeypatch.setattr(module, "look_at_split", then_the_commit)
    assert other.sweep() == ()
    assert sorted(split_writer(url).committed()) == [*SHARDS, "d.tar"]


def test_what_a_killed_writer_left_is_no_part_and_is_swept(url, s3):
    writer = split_writer(url)
    part = writer.begin_part("d.tar")
    for each in shard_windows("d.tar"):
        part.add(each)
    part._put_arrays(frames_stored=True)
    part._objects.sync(part._path)
    assert len(featstore.open(url).select()) == 15
    # the same, as it looks when its process is gone
    objects = open_objects(url)
    orphan = part._path
    objects.write(f"{orphan}/zarr.json", writing(**DEAD_HERE))
    writer = split_writer(url)
    assert sorted(writer.begin_run()) == list(SHARDS)
    assert writer.has_leftovers
    assert objects.sizes(orphan)  # a look deletes nothing
    writer.sweep()
    assert not objects.sizes(orphan)
    assert sorted(writer.begin_run()) == list(SHARDS)
    assert not writer.has_leftovers


def test_a_writer_elsewhere_is_judged_by_its_silence_on_the_servers_own_clock(url, monkeypatch):
    objects, path = open_objects(url), f"{split_writer(url).path}/d.00000000"
    objects.write(f"{path}/zarr.json", writing(**DEAD_HERE, pid_namespace="pid:[1]"))
    assert abs(objects.clock(path) - objects.last_change(path)) < 60
    assert split_writer(url).sweep() == ()
    clock = type(objects).clock
    monkeypatch.setattr(type(objects), "clock", lambda *where: clock(*where) + SILENCE_SECONDS + 60)
    objects.touch(path)
    assert split_writer(url).sweep() == ("d.00000000",)
    assert not [name for name in objects.children(split_writer(url).path) if name.startswith(".")]
    assert not objects.sizes(path)


def test_of_a_part_that_could_not_be_put_nothing_lands_after_it_was_deleted(url, s3: S3):
    def fault(request: Request) -> str:
        if request.method == "PUT" and "/d." in request.path:
            if request.path.endswith("key/c/0"):
                return "refuse"
            if request.path.endswith("utterance/c/0/0"):
                time.sleep(0.3)
        return ""

    writer = split_writer(url)
    s3.fault = fault
    with pytest.raises(StoreError, match="refuses"):
        write_part(writer, "d.tar", shard_windows("d.tar"))
    time.sleep(0.4)
    assert not [key for key in open_objects(url).sizes(writer.path) if key.startswith("d.")]


def test_damage_in_a_bucket_is_found_named_and_repaired(url):
    objects = open_objects(url)
    writer = split_writer(url)
    part = writer.committed()["b.tar"].commit.part
    key = f"{writer.path}/{part}/utterance/c/0/0"
    raw = bytearray(objects.read(key))
    raw[5] ^= 4
    objects.write(key, bytes(raw))
    with pytest.raises(DamagedPart, match=f"{part}/utterance/c/0/0"):
        featstore.open(url).select().utterance  # noqa: B018
    key = f"{writer.path}/{writer.committed()['c.tar'].commit.part}/frames/c/0/0"
    raw = bytearray(objects.read(key))
    raw[5] ^= 4
    objects.write(key, bytes(raw))
    with pytest.raises(DamagedPart, match="checksum"):
        featstore.open(url).select().frames[12]
    assert {finding.remedy for finding in verify_store(url).findings} == {"drop the part"}
    assert repair_store(url).sound
    assert [segment.member.shard.name for segment in featstore.open(url).select().segments] == ["a.tar"]


def test_a_bucket_is_verified_with_one_request_an_object_and_reported_as_a_folder_is(s3, bucket, tmp_path):
    folder, url = tmp_path / "local.zarr", f"{bucket}/same.zarr"
    make_store(folder, shards=[f"{letter}.tar" for letter in "abcdef"])
    parts = {path.name.split(".")[0]: path for path in folder.glob("*/*/*/*.*/")}
    for victim in (parts["b"] / "utterance/c/0/0", parts["c"] / "frames/c/0/0", parts["d"] / GROUP_DOCUMENT):
        raw = bytearray(victim.read_bytes())
        raw[len(raw) // 2] ^= 4
        victim.write_bytes(raw)
    (parts["e"] / "key/c/0").unlink()
    (parts["f"] / "stray").write_bytes(b"x")
    objects = open_objects(url)
    for path in folder.rglob("*"):
        if path.is_file():
            objects.write(path.relative_to(folder).as_posix(), path.read_bytes())
    s3.forget()
    there, here = (verify_store(str(store)).as_json() for store in (url, folder))
    assert len(there["findings"]) == 5
    assert {**there, "url": ""} == {**here, "url": ""}
    read = [request.path for request in s3.asked("GET") if not request.query]
    assert not [path for path in read if "/c/" in path and read.count(path) > 1]
    listings = [request for request in s3.asked("GET") if "list-type" in request.query]
    assert len(listings) <= 6 + 3 + 2 * 4  # one a part; the rest is of groups, of texts and of what is no part


def test_an_array_of_another_layout_is_read_by_zarr(url):
    values = np.arange(60.0).reshape(20, 3)
    objects = open_objects(url)
    zarr.create_array(ObjectStore(objects.remote.store), name="odd", data=values, chunks=(7, 2), zarr_format=3)
    rows = open_rows(objects, "odd")
    assert isinstance(rows, ZarrRows)
    np.testing.assert_array_equal(rows.slice(3, 17), values[3:17])


def test_a_bucket_is_compacted(url):
    before = featstore.open(url).select()
    keys, vectors = before.key.tolist(), np.array(before.utterance)
    [record] = compact_store(url, part_bytes=1 << 30)
    assert (record.parts_before, record.parts_after) == (3, 1)
    after = featstore.open(url).select()
    assert after.key.tolist() == keys
    np.testing.assert_array_equal(after.utterance, vectors)
    assert verify_store(url).sound
