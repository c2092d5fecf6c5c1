"""What is written is what is read, by featstore and by plain zarr; and only whole parts are seen."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    DIM,
    contents_by_plain_zarr,
    make_store,
    recipe,
    shard_windows,
    split_writer,
    window,
    write_part,
)

import featstore
from featstore.errors import (
    AmbiguousSelection,
    DamagedPart,
    LabelError,
    StoreError,
    StoreNotFound,
    StoreVersionError,
    UnknownFeatureSet,
)
from featstore.records import SkippedClip
from featstore.store import codecs, layout
from featstore.store.arrays import MappedRows, open_rows
from featstore.store.filesystem import LocalObjects, open_objects
from featstore.store.format import GROUP_DOCUMENT, seal
from featstore.store.liveness import writing_document
from featstore.store.maintenance import gc_store

SHARDS = ("a.tar", "b.tar", "c.tar")


@pytest.fixture
def url(tmp_path):
    path = tmp_path / "embeddings.zarr"
    make_store(path)
    return str(path)


def all_windows():
    return [each for shard in SHARDS for each in shard_windows(shard)]


def test_every_array_reads_back_as_it_was_written(url):
    fs = featstore.open(url).select(encoder="tiny", dataset="words", split="train")
    written = all_windows()
    assert fs.key.tolist() == [each.key for each in written]
    assert fs.meta_json.tolist() == [each.meta for each in written]
    np.testing.assert_array_equal(fs.utterance, np.stack([each.utterance for each in written]))
    np.testing.assert_array_equal(fs.seconds, [each.seconds for each in written])
    np.testing.assert_array_equal(fs.start_seconds, 0.0)
    assert len(fs.frames) == len(fs) == len(written)
    for mine, theirs in zip(fs.frames, written, strict=True):
        np.testing.assert_array_equal(mine, theirs.frames)
    assert (fs.utterance.dtype, fs.frames[0].dtype) == (np.float32, np.float16)


def test_plain_zarr_opens_every_array_and_finds_the_same_numbers(url):
    parts = contents_by_plain_zarr(url)
    assert len(parts) == len(SHARDS)
    for shard in SHARDS:
        [arrays] = [arrays for name, arrays in parts.items() if name.endswith(shard)]
        written = shard_windows(shard)
        assert arrays["key"].tolist() == [each.key for each in written]
        assert arrays["meta"].tolist() == [each.meta for each in written]
        np.testing.assert_array_equal(arrays["utterance"], np.stack([each.utterance for each in written]))
        np.testing.assert_array_equal(arrays["frames"], np.concatenate([each.frames for each in written]))
        np.testing.assert_array_equal(arrays["frame_offsets"], np.cumsum([0, *(len(each.frames) for each in written)]))


@pytest.mark.parametrize("scheme", ["memory://"])
def test_a_store_that_is_no_folder_holds_the_same(url, tmp_path, scheme):
    other = f"{scheme}{tmp_path.name}.zarr"
    make_store(other)
    mine, theirs = (featstore.open(each).select() for each in (url, other))
    np.testing.assert_array_equal(mine.utterance, theirs.utterance)
    assert mine.key.tolist() == theirs.key.tolist()
    for one, two in zip(mine.frames, theirs.frames, strict=True):
        np.testing.assert_array_equal(one, two)
    assert mine.content_hash == theirs.content_hash


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 5),
    block_rows=st.integers(1, 7),
    blocks=st.integers(1, 4),
    kind=st.sampled_from(["plain", "sharded"]),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64"]),
    data=st.data(),
)
def test_every_layout_reads_through_the_map_and_through_zarr(
    tmp_path_factory, rows, dim, block_rows, blocks, kind, dtype, data
):
    values = np.random.default_rng(rows).integers(-9, 9, (rows, dim)).astype(dtype)
    folder = tmp_path_factory.mktemp("array")
    laid_out = layout.ArrayLayout(
        shape=values.shape,
        dtype=np.dtype(dtype).newbyteorder("<"),
        block_rows=block_rows,
        file_rows=block_rows * (blocks if kind == "sharded" else 1),
        kind=kind,
    )
    objects = LocalObjects(folder)
    objects.put("x/zarr.json", [laid_out.document()])
    for key, start, stop in laid_out.files():
        objects.put(f"x/{key}", codecs.encode_file(laid_out, values[start:stop]))
    mapped = open_rows(objects, "x")
    assert isinstance(mapped, MappedRows)
    np.testing.assert_array_equal(mapped.slice(0, rows), values)
    np.testing.assert_array_equal(zarr.open_array(str(folder / "x"), mode="r")[...], values)
    if rows:
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        np.testing.assert_array_equal(mapped.slice(start, stop), values[start:stop])


def test_an_index_that_names_the_wrong_block_is_not_believed(tmp_path, monkeypatch):
    """One bit of it, and the map would hand out the rows of another block, each with a checksum that is right."""
    monkeypatch.setattr(layout, "BLOCK_BYTES", 5 * DIM * 2)  # with its checksum, 64 bytes: a bit leads to another
    writer = split_writer(tmp_path / "s.zarr")
    write_part(writer, "a.tar", [window(f"k{at}", n_frames=5, seed=at) for at in range(4)])
    [chunk] = tmp_path.glob("s.zarr/*/*/*/*/frames/c/0/0")
    raw = bytearray(chunk.read_bytes())
    index_at = 4 * 64
    assert len(raw) == index_at + 4 * 16 + 4
    raw[index_at + 16] ^= 64  # block 1 is said to begin where block 0 does
    chunk.write_bytes(raw)
    with pytest.raises(DamagedPart, match=r"checksum.*index"):
        featstore.open(str(tmp_path / "s.zarr")).select().frames[1]


def test_a_block_that_an_index_says_is_absent_is_damage(tmp_path):
    rows = np.arange(8, dtype="<i8").reshape(4, 2)
    laid_out = layout.ArrayLayout(shape=(4, 2), dtype=rows.dtype, block_rows=2, file_rows=4, kind="sharded")
    *blocks, _, _ = codecs.encode_file(laid_out, rows)
    index = struct.pack("<4Q", 2**64 - 1, 2**64 - 1, 36, 36)
    objects = LocalObjects(tmp_path)
    objects.put("x/zarr.json", [laid_out.document()])
    objects.put("x/c/0/0", [*blocks, index, struct.pack("<I", codecs.crc32c(index))])
    for read in (lambda opened: opened.slice(1, 2), lambda opened: opened.read_into(np.empty_like(rows))):
        with pytest.raises(DamagedPart, match="size"):
            read(open_rows(objects, "x"))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    writer = split_writer(tmp_path / "s.zarr")
    write_part(writer, "a.tar", shard_windows("a.tar"))
    fs = featstore.open(str(tmp_path / "s.zarr")).select()

    def refuses(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("featstore.store.filesystem.open_regular", refuses)
    with pytest.raises(StoreError, match="Permission denied") as error:
        fs.frames[0]
    assert not isinstance(error.value, DamagedPart)


@pytest.mark.parametrize(
    ("array", "was", "becomes", "named"),
    [
        pytest.param("utterance", b'"name": "crc32c"', b'"name": "crc32k"', "utterance", id="a codec"),
        pytest.param("utterance", b'"float32"', b'"float64"', "float32", id="a type"),
        pytest.param("seconds", b'"shape": [\n  5', b'"shape": [\n  4', r"float64 \(5,\)", id="fewer rows"),
        pytest.param("seconds", b'"chunk_shape": [\n    5', b'"chunk_shape": [\n    0', "seconds", id="no rows"),
    ],
)
def test_an_array_document_that_was_changed_is_reported_with_its_place(tmp_path, array, was, becomes, named):
    make_store(tmp_path / "s.zarr", shards=["a.tar"])
    [document] = tmp_path.glob(f"s.zarr/*/*/*/*/{array}/zarr.json")
    assert was in document.read_bytes()
    document.write_bytes(document.read_bytes().replace(was, becomes))
    with pytest.raises(DamagedPart, match=named) as error:
        getattr(featstore.open(str(tmp_path / "s.zarr")).select(), array).sum()
    assert array in str(error.value)


@pytest.mark.parametrize("byte", [7, 8, 8 * 5 + 7], ids=["below zero", "beyond the next", "beyond the last"])
def test_offsets_that_lead_beyond_the_frames_are_reported_with_their_place(tmp_path, byte):
    make_store(tmp_path / "s.zarr", shards=["a.tar"])
    [chunk] = tmp_path.glob("s.zarr/*/*/*/*/frame_offsets/c/0")
    raw = bytearray(chunk.read_bytes())
    raw[byte] ^= 128
    chunk.write_bytes(raw)
    with pytest.raises(DamagedPart, match="frame_offsets"):
        featstore.open(str(tmp_path / "s.zarr")).select().frames[4]


def test_a_row_and_a_window_are_views_of_the_file_and_cannot_be_written(tmp_path):
    writer = split_writer(tmp_path / "s.zarr")
    write_part(writer, "a.tar", shard_windows("a.tar"))
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    for array in (fs.utterance, fs.frames[1]):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_frames_that_straddle_blocks_and_files_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 4 * DIM * 2)
    monkeypatch.setattr(layout, "FILE_BYTES", 12 * DIM * 2)
    writer = split_writer(tmp_path / "s.zarr")
    windows = [window(f"k{at}", n_frames=1 + at * 3 % 11, seed=at) for at in range(30)]
    write_part(writer, "a.tar", windows)
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    for mine, theirs in zip(fs.frames, windows, strict=True):
        np.testing.assert_array_equal(mine, theirs.frames)
    [arrays] = contents_by_plain_zarr(tmp_path / "s.zarr").values()
    np.testing.assert_array_equal(arrays["frames"], np.concatenate([each.frames for each in windows]))


def test_a_part_without_windows_is_a_part(tmp_path):
    writer = split_writer(tmp_path / "s.zarr")
    left_out = [SkippedClip(shard="a.tar", key="k", reason="it has no samples")]
    write_part(writer, "a.tar", [], skipped=left_out)
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    assert (len(fs), fs.n_clips, fs.utterance.shape, len(fs.frames)) == (0, 0, (0, DIM), 0)
    assert fs.key.tolist() == []
    assert fs.skipped == tuple(left_out)


def test_windows_of_one_clip_share_its_index(tmp_path):
    writer = split_writer(tmp_path / "s.zarr")
    starts = [("a", 0.0), ("a#2", 5.0), ("b#2", 0.0), ("c", 0.0), ("c#2", 5.0), ("c#3", 10.0)]
    windows = [window(key, n_frames=2, seed=at, start=start) for at, (key, start) in enumerate(starts)]
    write_part(writer, "a.tar", windows)
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    assert fs.clip.tolist() == [0, 0, 1, 2, 2, 2]
    assert fs.clip_key.tolist() == ["a", "b#2", "c"]
    assert fs.n_clips == 3


def test_xy_goes_straight_into_scikit_learn(url):
    from sklearn.neighbors import KNeighborsClassifier

    fs = featstore.open(url).select()
    X, y = fs.xy("label")
    assert KNeighborsClassifier(1).fit(X, y).score(X, y) == 1.0
    assert fs.xy("n")[1].dtype.kind == "i"
    with pytest.raises(LabelError, match=r"'nope'.*label, n"):
        fs.xy("nope")


# --- which parts count ------------------------------------------------------------------------------------------------


def test_an_uncommitted_part_is_not_seen_and_is_deleted_when_it_is_given_up(url, tmp_path):
    writer = split_writer(url)
    before = featstore.open(url).select().key.tolist()
    with writer.begin_part("d.tar") as part:
        for each in shard_windows("d.tar"):
            part.add(each)
        assert featstore.open(url).select().key.tolist() == before
    assert not list((tmp_path / "embeddings.zarr").rglob("d.*"))


def test_a_newer_part_of_a_shard_takes_the_place_of_the_older_before_and_after_the_sweep(url):
    writer = split_writer(url)
    changed = shard_windows("b.tar", seed=50)
    write_part(writer, "b.tar", changed, size=2)
    for _ in range(2):
        fs = featstore.open(url).select()
        assert fs.key.tolist()[5:10] == [each.key for each in changed]
        np.testing.assert_array_equal(fs.utterance[5:10], np.stack([each.utterance for each in changed]))
        writer.sweep()
    assert len(contents_by_plain_zarr(url)) == 3


def test_a_catalogue_that_is_behind_hides_nothing_and_shows_nothing_that_is_gone(url):
    writer = split_writer(url)
    write_part(writer, "d.tar", shard_windows("d.tar"))  # the catalogue does not know it
    assert len(featstore.open(url).select()) == 20
    writer.delete([writer.committed()["a.tar"].commit.part])
    assert len(featstore.open(url).select()) == 15
    assert featstore.open(url).select().key[0] == "b.tar-0"


def test_the_sweep_keeps_what_a_writer_begins_while_it_looks(url, monkeypatch):
    writer = split_writer(url)
    objects = open_objects(url)
    part = f"{writer.path}/d.00000000"
    sizes = LocalObjects.sizes

    def then_it_begins(self, prefix):
        if prefix == part:  # its document was not there a moment ago
            objects.write(f"{part}/{GROUP_DOCUMENT}", writing_document())
            objects.put(f"{part}/key/zarr.json", [b"{}"])
            return {"key/zarr.json": 2}
        return sizes(self, prefix)

    (Path(url) / part).mkdir()
    monkeypatch.setattr(LocalObjects, "sizes", then_it_begins)
    assert writer.sweep() == ()
    assert objects.read(f"{part}/key/zarr.json")


def test_keys_of_a_part_that_a_writer_replaced_since_are_not_silently_skipped(url):
    fs = featstore.open(url).select()
    writer = split_writer(url)
    write_part(writer, "b.tar", shard_windows("b.tar", seed=1), size=2)
    writer.sweep()
    for read in (lambda: fs.key, lambda: fs.metas_of([7]), lambda: fs.utterance):
        with pytest.raises(DamagedPart, match=r"b\."):
            read()
    assert len(featstore.open(url).select().key) == 15


def test_a_folder_that_may_not_be_listed_is_reported_in_one_line(url, monkeypatch):
    def refuses(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(StoreError, match="Permission denied"):
        featstore.open(url).select()


def test_a_document_that_does_not_say_enough_is_reported_with_its_place(url):
    path = split_writer(url).path
    LocalObjects(Path(url)).write(f"{path}/{GROUP_DOCUMENT}", seal({"split": "train"}))
    for look in (lambda: featstore.open(url).select(), lambda: gc_store(url)):
        with pytest.raises(DamagedPart, match=rf"{path}.*recipe.*`featstore verify"):
            look()


def test_a_url_of_a_file_names_a_folder_with_spaces_too(tmp_path):
    make_store(tmp_path / "my data")
    assert len(featstore.open((tmp_path / "my data").as_uri()).select()) == 15


def test_feature_sets_of_one_content_have_one_hash_wherever_and_whenever_they_were_made(url, tmp_path):
    make_store(tmp_path / "again.zarr")
    make_store(tmp_path / "other.zarr", shards=("a.tar", "b.tar"))
    urls = (url, str(tmp_path / "again.zarr"), str(tmp_path / "other.zarr"))
    first, again, other = (featstore.open(each).select().content_hash for each in urls)
    assert first == again != other


# --- selecting --------------------------------------------------------------------------------------------------------


def test_selecting_names_what_there_is_when_it_is_not_one_thing(url):
    writer = split_writer(url, padding="exact")
    write_part(writer, "a.tar", shard_windows("a.tar"))
    store = featstore.open(url)
    assert len(store.feature_sets()) == len(store.encoders()) == 2
    with pytest.raises(AmbiguousSelection, match=rf"{recipe(padding='exact').group_name}"):
        store.select(encoder="tiny", split="train")
    with pytest.raises(AmbiguousSelection):
        store.resolve_encoder("tiny")
    assert store.resolve_encoder(recipe().group_name) == recipe()
    with pytest.raises(UnknownFeatureSet, match="featstore inspect"):
        store.select(split="nope")
    with pytest.raises(KeyError):
        store.select(split="nope")


# --- what is no store -------------------------------------------------------------------------------------------------


def test_what_is_no_store_is_said_in_one_line(tmp_path):
    with pytest.raises(StoreNotFound):
        featstore.open(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        featstore.open(str(tmp_path / "nowhere"))
    zarr.create_group(str(tmp_path / "plain.zarr"))
    with pytest.raises(StoreError, match="not a featstore store"):
        featstore.open(str(tmp_path / "plain.zarr"))
    with pytest.raises(StoreError, match="not a featstore store"):
        split_writer(tmp_path / "plain.zarr")


@pytest.mark.parametrize("reads_before", [0, 1, 2])
def test_a_store_that_gives_be_while_it_is_opened_is_found_or_not_there_yet(reads_before, tmp_path, monkeypatch):
    path = tmp_path / "new.zarr"
    original, n_reads = LocalObjects.read, 0

    def read(objects, key, **limits):
        nonlocal n_reads
        n_reads += 1
        found = original(objects, key, **limits)
        if n_reads == reads_before:
            with monkeypatch.context() as patched:
                patched.setattr(LocalObjects, "read", original)
                make_store(path)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(LocalObjects, "read", read)
        if reads_before == 1:
            assert len(featstore.open(str(path)).feature_sets()) == 1
        else:
            with pytest.raises(StoreNotFound):
                featstore.open(str(path))


def test_a_store_of_a_newer_format_is_neither_read_nor_written(url, tmp_path):
    (tmp_path / "embeddings.zarr" / GROUP_DOCUMENT).write_bytes(seal({"format": 2}))
    for attempt in (lambda: featstore.open(url), lambda: split_writer(url)):
        with pytest.raises(StoreVersionError, match=r"\b2\b.*\b1\b"):
            attempt()


def test_a_name_that_cannot_be_a_group_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"got '\.\./up'"):
        split_writer(tmp_path / "s.zarr", split="../up")


def test_a_damaged_document_is_named_with_the_remedy(url, tmp_path):
    [document] = (tmp_path / "embeddings.zarr").glob("*/*/*/b.*/zarr.json")
    raw = json.loads(document.read_bytes())
    raw["attributes"]["featstore"]["commit"]["frames_stored"] = False
    document.write_text(json.dumps(raw))
    (document.parent.parent / GROUP_DOCUMENT).unlink()  # without the catalogue, its own document is read
    split_writer(url)
    with pytest.raises(DamagedPart, match=r"verify --store .* --repair"):
        featstore.open(url).select()


def test_every_file_and_folder_of_a_committed_part_is_fsynced(tmp_path, monkeypatch):
    fsynced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: fsynced.add(os.fstat(descriptor).st_ino))
    monkeypatch.chdir(tmp_path)
    writer = split_writer(Path("s.zarr"))
    fsynced.clear()
    write_part(writer, "a.tar", shard_windows("a.tar"))
    [part] = Path("s.zarr").glob("*/*/*/a.*")
    assert len([path for path in part.rglob("*") if path.is_file()]) > 5
    written = [part, *part.rglob("*"), *(above for above in part.parents if above != Path())]
    assert {str(path) for path in written if path.stat().st_ino not in fsynced} == set()
