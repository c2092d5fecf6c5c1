"""The commands that pages show for labelled audio are run, in order, on audio and tables of the names they show."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile

from featstore.cli import main
from featstore.store import open_store
from featstore.tasks import load_manifest
from fenced import ROOT, featstore_commands
from handmade import RATE, audio_bytes, noise

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")

PAGE = ROOT / "docs/how-to/i-have.md"
RECORDISTS = ("ada", "bo", "cy", "di", "ed", "fay")
DOORS = {
    "a folder of audio": 2,
    "a CSV or JSON lines": 1,
    "speakers that must not be in training and test": 0,
    "a Hugging Face data set": 1,
    "lhotse cuts": 1,
    "a Kaldi data folder": 1,
}
"""Heading -> feature sets that its commands make."""


def section(page: Path, heading: str, folder: Path) -> list[list[str]]:
    """Arguments of the commands below a heading."""
    text = page.read_text(encoding="utf-8")
    [found] = re.findall(rf"^## (?:\.\.\. )?{re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    own = folder / "section.md"
    own.write_text(found, encoding="utf-8")
    return list(featstore_commands(own))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages name: recordings, birds.csv, clips.jsonl, parquet, manifests."""
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = []
    for at in range(12):
        label = ("wren", "robin")[at % 2]
        path = Path("recordings", label, f"{at:02d}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_bytes(noise(0.3, seed=3 + 12 * (at % 2) + 20 * at)))
        rows.append({"path": str(tmp_path / path), "label": label, "species": label, "recordist": RECORDISTS[at // 2]})
    with Path("birds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    clips = [
        {**row, "path": str(Path(row["path"]).relative_to(tmp_path / "recordings")), "id": f"c{at}"}
        for at, row in enumerate(rows)
    ]
    Path("clips.jsonl").write_text("\n".join(map(json.dumps, clips)))
    of_class = datasets.ClassLabel(names=["wren", "robin"])
    features = datasets.Features({"audio": datasets.Audio(), "label": of_class, "species": datasets.Value("string")})
    table = [
        {
            "audio": {"bytes": Path(row["path"]).read_bytes(), "path": "x.wav"},
            "label": at % 2,
            "species": row["label"],
        }
        for at, row in enumerate(rows)
    ]
    saved = datasets.Dataset(pa.Table.from_pylist(table, schema=features.arrow_schema))
    saved.to_parquet("birds.parquet")
    saved.save_to_disk("saved_birds")
    lhotse_and_kaldi()
    return tmp_path


def lhotse_and_kaldi() -> None:
    """Two recordings of four utterances, in the two formats."""
    lhotse = pytest.importorskip("lhotse")
    recordings, supervisions, lines = [], [], {"wav.scp": [], "segments": [], "utt2spk": [], "utt2label": []}
    Path("kaldi/train").mkdir(parents=True)
    for at, name in enumerate(("r0", "r1")):
        soundfile.write(f"kaldi/train/{name}.wav", noise(2.0, seed=at), RATE)
        recordings.append(lhotse.Recording.from_file(f"kaldi/train/{name}.wav"))
        lines["wav.scp"].append(f"{name} {name}.wav")
        for part in range(4):
            utterance, word = f"{name}-{part}", ("yes", "no")[part % 2]
            supervisions.append(
                lhotse.SupervisionSegment(id=utterance, recording_id=name, start=part / 2, duration=0.5,
                                          speaker=RECORDISTS[at], custom={"word": word})
            )  # fmt: skip
            lines["segments"].append(f"{utterance} {name} {part / 2} {part / 2 + 0.5}")
            lines["utt2spk"].append(f"{utterance} {RECORDISTS[at]}")
            lines["utt2label"].append(f"{utterance} {word}")
    for name, written in lines.items():
        Path("kaldi/train", name).write_text("\n".join(written) + "\n")
    found = lhotse.RecordingSet.from_recordings(recordings), lhotse.SupervisionSet.from_segments(supervisions)
    found[0].to_file("recordings.jsonl.gz")
    found[1].to_file("supervisions.jsonl.gz")
    lhotse.CutSet.from_manifests(*found).trim_to_supervisions().to_file("cuts.jsonl.gz")


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, arguments


@pytest.mark.parametrize("heading", DOORS)
def test_the_commands_of_a_door_pack_and_extract_what_they_name(folder: Path, heading: str) -> None:
    commands = section(PAGE, heading, folder)
    assert len(commands) >= 2
    for arguments in commands:
        run(arguments)
    packed = [Path(f"{arguments[1]}.toml") for arguments in commands if arguments[0] == "pack"]
    assert all(load_manifest(each).title for each in packed)
    made = open_store("embeddings.zarr").feature_sets() if DOORS[heading] else ()
    assert len(made) == DOORS[heading]
    assert all(len(each) in (8, 12) for each in made)


def test_the_commands_of_the_page_of_data_sets_pack(folder: Path) -> None:
    for arguments in section(ROOT / "docs/how-to/dataset.md", "Labelled audio", folder):
        run(arguments)
    assert load_manifest("data/birds.toml").label.field == "species"
