"""What `featstore export` writes, read by NumPy, zarr, pyarrow and datasets, none of which knows featstore."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import featstore.store as store_package
from cached import cached
from featstore.store import export as export_package
from featstore.store import export_contents as contents

FORMATS = ("npz", "parquet", "zarr", "hf")
NEEDS = {"parquet": "pyarrow", "hf": "datasets"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return cached(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def _a_window_or_two_at_a_time(monkeypatch):
    for file_format in FORMATS:
        monkeypatch.setitem(export_package.PIECE_BYTES, file_format, 150)


def hidden_in(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def export(run, store, tmp_path):
    """Export mel/words/train, and give what was told as JSON."""

    def exports(file_format, *options):
        if file_format in NEEDS:
            pytest.importorskip(NEEDS[file_format], reason=f"{NEEDS[file_format]} is not installed")
        out = tmp_path / f"out.{file_format}"
        caught = run(
            "export", out, "--store", store.url, "--encoder", "mel", "--dataset", "words", "--split", "train",
            "--format", file_format, "--json", *options,
        )  # fmt: skip
        assert caught.code == 0, caught.err
        return out, json.loads(caught.out)[0]

    return exports


def small_columns(store):
    return {name: store.column(name) for name in ("key", "meta", "start_seconds", "seconds")}


def frames_end_to_end(store):
    return np.concatenate(store.column("frames")), np.cumsum([0, *map(len, store.column("frames"))])


# --- formats ----------------------------------------------------------------------------------------------------------


def test_npz_is_read_by_numpy_without_pickles(export, store):
    out, _ = export("npz", "--frames", "--label", "label.word")
    with np.load(out, allow_pickle=False) as arrays:
        for name, values in small_columns(store).items():
            assert arrays[name].tolist() == values
        assert arrays["label"].tolist() == store.labels
        np.testing.assert_array_equal(arrays["utterance"], np.stack(store.column("utterance")))
        frames, offsets = frames_end_to_end(store)
        np.testing.assert_array_equal(arrays["frames"], frames)
        np.testing.assert_array_equal(arrays["frame_offsets"], offsets)
        assert (arrays["utterance"].dtype, arrays["frames"].dtype) == (np.float32, np.float16)
        assert json.loads(str(arrays["featstore"]))["path"].endswith("/words/train")


def test_equal_contents_make_equal_npz_files(export):
    first = export("npz")[0].read_bytes()
    assert export("npz", "--force")[0].read_bytes() == first


def test_zarr_is_read_by_zarr_with_no_codec_but_bytes(export, store):
    import zarr

    out, _ = export("zarr", "--frames", "--label", "n")
    group = zarr.open_group(str(out), mode="r")
    for name, values in small_columns(store).items():
        assert group[name][...].tolist() == values
    assert group["label"][...].tolist() == [len(frames) for frames in store.column("frames")]
    frames, offsets = frames_end_to_end(store)
    for name, expected in (
        ("utterance", np.stack(store.column("utterance"))),
        ("frames", frames),
        ("frame_offsets", offsets),
    ):
        np.testing.assert_array_equal(group[name][...], expected)
        assert group[name].dtype == expected.dtype
    for document in out.glob("*/zarr.json"):
        codecs = [codec["name"] for codec in json.loads(document.read_bytes())["codecs"]]
        assert codecs in (["bytes"], ["vlen-utf8"])


def test_zarr_arrays_of_many_chunks_are_whole(export, store, monkeypatch):
    import zarr

    from featstore.store import export_formats as dense_zarr

    monkeypatch.setattr(dense_zarr, "_CHUNK_BYTES", 64)
    out, _ = export("zarr", "--frames")
    frames = zarr.open_array(str(out / "frames"), mode="r")
    assert frames.chunks == (4, 8)
    np.testing.assert_array_equal(frames[...], frames_end_to_end(store)[0])


def test_parquet_is_read_by_pyarrow(export, store):
    out, _ = export("parquet", "--frames", "--label", "label.word")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(out)
    assert table.schema.field("utterance").type == pa.list_(pa.float32(), 8)
    for name, values in {**small_columns(store), "label": store.labels}.items():
        assert table[name].to_pylist() == values
    for name in ("utterance", "frames"):
        for mine, theirs in zip(table[name].to_pylist(), store.column(name), strict=True):
            np.testing.assert_array_equal(np.array(mine, theirs.dtype), theirs)
    assert json.loads(table.schema.metadata[b"featstore"])["recipe"]["encoder"] == "mel"


def test_a_hugging_face_folder_is_read_by_datasets(export, store):
    out, _ = export("hf", "--frames", "--label", "label.word")
    import datasets

    loaded = datasets.load_from_disk(str(out))
    assert loaded.features["label"].names == ["jä", "no"]
    assert [loaded.features["label"].int2str(code) for code in loaded["label"]] == store.labels
    for name, values in small_columns(store).items():
        assert loaded[name][:] == values
    for row, window in zip(loaded, store.windows, strict=True):
        np.testing.assert_array_equal(np.array(row["utterance"], np.float32), window.utterance)
        np.testing.assert_array_equal(np.array(row["frames"], np.float16), window.frames)
    assert {path.name for path in out.iterdir()} == {
        "data-00000-of-00001.arrow", "dataset_info.json", "featstore_export.json", "state.json",
    }  # fmt: skip


@pytest.mark.parametrize("file_format", FORMATS)
def test_without_frames_and_label_there_are_none(export, file_format):
    out, result = export(file_format)
    assert result["columns"] == ["key", "meta", "start_seconds", "seconds", "utterance"]
    assert (result["windows"], result["frames"], result["out"]) == (7, None, str(out))
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    assert result["bytes"] == sum(path.stat().st_size for path in files)
    assert hidden_in(out.parent) == []


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ([], []),
        ([9], [(0, 1)]),
        ([1, 1, 1, 1], [(0, 4)]),
        ([3, 3, 9, 1, 4, 1], [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6)]),
    ],
)
def test_every_window_is_in_one_piece(sizes, pieces):
    planned = contents.plan_pieces(np.array(sizes, np.int64), piece_bytes=5)
    assert [(piece.start, piece.stop) for piece in planned] == pieces


# --- files and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_is_there_is_kept_unless_forced(export, run, store, file_format):
    out, _ = export(file_format)
    again = ["export", out, "--store", store.url, "--encoder", "mel", "--split", "test", "--format", file_format]
    outcome = run(*again)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--force" in outcome.err
    assert run(*again, "--force").code == 0
    assert "1 window of" in run(*again, "--force").out
    assert hidden_in(out.parent) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_force_replaces_no_folder_that_an_export_did_not_write(run, store, tmp_path, file_format):
    if file_format in NEEDS:
        pytest.importorskip(NEEDS[file_format], reason=f"{NEEDS[file_format]} is not installed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    for folder in (tmp_path / "mine", store.url):
        outcome = run("export", folder, "--store", store.url, "--encoder", "bare", "--format", file_format, "--force")
        assert outcome.code == 2
        assert "--force" in outcome.err
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    assert run("verify", "--store", store.url).code == 0


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_export_that_breaks_off_leaves_the_old_one_and_nothing_else(export, monkeypatch, tmp_path, file_format):
    export(file_format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def breaks(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(contents.Contents, "utterance", breaks)
    with pytest.raises(AssertionError, match="No space left on device"):
        export(file_format, "--force")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--encoder", "bare", "--frames", "--format", "npz"], "--frames always"),
     (["--encoder", "bare", "--label", "word", "--format", "npz"], "'word'"),
     (["--encoder", "mel", "--format", "npz"], "words/test"),
     (["--encoder", "bare", "--format", "csv"], "'csv'")],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line(run, store, tmp_path, arguments, named):
    outcome = run("export", tmp_path / "out", "--store", store.url, *arguments)
    assert (outcome.code in (1, 2), outcome.out, outcome.err.count("\n")) == (True, "", 1)
    assert named in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", ["parquet", "hf"])
def test_a_missing_library_is_one_line_with_the_remedy(run, store, tmp_path, monkeypatch, file_format):
    import sys

    monkeypatch.setitem(sys.modules, NEEDS[file_format], None)
    for name in list(sys.modules):
        if name.startswith("featstore.store.export_arrow"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(store_package, "export_arrow", raising=False)
    outcome = run("export", tmp_path / "out", "--store", store.url, "--encoder", "bare", "--format", file_format)
    assert outcome.code == 2
    assert re.search(rf"{NEEDS[file_format]}.*`pip install 'featstore\[export\]'`", outcome.err)


def test_text_too_wide_for_npz_says_what_takes_it(run, store, tmp_path, monkeypatch):
    from featstore.store import export_formats as npz

    monkeypatch.setattr(npz, "_MAX_STRINGS_BYTES", 100)
    outcome = run("export", tmp_path / "out", "--store", store.url, "--encoder", "bare", "--format", "npz")
    assert outcome.code == 2
    assert re.search("parquet.*zarr.*hf", outcome.err)
