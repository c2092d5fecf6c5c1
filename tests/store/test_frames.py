"""Frames one by one, in batches and through a DataLoader, against the arrays that were written."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import DIM, make_bare_store, make_store, recipe, split_writer, window, write_part

import featstore
from featstore.errors import LabelError, UnknownFeatureSet, UsageError
from featstore.store import EmbeddedWindow, layout, open_split_writer
from featstore.store.clip_fields import encode_labels


@pytest.fixture(scope="module")
def written():
    return [window(f"k{at}", n_frames=1 + at * 7 % 23, seed=at) for at in range(40)]


@pytest.fixture(scope="module")
def fs(written, tmp_path_factory):
    """Forty windows in three parts, with blocks and files so small that most windows straddle them."""
    url = tmp_path_factory.mktemp("frames") / "s.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", 5 * DIM * 2)
        patch.setattr(layout, "FILE_BYTES", 15 * DIM * 2)
        writer = split_writer(url)
        for shard, windows in (("a.tar", written[:9]), ("b.tar", written[9:10]), ("c.tar", written[10:])):
            write_part(writer, shard, windows)
    return featstore.open(str(url)).select()


def padded_by_hand(windows):
    longest = max((len(each.frames) for each in windows), default=0)
    rows = [np.pad(each.frames, ((0, longest - len(each.frames)), (0, 0))) for each in windows]
    return np.array(rows, np.float16).reshape(len(windows), longest, DIM), [len(each.frames) for each in windows]


# --- batches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(indices=st.lists(st.integers(-40, 39), max_size=12))
def test_any_list_of_windows_is_a_batch_padded_with_zeros(fs, written, indices):
    expected, lengths = padded_by_hand([written[at] for at in indices])
    batch = fs.frames[indices]
    assert batch.values.dtype == np.float16
    np.testing.assert_array_equal(batch.values, expected)
    np.testing.assert_array_equal(batch.lengths, lengths)
    ragged = fs.frames.ragged(indices)
    np.testing.assert_array_equal(
        ragged.values, np.concatenate([np.empty((0, DIM)), *(written[at].frames for at in indices)])
    )
    np.testing.assert_array_equal(ragged.lengths, lengths)


def test_a_list_an_array_and_a_mask_choose_alike(fs):
    chosen = [3, 11, 12, 39]
    mask = np.isin(np.arange(len(fs)), chosen)
    expected = fs.frames[chosen]
    for index in (np.array(chosen), np.array(chosen, np.uint8), tuple(chosen), mask, mask.tolist()):
        values, lengths = fs.frames[index]
        np.testing.assert_array_equal(values, expected.values)
        np.testing.assert_array_equal(lengths, expected.lengths)


def test_a_slice_is_a_list_of_windows(fs, written):
    for mine, theirs in zip(fs.frames[30:2:-5], written[30:2:-5], strict=True):
        np.testing.assert_array_equal(mine, theirs.frames)


def test_a_batch_laid_into_a_used_buffer_is_that_of_fresh_memory(fs):
    buffer = np.full((4, 30, DIM), np.nan, np.float16)
    for indices in ([0, 39, 5], [22], []):
        fresh, reused = fs.frames[indices], fs.frames.padded(indices, out=buffer)
        np.testing.assert_array_equal(fresh.values, reused.values)
        assert not len(indices) or np.shares_memory(reused.values, buffer)


@pytest.mark.parametrize(
    ("index", "named"),
    [(40, "40"), (-41, "-41"), ([0, 99], "99"), ([[1]], "(1, 1)"),
     ([0.5], "float64"), (np.ones(3, bool), "40")],
)  # fmt: skip
def test_what_is_no_window_is_an_index_error(fs, index, named):
    with pytest.raises(IndexError) as caught:
        fs.frames[index]
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "out", [np.empty((1, 1, DIM), np.float16), np.empty((9, 30, DIM)), np.empty((9, 30, 2 * DIM), np.float16)[..., ::2]]
)
def test_a_buffer_that_does_not_fit_is_refused(fs, out):
    with pytest.raises(UsageError, match="`out` must be"):
        fs.frames.padded([0, 1, 2], out=out)


def test_what_travels_to_another_process_is_no_array(fs, written):
    assert len(fs.frames[5])  # maps are open
    raw = pickle.dumps([fs, fs.frames])
    assert len(raw) < 10_000
    other, frames = pickle.loads(raw)
    np.testing.assert_array_equal(frames[5], written[5].frames)
    np.testing.assert_array_equal(other.utterance, fs.utterance)


# --- labels -----------------------------------------------------------------------------------------------------------


def of(*values):
    return [f"k{at}" for at in range(len(values))], [json.dumps({"of": {"x": value}}) for value in values]


def test_text_becomes_codes_of_sorted_classes_and_numbers_stay_numbers():
    labels = encode_labels(*of("no", "yes", "no"), "of.x")
    assert (labels.values.tolist(), labels.classes) == ([0, 1, 0], ("no", "yes"))
    assert encode_labels(*of(*[True, False]), "of.x").classes == (False, True)
    whole, fractions = encode_labels(*of(3, -1), "of.x"), encode_labels(*of(3, 0.5), "of.x")
    assert (whole.values.dtype, whole.values.tolist(), whole.classes) == (np.int64, [3, -1], None)
    assert (fractions.values.dtype, fractions.values.tolist()) == (np.float64, [3.0, 0.5])


def test_a_test_set_takes_the_codes_of_its_training_set():
    assert encode_labels(*of("c"), "of.x", classes=("a", "b", "c")).values.tolist() == [2]
    with pytest.raises(LabelError, match=r"'k1'.*of\.x 'd'.*\b2\b.*'a', 'c'"):
        encode_labels(*of("c", "d"), "of.x", classes=("a", "c"))


@pytest.mark.parametrize(
    ("values", "named"),
    [(("a", None), r"'k1'.*'of\.x'"),
     (("a", ["b"]), r"'of\.x'.*\[\"b\"\]"),
     (("a", 1), "'of.x' .*'k0'.*'k1'")],
)  # fmt: skip
def test_what_is_no_label_is_an_error_that_names_the_clip(values, named):
    with pytest.raises(LabelError, match=named):
        encode_labels(*of(*values), "of.x")


# --- torch ------------------------------------------------------------------------------------------------------------


def test_samples_are_copies_with_their_codes(fs, written):
    dataset = fs.as_dataset("label", frames=True)
    assert dataset.classes == ("é0", "é1", "é2")
    x, y = dataset[-1]
    np.testing.assert_array_equal(x.numpy(), written[-1].frames)
    assert y.item() == 39 % 3
    x.zero_()  # a copy, not the file
    np.testing.assert_array_equal(dataset[39].x.numpy(), written[-1].frames)
    with pytest.raises(IndexError):
        dataset[40]
    vectors = fs.as_dataset("n")
    assert vectors.classes is None
    np.testing.assert_array_equal(vectors[7].x.numpy(), written[7].utterance)
    assert vectors[7].y.item() == 7


def test_collate_joins_samples_of_any_origin_as_it_reads_its_own(fs):
    for dataset in (fs.as_dataset("label"), fs.as_dataset("label", frames=True)):
        chosen = [3, 11, -1]
        own = dataset.collate(dataset.__getitems__(chosen))
        joined = dataset.collate([dataset[at] for at in chosen])
        for one, other in zip(own, joined, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("start", "frames"),
    [(None, True), (None, False), ("fork", True), ("fork", False), pytest.param("spawn", True, marks=pytest.mark.slow)],
)
def test_workers_read_one_shuffled_epoch_through_the_map(fs, written, start, frames):
    import torch
    from torch.utils.data import DataLoader

    dataset = fs.as_dataset("n", frames=frames)
    loader = DataLoader(
        dataset,
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        num_workers={None: 0, "spawn": 1}.get(start, 2),  # a spawned one imports torch first
        multiprocessing_context=start,
        collate_fn=dataset.collate,
    )
    seen = []
    for batch in loader:
        for at, n in enumerate(batch.y.tolist()):
            seen.append(n)
            x = batch.x[at].numpy()
            if frames:
                length = batch.lengths[at]
                assert not x[length:].any()
                np.testing.assert_array_equal(x[:length], written[n].frames)
            else:
                np.testing.assert_array_equal(x, written[n].utterance)
    assert sorted(seen) == list(range(40))
    assert seen != sorted(seen)


def test_windows_of_a_cropped_clip_share_its_label(tmp_path):
    def part_of(clip, number):
        made = window(clip if number == 1 else f"{clip}#{number}", n_frames=3, seed=number)
        meta = f'{{"label": "{clip}"}}'
        return EmbeddedWindow(
            key=made.key,
            meta=meta,
            start_seconds=number - 1.0,
            seconds=1.0,
            utterance=made.utterance,
            frames=made.frames,
        )

    url = str(tmp_path / "s.zarr")
    writer = open_split_writer(url, recipe=recipe(), spec="tiny", dataset="words", crop_seconds=1.0, split="train")
    write_part(writer, "a.tar", [part_of("a", 1), part_of("a", 2), part_of("b", 1)])
    fs = featstore.open(url).select()
    dataset = fs.as_dataset("label")
    assert [dataset.classes[code] for code in dataset.labels] == ["a", "a", "b"]
    assert fs.clip.tolist() == [0, 0, 1]


def test_a_set_without_frames_says_how_to_get_them(tmp_path):
    make_bare_store(tmp_path / "s.zarr")
    fs = featstore.open(str(tmp_path / "s.zarr")).select()
    assert not fs.has_frames
    with pytest.raises(UnknownFeatureSet, match="--frames always"):
        fs.as_dataset("label", frames=True)


def test_only_datasets_import_torch(tmp_path):
    make_store(tmp_path / "s.zarr")
    code = (
        f"import sys, featstore; fs = featstore.open({str(tmp_path / 's.zarr')!r}).select(); "
        "fs.frames[[0, 1]], fs.utterance, fs.xy('label'), repr(fs); "
        "print([name for name in ('torch', 'zarr', 'pyarrow', 'xarray', 'dask') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
