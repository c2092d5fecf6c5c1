"""`verify` finds whatever harm is done to the bytes of a store, and `repair` loses nothing but what was harmed."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from stores import (
    assert_same_contents,
    bytes_of_parts,
    contents_by_plain_zarr,
    make_store,
    shard_windows,
    split_writer,
    window,
    write_part,
)

import featstore
from featstore.errors import DamagedPart, RemoteError, StoreError, StoreNotFound, StoreVersionError
from featstore.store.format import GROUP_DOCUMENT, seal
from featstore.store.repair import repair_store
from featstore.store.verify import verify_store

TRAIN = ("a.tar", "b.tar")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "embeddings.zarr"
    make_store(path, shards=TRAIN)
    writer = split_writer(path, split="test")
    write_part(writer, "t.tar", shard_windows("t.tar"))
    writer.write_catalogue()
    return path


@pytest.fixture(autouse=True)
def a_disk_that_never_loses_power(monkeypatch):
    """These tests do harm to files that lie still: waiting for the disk a thousand times would show nothing."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def sound_bytes(sound):
    return bytes_of_parts(sound)


@pytest.fixture
def store(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "embeddings.zarr"))


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def flip(path: Path, *, byte: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def harmed_copy(sound: Path, store: Path, harmed: Path, content: bytes | None) -> Path:
    """A copy with one file as it is said, or without it: links but for that, as nothing is written over in a store."""
    if store.exists():
        shutil.rmtree(store)
    shutil.copytree(sound, store, copy_function=os.link)
    victim = store / harmed.relative_to(sound)
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    return store


def extract_again(store: Path) -> None:
    """What an extraction does: make the parts that are not there."""
    for split, shards in (("train", TRAIN), ("test", ("t.tar",))):
        writer = split_writer(store, split=split)
        for shard in shards:
            if shard not in writer.committed():
                write_part(writer, shard, shard_windows(shard))
        writer.write_catalogue()


def test_a_sound_store_has_no_findings(sound):
    report = verify_store(str(sound))
    assert (report.findings, report.parts, report.sound) == ((), 3, True)
    documents = [path for path in files(sound) if len(path.relative_to(sound).parts) < 6]  # down to the parts' own
    assert report.bytes_read == sum(path.stat().st_size for path in files(sound) if path not in documents)


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_single_bit_flip_is_found_and_its_part_is_named_and_repair_brings_everything_back(
    sound, sound_bytes, tmp_path, flips
):
    """Flips over all files, metadata included. Whatever is found is repaired; what was harmed is made again."""
    rng = random.Random(20261123)
    whole = [(path, path.stat().st_size) for path in files(sound)]
    for number in range(flips):
        # files by turns and not by size alone: a document is as likely to be hit as an array
        path, size = rng.choice(whole)
        bit = rng.randrange(size * 8)
        raw = bytearray(path.read_bytes())
        raw[bit // 8] ^= 1 << (bit % 8)
        store = harmed_copy(sound, tmp_path / "flipped.zarr", path, bytes(raw))
        report = verify_store(str(store))
        where = path.relative_to(sound).as_posix()
        if raw.strip() == path.read_bytes().strip():
            continue
        assert report.findings, f"flip {number}: bit {bit} of {where} was not found"
        named = report.findings[0].where
        assert where.startswith("" if named == GROUP_DOCUMENT else named), (where, named)
        assert repair_store(str(store)).sound, (where, report.findings)
        extract_again(store)
        assert verify_store(str(store)).sound
        assert bytes_of_parts(store) == sound_bytes
    assert bytes_of_parts(sound) == sound_bytes  # the copies harmed themselves alone


@pytest.mark.parametrize("harm", ["cut", "missing"])
def test_a_file_that_is_cut_or_missing_is_found_wherever_it_is(sound, sound_bytes, tmp_path, harm):
    rng = random.Random(20261125)
    alike = {path for name in ("train/b.*", "test/t.*") for path in sound.glob(f"*/*/{name}/**/*")}  # to those of a.tar
    for path in sorted(set(files(sound)) - alike):
        whole = path.read_bytes()
        left = whole[: rng.choice([0, rng.randrange(len(whole)), len(whole) - 1])] if harm == "cut" else None
        store = harmed_copy(sound, tmp_path / "harmed.zarr", path, left)
        assert verify_store(str(store)).findings, path
        assert repair_store(str(store)).sound
        extract_again(store)
        assert verify_store(str(store)).sound
        assert bytes_of_parts(store) == sound_bytes


def test_an_extra_file_is_found_and_repair_deletes_it_and_nothing_else(store, sound):
    [part] = store.glob("*/*/train/b.*")
    (part / "utterance" / "c" / "0" / "1").write_bytes(b"x")
    [finding] = verify_store(str(store)).findings
    assert finding.where.endswith("utterance/c/0/1")
    assert finding.remedy == "delete the object"
    assert repair_store(str(store)).sound
    assert_same_contents(sound, store)


def test_two_chunks_of_one_size_that_changed_places_are_found(store):
    one, other = (next(store.glob(f"*/*/train/{name}.*/utterance/c/0/0")) for name in "ab")
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)
    assert len(verify_store(str(store)).findings) == 2


def test_repair_never_deletes_a_file_that_lies_beside_the_encoders(store):
    (store / "notes.txt").write_text("mine")
    report = repair_store(str(store))
    assert [finding.where for finding in report.findings] == ["notes.txt"]
    assert (store / "notes.txt").read_text() == "mine"
    with pytest.raises(DamagedPart, match=r"notes\.txt: ") as caught:
        featstore.open(str(store), verify=True)
    assert "--repair" not in str(caught.value)  # which would not help


def test_repair_touches_nothing_where_there_is_no_store(tmp_path):
    """A path mistyped beside --repair: each file four folders deep belongs to nothing that featstore knows."""
    file = tmp_path / "project" / "src" / "pkg" / "sub" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for verify in (verify_store, repair_store):
        with pytest.raises(StoreError, match="is not a featstore store"):
            verify(str(tmp_path / "project"))
    zarr.create_array(str(tmp_path / "other.zarr"), name="x", data=np.ones((4, 4, 4)))
    before = files(tmp_path)
    with pytest.raises(StoreError, match="is not a featstore store"):
        repair_store(str(tmp_path / "other.zarr"))
    assert files(tmp_path) == before


def test_repair_touches_nothing_of_folders_that_somebody_put_into_a_store(store):
    mine = store / "notes" / "2026" / "november" / "list.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    array = zarr.create_array(str(store / "other"), name="a/b/c", data=np.ones(4))
    report = repair_store(str(store))
    assert {finding.where.split("/")[0] for finding in report.findings} == {"notes", "other"}
    assert {finding.remedy for finding in report.findings} == {"none"}  # a second repair would change nothing
    assert mine.read_text() == "mine"
    np.testing.assert_array_equal(array[...], np.ones(4))
    assert len(featstore.open(str(store)).feature_sets()) == 2


def test_a_store_whose_own_document_is_lost_is_repaired_and_one_of_a_newer_format_is_left(store):
    (store / GROUP_DOCUMENT).unlink()
    assert repair_store(str(store)).sound
    assert len(featstore.open(str(store)).feature_sets()) == 2
    newer = seal({"format": 2})
    (store / GROUP_DOCUMENT).write_bytes(newer)
    with pytest.raises(StoreVersionError):
        repair_store(str(store))
    assert (store / GROUP_DOCUMENT).read_bytes() == newer


def test_repair_drops_the_damaged_part_alone(store):
    [chunk] = store.glob("*/*/train/b.*/frames/c/0/0")
    flip(chunk, byte=3)
    report = repair_store(str(store))
    [finding] = report.findings
    assert "frames/c/0/0" in finding.problem
    assert featstore.open(str(store)).select(split="train").key.tolist() == [
        each.key for each in shard_windows("a.tar")
    ]
    assert len(featstore.open(str(store)).select(split="test").key) == 5


def test_a_split_whose_document_and_parts_are_all_damaged_is_repaired_in_one_go(store):
    for document in store.glob("*/*/train/*/zarr.json"):
        flip(document, byte=100)
    flip(next(store.glob("*/*/train/zarr.json")), byte=100)
    report = repair_store(str(store))
    assert len(report.findings) == 3
    assert report.sound
    assert verify_store(str(store)).sound
    assert [fs.split for fs in featstore.open(str(store)).feature_sets()] == ["test"]


def test_a_part_is_not_dropped_because_a_server_did_not_answer(tmp_path, monkeypatch):
    url = f"memory://silent-{tmp_path.name}.zarr"
    make_store(url)

    def silent(*_):
        raise RemoteError("no answer")

    monkeypatch.setattr("featstore.store.remote_arrays.RangedRows.slice", silent)
    with pytest.raises(RemoteError, match="no answer"):
        repair_store(url)
    monkeypatch.undo()
    assert len(featstore.open(url).select()) == 15


def test_a_part_is_not_dropped_because_a_folder_may_not_be_read(store, monkeypatch):
    scandir = os.scandir

    def forbids(path):
        if str(path).endswith("utterance/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbids)
    with pytest.raises(StoreError, match="Permission denied"):
        repair_store(str(store))
    monkeypatch.undo()
    assert verify_store(str(store)).sound


def test_a_disk_that_cannot_be_written_is_reported_in_one_line(store, monkeypatch):
    [chunk] = store.glob("*/*/train/b.*/frames/c/0/0")
    chunk.with_name("stray").write_bytes(b"x")

    def refuses(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuses)
    with pytest.raises(StoreError, match="Permission denied"):
        repair_store(str(store))


def test_opening_with_verify_checks_first_and_opening_without_does_not(store):
    [chunk] = store.glob("*/*/test/t.*/utterance/c/0/0")
    flip(chunk, byte=0)
    assert len(featstore.open(str(store)).select(split="test").utterance) == 5
    with pytest.raises(DamagedPart, match=r"test/t\..*checksum"):
        featstore.open(str(store), verify=True)


def test_what_a_defective_writer_would_store_is_found(tmp_path):
    for number, harm in enumerate(("nan", "twice")):
        writer = split_writer(tmp_path / f"{number}.zarr")
        windows = shard_windows("a.tar")
        if harm == "nan":
            windows[2].utterance[1] = np.nan
            write_part(writer, "a.tar", windows)
            expected = "not all finite"
        else:
            write_part(writer, "a.tar", windows)
            write_part(writer, "b.tar", [window(windows[0].key, n_frames=2, seed=1)])
            expected = "repeated"
        [finding] = verify_store(str(tmp_path / f"{number}.zarr")).findings
        assert expected in finding.problem


def test_a_store_of_another_kind_is_verified_the_same(tmp_path):
    url = f"memory://verify-{tmp_path.name}.zarr"
    make_store(url)
    assert verify_store(url).sound
    from featstore.store.filesystem import open_objects

    objects = open_objects(url)
    part = split_writer(url).committed()["b.tar"].commit.part
    key = f"{split_writer(url).path}/{part}/utterance/c/0/0"
    raw = bytearray(objects.read(key))
    raw[5] ^= 4
    objects.write(key, bytes(raw))
    [finding] = verify_store(url).findings
    assert part in finding.where
    assert repair_store(url).sound
    assert len(contents_by_plain_zarr(url)) == 2


def test_a_folder_that_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(StoreNotFound):
        verify_store(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("meta", ['{"n": NaN}', '{"n": 1e999}', '{"a": "\\ud800"}', "[" * 900 + "]" * 900, "{", ""])
def test_json_of_a_clip_that_no_reader_takes_is_found_and_its_part_alone_is_dropped(tmp_path, meta):
    make_store(tmp_path / "s.zarr", shards=("a.tar", "b.tar"))
    write_part(split_writer(tmp_path / "s.zarr"), "c.tar", [replace(window("k", n_frames=2, seed=0), meta=meta)])
    split_writer(tmp_path / "s.zarr").write_catalogue()
    url = str(tmp_path / "s.zarr")
    [finding] = verify_store(url).findings
    assert (finding.where.rsplit("/", 1)[1][:2], finding.remedy) == ("c.", "drop the part")
    assert "\n" not in finding.problem
    assert repair_store(url).sound
    assert [each.member.shard.name for each in featstore.open(url).select().segments] == ["a.tar", "b.tar"]
