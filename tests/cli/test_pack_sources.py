"""`pack` and `extract --audio`: tables as people have them, splits, groups, and what is packed once."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import featstore
from featstore.errors import UsageError
from featstore.extract import pack as packing
from featstore.extract.tar_reader import read_samples
from featstore.store import open_store
from featstore.tasks import load_manifest
from handmade import Run, audio_bytes, noise

SPEAKERS = ("ada", "bo", "cy", "di", "ed", "fay")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of twelve files, by six speakers, in a folder for each class."""
    for label, seed in (("low", 3), ("high", 15)):
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for at in range(12):
            (tmp_path / "sounds" / label / f"{at:02d}.wav").write_bytes(audio_bytes(noise(0.2, seed=seed + 20 * at)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(*, start: str = "") -> list[dict[str, Any]]:
    return [
        {"path": f"{start}{label}/{at:02d}.wav", "species": label, "speaker": SPEAKERS[at % 6], "size": at / 4}
        for label in ("low", "high")
        for at in range(12)
    ]


def table(name: str, found: list[dict[str, Any]]) -> str:
    if name.endswith(".csv"):
        with Path(name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    else:
        Path(name).write_text("\n".join(map(json.dumps, found)))
    return name


def metas(folder: str = "data/mine") -> dict[str, dict[str, Any]]:
    return {
        sample.key: json.loads(sample.meta)
        for path in sorted(Path(folder).glob("*.tar"))
        for sample in read_samples(path)
    }


def members(folder: str = "data/mine") -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(Path(folder).glob("*.tar")):
        found.setdefault(path.name.rpartition("-")[0], set()).update(each.key for each in read_samples(path))
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["t.csv", "t.jsonl"])
def test_absolute_paths_need_no_folder_of_audio(run: Run, folder: Path, form: str) -> None:
    table(form, rows(start=f"{folder}/sounds/"))
    done = run("pack", "data/mine", f"--{form[2:]}", form, "--label", "species")
    assert done.code == 0, done.err
    assert len(metas()) == 24
    with_folder = run("pack", "data/other", "--audio", "sounds", f"--{form[2:]}", form, "--label", "species")
    assert with_folder.code == 0, with_folder.err
    assert "low_00" in metas("data/other")  # keys start in the folder of audio


def test_relative_paths_start_from_the_table(run: Run) -> None:
    Path("lists").mkdir()
    table("lists/t.csv", rows(start="../sounds/"))
    assert run("pack", "data/mine", "--csv", "lists/t.csv", "--label", "species").code == 0
    assert metas()["sounds_low_03"] == {"species": "low", "speaker": "di", "size": "0.75"}


def test_missing_files_of_a_table_are_listed_and_the_others_packed(run: Run) -> None:
    table("t.csv", [*rows(start="sounds/"), {**rows()[0], "path": "sounds/low/gone.wav"}])
    done = run("pack", "data/mine", "--csv", "t.csv", "--label", "species", "--json")
    [record] = json.loads(done.out)
    assert record["clips"] == {"all": 24}
    [skipped] = record["skipped"]
    assert Path(skipped["key"]).name == "gone.wav"


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_column_of_splits_is_used_where_it_is_there_and_announced(run: Run, column: str) -> None:
    names = ["train", "dev", "test"] if column == "split" else [1, 2, 10]
    table("t.jsonl", [{**row, column: names[at % 3]} for at, row in enumerate(rows(start="sounds/"))])
    done = run("pack", "data/mine", "--jsonl", "t.jsonl", "--label", "species")
    assert done.code == 0, done.err
    assert f"'{column}'" in done.out
    assert {name: len(keys) for name, keys in members().items()} == {str(name): 8 for name in names}
    manifest = load_manifest("data/mine.toml")
    assert list(manifest.folds or ()) == ([] if column == "split" else ["1", "2", "10"])
    other = run("pack", "data/other", "--jsonl", "t.jsonl", "--label", "species", "--split", "all")
    assert list(members("data/other")) == ["all"]
    assert f"'{column}'" not in other.out


def test_a_column_of_splits_that_some_rows_lack_is_a_column_like_others(run: Run) -> None:
    found = [{**row, "split": "train"} for row in rows(start="sounds/")]
    del found[3]["split"]
    table("t.jsonl", found)
    assert run("pack", "data/mine", "--jsonl", "t.jsonl", "--label", "species").code == 0
    assert list(members()) == ["all"]
    assert metas()["sounds_low_00"]["split"] == "train"


def test_sub_folders_that_are_called_like_splits_are_splits(run: Run) -> None:
    for split in ("train", "test"):
        for label in ("low", "high"):
            path = Path("copy", split, label, f"{split}.wav")
            path.parent.mkdir(parents=True)
            path.write_bytes(Path("sounds/low/00.wav").read_bytes())
    done = run("pack", "data/mine", "--audio", "copy")
    assert done.code == 0, done.err
    assert members() == {"test": {"test_high_test", "test_low_test"}, "train": {"train_high_train", "train_low_train"}}
    assert {meta["label"] for meta in metas().values()} == {"low", "high"}
    assert run("pack", "data/other", "--audio", "copy", "--split", "all").code == 0
    assert {meta["label"] for meta in metas("data/other").values()} == {"train", "test"}


@pytest.mark.parametrize(
    ("label", "options", "kind"),
    [
        ("species", (), "a class (2 values)"),
        ("size", (), "a number (12 values)"),
        ("size", ("--kind", "clip"), "a class (12 values)"),
        ("speaker", ("--separator", "d"), "several classes (6 values)"),
    ],
)
def test_what_the_label_is_is_printed(run: Run, label: str, options: tuple[str, ...], kind: str) -> None:
    table("t.csv", rows(start="sounds/"))
    done = run("pack", "data/mine", "--csv", "t.csv", "--label", label, *options)
    assert done.code == 0, done.err
    assert f"label: '{label}', {kind}" in done.out


# --- the splits of pack are those of extract --------------------------------------------------------------------------


def printed(text: str) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"^ *(?:mine/)?(\w+): (\d+) clips?[ ,]", text, re.MULTILINE)}


@pytest.mark.parametrize("names", [["all"], ["train"], ["train", "validation", "test"], ["train", "test"], ["a", "b"],
                                   ["training", "dev"], ["train", "test", "more"]])  # fmt: skip
def test_the_splits_that_pack_prints_are_those_that_extract_prints_and_the_store_has(
    run: Run, names: list[str]
) -> None:
    found = [{**row, "split": names[at % len(names)]} for at, row in enumerate(rows(start="sounds/"))]
    table("t.csv", found)
    packed = run("pack", "data/mine", "--csv", "t.csv", "--label", "species")
    extracted = run("extract", "data/mine.toml", "--encoder", "logmel", "--data", "data", "--store", "s")
    assert extracted.code == 0, extracted.err
    shown = printed(packed.out)
    unused = {name: shown.pop(name) for name in ("more",) if name in shown}
    assert list(unused) == (["more"] if "more" in names else [])
    assert shown == printed(extracted.out)
    assert {fs.address.split: len(fs) for fs in open_store("s").feature_sets()} == shown


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_written_to_the_manifest_and_every_clip_has_it(run: Run) -> None:
    found = [{**row, "split": "test" if at % 12 < 3 else "train"} for at, row in enumerate(rows(start="sounds/"))]
    table("t.csv", found)
    done = run("pack", "data/mine", "--csv", "t.csv", "--label", "species", "--group", "speaker")
    assert load_manifest("data/mine.toml").group == "speaker"
    assert "3 of 6 groups" in done.err  # ada, bo and cy are on both sides
    assert {meta["speaker"] for meta in metas().values()} == set(SPEAKERS)
    found[4]["speaker"] = ""
    table("t.csv", found)
    without = run("pack", "data/other", "--csv", "t.csv", "--label", "species", "--group", "speaker")
    assert (without.code, Path("data/other").exists()) == (2, False)
    assert "04.wav" in without.err


@pytest.mark.parametrize("folds", [(), ("--folds", "3")])
def test_splits_by_a_column_never_divide_its_values(run: Run, folds: tuple[str, ...]) -> None:
    table("t.csv", rows(start="sounds/"))
    options = ("--csv", "t.csv", "--label", "species", "--split-by", "speaker", *folds)
    done = run("pack", "data/mine", *options)
    assert (done.code, done.err) == (0, "")
    found, parts = metas(), members()
    assert set(parts) == ({"fold1", "fold2", "fold3"} if folds else {"train", "valid", "test"})
    speakers = [{found[key]["speaker"] for key in keys} for keys in parts.values()]
    assert sum(map(len, speakers)) == 6
    assert load_manifest("data/mine.toml").group == "speaker"
    for keys in parts.values():
        assert len([key for key in keys if "low" in key]) == len(keys) / 2
    run("pack", "data/again", *options)
    assert members("data/again") == parts
    assert run("extract", "data/mine.toml", "--encoder", "logmel", "--data", "data", "--store", "s").code == 0
    [score] = json.loads(run("probe", "data/mine.toml", "--store", "s", "--json").out)
    assert score["value"] > 0.9


def test_splits_by_the_label_or_folds_alone_have_no_groups(run: Run) -> None:
    table("t.csv", [{**row, "split": "train"} for row in rows(start="sounds/")])
    options = ("--csv", "t.csv", "--label", "species")
    assert run("pack", "data/mine", *options, "--split-by", "species").code == 0
    assert {name: len(keys) for name, keys in members().items()} == {"train": 18, "valid": 2, "test": 4}
    assert load_manifest("data/mine.toml").group is None
    assert run("pack", "data/other", *options, "--folds", "4").code == 0
    assert {name: len(keys) for name, keys in members("data/other").items()} == {f"fold{at}": 6 for at in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    "options", [("--split-by", "nothing"), ("--split-by", "speaker", "--folds", "7"), ("--folds", "1")]
)
def test_splits_that_cannot_be_drawn_are_one_line(run: Run, options: tuple[str, ...]) -> None:
    table("t.csv", rows(start="sounds/"))
    done = run("pack", "data/mine", "--csv", "t.csv", "--label", "species", *options)
    assert (done.code, len(done.err.splitlines()), Path("data").exists()) == (2, 1, False)


# --- nothing half-written ---------------------------------------------------------------------------------------------


def breaking(at: int) -> Callable[..., None]:
    """`write_shard`, whose disk is full at a shard."""
    write, calls = packing.write_shard, []

    def write_shard(path: Path, samples: Any) -> None:
        calls.append(path)
        if len(calls) == at:
            raise OSError(28, "No space left on device", str(path))
        write(path, samples)

    return write_shard


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_pack_that_fails_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    found = [{**row, "split": ("train", "test")[index % 2]} for index, row in enumerate(rows(start="sounds/"))]
    table("t.csv", found)
    options = ("--csv", "t.csv", "--label", "species", "--shard-size", "6")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shard", breaking(at))
        done = run("pack", "data/mine", *options)
    assert (done.code, list(Path("data").iterdir())) == (1, [])
    assert run("pack", "data/mine", *options).code == 0
    before = sorted(Path("data/mine").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shard", breaking(at))
        more = ("--split", "more", "--manifest", "b.toml")
        assert run("pack", "data/mine", *options, *more).code == 1
    assert sorted(Path("data/mine").iterdir()) == before
    assert not Path("b.toml").exists()


def test_a_manifest_that_cannot_be_written_takes_the_shards_with_it(run: Run) -> None:
    Path("file").write_text("")
    done = run("pack", "data/mine", "--audio", "sounds", "--manifest", "file/x.toml")
    assert done.code == 1
    assert not Path("data/mine").exists()


# --- extract packs ----------------------------------------------------------------------------------------------------

EXTRACT = ("extract", "--encoder", "logmel", "--store", "emb.zarr")


def extracted(run: Run, *options: str) -> dict[str, Any]:
    done = run(*EXTRACT, *options, "--json")
    assert done.code == 0, done.err
    [record] = json.loads(done.out)
    return dict(record)


def test_extract_packs_once_and_reuses_shards_and_embeddings(run: Run) -> None:
    first = run(*EXTRACT, "--audio", "sounds")
    assert first.code == 0, first.err
    assert "emb-data/sounds.toml" in first.out
    shards = {path: path.stat().st_mtime_ns for path in Path("emb-data/sounds").iterdir()}
    assert extracted(run, "--audio", "sounds")["shards_reused"] == 1
    assert {path: path.stat().st_mtime_ns for path in Path("emb-data/sounds").iterdir()} == shards
    assert run("probe", "emb-data/sounds.toml", "--store", "emb.zarr").code == 0
    assert extracted(run, "--audio", "sounds", "--data", "elsewhere")["shards_done"] == 0  # the same content
    assert Path("elsewhere/sounds.toml").exists()


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_a_changed_file_is_noticed(run: Run, change: str) -> None:
    assert extracted(run, "--audio", "sounds")["clips"] == 24
    if change == "content":
        Path("sounds/low/00.wav").write_bytes(audio_bytes(noise(0.3, seed=7)))
    elif change == "added":
        Path("sounds/low/new.wav").write_bytes(audio_bytes(noise(0.3, seed=7)))
    else:
        Path("sounds/low/00.wav").unlink()
    again = extracted(run, "--audio", "sounds")
    assert (again["shards_done"], again["shards_reused"]) == (1, 0)
    assert again["clips"] == {"content": 24, "added": 25, "removed": 23}[change]
    assert extracted(run, "--audio", "sounds")["shards_reused"] == 1


def test_only_the_shards_whose_content_changed_are_written_and_encoded_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    table("t.csv", [{**row, "split": ("train", "test")[at // 12]} for at, row in enumerate(rows(start="sounds/"))])
    options = ("--csv", "t.csv", "--label", "species")
    run(*EXTRACT, *options)
    os.utime("sounds/low/01.wav", (1, 1))  # touched, and not changed
    Path("sounds/high/03.wav").write_bytes(audio_bytes(noise(0.3, seed=7)))
    train = Path("emb-data/t/train-000000.tar")
    before = train.stat()
    done = run(*EXTRACT, *options, "--json")
    assert (train.stat().st_ino, train.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {each["split"]: (each["shards_done"], each["shards_reused"]) for each in json.loads(done.out)} == {
        "train": (0, 1),
        "test": (1, 0),
    }


def test_a_new_label_changes_the_manifest_alone_and_an_edited_one_is_kept(run: Run) -> None:
    table("t.csv", rows(start="sounds/"))
    run(*EXTRACT, "--csv", "t.csv", "--label", "species")
    again = run(*EXTRACT, "--csv", "t.csv", "--label", "speaker", "--group", "speaker")
    assert "1 shard reused" in again.out
    toml = Path("emb-data/t.toml")
    assert (load_manifest(toml).label.field, load_manifest(toml).group) == ("speaker", "speaker")
    edited = toml.read_text().replace('title = "t"', 'title = "My birds"')
    toml.write_text(edited)
    kept = run(*EXTRACT, "--csv", "t.csv", "--label", "species")
    assert (kept.code, toml.read_text()) == (0, edited)
    assert "edited" in kept.out
    toml.unlink()
    run(*EXTRACT, "--csv", "t.csv", "--label", "species")
    assert load_manifest(toml).label.field == "species"


def test_a_run_that_was_killed_while_it_replaced_shards_is_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*EXTRACT, "--audio", "sounds")
    replace_shards = packing._replace_shards

    def killed(*arguments: Any, **options: Any) -> None:
        replace_shards(*arguments, **options)
        raise KeyboardInterrupt

    Path("sounds/low/00.wav").rename("aside.wav")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_replace_shards", killed)
        assert run(*EXTRACT, "--audio", "sounds").code == 130
    assert len(metas("emb-data/sounds")) == 23
    Path("aside.wav").rename("sounds/low/00.wav")  # the files are those of the first run again, the shards are not
    assert extracted(run, "--audio", "sounds")["clips"] == 24
    assert len(metas("emb-data/sounds")) == 24


def test_shards_of_fewer_splits_take_the_place_of_the_earlier_ones(run: Run) -> None:
    table("t.csv", [{**row, "split": ("train", "test")[at % 2]} for at, row in enumerate(rows(start="sounds/"))])
    run(*EXTRACT, "--csv", "t.csv", "--label", "species")
    table("t.csv", rows(start="sounds/"))
    assert run(*EXTRACT, "--csv", "t.csv", "--label", "species").code == 0
    assert list(members("emb-data/t")) == ["all"]
    assert set(load_manifest("emb-data/t.toml").patterns.values()) == {"all-*.tar"}


def test_what_pack_made_is_reused_and_what_another_made_is_refused(run: Run) -> None:
    run("pack", "data/sounds", "--audio", "sounds")
    before = {path: path.stat().st_mtime_ns for path in Path("data/sounds").iterdir()}
    assert run(*EXTRACT, "--audio", "sounds", "--data", "data").code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("data/sounds").iterdir()} == before
    Path("data/sounds/packed.json").write_text("{}")
    refused = run(*EXTRACT, "--audio", "sounds", "--data", "data")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert {path.name for path in Path("data/sounds").glob("*.tar")} == {"all-000000.tar"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--audio", "nowhere"),
        ("--audio", "sounds", "--share", "1/2"),
        ("--audio", "sounds", "--csv", "gone.csv"),
        ("--audio", "sounds", "esc50"),
        ("--audio", "sounds", "--data", "s3://bucket/x"),
        (),
    ],
)
def test_what_cannot_be_packed_for_an_extraction_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*EXTRACT, *arguments)
    assert done.code in (1, 2)
    assert len([line for line in done.err.splitlines() if line.startswith("featstore: ")]) >= 1
    assert not list(Path().glob("emb*"))


def test_python_packs_and_extracts_too(run: Run) -> None:
    table("t.csv", rows(start="sounds/"))
    made = featstore.extract(encoder="logmel", store="emb.zarr", csv="t.csv", label="species", split_by="speaker")
    assert made.packed is not None
    assert sorted((each.split, each.clips) for each in made) == sorted(made.packed.clips.items())
    [score] = featstore.probe(made.packed.manifest, store="emb.zarr")
    assert score.value > 0.9
    again = featstore.extract(
        encoder=["logmel", "mfcc"], store="emb.zarr", csv="t.csv", label="species", split_by="speaker"
    )
    assert again.packed is not None
    assert again.packed.reused
    record = featstore.pack("data/mine", csv="t.csv", label="species", shard_size=10)
    assert record.shards == {"all": 3}
    for call in (
        lambda: featstore.extract(encoder="logmel", store="emb.zarr"),
        lambda: featstore.extract("esc50", encoder="logmel", store="emb.zarr"),
        lambda: featstore.extract("esc50", encoder="logmel", store="emb.zarr", audio="sounds"),
        lambda: featstore.pack("data/mine", csv="t.csv", label="species"),
        lambda: featstore.pack("data/other"),
    ):
        with pytest.raises(UsageError):
            call()
