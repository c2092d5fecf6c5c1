"""`extract_task`, from shards made by hand to what featstore and plain zarr read of the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from featstore.encoders import load_encoder
from featstore.errors import EncoderContractError, EncoderError, ShardError, StoreError, UsageError
from featstore.extract import ExtractOptions, extract_task
from featstore.store import FeatureSet
from handmade import (
    audio_bytes,
    build,
    clip,
    extract,
    noise,
    read_with_plain_zarr,
    write_split,
    write_tar,
)
from tiny import folds, task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(store: Path, **selection: str) -> FeatureSet:
    return featstore.open(str(store)).select(**selection)


def reasons(store: Path) -> dict[str, str]:
    return {left_out.key: left_out.reason for left_out in opened(store).skipped}


def n_parts(store: Path) -> int:
    return len(list(store.glob("*/*/*/*/utterance")))


BEFORE_SHARDS = 1 + 4  # passes: the check of the contract, and reference signals, one of them twice


class Counting(torch.nn.Module):
    """Remembers what it was asked to encode. Its frames are the mean and the largest value of each 10 ms."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 2, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        self.rows += len(audio)
        self.shapes.append(tuple(audio.shape))
        steps = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 160)).unflatten(1, (-1, 160))
        return torch.stack([steps.mean(2), steps.amax(2)], dim=2)


def test_every_format_becomes_an_embedding_with_its_key_meta_and_seconds(data: Path, store: Path) -> None:
    clips = [clip(f"{form}/clip", noise(0.5, seed=n), extension=form) for n, form in enumerate(("wav", "flac", "ogg"))]
    clips.append(clip("mp3/clip", noise(0.5, seed=3, rate=22_050), extension="mp3", rate=22_050))
    write_split(data / "tiny", "train", clips)
    [record] = extract(task(), data, store)
    fs = opened(store)
    assert list(fs.key) == ["wav/clip", "flac/clip", "ogg/clip", "mp3/clip"]
    assert list(fs.meta) == [{"label": "a"}] * 4
    np.testing.assert_allclose(fs.seconds[:3], 0.5)
    assert fs.utterance.shape == (4, 128)
    assert (record.clips, record.windows, record.frames, record.skipped) == (4, 4, 0, ())
    assert (record.shards_total, record.shards_done, record.shards_reused) == (1, 1, 0)
    assert record.audio_seconds == pytest.approx(sum(fs.seconds), abs=1e-3)
    assert record.bytes_written > fs.utterance.nbytes
    assert record.seconds["total"] > 0


def test_an_utterance_vector_is_the_mean_of_the_frames_the_encoder_gives_for_the_clip(data: Path, store: Path) -> None:
    wave = noise(0.93)
    write_split(data / "tiny", "train", [clip("a", wave)])
    extract(task(), data, store, padding="exact", frames="always", frame_dtype="float32")
    frames = load_encoder("logmel").module(torch.from_numpy(wave)[None])[0].numpy()[: round(0.93 / 0.04)]
    np.testing.assert_allclose(opened(store).utterance[0], frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(opened(store).frames[0], frames, rtol=1e-5)


def test_the_json_of_a_sample_is_stored_untouched(data: Path, store: Path) -> None:
    text = '{ "label":"é\\u00e9",\n\t"n": 1.50, "n": 2 }'
    write_tar(data / "tiny/train-0.tar", [("a.wav", audio_bytes(noise(0.2))), ("a.json", text.encode())])
    extract(task(), data, store)
    assert opened(store).meta_json[0] == text


def cropped(**data_table: Any) -> Any:
    return task(data={"dataset": "tiny", "crop_seconds": 1.0, **data_table})


CROPS = {"short": 0.4, "exact": 1.0, "two": 2.0, "rest": 2.3}


def test_crops_are_consecutive_windows_and_the_rest_is_one_of_its_own(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip(key, noise(seconds)) for key, seconds in CROPS.items()])
    counting = Counting()
    [record] = extract(cropped(), data, store, encoder=build(counting), frames="always")
    fs = opened(store)
    assert list(fs.key) == ["short", "exact", "two", "two#2", "rest", "rest#2", "rest#3"]
    np.testing.assert_allclose(fs.start_seconds, [0, 0, 0, 1, 0, 1, 2])
    np.testing.assert_allclose(fs.seconds, [0.4, 1, 1, 1, 1, 1, 0.3])
    assert fs.clip.tolist() == [0, 1, 2, 2, 3, 3, 3]
    assert fs.frames.lengths.tolist() == [40, 100, 100, 100, 100, 100, 30]
    assert (record.dataset, record.clips, record.windows) == ("tiny+crop1s", 4, 7)
    assert record.audio_seconds == pytest.approx(5.7)
    widths = {shape[1] for shape in counting.shapes[BEFORE_SHARDS:]}
    assert widths == {16_000, 8000}  # the rest is padded to the quantum, a short clip to the crop


def test_under_xares_the_rest_is_dropped_and_padding_is_stored(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip(key, noise(seconds)) for key, seconds in CROPS.items()])
    extract(cropped(), data, store, encoder=build(Counting()), frames="always", padding="xares")
    fs = opened(store)
    assert list(fs.key) == ["short", "exact", "two", "two#2", "rest", "rest#2"]
    assert fs.frames.lengths.tolist() == [100] * 6
    np.testing.assert_allclose(fs.seconds, [0.4, 1, 1, 1, 1, 1])


def test_xares_batches_are_sixteen_clips_in_file_order_padded_to_the_longest(data: Path, store: Path) -> None:
    seconds = [0.1 + 0.01 * (number * 7 % 18) for number in range(18)]
    write_split(data / "tiny", "train", [clip(f"c{n:02d}", noise(s)) for n, s in enumerate(seconds)])
    counting = Counting()
    extract(task(), data, store, encoder=build(counting), padding="xares")
    assert counting.shapes[BEFORE_SHARDS:] == [
        (16, round(max(seconds[:16]) * 16_000)),
        (2, round(max(seconds[16:]) * 16_000)),
    ]


@pytest.mark.parametrize(
    ("frames", "kind", "stored"),
    [("auto", "clip", False), ("auto", "frame", True), ("always", "clip", True), ("never", "frame", False)],
)
def test_frames_are_stored_where_they_are_wanted(
    frames: str, kind: str, *, stored: bool, data: Path, store: Path
) -> None:
    label = {"field": "label", "events": "events", "classes": ["a"]}
    changes = {"kind": "frame", "metric": "segment_f1_macro", "label": label} if kind == "frame" else {}
    write_split(data / "tiny", "train", [clip("a", noise(0.5))])
    [record] = extract(task(**changes), data, store, frames=frames)
    assert opened(store).has_frames is stored
    assert (record.frames > 0) is stored


def test_frames_that_are_wanted_later_are_made_later_and_kept_after_that(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.5))])
    extract(task(), data, store, frames="never")
    [added] = extract(task(), data, store, frames="always")
    [kept] = extract(task(), data, store, frames="never")
    assert (added.shards_done, kept.shards_reused) == (1, 1)
    assert opened(store).has_frames
    assert n_parts(store) == 1


def test_a_second_run_encodes_nothing(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip(f"c{n}", noise(0.3, seed=n)) for n in range(6)], shards=3)
    [first] = extract(task(), data, store)
    before = read_with_plain_zarr(store)
    [again] = extract(task(), data, store)
    assert (first.shards_done, first.shards_reused) == (3, 0)
    assert (again.shards_done, again.shards_reused, again.bytes_written, again.bottleneck) == (0, 3, 0, "")
    assert (again.clips, again.windows, again.audio_seconds) == (first.clips, first.windows, first.audio_seconds)
    assert read_with_plain_zarr(store).keys() == before.keys()


def test_a_changed_shard_is_encoded_again_and_its_old_part_goes(data: Path, store: Path) -> None:
    one, other = write_split(data / "tiny", "train", [clip(f"c{n}", noise(0.3, seed=n)) for n in range(2)], shards=2)
    extract(task(), data, store)
    before = {path: path.stat().st_mtime_ns for path in store.glob(f"*/*/*/{other.stem}*/utterance/c/**/*")}
    write_tar(one, clip("new", noise(0.4)))
    [record] = extract(task(), data, store)
    assert (record.shards_done, record.shards_reused) == (1, 1)
    assert sorted(opened(store).key) == ["c1", "new"]
    assert n_parts(store) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_shard_that_was_only_touched_is_not_encoded_again(data: Path, store: Path) -> None:
    [path] = write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    extract(task(), data, store)
    os.utime(path, ns=(1, 1))
    [record] = extract(task(), data, store)
    assert (record.shards_done, record.shards_reused) == (0, 1)


def test_a_shard_of_the_same_size_with_other_content_is_encoded_again(data: Path, store: Path) -> None:
    [path] = write_split(data / "tiny", "train", [clip("a", noise(0.3, seed=1))])
    extract(task(), data, store)
    [path] = write_split(data / "tiny", "train", [clip("b", noise(0.3, seed=2))])
    os.utime(path, ns=(1, 1))
    [record] = extract(task(), data, store)
    assert record.shards_done == 1
    assert list(opened(store).key) == ["b"]


def test_another_recipe_is_another_feature_set(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    for options in ({}, {"padding": "exact"}, {"frame_dtype": "float32"}):
        assert extract(task(), data, store, **options)[0].shards_done == 1
    assert extract(task(), data, store, encoder="mfcc")[0].shards_done == 1
    assert len(featstore.open(str(store)).feature_sets()) == 4


def test_clips_that_cannot_be_used_are_recorded_with_their_reason_and_the_run_goes_on(data: Path, store: Path) -> None:
    good = audio_bytes(noise(0.3))
    write_tar(
        data / "tiny/train-0.tar",
        [
            *clip("good", noise(0.3)),
            ("text.wav", b"this is no audio"), ("text.json", b"{}"),
            ("empty.wav", b""), ("empty.json", b"{}"),
            ("silent.wav", audio_bytes(np.zeros(0, np.float32))), ("silent.json", b"{}"),
            ("nan.wav", audio_bytes(np.full(100, np.nan, np.float32))), ("nan.json", b"{}"),
            ("bare.wav", good),
            ("bad.wav", good), ("bad.json", b"{'label': 1}"),
            ("latin.wav", good), ("latin.json", '{"label": "é"}'.encode("latin-1")),
            ("deep.wav", good), ("deep.json", b"[" * 100_000),
            ("long.wav", audio_bytes(noise(2.0))), ("long.json", b"{}"),
            *clip("good", noise(0.4)),
            *clip("k" * 2000, noise(0.3)),
            *clip("last", noise(0.3)),
        ],
    )  # fmt: skip
    [record] = extract(task(), data, store, max_clip_seconds=1.0)
    assert list(opened(store).key) == ["good", "last"]
    found = reasons(store)
    for key, reason in {
        "text": "decode",
        "empty": "decode",
        "silent": "no samples",
        "nan": "NaN",
        "bare": "no .json",
        "bad": "JSON",
        "latin": "JSON",
        "deep": "JSON",
        "long": "--max-clip-seconds 1",
        "good": "key",
        f"{'k' * 64}... (2,000 characters)": "2,000 characters",
    }.items():
        assert reason in found[key]
    assert len(found) == 11
    assert {clip.key: clip.reason for clip in record.skipped} == found
    assert {clip.shard for clip in record.skipped} == {"train-0.tar"}
    [again] = extract(task(), data, store, max_clip_seconds=1.0)
    assert again.skipped == record.skipped


def test_a_shard_of_which_nothing_can_be_used_is_committed_all_the_same(data: Path, store: Path) -> None:
    write_tar(data / "tiny/train-0.tar", [("a.wav", b"no"), ("a.json", b"{}")])
    write_tar(data / "tiny/train-1.tar", clip("b", noise(0.3)))
    write_tar(data / "tiny/train-2.tar", [])
    extract(task(), data, store, frames="always")
    assert list(opened(store).key) == ["b"]
    assert extract(task(), data, store, frames="always")[0].shards_reused == 3


def test_a_broken_shard_is_named_and_every_other_one_is_committed(data: Path, store: Path) -> None:
    paths = write_split(data / "tiny", "train", [clip(f"c{n}", noise(0.3, seed=n)) for n in range(6)], shards=3)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:20_000])
    with pytest.raises(ShardError, match=r"\b1\b.*\b3\b.*train-001\.tar") as caught:
        extract(task(), data, store)
    assert "\n" not in str(caught.value)
    assert sorted(opened(store).key) == ["c0", "c2", "c3", "c5"]
    assert n_parts(store) == 2
    paths[1].write_bytes(whole)
    [record] = extract(task(), data, store)
    assert (record.shards_done, record.shards_reused) == (1, 2)


def test_a_shard_that_breaks_later_leaves_its_old_part_in_the_store(data: Path, store: Path) -> None:
    [path] = write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    extract(task(), data, store)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ShardError):
        extract(task(), data, store)
    assert list(opened(store).key) == ["a"]


def test_a_shard_that_changes_while_it_is_read_is_not_committed_and_the_others_are(data: Path, store: Path) -> None:
    paths = write_split(data / "tiny", "train", [clip(f"c{n}", noise(0.3, seed=n)) for n in range(2)], shards=2)

    class Meddles(Counting):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            if len(self.shapes) >= BEFORE_SHARDS:
                os.utime(paths[0], ns=(1, 1))
            return super().forward(audio)

    with pytest.raises(ShardError, match=r"train-000\.tar"):
        extract(task(), data, store, encoder=build(Meddles()))
    assert list(opened(store).key) == ["c1"]


def test_splits_of_one_pattern_are_encoded_once(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    write_split(data / "tiny", "eval", [clip("b", noise(0.3))])
    shared = task(splits={"train": "train*.tar", "valid": "eval*.tar", "test": "eval*.tar"})
    counting = Counting()
    records = extract(shared, data, store, encoder=build(counting), splits=())
    assert [record.split for record in records] == ["train", "test"]
    assert len(counting.shapes) == BEFORE_SHARDS + 2


def test_two_tasks_on_the_same_shards_encode_them_once(data: Path, store: Path) -> None:
    for split in ("train", "valid", "test"):
        write_split(data / "tiny", split, [clip(split, noise(0.3))])
    extract(task(), data, store, splits=())
    records = extract(task(name="other", metric="mAP", kind="multilabel"), data, store, splits=())
    assert [(record.task, record.shards_done, record.shards_reused) for record in records] == [("other", 0, 1)] * 3


def test_folds_are_feature_sets_of_their_own(data: Path, store: Path) -> None:
    for name in ("one", "two"):
        write_split(data / "tiny", f"fold-{name}", [clip(name, noise(0.3))])
    records = extract(task(**folds("one", "two")), data, store, splits=())
    assert [record.split for record in records] == ["one", "two"]
    assert list(opened(store, split="two").key) == ["two"]


def test_only_the_splits_asked_for_are_extracted_and_an_unknown_one_is_reported(data: Path, store: Path) -> None:
    write_split(data / "tiny", "valid", [clip("a", noise(0.3))])
    assert [record.split for record in extract(task(), data, store, splits=["valid"])] == ["valid"]
    with pytest.raises(UsageError, match=r"'dev'.*train, valid, test"):
        extract(task(), data, store, splits=["dev"])


def test_a_missing_split_is_reported_before_anything_is_encoded(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    with pytest.raises(ShardError, match=r"'valid.*tar'"):
        extract(task(), data, store, splits=())
    assert not store.exists()


def test_a_clip_that_comes_out_as_nan_is_named_and_what_was_committed_stays(data: Path, store: Path) -> None:
    write_tar(data / "tiny/train-0.tar", clip("fine", noise(0.3)))
    write_tar(
        data / "tiny/train-1.tar", [*clip("also", 0.1 * noise(0.3)), *clip("loud", 3 * np.ones(4800, np.float32))]
    )

    class Log(Counting):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return (2 - super().forward(audio)).log()

    with pytest.raises(EncoderContractError, match=r"'loud'.*train-1\.tar.*NaN"):
        extract(task(), data, store, encoder=build(Log()))
    assert list(opened(store).key) == ["fine"]
    assert n_parts(store) == 1


def test_a_forward_pass_that_fails_names_the_clip(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("tiny", noise(0.01))])
    conv = torch.nn.Conv1d(1, 2, 400)

    class Conv(Counting):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return conv(audio[:, None]).transpose(1, 2)

    with pytest.raises(EncoderError, match=r"float32 \(1, 160\).*RuntimeError.*'tiny'.*train-000"):
        extract(task(), data, store, encoder=build(Conv()), padding="exact")


def test_a_store_that_cannot_be_written_is_reported_in_one_line(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.3))])
    store.write_text("a file is in the way")
    with pytest.raises(StoreError) as caught:
        extract(task(), data, store)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"batch_seconds": float("nan")}, {"batch_seconds": float("inf")}, {"batch_seconds": -1.0}, {"workers": -1},
     {"max_clip_seconds": 0.0}, {"max_clip_seconds": float("nan")}, {"padding": "-1"}, {"frames": "some"},
     {"precision": "int8"}, {"frame_dtype": "float64"}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ExtractOptions(**options)


def test_bfloat16_is_close_to_float32_and_another_recipe(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip("a", noise(0.6))])
    records = [extract(task(), data, store, precision=precision)[0] for precision in ("float32", "bfloat16")]
    assert records[0].fingerprint != records[1].fingerprint
    full, half = (opened(store, encoder=f"logmel@{record.fingerprint}").utterance[0] for record in records)
    np.testing.assert_allclose(half, full, atol=0.5)


def test_progress_reports_every_split_clip_and_shard(data: Path, store: Path) -> None:
    write_split(data / "tiny", "train", [clip(f"c{n}", noise(0.5, seed=n)) for n in range(4)], shards=2)
    calls: list[tuple[str, Any]] = []

    class Watch:
        def begin(self, **what: Any) -> None:
            calls.append(("begin", what))

        def advance(self, *, clips: int, audio_seconds: float) -> None:
            calls.append(("advance", (clips, audio_seconds)))

        def shard_done(self) -> None:
            calls.append(("shard", None))

        def end(self) -> None:
            calls.append(("end", None))

    extract_task(
        task(), load_encoder("logmel"), data_dir=data, store_url=str(store), options=ExtractOptions(workers=1),
        splits=["train"], progress=Watch(),
    )  # fmt: skip
    assert calls[0] == ("begin", {"label": "logmel tiny/train", "shards_total": 2, "shards_reused": 0})
    assert calls[1:-1].count(("advance", (1, 0.5))) == 4
    assert calls[1:-1].count(("shard", None)) == 2
    assert calls[-1] == ("end", None)
