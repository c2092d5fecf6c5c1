"""Feature sets as tables, xarray and dask."""

from __future__ import annotations

import builtins
import shutil

import numpy as np
import pytest
from stores import make_store, recipe, shard_windows, split_writer, write_part

import featstore
from featstore.errors import DamagedPart, LabelError, UsageError
from featstore.store.catalogue import read_split
from featstore.store.documents import SplitAddress
from featstore.store.filesystem import open_objects
from featstore.store.writer import open_split_writer_at

SHARDS = ("a.tar", "b.tar", "c.tar")


@pytest.fixture
def store(tmp_path):
    make_store(tmp_path / "s.zarr", shards=SHARDS)
    write_part(split_writer(tmp_path / "s.zarr", split="test"), "d.tar", shard_windows("d.tar", n=2))
    return featstore.open(str(tmp_path / "s.zarr"))


@pytest.fixture
def fs(store):
    return store.select(split="train")


def without(monkeypatch, *libraries):
    real = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name.partition(".")[0] in libraries:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_feature_sets_are_a_tuple_that_shows_itself_as_a_table(store):
    sets = store.feature_sets()
    assert isinstance(sets, tuple)
    assert [fs.split for fs in sets] == ["test", "train"]
    header, *rows = repr(sets).splitlines()
    assert header.split() == ["encoder", "dataset", "split", "clips", "windows", "dim", "frames", "hours"]
    assert [row.split()[:6] for row in rows] == [
        [sets[0].recipe.group_name, "words", "test", "2", "2", "6"],
        [sets[0].recipe.group_name, "words", "train", "15", "15", "6"],
    ]
    assert [fs.split for fs in store.feature_sets(encoder="tiny", split="train")] == ["train"]
    assert [fs.split for fs in store.feature_sets(encoder=sets[0].recipe.group_name)] == ["test", "train"]
    assert store.feature_sets(dataset="other") == ()
    assert repr(sets) in repr(store)
    assert "2 feature sets" in repr(store)
    assert "(15, 6)" in repr(sets[1])


def test_a_notebook_gets_the_table_as_html_with_names_escaped(tmp_path):
    from xml.etree import ElementTree

    from featstore.formatting import html_table

    table = ElementTree.fromstring(html_table(["a<b", "n"], [["&", "1,000"]], caption="s > t"))
    assert table.find("caption").text == "s > t"
    assert [cell.text for cell in table.iter("th")] == ["a<b", "n"]
    assert [cell.text for cell in table.iter("td")] == ["&", "1,000"]
    make_store(tmp_path / "s.zarr")
    table = ElementTree.fromstring(featstore.open(str(tmp_path / "s.zarr"))._repr_html_())
    assert len(table.find("tbody")) == 1


def test_names_that_a_terminal_would_obey_are_refused_and_shown_by_their_escapes(tmp_path):
    address = SplitAddress(recipe=recipe(), spec="tiny", dataset="a\x1b[2J", crop_seconds=None, split="niart")
    writer = open_split_writer_at(open_objects(str(tmp_path / "s.zarr")), address)
    write_part(writer, "a.tar", shard_windows("a.tar"))
    assert len(featstore.open(str(tmp_path / "s.zarr")).feature_sets()) == 0  # such a name is foreign
    with pytest.raises(DamagedPart) as caught:
        read_split(open_objects(str(tmp_path / "s.zarr")), address.path)
    assert str(caught.value.__cause__).isprintable()


def test_an_empty_store_still_has_a_table(tmp_path):
    split_writer(tmp_path / "s.zarr")
    store = featstore.open(str(tmp_path / "s.zarr"))
    assert len(store.feature_sets()) == 0
    assert "0 feature sets" in repr(store)


def test_rows_read_in_pieces_are_those_of_the_whole(fs):
    for start in range(len(fs) + 1):
        for stop in range(start, len(fs) + 1):
            np.testing.assert_array_equal(fs.utterance_rows.slice(start, stop), fs.utterance[start:stop])
    np.testing.assert_array_equal(fs.utterance_rows.take([14, 0, 7]), fs.utterance[[14, 0, 7]])
    assert fs.metas_of([14, 0, 7]) == fs.meta_json[[14, 0, 7]].tolist()
    for wrong in (15, -1):
        with pytest.raises(IndexError, match=rf"\b15\b.*{wrong}"):
            fs.metas_of([0, wrong])


def test_lists_of_different_lengths_make_no_labels(tmp_path):
    from featstore.store import EmbeddedWindow

    windows = [
        EmbeddedWindow(key=str(n), meta=f'{{"x": {[0] * n}}}', start_seconds=0.0, seconds=1.0,
                       utterance=np.zeros(6, np.float32), frames=np.zeros((1, 6), np.float16))
        for n in (1, 2)
    ]  # fmt: skip
    write_part(split_writer(tmp_path / "s.zarr"), "a.tar", windows)
    with pytest.raises(LabelError, match="array"):
        featstore.open(str(tmp_path / "s.zarr")).select().xy("x")


# --- xarray and dask --------------------------------------------------------------------------------------------------


def test_xarray_has_the_vectors_with_their_coordinates(fs):
    pytest.importorskip("xarray", reason="xarray is not installed")
    array = fs.to_xarray()
    assert array.dims == ("window", "feature")
    np.testing.assert_array_equal(array.values, fs.utterance)
    for name in ("key", "start_seconds", "seconds"):
        assert array[name].values.tolist() == getattr(fs, name).tolist()
    assert array.attrs["content_hash"] == fs.content_hash
    chosen = array.set_index(window="key").sel(window="b.tar-3")
    np.testing.assert_array_equal(chosen, fs.utterance[fs.key.tolist().index("b.tar-3")])


def test_dask_reads_each_part_when_it_is_computed(fs):
    pytest.importorskip("dask.array", reason="dask is not installed")
    array = fs.to_dask()
    assert (array.shape, array.dtype, array.chunks[0]) == (fs.utterance.shape, np.float32, (5, 5, 5))
    np.testing.assert_array_equal(array[6:12].compute(scheduler="synchronous"), fs.utterance[6:12])
    np.testing.assert_allclose(
        array.mean(axis=0).compute(scheduler="synchronous"), fs.utterance.mean(axis=0), rtol=1e-6
    )
    assert array.name == fs.to_dask().name


def test_dask_tells_one_content_in_other_pieces_apart(store, tmp_path):
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    from featstore.store.maintenance import compact_store

    shutil.copytree(tmp_path / "s.zarr", tmp_path / "one.zarr")
    compact_store(str(tmp_path / "one.zarr"), part_bytes=1 << 20)
    apart = store.select(split="train")
    together = featstore.open(str(tmp_path / "one.zarr")).select(split="train")
    assert (apart.content_hash, apart.n_parts, together.n_parts) == (together.content_hash, 3, 1)
    both = da.concatenate([apart.to_dask(), together.to_dask()]).compute(scheduler="synchronous")
    np.testing.assert_array_equal(both, np.concatenate([apart.utterance, together.utterance]))


@pytest.mark.parametrize(("library", "call"), [("xarray", "to_xarray"), ("dask", "to_dask")])
def test_a_missing_library_is_one_line_with_the_remedy(fs, monkeypatch, library, call):
    without(monkeypatch, library)
    with pytest.raises(UsageError, match=rf"{library}.*`pip install"):
        getattr(fs, call)()
