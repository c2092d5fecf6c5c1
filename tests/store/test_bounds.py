"""What a store claims is held against what it stores before memory is allocated for it."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs.zstd import Zstd
from stores import make_store, shard_windows, split_writer, write_part
from zarr.codecs import ZstdCodec

import featstore
from featstore.errors import DamagedPart
from featstore.store import codecs
from featstore.store.arrays import ZarrRows, open_rows
from featstore.store.catalogue import read_commit
from featstore.store.documents import read_document
from featstore.store.filesystem import LocalObjects, open_objects
from featstore.store.format import GROUP_DOCUMENT, Commit, ObjectSeal, seal
from featstore.store.layout import parse_layout, strings_document
from featstore.store.verify import verify_store
from hostile import zstd_bomb

MOST_BYTES = 64 << 20  # what an attack may make us allocate, with room to spare


@contextmanager
def little_memory() -> Iterator[None]:
    """At most `MOST_BYTES` are allocated by Python and NumPy at a time, touched or not."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def with_checksum(packed: bytes) -> bytes:
    return packed + struct.pack("<I", codecs.crc32c(packed))


CHUNKS = {
    "a frame that states 2 GB": zstd_bomb(2 << 30, stated=True),
    "a frame that states nothing": zstd_bomb(2 << 30, stated=False),
    "a small frame before it": zstd_bomb(128 << 10, stated=True) + zstd_bomb(2 << 30, stated=True),
    "a skipped frame before it": struct.pack("<II", 0x184D2A50, 2) + b"ab" + zstd_bomb(2 << 30, stated=False),
    "four bytes that ask for 17 GB": Zstd().encode(struct.pack("<I", 2**31 - 1)),
    "more rows than were committed": Zstd().encode(struct.pack("<I", 6) + 6 * struct.pack("<I", 0)),
    "fewer bytes than rows": Zstd().encode(struct.pack("<II", 5, 0)),
    "a frame that breaks off": zstd_bomb(1 << 20, stated=True)[:-6],
    "no frame": b"nothing of the kind",
    "nothing": b"",
}


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_a_chunk_of_strings_expands_to_what_was_committed_and_no_further(chunk):
    with little_memory(), pytest.raises(ValueError):  # noqa: PT011 - any of its reasons
        codecs.decode_strings(with_checksum(chunk), n=5)


def test_the_size_that_a_frame_states_is_read_as_zstd_writes_it():
    for size in (1, 255, 256, 65_791, 65_792, 300_000):
        plain = bytes(np.random.default_rng(size).integers(0, 3, size, dtype=np.uint8))
        packed = Zstd(level=3).encode(plain)
        assert codecs.decode_zstd(packed, most_bytes=size) == plain
        with pytest.raises(ValueError, match=f"{size - 1:,}"):
            codecs.decode_zstd(packed, most_bytes=size - 1)
    unstated = zstd_bomb(1 << 20, stated=False)
    assert codecs.decode_zstd(unstated, most_bytes=1 << 20) == bytes(1 << 20)
    checked = Zstd(level=1, checksum=True).encode(b"abc")
    assert codecs.decode_zstd(checked + checked, most_bytes=6)[:3] == b"abc"


@pytest.mark.parametrize("values", [[""], ["a", "é" * 999, ""], [json.dumps({"n": n}) for n in range(2000)]])
def test_strings_come_back_as_they_were(values):
    assert codecs.decode_strings(codecs.encode_strings(values), n=len(values)).tolist() == values


def rewritten(store: Path, part: str, changes: dict[str, bytes], edit: Callable[[Commit], Commit] = lambda c: c) -> str:
    """Change objects of a part and seal it again, as the publisher of a store can."""
    objects = LocalObjects(store)
    [folder] = store.glob(f"*/*/*/{part}.*")
    path = folder.relative_to(store).as_posix()
    commit = read_commit(objects, *path.rsplit("/", 1))
    seals = dict(commit.objects)
    for name, data in changes.items():
        objects.write(f"{path}/{name}", data)
        seals[name] = ObjectSeal(len(data), codecs.seal_crc32c([data]))
    commit = edit(replace(commit, objects=seals))
    objects.write(f"{path}/{GROUP_DOCUMENT}", seal({"commit": commit.as_json()}))
    split_path = path.rpartition("/")[0]
    document = read_document(objects, split_path)
    others = [raw for raw in document["catalogue"] if raw["part"] != commit.part]
    objects.write(
        f"{split_path}/{GROUP_DOCUMENT}", seal({**document, "catalogue": [*others, commit.as_catalogue_json()]})
    )
    return path


@pytest.mark.parametrize(
    ("chunk", "array"), [(chunk, ("key", "meta")[number % 2]) for number, chunk in enumerate(list(CHUNKS)[:6])]
)
def test_a_store_with_such_a_chunk_is_damaged_for_readers_and_for_verify(chunk, array, tmp_path):
    make_store(tmp_path / "s.zarr", shards=["a.tar", "b.tar"])
    path = rewritten(tmp_path / "s.zarr", "a", {f"{array}/c/0": with_checksum(CHUNKS[chunk])})
    store = str(tmp_path / "s.zarr")
    with little_memory():
        with pytest.raises(DamagedPart, match=array):
            getattr(featstore.open(store).select(), array)
        report = verify_store(store)
    if array == "key" or "2 GB" in chunk or "frame" in chunk:
        assert {(finding.where, finding.remedy) for finding in report.findings} == {(path, "drop the part")}


def array_document(change: Callable[[dict], None], raw: bytes) -> bytes:
    document = json.loads(raw)
    change(document)
    return json.dumps(document).encode()


def many_rows(document: dict) -> None:
    document["shape"][0] = 10**12


def wide_rows(document: dict) -> None:
    document["shape"][1] = document["chunk_grid"]["configuration"]["chunk_shape"][1] = 10**11


def large_chunks(document: dict) -> None:
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**12


def small_chunks(document: dict) -> None:
    document["shape"][0] = 10**12
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = 1


@pytest.mark.parametrize("change", [many_rows, wide_rows, large_chunks, small_chunks])
@pytest.mark.parametrize("zipped", [False, True], ids=["ours", "read by zarr"])
@pytest.mark.parametrize("claimed", [False, True], ids=["as committed", "the commit claims it too"])
def test_an_array_that_claims_more_than_is_stored_is_damaged(change, zipped, claimed, tmp_path):
    store = tmp_path / "s.zarr"
    make_store(store, shards=["a.tar"])
    [document] = store.glob("*/*/*/*/utterance/zarr.json")
    raw = array_document(change, document.read_bytes())
    if zipped:
        raw = raw.replace(b'{"name": "crc32c"}', b'{"name": "zstd", "configuration": {"level": 1, "checksum": false}}')

    def claim(commit: Commit) -> Commit:
        [member] = commit.members
        return replace(commit, members=(replace(member, windows=10**12),)) if claimed else commit

    rewritten(store, "a", {"utterance/zarr.json": raw}, claim)
    with little_memory():
        with pytest.raises(DamagedPart):
            featstore.open(str(store)).select().utterance  # noqa: B018
        assert [finding.remedy for finding in verify_store(str(store)).findings] == ["drop the part"]


def test_frames_that_are_not_stored_are_not_allocated(tmp_path):
    store = tmp_path / "s.zarr"
    make_store(store, shards=["a.tar"])
    [frames] = store.glob("*/*/*/*/frames/zarr.json")
    [offsets] = store.glob("*/*/*/*/frame_offsets/c/0")
    numbers = np.frombuffer(offsets.read_bytes()[:-4], "<i8").copy()
    numbers[-1] = 10**12
    changed = with_checksum(numbers.tobytes())

    def claim(commit: Commit) -> Commit:
        [member] = commit.members
        return replace(commit, members=(replace(member, frames=10**12),))

    document = array_document(many_rows, frames.read_bytes())
    rewritten(store, "a", {"frames/zarr.json": document, "frame_offsets/c/0": changed}, claim)
    fs = featstore.open(str(store)).select()
    with little_memory():
        with pytest.raises(DamagedPart):
            fs.frames[4]
        with pytest.raises(DamagedPart):
            fs.frames.padded([0, 4])
        assert [finding.remedy for finding in verify_store(str(store)).findings] == ["drop the part"]


def test_of_the_right_length_and_of_another_type_it_is_damaged_too(tmp_path):
    make_store(tmp_path / "s.zarr", shards=["a.tar"])
    [document] = tmp_path.glob("s.zarr/*/*/*/*/frame_offsets/zarr.json")
    raw = array_document(lambda meta: meta.update(data_type="float64"), document.read_bytes())
    rewritten(tmp_path / "s.zarr", "a", {"frame_offsets/zarr.json": raw})
    with pytest.raises(DamagedPart, match="frame_offsets"):
        featstore.open(str(tmp_path / "s.zarr")).select().frames[0]


def test_a_document_of_blocks_that_no_file_holds_is_none():
    raw = strings_document(3).replace(b'"string"', b'"float32"')
    layout = json.loads(raw)
    layout["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    layout["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 40]
    with pytest.raises(ValueError, match="not plausible"):
        parse_layout(json.dumps(layout).encode())


def zstd_array(folder: Path) -> None:
    zarr.create_array(str(folder), name="odd", data=np.ones((20, 3)), chunks=(7, 3), compressors=ZstdCodec(level=1))


def test_an_array_that_zarr_reads_expands_a_chunk_to_its_size_and_no_further(tmp_path):
    zstd_array(tmp_path)
    np.testing.assert_array_equal(open_rows(open_objects(str(tmp_path)), "odd").slice(3, 17), np.ones((14, 3)))
    (tmp_path / "odd/c/1/0").write_bytes(zstd_bomb(2 << 30, stated=True))
    rows = open_rows(open_objects(str(tmp_path)), "odd")
    assert isinstance(rows, ZarrRows)
    with little_memory(), pytest.raises(DamagedPart, match=r"odd.*[0-9,]{9}"):
        rows.slice(3, 17)


def test_of_codecs_that_expand_to_anything_zarr_reads_none(tmp_path):
    for name, compressor in (("gzip", zarr.codecs.GzipCodec()), ("blosc", zarr.codecs.BloscCodec())):
        zarr.create_array(str(tmp_path), name=name, data=np.zeros((20, 3)), chunks=(7, 3), compressors=compressor)
        with pytest.raises(DamagedPart, match=type(compressor).__name__):
            open_rows(open_objects(str(tmp_path)), name)


def test_large_sets_are_read_as_before(tmp_path, monkeypatch):
    """With the threshold at nothing every read is held against the files."""
    from featstore.store import arrays as mapped_rows

    monkeypatch.setattr(mapped_rows, "UNCHECKED_BYTES", 0)
    writer = split_writer(tmp_path / "s.zarr")
    for shard in ("a.tar", "b.tar"):
        write_part(writer, shard, shard_windows(shard, n=50))
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    np.testing.assert_array_equal(fs.utterance[50], shard_windows("b.tar", n=50)[0].utterance)
    np.testing.assert_array_equal(fs.frames[99], shard_windows("b.tar", n=50)[49].frames)
