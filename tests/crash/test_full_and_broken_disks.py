"""A disk that is full or broken is one clear line; what was committed stays readable, and the next run completes."""

from __future__ import annotations

import errno
import os
import subprocess
from io import FileIO
from pathlib import Path

import harness
import pytest
from stores import (
    DEAD_HERE,
    assert_equal_contents,
    contents_by_plain_zarr,
    shard_windows,
    split_writer,
    write_part,
    writing,
)

import featstore
from featstore.errors import StoreError
from featstore.store import filesystem as objects
from featstore.store.documents import read_document
from featstore.store.maintenance import gc_store
from featstore.store.verify import verify_store


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs root and mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a map of a file may still be open


def test_a_full_disk_is_one_line_and_the_run_completes_when_there_is_room(small_disk, tmp_path):
    folder = harness.make_shards(tmp_path / "shards")
    store = small_disk / "embeddings.zarr"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 150_000)
    code, errors = harness.run(folder, store)
    assert code == 1
    [line] = errors.splitlines()
    assert line.startswith("StoreError: ")
    assert str(store) in line
    assert "No space left on device" in line
    held = [fs for fs in featstore.open(str(store)).feature_sets() if fs.split == "train"]
    assert held, "the disk holds at least one part"
    assert 0 < len(held[0]) < harness.N_SHARDS * harness.CLIPS_PER_SHARD
    assert len(held[0].frames[0])
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert harness.run(folder, store) == (0, "")
    whole = tmp_path / "whole.zarr"
    harness.run(folder, whole)
    assert_equal_contents(contents_by_plain_zarr(whole), contents_by_plain_zarr(store), ignoring=())


def failing_after(calls, original):
    """Do as `original` does, until it has been called so often; then the disk is broken."""
    left = [calls]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*args, **kwargs)

    return call


def write_shards(writer, names):
    for name in names:
        write_part(writer, f"{name}.tar", shard_windows(f"{name}.tar"))


@pytest.mark.parametrize("calls", [0, 3, 11, 25])
@pytest.mark.parametrize("broken", ["write", "fsync", "rename"])
def test_an_input_output_error_is_one_line_and_what_was_committed_stays(broken, calls, tmp_path, monkeypatch):
    store = tmp_path / "embeddings.zarr"
    write_part(split_writer(store), "a.tar", shard_windows("a.tar"))
    before = contents_by_plain_zarr(store)
    writer = split_writer(store)
    with monkeypatch.context() as broke:
        if broken == "write":
            broke.setattr(objects, "_write_all", failing_after(calls, objects._write_all))
        elif broken == "fsync":
            broke.setattr(os, "fsync", failing_after(calls, os.fsync))
        else:
            broke.setattr(Path, "replace", failing_after(calls % 3, Path.replace))
        with pytest.raises(StoreError, match="Input/output error") as caught:
            write_shards(writer, "bcdefgh")
        assert "\n" not in str(caught.value)
    now = contents_by_plain_zarr(store)
    assert_equal_contents(before, {name: now[name] for name in before}, ignoring=())
    write_shards(writer, [name for name in "bcdefgh" if f"{name}.tar" not in writer.committed()])
    writer.sweep()
    assert verify_store(str(store)).sound
    assert len(featstore.open(str(store)).select()) == 8 * 5


def test_gc_frees_space_on_a_disk_that_takes_no_more_writes(tmp_path, monkeypatch):
    url = str(tmp_path / "s.zarr")
    writer = split_writer(url)
    write_shards(writer, "abc")
    writer.write_catalogue()
    expected = [each.key for name in "abc" for each in shard_windows(f"{name}.tar", seed=1 if name == "b" else 0)]
    write_part(split_writer(url), "b.tar", shard_windows("b.tar", seed=1), size=2)
    [superseded] = (part for part in (tmp_path / "s.zarr" / writer.path).glob("b.*") if part.name in listed(writer))
    (orphan := tmp_path / "s.zarr" / writer.path / "d.00000000").mkdir()
    (orphan / "zarr.json").write_bytes(writing(**DEAD_HERE))
    opened = Path.open

    def full(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as no_space:
        no_space.setattr(Path, "open", full)
        [record] = gc_store(url)
    assert sorted(record.deleted) == sorted((superseded.name, orphan.name))
    assert not superseded.exists()
    assert not orphan.exists()
    assert superseded.name in listed(writer)  # the catalogue is behind, and the listing decides
    assert featstore.open(url).select().key.tolist() == expected
    assert verify_store(url).sound
    assert gc_store(url) == ()
    assert superseded.name not in listed(writer)


def listed(writer):
    """Names of the parts that the catalogue lists."""
    return {raw["part"] for raw in read_document(writer._objects, writer.path)["catalogue"]}


def test_a_write_that_stops_short_is_taken_up_again(tmp_path, monkeypatch):
    class Dribbling:
        """A file that takes seven bytes at a time, as a nearly full disk may."""

        def __init__(self, file: FileIO) -> None:
            self._file = file

        def write(self, view: memoryview) -> int:
            return self._file.write(view[:7])

    original = objects._write_all
    monkeypatch.setattr(objects, "_write_all", lambda file, view: original(Dribbling(file), view))
    write_part(split_writer(tmp_path / "s.zarr"), "a.tar", shard_windows("a.tar"))
    assert verify_store(str(tmp_path / "s.zarr")).sound
