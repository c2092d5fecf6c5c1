"""Recorded audio through every door: what is packed is what soundfile, pyarrow and lhotse read of the recordings."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings
import soundfile
import webdataset

import featstore
from featstore.tasks import load_manifest

pytestmark = pytest.mark.real

PER_LANGUAGE = 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not recordings.KLETTRES.is_dir():
        pytest.skip("klettres-data is not installed: `make test-real` installs it")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows() -> list[dict[str, Any]]:
    """Letters by several speakers, with absolute paths."""
    taken: Counter[str] = Counter()
    found = []
    for row in recordings.letters():
        taken[row.speaker] += 1
        if taken[row.speaker] <= PER_LANGUAGE:
            found.append(
                {
                    "path": str(recordings.KLETTRES / row.path),
                    "letter": row.label,
                    "speaker": row.speaker,
                    "id": row.key,
                }
            )
    assert len(found) >= 60
    return found


def samples_of(folder: str | Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(Path(folder).glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            [audio] = [value for name, value in sample.items() if name in ("ogg", "wav", "flac")]
            found[sample["__key__"]] = {"audio": audio, "split": path.name[:-11], **json.loads(sample["json"])}
    return found


def test_a_table_of_absolute_paths_is_packed_by_speakers_and_scored() -> None:
    found = rows()
    with Path("letters.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    options: dict[str, Any] = {"csv": "letters.csv", "label": "letter", "key": "id", "split_by": "speaker"}
    made = featstore.extract(encoder="logmel", store="emb.zarr", **options)
    assert made.packed is not None
    packed = samples_of(made.packed.folder)
    assert {key: sample["audio"] for key, sample in packed.items()} == {
        row["id"]: Path(row["path"]).read_bytes() for row in found
    }
    split_of = {(sample["speaker"], sample["split"]) for sample in packed.values()}
    assert len(split_of) == len({speaker for speaker, _ in split_of})
    [score] = featstore.probe(made.packed.manifest, store="emb.zarr")
    assert 0 <= score.value <= 1
    again = featstore.extract(encoder="logmel", store="emb.zarr", **options)
    assert again.packed is not None
    assert again.packed.reused
    assert sum(each.shards_done for each in again) == 0


def test_a_parquet_file_of_recordings_is_what_pyarrow_reads() -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    letters = sorted({row["letter"] for row in rows()})
    features = datasets.Features({"audio": datasets.Audio(), "letter": datasets.ClassLabel(names=letters)})
    table = [
        {
            "audio": {"bytes": Path(row["path"]).read_bytes(), "path": Path(row["path"]).name},
            "letter": letters.index(row["letter"]),
        }
        for row in rows()
    ]
    datasets.Dataset(pa.Table.from_pylist(table, schema=features.arrow_schema)).to_parquet("letters.parquet")
    record = featstore.pack("data/letters", hf="letters.parquet", label="letter")
    assert record.skipped == ()
    read = pq.read_table("letters.parquet").to_pylist()
    packed = list(samples_of("data/letters").values())
    assert [sample["audio"] for sample in packed] == [row["audio"]["bytes"] for row in read]
    assert [sample["letter"] for sample in packed] == [letters[row["letter"]] for row in read]


@pytest.mark.parametrize("door", ["kaldi", "lhotse"])
def test_the_segments_of_a_recording_are_the_samples_of_the_files_that_it_was_made_of(door: str) -> None:
    """Letters of a speaker, one after another in a long FLAC, are found again."""
    Path("kaldi").mkdir()
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "utt2label")}
    expected: dict[str, np.ndarray] = {}
    rates: dict[str, int] = {}
    for speaker in sorted({row["speaker"] for row in rows()})[:3]:
        own = [row for row in rows() if row["speaker"] == speaker]
        waves, at = [], 0
        for row in own:
            wave, rate = soundfile.read(row["path"], dtype="int16", always_2d=True)
            assert rates.setdefault(speaker, rate) == rate
            waves.append(wave[:, :1])
            expected[row["id"]] = wave[:, 0]
            lines["segments"].append(f"{row['id']} {speaker} {at / rate:.7f} {(at + len(wave)) / rate:.7f}")
            lines["utt2spk"].append(f"{row['id']} {speaker}")
            lines["utt2label"].append(f"{row['id']} {row['letter']}")
            at += len(wave)
        soundfile.write(f"kaldi/{speaker}.flac", np.concatenate(waves), rates[speaker])
        lines["wav.scp"].append(f"{speaker} {speaker}.flac")
    for name, written in lines.items():
        Path("kaldi", name).write_text("\n".join(written) + "\n")
    if door == "kaldi":
        record = featstore.pack("data/letters", kaldi="kaldi", group="speaker")
    else:
        lhotse = pytest.importorskip("lhotse")
        found = [lhotse.Recording.from_file(f"kaldi/{speaker}.flac") for speaker in rates]
        said = []
        for line, label in zip(lines["segments"], lines["utt2label"], strict=True):
            utterance, speaker, start, end = line.split()
            said.append(
                lhotse.SupervisionSegment(
                    id=utterance, recording_id=speaker, start=float(start), duration=float(end) - float(start),
                    speaker=speaker, custom={"label": label.split()[1]},
                )
            )  # fmt: skip
        lhotse.RecordingSet.from_recordings(found).to_file("recordings.jsonl.gz")
        lhotse.SupervisionSet.from_segments(said).to_file("supervisions.jsonl.gz")
        record = featstore.pack(
            "data/letters", lhotse=["recordings.jsonl.gz", "supervisions.jsonl.gz"], group="speaker"
        )
    assert (record.skipped, record.clips) == ((), {"all": len(expected)})
    packed = samples_of("data/letters")
    for key, wave in expected.items():
        samples, _ = soundfile.read(io.BytesIO(packed[key]["audio"]), dtype="int16")
        np.testing.assert_array_equal(samples, wave)
    assert load_manifest("data/letters.toml").group == "speaker"
