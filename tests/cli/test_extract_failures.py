"""One failure never costs the others: a shard costs itself, a task itself, and JSON has a record of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore
from featstore.errors import ShardError
from featstore.extract import EncoderRequest, ExtractOptions, open_engine, plan_tasks
from featstore.extract.results import Silent
from featstore.records import ExtractFailure
from featstore.tasks import load_manifest
from handmade import XARES_ENCODER, Outcome, Run, clip, noise, task_toml, write_split

TASKS = ("a.toml", "b.toml", "c.toml")
SPLITS = ("train", "valid", "test")
FRAGILE = XARES_ENCODER.replace(
    "        padded = torch.nn.functional.pad(audio[",
    "        audio = audio / (audio.abs().max() < 0.99)\n        padded = torch.nn.functional.pad(audio[",
    1,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tasks of their own audio, with two shards in each split."""
    for number, name in enumerate(("a", "b", "c")):
        task_toml(tmp_path, name=name, data={"dataset": name})
        for split in SPLITS:
            clips = [clip(f"{split}-{n}", noise(0.2, seed=10 * number + n)) for n in range(4)]
            write_split(tmp_path / "data" / name, split, clips, shards=2)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extract(run: Run, *more: str, tasks: tuple[str, ...] = TASKS, encoder: str = "logmel") -> Outcome:
    return run("extract", *tasks, "--encoder", encoder, "--data", "data", "--store", "store", *more)


def cut(folder: Path, shard: str) -> Path:
    path = folder / "data" / shard
    path.write_bytes(path.read_bytes()[:3000])
    return path


def by_split(records: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int, list[str]]]:
    return {
        (each["task"], each["split"]): (
            each["shards_done"],
            each["shards_reused"],
            [broken["shard"] for broken in each["broken"]],
        )
        for each in records
        if "split" in each
    }


def test_a_broken_shard_costs_its_shard_and_every_feature_set_has_its_record(run: Run, folder: Path) -> None:
    whole = (folder / "data/a/train-001.tar").read_bytes()
    path = cut(folder, "a/train-001.tar")
    outcome = extract(run, "--json")
    assert outcome.code == 1
    records = json.loads(outcome.out)
    expected = {(task, split): (2, 0, []) for task in "abc" for split in SPLITS}
    assert by_split(records) == {**expected, ("a", "train"): (1, 0, ["train-001.tar"])}
    [broken] = records[0]["broken"]
    assert "train-001.tar" in broken["reason"]
    [line] = outcome.error_lines
    assert line.startswith("featstore: ")
    assert "train-001.tar" in line
    again = json.loads(extract(run, "--json").out)
    assert by_split(again)["a", "train"] == (0, 1, ["train-001.tar"])
    path.write_bytes(whole)
    repaired = json.loads(extract(run, "--json").out)
    assert by_split(repaired) == {each: (0, 2, []) for each in expected} | {("a", "train"): (1, 1, [])}


def test_a_shard_that_breaks_later_is_neither_encoded_nor_reused_and_its_old_part_counts(
    run: Run, folder: Path
) -> None:
    extract(run)
    cut(folder, "a/train-001.tar")
    records = json.loads(extract(run, "--json").out)
    assert by_split(records)["a", "train"] == (0, 1, ["train-001.tar"])
    assert records[0]["clips"] == 4


def test_a_task_without_shards_is_reported_at_once_and_costs_itself(run: Run, folder: Path) -> None:
    splits = {"train": "tarin*.tar", "valid": "valid*.tar", "test": "test*.tar"}
    task_toml(folder, name="b", data={"dataset": "b"}, splits=splits)
    outcome = extract(run, "--json")
    assert outcome.code == 1
    records = json.loads(outcome.out)
    assert by_split(records).keys() == {(task, split) for task in "ac" for split in SPLITS}
    [failure] = [each for each in records if "error" in each]
    assert (failure["task"], failure["error"]) == ("b", "ShardError")
    assert "tarin*.tar" in failure["message"]
    first, last = outcome.error_lines
    assert "tarin*.tar" in first
    assert "1 of 3 tasks" in last
    assert not list(Path("store").glob("*/b/*"))


def test_patterns_of_all_tasks_are_looked_up_before_the_first_shard_is_encoded(folder: Path) -> None:
    (folder / "data/c/test-001.tar").unlink()
    (folder / "data/c/test-000.tar").unlink()
    with open_engine(EncoderRequest(spec="logmel"), device="cpu") as engine:
        plans = plan_tasks(
            [load_manifest(Path(task)) for task in TASKS],
            engine,
            data_dir="data",
            store_url="store",
            options=ExtractOptions(),
        )
    assert [isinstance(plan, ExtractFailure) for plan in plans] == [False, False, True]
    assert not Path("store").exists()


def test_what_is_wrong_with_the_call_ends_the_run_before_the_first_shard(run: Run, folder: Path) -> None:
    for more, tasks in ((("--split", "dev"), TASKS), ((), (*TASKS, "esc5")), ((), (*TASKS, "nowhere.toml"))):
        outcome = extract(run, *more, tasks=tasks)
        assert (outcome.code, outcome.out) == (2, "")
        assert len(outcome.error_lines) == 1
        assert not Path("store").exists()


def test_several_failures_are_a_line_each_and_a_count(run: Run, folder: Path) -> None:
    cut(folder, "a/train-001.tar")
    cut(folder, "c/test-000.tar")
    for path in (folder / "data/b").iterdir():
        path.unlink()
    outcome = extract(run)
    assert outcome.code == 1
    first, *lines, last = outcome.error_lines
    assert first.startswith("featstore: b ")
    assert [any(part in line for line in lines) for part in ("train-001", "test-000", "b: ")] == [True] * 3
    assert len(lines) == 3
    assert re.search(r"\b2\b.*\b12\b", last)
    assert "1 of 3 tasks" in last
    assert "c/test" in outcome.out


def test_nothing_but_failures_is_one_line_each(run: Run, folder: Path) -> None:
    outcome = run("extract", "a.toml", "--encoder", "logmel", "--data", "nowhere", "--store", "store", "--json")
    assert outcome.code == 1
    assert [each["task"] for each in json.loads(outcome.out)] == ["a"]
    [line] = outcome.error_lines
    assert line.startswith("featstore: ")
    assert "nowhere" in line
    assert not Path("store").exists()


def test_an_encoder_that_breaks_its_contract_ends_the_run_and_json_has_what_was_done(run: Run, folder: Path) -> None:
    write_split(folder / "data/b", "valid", [clip("loud", np.ones(4000, np.float32))])
    outcome = extract(run, "--json", encoder="./fragile.py")
    assert outcome.code == 1
    records = json.loads(outcome.out)
    done = {(task, split) for task, split in by_split(records)}
    assert done == {("a", "train"), ("a", "valid"), ("a", "test"), ("b", "train")}
    failures = [each for each in records if "error" in each]
    assert [(each["task"], each["error"]) for each in failures] == [("b", "EncoderContractError"), ("c", "")]
    unrun, last = outcome.error_lines
    assert unrun.endswith(": c")
    assert "'loud'" in last


def test_a_store_that_cannot_be_written_ends_the_run(run: Run, folder: Path) -> None:
    (folder / "store").write_text("a file is in the way")
    outcome = extract(run, "--json")
    assert outcome.code != 0
    assert len([line for line in outcome.error_lines if "Traceback" in line]) == 0


def test_a_damaged_document_of_one_task_in_the_store_costs_that_task(run: Run, folder: Path) -> None:
    extract(run)
    [document] = Path("store").glob("*/b/train/zarr.json")
    document.write_bytes(document.read_bytes()[:-40])
    outcome = extract(run, "--json")
    assert outcome.code == 1
    records = json.loads(outcome.out)
    assert [each["task"] for each in records if "error" in each] == ["b"]
    assert by_split(records).keys() >= {("a", "train"), ("c", "train")}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cpu,cpu", marks=pytest.mark.slow)])
def test_engines_report_alike(device: str, folder: Path) -> None:
    cut(folder, "a/train-001.tar")
    for path in (folder / "data/b").iterdir():
        path.unlink()
    with open_engine(EncoderRequest(spec="logmel"), device=device) as engine:
        plans = plan_tasks(
            [load_manifest(Path(task)) for task in TASKS],
            engine,
            data_dir="data",
            store_url="store",
            options=ExtractOptions(),
        )
        found = [
            plan
            if isinstance(plan, ExtractFailure)
            else [record for records in plan.extract(Silent()) for record in records]
            for plan in plans
        ]
    assert isinstance(found[1], ExtractFailure)
    assert [[each.shard for each in record.broken] for record in found[0]] == [["train-001.tar"], [], []]
    assert [[record.shards_done, record.broken] for record in found[2]] == [[2, ()]] * 3
    assert len(featstore.open("store").select(dataset="a", split="train")) == 2


def test_ranks_report_the_broken_shards_of_their_share(run: Run, folder: Path) -> None:
    cut(folder, "a/train-001.tar")
    codes = {}
    for share in ("1/2", "2/2"):
        outcome = extract(run, "--json", "--share", share)
        codes[share] = (outcome.code, by_split(json.loads(outcome.out))["a", "train"])
    assert codes == {"1/2": (0, (1, 0, [])), "2/2": (1, (0, 0, ["train-001.tar"]))}


def test_a_call_from_python_of_one_task_raises_as_before(folder: Path) -> None:
    from handmade import extract as extract_one

    cut(folder, "a/train-001.tar")
    with pytest.raises(ShardError, match=r"\b1\b.*\b6\b"):
        extract_one(load_manifest(Path("a.toml")), folder / "data", folder / "store", splits=())
