"""`featstore pack`: own files become shards that the rest can use. `featstore tasks --store` tells what is cached."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from featstore.cli.pack import pack
from featstore.extract import pack as packing
from featstore.extract.audio import encode_flac
from featstore.extract.job import XARES_BATCH
from featstore.extract.sources.clips import MAX_MEMBER_BYTES
from featstore.extract.sources.tables import plan_folder
from featstore.extract.tar_reader import read_samples
from featstore.tasks import load_manifest
from handmade import Run


@pytest.fixture
def audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of six files each, as sub-folders."""
    rng = np.random.default_rng(0)
    for label, pitch in (("low", 300), ("high", 2500)):
        for number in range(6):
            wave = np.sin(np.arange(4000) * pitch * 2 * np.pi / 8000) * 0.5 + rng.normal(0, 0.05, 4000)
            path = tmp_path / "sounds" / label / "deeper" / f"take.{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_flac(wave.astype(np.float32), 8000))
    (tmp_path / "sounds/low/notes.txt").write_text("no audio")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sounds"


def shards(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


def contents(folder: str | Path) -> dict[str, dict]:
    return {
        sample.key: json.loads(sample.meta)
        for path in sorted(Path(folder).glob("*.tar"))
        for sample in read_samples(path)
    }


def test_batches_of_xares_do_not_reach_over_shards_of_the_default_size() -> None:
    size = next(parameter.default for parameter in pack.params if parameter.name == "shard_size")
    assert size % XARES_BATCH == 0


@pytest.mark.usefixtures("audio")
def test_a_folder_goes_all_the_way_from_files_to_a_score(run: Run) -> None:
    packed = run("pack", "data/mine", "--audio", "sounds", "--shard-size", "5")
    assert packed.code == 0, packed.err
    assert list(shards("data/mine")) == ["all-000000.tar", "all-000001.tar", "all-000002.tar"]
    assert contents("data/mine")["low_deeper_take_3"] == {"label": "low"}
    assert len(contents("data/mine")) == 12
    assert load_manifest(Path("data/mine.toml")).kind == "clip"
    assert run("extract", "data/mine.toml", "--encoder", "logmel", "--data", "data", "--store", "s").code == 0
    [score] = json.loads(run("retrieve", "data/mine.toml", "--store", "s", "--k", "3", "--json").out)
    assert score["value"] == 1.0

    told = run("tasks", "data/mine.toml", "--store", "s", "--json")
    [task] = json.loads(told.out)
    assert [name.partition("@")[0] for name in task["cached"]] == ["logmel"]
    listed = run("tasks", "--store", "s")
    assert listed.code == 0
    assert "cached" in listed.out
    assert "cached" not in run("tasks").out


@pytest.mark.usefixtures("audio")
def test_bytes_depend_on_nothing_but_the_files(run: Run, audio: Path) -> None:
    run("pack", "one", "--audio", "sounds", "--shard-size", "5")
    for path in audio.rglob("*.flac"):
        os.utime(path, (1, 1))
    run("pack", "two", "--audio", "sounds", "--shard-size", "5")
    assert shards("one") == shards("two")
    sample = next(read_samples(Path("one/all-000000.tar")))
    assert sample.audio == (audio / "high/deeper/take.0.flac").read_bytes()


@pytest.mark.usefixtures("audio")
def test_nothing_is_overwritten(run: Run) -> None:
    run("pack", "one", "--audio", "sounds")
    before = shards("one")
    again = run("pack", "one", "--audio", "sounds")
    assert (again.code, shards("one")) == (2, before)
    assert "one.toml" in again.err
    assert "all-000000.tar" in run("pack", "one", "--audio", "sounds", "--manifest", "b.toml").err
    assert run("pack", "one", "--audio", "sounds", "--manifest", "b.toml", "--split", "more").code == 0


@pytest.mark.usefixtures("audio")
def test_a_file_that_cannot_be_read_is_skipped_and_reported(run: Run, audio: Path) -> None:
    (audio / "low/broken.wav").write_bytes(b"RIFF nonsense")
    (audio / "high/empty.flac").write_bytes(b"")
    done = run("pack", "one", "--audio", "sounds")
    assert done.code == 0
    assert "sounds/low/broken.wav: " in done.out
    assert "sounds/high/empty.flac: " in done.out
    assert len(contents("one")) == 12
    assert run("pack", "two", "--audio", "sounds", "--fail-on-skip").code == 1


TABLE = [
    {"file": "low/deeper/take.0.flac", "id": "a.1", "kind": "low", "part": "train"},
    {"file": "high/deeper/take.0.flac", "id": "b", "kind": "high", "part": "train"},
    {"file": "low/deeper/take.1.flac", "id": "c", "kind": "low", "part": "test"},
    {"file": "high/deeper/take.1.flac", "id": "d", "kind": "high", "part": "test"},
]
COLUMNS = ("--path", "file", "--key", "id", "--label", "kind", "--split-column", "part")


@pytest.mark.usefixtures("audio")
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_names_files_keys_labels_and_splits(run: Run, form: str) -> None:
    lines = (
        [",".join(TABLE[0]), *(",".join(row.values()) for row in TABLE)]
        if form == "csv"
        else [json.dumps(row) for row in TABLE]
    )
    Path(f"t.{form}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = run("pack", "one", "--audio", "sounds", f"--{form}", f"t.{form}", *COLUMNS)
    assert done.code == 0, done.err
    assert list(shards("one")) == ["test-000000.tar", "train-000000.tar"]
    assert contents("one")["a_1"] == {"id": "a.1", "kind": "low"}
    manifest = load_manifest(Path("one.toml"))
    assert manifest.patterns == {"train": "train-*.tar", "valid": "test-*.tar", "test": "test-*.tar"}
    assert manifest.label.field == "kind"


@pytest.mark.usefixtures("audio")
def test_splits_of_other_names_are_folds_and_lists_of_labels_are_label_sets(run: Run) -> None:
    rows = [{**row, "part": f"fold{at}", "kind": [row["kind"]]} for at, row in enumerate(TABLE)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("pack", "one", "--audio", "sounds", "--jsonl", "t.jsonl", *COLUMNS).code == 0
    manifest = load_manifest(Path("one.toml"))
    assert list(manifest.folds) == ["fold0", "fold1", "fold2", "fold3"]
    assert (manifest.kind, manifest.metric) == ("multilabel", "mAP")


@pytest.mark.usefixtures("audio")
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file": "../outside.wav"}, "line 6: '../outside.wav'"),
        ({"file": ""}, "line 6: "),
        ({"id": "b"}, "'b'"),
        ({"part": "a/b"}, "'a/b'"),
        ({"file": "notes.txt"}, "notes.txt"),
    ],
)
def test_a_line_that_cannot_be_packed_is_named(run: Run, row: dict, says: str) -> None:
    rows = [*TABLE, {"file": "low/deeper/take.2.flac", "id": "e", "kind": "low", "part": "train", **row}]
    Path("t.csv").write_text("\n".join([",".join(TABLE[0]), *(",".join(each.values()) for each in rows)]) + "\n")
    done = run("pack", "one", "--audio", "sounds", "--csv", "t.csv", *COLUMNS)
    assert done.code == 2
    assert says in done.err
    assert not Path("one").exists()


@pytest.mark.usefixtures("audio")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--audio", "nowhere"), "nowhere"),
        (("--audio", "sounds/low/deeper"), "take.0.flac"),
        (("--audio", "sounds", "--key", "id"), "--csv"),
        (("--audio", "sounds", "--csv", "a", "--jsonl", "b"), "--jsonl"),
        (("--audio", "sounds", "--csv", "missing.csv"), "missing.csv"),
    ],
)
def test_what_cannot_be_packed_is_one_line(run: Run, arguments: tuple[str, ...], says: str) -> None:
    done = run("pack", "one", *arguments)
    assert done.code in (1, 2)
    assert says in done.err


@pytest.mark.usefixtures("audio")
def test_a_folder_without_a_name_of_its_own_is_no_dataset(run: Run) -> None:
    done = run("pack", ".", "--audio", "sounds")
    assert done.code == 2
    assert "'.'" in done.err


@pytest.mark.usefixtures("audio")
def test_files_of_which_none_can_be_read_make_no_task(run: Run, audio: Path) -> None:
    for path in audio.rglob("*.flac"):
        path.write_bytes(b"nonsense")
    done = run("pack", "one", "--audio", "sounds")
    assert done.code == 1
    assert "12 files" in done.err
    assert "sounds/high/deeper/take.0.flac: " in done.err
    assert not Path("one.toml").exists()


@pytest.mark.usefixtures("audio")
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('"loudness": NaN', "line 1: "),
        ('"deep": ' + "[" * 100_000, "line 1: "),
    ],
)
def test_a_line_of_what_only_python_takes_for_json_is_named(run: Run, more: str, says: str) -> None:
    Path("t.jsonl").write_text(f'{{"path": "low/deeper/take.0.flac", "label": "low", {more}}}\n')
    done = run("pack", "one", "--audio", "sounds", "--jsonl", "t.jsonl")
    assert done.code == 1
    assert says in done.err


@pytest.mark.usefixtures("audio")
def test_odd_and_long_names_and_labels_inside_objects_come_through(run: Run) -> None:
    row = {"path": "low/deeper/take.0.flac", "key": "long" * 40 + "\0", "note": "\u20ac", "who": {"age": 7}}
    Path("t.jsonl").write_text(json.dumps(row))
    done = run("pack", "one", "--audio", "sounds", "--jsonl", "t.jsonl", "--key", "key", "--label", "who.age")
    assert done.code == 0, done.err
    assert contents("one") == {"long" * 40: {name: value for name, value in row.items() if name != "path"}}
    Path("t.csv").write_text("path,who.age\nlow/deeper/take.0.flac,7\n")
    assert done.err == ""
    Path("t.jsonl").write_text("\n".join(json.dumps(each) for each in (row, {**row, "key": "x", "who": None})))
    some = run("pack", "some", "--audio", "sounds", "--jsonl", "t.jsonl", "--key", "key", "--label", "who.age")
    assert "1 of 2 clips" in some.err
    assert "'who.age'" in some.err
    dotted = run("pack", "two", "--audio", "sounds", "--csv", "t.csv", "--label", "who.age")
    assert dotted.code == 2
    assert "'who.age'" in dotted.err


def test_what_is_no_audio_file_is_listed_and_the_others_are_packed(run: Run, audio: Path) -> None:
    folder = audio / "low"
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "nowhere.wav").symlink_to("gone.wav")
    (folder / "endless.wav").symlink_to("/dev/zero")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "empty.wav").write_bytes(b"")
    odd = os.fsdecode(b"class-\xff")
    (audio / odd).mkdir()
    (audio / odd / "a.flac").write_bytes((folder / "deeper/take.0.flac").read_bytes())
    with (folder / "huge.wav").open("wb") as file:
        file.truncate(MAX_MEMBER_BYTES + 1)
    done = run("pack", "one", "--audio", "sounds", "--json")
    assert done.code == 0, done.err
    [record] = json.loads(done.out)
    assert record["clips"] == {"all": 12}
    skipped = {Path(each["key"]).name: each["reason"] for each in record["skipped"]}
    assert sorted(skipped) == [
        "a.flac", "empty.wav", "endless.wav", "huge.wav", "loop.wav", "nowhere.wav", "pipe.wav"
    ]  # fmt: skip
    assert all(reason and "\n" not in reason for reason in skipped.values())


def test_a_table_that_names_pipes_devices_and_what_json_cannot_hold_costs_only_those_clips(
    run: Run, audio: Path
) -> None:
    os.mkfifo(audio / "pipe.wav")
    good = {"path": "low/deeper/take.0.flac", "label": "low"}
    rows = [
        json.dumps(good),
        json.dumps({"path": "pipe.wav", "label": "low"}),
        json.dumps({"path": "nul\0.wav", "label": "low"}),
        json.dumps({"path": "n" * 5000 + ".wav", "label": "low"}),
        json.dumps({"path": "low/deeper/take.1.flac", "label": "\ud800"}),
        '{"path": "low/deeper/take.2.flac", "label": 1e999}',
        json.dumps({"path": "low/deeper/take.3.flac", "label": "low"})[:-1] + ', "deep": ' + "[" * 80 + "]" * 80 + "}",
    ]
    Path("t.jsonl").write_text("\n".join(rows))
    done = run("pack", "one", "--audio", "sounds", "--jsonl", "t.jsonl", "--json")
    assert done.code == 0, done.err
    [record] = json.loads(done.out)
    assert record["clips"] == {"all": 1}
    assert len(record["skipped"]) == len(rows) - 1


def test_an_empty_folder_and_one_of_nothing_but_pipes_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipes/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipes/a/pipe.wav")
    for name, code in (("empty", 2), ("pipes", 1)):
        done = run("pack", tmp_path / "one", "--audio", tmp_path / name)
        assert (done.code, done.out) == (code, "")
        [line] = done.err.splitlines()
        assert line.startswith("featstore: ")


@pytest.mark.usefixtures("audio")
def test_a_manifest_to_start_from_has_no_schedule_and_knows_validation_by_other_names(run: Run) -> None:
    parts = ["train", "dev", "test", "rest"]
    rows = [{**row, "part": part} for row, part in zip(TABLE, parts, strict=True)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("pack", "one", "--audio", "sounds", "--jsonl", "t.jsonl", *COLUMNS).code == 0
    manifest = load_manifest(Path("one.toml"))
    assert manifest.patterns == {"train": "train-*.tar", "valid": "dev-*.tar", "test": "test-*.tar"}
    assert "rest" in Path("one.toml").read_text()
    assert "[probe]" not in Path("one.toml").read_text()  # the default trains until it has converged


def test_packing_holds_one_clip_at_a_time(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = plan_folder(audio, split="all")
    read = []
    samples = packing._samples

    def watched(*arguments):
        for sample in samples(*arguments):
            read.append(len(list(tmp_path.glob("out/*.tar"))))
            yield sample

    monkeypatch.setattr(packing, "_samples", watched)
    packing.pack_clips(clips, tmp_path / "out", clips_per_shard=4)
    assert read == [0] * 4 + [1] * 4 + [2] * 4  # a shard is written before the next one's clips are read
