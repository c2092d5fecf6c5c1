"""A live writer's part is never deleted, wherever that writer is; a dead writer's is, as soon as it is known to be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import DEAD_HERE, make_store, shard_windows, split_writer, write_part, writing

import featstore
from featstore.errors import PartLost
from featstore.store import liveness
from featstore.store.filesystem import LocalObjects, open_objects
from featstore.store.format import GROUP_DOCUMENT, HEARTBEAT, DamagedDocument, Writing, seal, unseal
from featstore.store.liveness import Heartbeat, is_abandoned, writing_document
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store

ELSEWHERE = {"pid_namespace": "pid:[1]", **DEAD_HERE}  # another container: its process ids mean nothing here
OLD = {"host": socket.gethostname(), "pid": 2**22 + 1, "process_started": 1, "began_at": "2020-01-01"}


@pytest.fixture
def url(tmp_path):
    make_store(tmp_path / "s.zarr")
    return str(tmp_path / "s.zarr")


def begun(url, document, name="d.00000000"):
    """A part in flight, as another process has begun it."""
    objects, path = open_objects(url), f"{split_writer(url).path}/{name}"
    objects.write(f"{path}/{GROUP_DOCUMENT}", document)
    objects.put(f"{path}/key/zarr.json", [b"{}"])
    objects.sync(path)
    return path


def later(monkeypatch, seconds):
    """The store's own clock goes on while nothing changes."""
    monkeypatch.setattr(LocalObjects, "clock", lambda _self, _prefix: time.time() + seconds)


@pytest.mark.parametrize("differs", [{"pid_namespace": "pid:[1]"}, {"boot_id": "another"}, {"boot_id": None}])
def test_a_writer_of_another_container_with_our_host_name_is_judged_by_its_silence_alone(url, monkeypatch, differs):
    path = begun(url, writing(**{**DEAD_HERE, **differs}))
    assert split_writer(url).sweep() == ()
    later(monkeypatch, liveness.SILENCE_SECONDS - 60)
    assert split_writer(url).sweep() == ()
    later(monkeypatch, liveness.SILENCE_SECONDS + 60)
    assert split_writer(url).sweep() == ("d.00000000",)
    assert not open_objects(url).sizes(path)


def until(happened):
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert happened()


def test_a_heartbeat_keeps_a_part_whose_document_is_old_until_it_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.01)
    make_store(tmp_path / "s.zarr")
    path = begun(str(tmp_path / "s.zarr"), writing(**ELSEWHERE))
    files = list((tmp_path / "s.zarr" / path).rglob("*"))

    def age():
        long_ago = time.time() - 10 * liveness.SILENCE_SECONDS
        for file in files:
            os.utime(file, (long_ago, long_ago))

    age()
    heart = Heartbeat(open_objects(str(tmp_path / "s.zarr")), path)
    until(lambda: any(file.stat().st_mtime > time.time() - 60 for file in files))
    assert split_writer(tmp_path / "s.zarr").sweep() == ()
    heart.stop()
    age()
    time.sleep(0.05)
    assert split_writer(tmp_path / "s.zarr").sweep() == ("d.00000000",)


def test_a_heartbeat_in_an_object_store_puts_no_document_and_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.01)
    url = "memory://heartbeat.zarr"
    make_store(url)
    writer = split_writer(url)
    part = writer.begin_part("d.tar")
    objects, path = open_objects(url), part._path
    document = objects.read(f"{path}/{GROUP_DOCUMENT}")
    until(lambda: HEARTBEAT in objects.sizes(path))
    assert objects.read(f"{path}/{GROUP_DOCUMENT}") == document
    part.commit([], frames_stored=False, versions={})
    assert HEARTBEAT not in objects.sizes(path)
    assert verify_store(url).sound


def test_a_dead_writer_of_this_process_namespace_is_known_at_once_and_a_live_one_stays(url):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = liveness._process_started(child.pid)
    begun(url, writing(pid=child.pid, process_started=started))
    begun(url, writing(pid=child.pid, process_started=started - 1), name="e.00000000")  # an id that is used again
    assert split_writer(url).sweep() == ("e.00000000",)
    child.communicate(b"\n")
    assert split_writer(url).sweep() == ("d.00000000",)


def test_a_writer_of_an_older_version_is_read_and_judged_by_its_silence(url, monkeypatch):
    begun(url, seal({"writing": OLD}))
    assert split_writer(url).sweep() == ()
    later(monkeypatch, liveness.SILENCE_SECONDS + 60)
    assert split_writer(url).sweep() == ("d.00000000",)


def test_without_a_clock_of_the_store_nothing_is_silent(url, monkeypatch):
    path = begun(url, writing(**ELSEWHERE))
    assert not is_abandoned(open_objects(url), path, clock=lambda: None)


@pytest.mark.parametrize("wrong", [{"pid": "7"}, {"pid": -1}, {"pid": 2**70}, {"process_started": "x"}, {"more": 1}])
def test_a_document_whose_writer_makes_no_sense_is_damaged_and_its_part_is_left(tmp_path, wrong):
    url = str(tmp_path / "s.zarr")
    make_store(url)
    with pytest.raises(DamagedDocument):
        Writing.from_json({**OLD, **wrong})
    begun(url, seal({"writing": {**OLD, **wrong}}))
    assert split_writer(url).sweep() == ()


def test_a_forked_process_is_another_writer():
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, unseal(writing_document())["writing"]["writer"].encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100).decode() not in ("", liveness._this_process.writer)


@pytest.mark.parametrize("harm", ["delete", "cut", "document", "everything"])
def test_a_part_that_something_harmed_behind_its_writers_back_is_not_committed(tmp_path, harm):
    url = str(tmp_path / "s.zarr")
    make_store(url)
    before = featstore.open(url).select().key.tolist()
    part = split_writer(url).begin_part("d.tar")
    for each in shard_windows("d.tar"):
        part.add(each)
    folder = Path(url) / part._path
    sync = part._objects.sync

    def then_harm(path):
        sync(path)
        if harm == "everything":
            part._objects.delete(path)
        elif harm == "cut":
            (folder / "utterance/c/0/0").write_bytes(b"x")
        else:
            (folder / ("zarr.json" if harm == "document" else "utterance/c/0/0")).unlink()

    part._objects.sync = then_harm
    with pytest.raises(PartLost), part:
        part.commit([], frames_stored=True, versions={})
    assert not folder.exists()
    assert featstore.open(url).select().key.tolist() == before
    gc_store(url)
    assert verify_store(url).sound
    write_part(split_writer(url), "d.tar", shard_windows("d.tar"))
    assert len(featstore.open(url).select()) == 20
