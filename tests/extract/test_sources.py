"""Clips from Hugging Face data sets, lhotse manifests and Kaldi folders, beside the libraries that own the formats."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset

from featstore import api
from featstore.errors import DataError, FeatstoreError, UsageError
from featstore.extract.pack import PackRecord
from featstore.extract.sources import Source, plan_source
from featstore.tasks import load_manifest
from handmade import RATE, audio_bytes, noise

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

LABELS, SPEAKERS = ("cat", "dog", "owl"), ("ada", "bo", "cy", "di")
BYTES_AND_PATH = pa.struct({"bytes": pa.binary(), "path": pa.string()})
EXTENSIONS = ("wav", "flac", "ogg", "mp3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def samples_of(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What webdataset reads of all shards: key -> extension, audio, json."""
    found = {}
    for path in sorted(Path(folder).glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            [extension] = [name for name in sample if not name.startswith("__") and name != "json"]
            meta = json.loads(sample["json"])
            found[sample["__key__"]] = {"extension": extension, "audio": sample[extension], "meta": meta, "shard": path}
    return found


def by_split(folder: str | Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, sample in samples_of(folder).items():
        found.setdefault(sample["shard"].name.rpartition("-")[0], []).append(key)
    return found


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def hf_rows(n: int = 12, *, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "audio": {
                "bytes": audio_bytes(noise(0.2, seed=at), EXTENSIONS[at % 4]),
                "path": f"clip-{at}.{EXTENSIONS[at % 4]}",
            },
            "species": at % 3,
            "tags": [at % 2, 2],
            "speaker": SPEAKERS[at % 4],
            "loudness": at / 7,
            "events": {"onset": [0.0, 0.1], "offset": [0.1, 0.2], "label": [at % 3, 0]},
        }
        for at in range(start, start + n)
    ]


def hf_features() -> Any:
    of_class = datasets.ClassLabel(names=list(LABELS))
    return datasets.Features(
        {
            "audio": datasets.Audio(),
            "species": of_class,
            "tags": datasets.List(of_class),
            "speaker": datasets.Value("string"),
            "loudness": datasets.Value("float32"),
            "events": {
                "onset": datasets.List(datasets.Value("float32")),
                "offset": datasets.List(datasets.Value("float32")),
                "label": datasets.List(of_class),
            },
        }
    )


def hf_dataset(rows: list[dict[str, Any]]) -> Any:
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=hf_features().arrow_schema))


def assert_is(sample: dict[str, Any], row: dict[str, Any]) -> None:
    assert sample["audio"] == row["audio"]["bytes"]
    assert sample["extension"] == row["audio"]["path"].rpartition(".")[2]
    meta = sample["meta"]
    assert meta["species"] == LABELS[row["species"]]
    assert meta["tags"] == [LABELS[each] for each in row["tags"]]
    assert meta["speaker"] == row["speaker"]
    assert meta["loudness"] == pytest.approx(row["loudness"])
    assert [event["label"] for event in meta["events"]] == [LABELS[each] for each in row["events"]["label"]]
    assert [event["offset"] for event in meta["events"]] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_data_set_of_hugging_face_is_packed_byte_for_byte(form: str) -> None:
    rows = hf_rows()
    if form == "parquet":
        pq.write_table(hf_dataset(rows).data.table, "clips.parquet", row_group_size=5)
        named = "clips.parquet"
    else:
        hf_dataset(rows).save_to_disk("saved")
        named = "saved"
    record = api.pack("data/birds", hf=named, label="species", shard_size=5)
    packed = samples_of("data/birds")
    assert list(packed) == [f"all_{at:07d}" for at in range(12)]
    for sample, row in zip(packed.values(), rows, strict=True):
        assert_is(sample, row)
    assert (record.kind, record.label, record.skipped) == ("clip", "species", ())
    assert record.splits == {"test": "all"}
    assert load_manifest("data/birds.toml").label.field == "species"


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_splits_of_hugging_face_are_splits(form: str) -> None:
    parts = {"train": hf_rows(6), "validation": hf_rows(3, start=6), "test": hf_rows(4, start=9)}
    if form == "parquet":
        Path("repo/data").mkdir(parents=True)
        for name, rows in parts.items():
            for shard, half in enumerate((rows[:2], rows[2:])):
                hf_dataset(half).to_parquet(f"repo/data/{name}-{shard:05d}-of-00002.parquet")
        named = "repo"
    else:
        datasets.DatasetDict({name: hf_dataset(rows) for name, rows in parts.items()}).save_to_disk("saved")
        named = "saved"
    record = api.pack("data/birds", hf=named, label="species")
    assert record.clips == {"train": 6, "validation": 3, "test": 4} if form == "saved" else record.clips
    packed = samples_of("data/birds")
    for name, rows in parts.items():
        for at, row in enumerate(rows):
            sample = packed[f"{name}_{at:07d}"]
            assert_is(sample, row)
            assert sample["shard"].name == f"{name}-000000.tar"
    assert load_manifest("data/birds.toml").patterns == {
        "train": "train-*.tar", "valid": "validation-*.tar", "test": "test-*.tar"
    }  # fmt: skip
    assert record.splits == {"train": "train", "valid": "validation", "test": "test"}


def test_rows_are_read_in_any_order_and_each_audio_is_that_of_its_row() -> None:
    rows = hf_rows(12)
    pq.write_table(hf_dataset(rows).data.table, "clips.parquet", row_group_size=4)
    api.pack("data/birds", hf="clips.parquet", label="species", split_by="speaker")
    packed = samples_of("data/birds")
    assert len({sample["shard"] for sample in packed.values()}) == 3
    for at, row in enumerate(rows):
        assert_is(packed[f"all_{at:07d}"], row)


@pytest.mark.parametrize(("rows_per_group", "compression"), [(1, "none"), (60, "none"), (5, "snappy")])
def test_audio_of_a_parquet_file_is_never_in_memory_together(rows_per_group: int, compression: str) -> None:
    loud = audio_bytes(noise(12.5), "wav")  # 0.8 MB
    rows = [{"audio": {"bytes": loud, "path": "a.wav"}, "label": f"{at % 2}"} for at in range(60)]
    schema = pa.schema({"audio": BYTES_AND_PATH, "label": pa.string()})
    with pq.ParquetWriter("clips.parquet", schema, use_dictionary=False, compression=compression) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=rows_per_group)
    del rows
    pool = pa.default_memory_pool()
    before, allocated = pool.bytes_allocated(), []
    tracemalloc.start()
    record = api.pack("data/birds", hf="clips.parquet", progress=lambda: allocated.append(pool.bytes_allocated()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.clips == {"all": 60}
    assert max(allocated) - before < 20 * len(loud)
    assert peak < 20 * len(loud)


@pytest.mark.parametrize(
    ("label", "kind", "metric", "retrieves"),
    [
        ("species", "clip", "accuracy", True),
        ("tags", "multilabel", "mAP", True),
        ("loudness", "regression", "pearson", False),
        ("events", "frame", "segment_f1_macro", False),
    ],
)
def test_the_kind_follows_from_the_label(label: str, kind: str, metric: str, *, retrieves: bool) -> None:
    hf_dataset(hf_rows()).to_parquet("clips.parquet")
    record = api.pack("data/birds", hf="clips.parquet", label=label)
    manifest = load_manifest(record.manifest)
    assert (manifest.kind, manifest.metric, manifest.retrieve.enabled) == (kind, metric, retrieves)
    assert record.kind == kind
    if kind == "frame":
        assert (manifest.label.events, manifest.label.onset, manifest.label.field) == ("events", "onset", "label")


def test_audio_of_a_data_set_that_names_files_or_has_none_is_found_or_skipped(tmp_path: Path) -> None:
    Path("a.wav").write_bytes(audio_bytes(noise(0.1)))
    pairs = [
        (None, str(tmp_path / "a.wav")),
        (None, "a.wav"),
        (None, "gone.wav"),
        (None, None),
        (b"junk", "x.wav"),
        (b"junk", "x.txt"),
    ]
    rows = [{"audio": {"bytes": data, "path": path}, "label": "x"} for data, path in pairs]
    schema = pa.schema({"audio": BYTES_AND_PATH, "label": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), "clips.parquet")
    record = api.pack("data/birds", hf="clips.parquet")
    assert list(samples_of("data/birds")) == ["all_0000000", "all_0000001"]
    assert [each.key for each in record.skipped] == [f"clips.parquet, row {at}" for at in (2, 3, 4, 5)]


def test_columns_that_are_not_json_are_named_and_dates_are_text() -> None:
    table = pa.table(
        {
            "audio": [{"bytes": audio_bytes(noise(0.1)), "path": None}],
            "label": ["x"],
            "thumbnail": [b"\x00\x01"],
            "when": pa.array([0], pa.timestamp("s")),
            "level": pa.array([float("nan")]),
        }
    )
    pq.write_table(table, "clips.parquet")
    record = api.pack("data/birds", hf="clips.parquet")
    [sample] = samples_of("data/birds").values()
    assert sample["extension"] == "wav"
    assert sample["meta"] == {"label": "x", "when": "1970-01-01 00:00:00", "level": None}
    assert any("thumbnail" in note for note in record.notes)


def mute() -> str:
    pq.write_table(pa.table({"label": ["a"]}), "mute.parquet")
    return "mute.parquet"


def empty() -> str:
    hf_dataset([]).to_parquet("empty.parquet")
    return "empty.parquet"


def broken() -> str:
    Path("broken.parquet").write_bytes(b"PAR1 nonsense")
    return "broken.parquet"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: "nowhere.parquet", UsageError),
        (lambda: "./no/such/folder", UsageError),
        (broken, DataError),
        (mute, UsageError),
        (empty, UsageError),
    ],
    ids=["missing", "missing folder", "broken", "mute", "empty"],
)
def test_a_data_set_that_cannot_be_read_is_one_line_and_leaves_nothing(make: Any, error: type[FeatstoreError]) -> None:
    named = make()
    with pytest.raises(error) as raised:
        api.pack("data/birds", hf=named, label="species")
    assert "\n" not in str(raised.value)
    assert named in str(raised.value)
    assert not Path("data").exists()


# --- Kaldi ------------------------------------------------------------------------------------------------------------


def recording(name: str, seconds: float = 3.0, *, seed: int = 0, subtype: str = "PCM_16", channels: int = 1) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed=seed, channels=channels), RATE, subtype=subtype)
    return path


def kaldi(folder: str = "kaldi", **files: str) -> Path:
    path = Path(folder)
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def decoded(data: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    assert rate == RATE
    return samples


def test_a_kaldi_folder_is_packed_and_its_segments_are_cut_at_the_sample(folder: Path) -> None:
    recording("kaldi/one.wav", seed=1)
    recording("kaldi/two.flac", seed=2)
    kaldi(
        wav__scp=f"r1 {folder / 'kaldi/one.wav'}\nr2 two.flac\n",
        segments="u1 r1 0 1.00004\nu2 r1 1.00004 -1\nu3 r2 0.5 3.3\n",
        utt2spk="u1 ada\nu2 bo\nu3 ada\n",
        utt2label="u1 yes\nu2 no\nu3 yes\n",
        spk2gender="ada f\nbo m\n",
        text="u1 yes please\nu2 no thanks\nu3 yes\n",
    )
    record = api.pack("data/words", kaldi="kaldi")
    packed = samples_of("data/words")
    one, two = (
        soundfile.read(path, dtype="float64", always_2d=True)[0] for path in ("kaldi/one.wav", "kaldi/two.flac")
    )
    first = round(1.00004 * RATE)
    for key, expected in (("u1", one[:first]), ("u2", one[first:]), ("u3", two[8000:])):
        assert packed[key]["extension"] == "flac"
        np.testing.assert_array_equal(decoded(packed[key]["audio"]), expected)
    assert packed["u2"]["meta"] == {
        "utterance": "u2", "recording": "r1", "speaker": "bo", "gender": "m", "label": "no", "text": "no thanks",
        "start": 1.00004, "end": -1.0,
    }  # fmt: skip
    assert record.clips == {"all": 3}


def test_utterances_that_are_recordings_are_stored_unchanged_and_commands_are_not_run() -> None:
    path = recording("kaldi/one.ogg", subtype="VORBIS")
    kaldi(
        wav__scp="u1 one.ogg\nu2 touch ran; cat one.ogg |\nu3 raw.ark:17\nu4 gone.wav\n",
        utt2label="u1 a\nu2 b\nu3 a\nu4 b\n",
        utt2split="u1 train\nu2 train\nu3 test\nu4 test\n",
    )
    record = api.pack("data/words", kaldi="kaldi")
    [(key, sample)] = samples_of("data/words").items()
    assert (key, sample["audio"]) == ("u1", path.read_bytes())
    assert [each.key for each in record.skipped] == ["utterance u2", "utterance u3", "utterance u4"]
    assert "command" in record.skipped[0].reason
    assert not Path("ran").exists()
    assert record.clips == {"train": 1, "test": 0}
    assert load_manifest(record.manifest).patterns["test"] == "train-*.tar"  # of the splits that have clips


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({}, UsageError, "wav.scp"),
        ({"wav__scp": "u1 a.wav\nu1 b.wav\n"}, DataError, "line 2"),
        ({"wav__scp": "r a.wav\n", "segments": "u1 r 0\n"}, DataError, "line 1"),
        ({"wav__scp": "r a.wav\n", "segments": "u1 r 0 one\n"}, DataError, "line 1"),
        ({"wav__scp": "r a.wav\n", "segments": ""}, UsageError, "segments"),
        ({"wav__scp": "u1 a.wav\n"}, UsageError, "'label'"),
        ({"wav__scp": "u1 a.wav\n", "utt2label": "u1 x\n"}, DataError, "utterance u1"),
    ],
)
def test_a_kaldi_folder_that_cannot_be_packed(files: dict, error: type[FeatstoreError], says: str) -> None:
    kaldi(**files)
    with pytest.raises(error, match=says):
        api.pack("data/words", kaldi="kaldi")
    assert not list(Path().glob("data/*"))


@pytest.mark.parametrize(
    ("name", "subtype", "extension", "stored"),
    [
        ("a.wav", "PCM_16", "flac", "PCM_16"),
        ("a.wav", "PCM_24", "flac", "PCM_24"),
        ("a.wav", "PCM_U8", "flac", "PCM_16"),
        ("a.wav", "PCM_32", "wav", "PCM_32"),
        ("a.wav", "FLOAT", "wav", "FLOAT"),
        ("a.wav", "DOUBLE", "wav", "DOUBLE"),
        ("a.wav", "ULAW", "flac", "PCM_16"),
        ("a.wav", "IMA_ADPCM", "flac", "PCM_16"),
        ("a.flac", "PCM_24", "flac", "PCM_24"),
        ("a.ogg", "VORBIS", "wav", "FLOAT"),
        ("a.ogg", "OPUS", "wav", "FLOAT"),
        ("a.mp3", "MPEG_LAYER_III", "wav", "FLOAT"),
    ],
)
def test_a_segment_has_the_samples_of_its_recording_in_every_format(
    name: str, subtype: str, extension: str, stored: str
) -> None:
    recording(f"kaldi/{name}", 6.0, subtype=subtype, channels=2)
    kaldi(wav__scp=f"r {name}\n", segments="u1 r 4.1 5.3\nu2 r 0.3 0.7\n", utt2label="u1 a\nu2 b\n")
    api.pack("data/words", kaldi="kaldi")
    whole = soundfile.read(f"kaldi/{name}", dtype="float64", always_2d=True)[0]
    for key, start, end in (("u1", 4.1, 5.3), ("u2", 0.3, 0.7)):
        sample = samples_of("data/words")[key]
        assert sample["extension"] == extension
        assert soundfile.info(io.BytesIO(sample["audio"])).subtype == stored
        np.testing.assert_array_equal(decoded(sample["audio"]), whole[round(start * RATE) : round(end * RATE)])


def test_segments_that_are_not_in_their_recording_are_skipped() -> None:
    recording("kaldi/a.wav", 2.0)
    kaldi(
        wav__scp="r a.wav\n",
        segments="in r 0 1\nlate r 3 4\nlong r 1 2.6\nover r 1.5 2.4\nback r 1.5 1\nless r -1 1\nwhat x 0 1\n",
        utt2label="in a\nlate b\nlong a\nover b\nback a\nless b\nwhat b\n",
    )
    record = api.pack("data/words", kaldi="kaldi")
    assert list(samples_of("data/words")) == ["in", "over"]
    assert len(decoded(samples_of("data/words")["over"]["audio"])) == RATE // 2
    assert [each.key.split()[1] for each in record.skipped] == ["late", "long", "back", "less", "what"]


# --- lhotse -----------------------------------------------------------------------------------------------------------


def lhotse_set(lhotse: Any) -> tuple[Any, Any]:
    recordings, supervisions = [], []
    for at, name in enumerate(("r0", "r1")):
        path = recording(f"audio/{name}.wav", 4.0, seed=at)
        recordings.append(lhotse.Recording.from_file(path))
        for number, (start, duration) in enumerate(((0.1234567, 1.00004), (2.0, 1.5))):
            supervisions.append(
                lhotse.SupervisionSegment(
                    id=f"{name}-{number}", recording_id=name, start=start, duration=duration, text=f"say {number}",
                    speaker=SPEAKERS[at], gender="f", language="en", custom={"label": LABELS[number], "age": 30 + at},
                )
            )  # fmt: skip
    return lhotse.RecordingSet.from_recordings(recordings), lhotse.SupervisionSet.from_segments(supervisions)


@pytest.mark.parametrize("form", ["cuts.jsonl.gz", "cuts.jsonl", "manifests"])
def test_cuts_of_lhotse_have_the_samples_that_lhotse_loads(form: str) -> None:
    lhotse = pytest.importorskip("lhotse")
    recordings, supervisions = lhotse_set(lhotse)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions).trim_to_supervisions()
    if form == "manifests":
        recordings.to_file("recordings.jsonl.gz")
        supervisions.to_file("supervisions.jsonl")
        files = ["supervisions.jsonl", "recordings.jsonl.gz"]
    else:
        cuts.to_file(form)
        files = [form]
    record = api.pack("data/words", lhotse=files)
    packed = samples_of("data/words")
    assert list(packed) == [cut.id for cut in cuts]
    for cut in cuts:
        sample = packed[cut.id]
        np.testing.assert_array_equal(decoded(sample["audio"]).T, cut.load_audio())
        [said] = cut.supervisions
        meta = sample["meta"]
        assert {name: meta[name] for name in ("text", "speaker", "gender", "language")} == {
            "text": said.text, "speaker": said.speaker, "gender": "f", "language": "en"
        }  # fmt: skip
        assert (meta["label"], meta["age"]) == (said.custom["label"], said.custom["age"])
        assert (meta["start"], meta["duration"]) == pytest.approx((cut.start, cut.duration), abs=1 / RATE)
    assert record.skipped == ()


def test_a_cut_of_several_supervisions_has_events_and_a_complete_cut_is_stored_unchanged() -> None:
    lhotse = pytest.importorskip("lhotse")
    recordings, supervisions = lhotse_set(lhotse)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts.to_file("cuts.jsonl")
    record = api.pack("data/words", lhotse="cuts.jsonl", label="supervisions")
    manifest = load_manifest(record.manifest)
    assert (manifest.kind, manifest.label.events, manifest.label.field) == ("frame", "supervisions", "label")
    for cut, sample in zip(cuts, samples_of("data/words").values(), strict=True):
        assert sample["audio"] == Path(cut.recording.sources[0].source).read_bytes()
        events = sample["meta"]["supervisions"]
        assert [each["onset"] for each in events] == [each.start for each in cut.supervisions]
        assert [each["offset"] for each in events] == pytest.approx([each.end for each in cut.supervisions])
        assert sample["meta"]["label"] == ["cat", "dog"]
        assert sample["meta"]["gender"] == "f"


def test_one_channel_of_a_recording_is_what_lhotse_loads() -> None:
    lhotse = pytest.importorskip("lhotse")
    both = lhotse.Recording.from_file(recording("audio/two.wav", 2.0, channels=2))
    cuts = lhotse.CutSet.from_cuts(
        [
            lhotse.MonoCut(id=f"c{channel}", start=0, duration=2.0, channel=channel, recording=both, supervisions=[],
                           custom={"label": LABELS[channel], "fold": channel})
            for channel in (0, 1)
        ]
    )  # fmt: skip
    cuts.to_file("cuts.jsonl")
    record = api.pack("data/words", lhotse="cuts.jsonl")
    packed = samples_of("data/words")
    for cut in cuts:
        np.testing.assert_array_equal(decoded(packed[cut.id]["audio"]).T, cut.load_audio())
    assert by_split("data/words") == {"0": ["c0"], "1": ["c1"]}
    assert dict(load_manifest(record.manifest).folds or {}) == {"0": "0-*.tar", "1": "1-*.tar"}


def test_cuts_that_are_more_than_a_part_of_a_file_are_skipped_and_no_command_is_run() -> None:
    lhotse = pytest.importorskip("lhotse")
    recordings, supervisions = lhotse_set(lhotse)
    [plain, other] = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    lines = [
        plain.to_dict(), other.pad(duration=9).to_dict() | {"id": "padded"},
        other.perturb_speed(1.1).with_id("fast").to_dict(),
        other.with_id("command").to_dict(),
    ]  # fmt: skip
    lines[3]["recording"]["sources"] = [{"type": "command", "channels": [0], "source": "touch ran"}]
    with gzip.open("cuts.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, lines)))
    record = api.pack("data/words", lhotse="cuts.jsonl.gz", label="speaker")
    assert list(samples_of("data/words")) == [plain.id]
    assert [each.key for each in record.skipped] == ["cut padded", "cut fast", "cut command"]
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('{"id": "x"}', DataError, "line 1"),
        ('{"id": "x", "type": "MonoCut"}', DataError, "line 1"),
        ("[1]", DataError, "line 1"),
        ("", UsageError, "no cuts"),
        ('{"id": "s", "recording_id": "r", "start": 0, "duration": 1}', UsageError, "'r'"),
    ],
)
def test_a_manifest_of_lhotse_that_is_none(text: str, error: type[FeatstoreError], says: str) -> None:
    Path("cuts.jsonl").write_text(text)
    with pytest.raises(error, match=says):
        api.pack("data/words", lhotse="cuts.jsonl")
    Path("cuts.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"cuts\.jsonl\.gz"):
        api.pack("data/words", lhotse="cuts.jsonl.gz")


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"csv": "a", "jsonl": "b"},
        {"hf": "x", "audio": "y"},
        {"kaldi": "x", "lhotse": ["y"]},
        {"csv": "a", "folds": 1},
        {"csv": "a", "folds": 3, "split_column": "x"},
        {"csv": "a", "split": "x", "split_by": "y"},
        {"audio": "a", "key": "x"},
    ],
)
def test_sources_that_exclude_each_other(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Source(**wrong)


def test_planning_reads_no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    recording("kaldi/a.wav")
    kaldi(wav__scp="u1 a.wav\n", utt2label="u1 a\n")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    [clip] = plan_source(Source(kaldi="kaldi")).clips
    assert (clip.key, clip.meta["label"]) == ("u1", "a")


def test_a_record_is_plain_json() -> None:
    recording("audio/a/x.wav")
    record = api.pack("data/mine", audio="audio")
    assert isinstance(record, PackRecord)
    assert json.loads(json.dumps(record.as_json()))["splits"] == {"test": "all"}
