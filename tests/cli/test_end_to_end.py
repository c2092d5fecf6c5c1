"""extract -> probe -> retrieve -> report, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featstore.records import ScoreRecord
from handmade import XARES_ENCODER, Run

pytestmark = pytest.mark.usefixtures("folder")

EXTRACT = ("extract", "tiny.toml", "--data", "data", "--store", "store")
EXTRACT_FIELDS = {
    "task", "dataset", "split", "encoder", "shards_total", "shards_done", "shards_reused", "clips", "windows", "frames",
    "skipped", "audio_seconds", "bytes_written", "seconds",
}  # fmt: skip
SCORE_FIELDS = {
    "task", "title", "track", "protocol", "encoder", "fingerprint", "metric", "value", "std", "ci_low", "ci_high",
    "seeds", "n_train", "n_valid", "n_test", "n_skipped", "eval_weight", "private", "seconds", "manifest_sha256",
    "versions",
}  # fmt: skip


def test_hand_made_shards_are_extracted_probed_retrieved_and_reported(run: Run, folder: Path) -> None:
    for encoder in ("logmel", "mfcc"):
        extracted = run(*EXTRACT, "--encoder", encoder)
        assert (extracted.code, extracted.error_lines) == (0, [])
        header, *lines = extracted.out.splitlines()
        assert header.startswith(f"{encoder}@")
        assert [line.split(", ")[0].strip() for line in lines] == [
            "tiny/train: 24 clips", "tiny/valid: 6 clips", "tiny/test: 9 clips"
        ]  # fmt: skip
    again = run(*EXTRACT, "--encoder", "mfcc")
    assert again.out.count("2 shards reused") == 3
    for command in ("probe", "retrieve"):
        scored = run(command, "tiny.toml", "--store", "store", "--results", "results")
        assert (scored.code, scored.err) == (0, "")
        assert "logmel" in scored.out
        assert "mfcc" in scored.out
    table = run("report", "--results", "results")
    assert table.code == 0
    assert "tiny" in table.out
    markdown = run("report", "--results", "results", "--out", "board.md")
    assert (markdown.code, markdown.out) == (0, "")
    assert "| " in (folder / "board.md").read_text()
    scores = json.loads(run("report", "results", "--format", "json").out)
    assert {(score["track"], score["encoder"]) for score in scores} == {
        (track, encoder) for track in "AB" for encoder in ("logmel", "mfcc")
    }
    assert min(score["value"] for score in scores) > 0.9


def test_json_is_one_array_on_stdout_with_the_designs_fields(run: Run) -> None:
    extracted = run(*EXTRACT, "--encoder", "logmel", "--json")
    records = json.loads(extracted.out)
    assert [record["split"] for record in records] == ["train", "valid", "test"]
    assert all(record.keys() >= EXTRACT_FIELDS for record in records)
    for command, track in (("probe", "A"), ("retrieve", "B")):
        scored = run(command, "tiny.toml", "--store", "store", "--json")
        assert scored.err == ""
        [score] = json.loads(scored.out)
        assert score.keys() >= SCORE_FIELDS
        assert score["track"] == track
        assert ScoreRecord.from_json(score).as_json()["value"] == score["value"]


def test_json_lists_the_clips_that_were_skipped_and_fail_on_skip_fails(run: Run) -> None:
    options = ("--encoder", "logmel", "--split", "train", "--max-clip-seconds", "0.6")
    extracted = run(*EXTRACT, *options, "--json")
    [record] = json.loads(extracted.out)
    assert extracted.code == 0
    assert len(record["skipped"]) == 24 - record["clips"] > 0
    assert all(left_out.keys() == {"shard", "key", "reason", "seconds"} for left_out in record["skipped"])
    plain = run(*EXTRACT, *options)
    assert "train-000.tar" in plain.out
    failed = run(*EXTRACT, *options, "--fail-on-skip")
    assert failed.code == 1
    assert "--fail-on-skip" in failed.error_lines[-1]


def test_what_an_encoder_prints_does_not_spoil_the_json(run: Run, folder: Path) -> None:
    noisy = XARES_ENCODER.replace("        padded = torch.nn", "        print('forward')\n        padded = torch.nn", 1)
    (folder / "my_encoder.py").write_text("print('loading')\n" + noisy)
    done = run(*EXTRACT, "--encoder", "./my_encoder.py", "--split", "valid", "--json")
    assert done.code == 0, done.err
    [record] = json.loads(done.out)
    assert record["encoder"] == "MyEncoder"
    assert "loading" in done.err
    assert "forward" in done.err


def test_an_encoder_file_with_arguments_goes_the_whole_way(run: Run, folder: Path) -> None:
    (folder / "my_encoder.py").write_text(XARES_ENCODER)
    options = ("--encoder", "./my_encoder.py:MyEncoder", "--encoder-arg", "width=32", "--encoder-arg", "seed=4")
    assert run(*EXTRACT, *options).code == 0
    [score] = json.loads(run("retrieve", "tiny.toml", "--store", "store", "--json").out)
    assert score["encoder"] == "MyEncoder"
    assert score["value"] > 0.5


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_both_protocols_score_from_the_same_store(protocol: str, run: Run) -> None:
    run(*EXTRACT, "--encoder", "logmel")
    for command in ("probe", "retrieve"):
        [score] = json.loads(run(command, "tiny.toml", "--store", "store", "--protocol", protocol, "--json").out)
        assert score["protocol"] == protocol


def test_tasks_are_listed_and_shown(run: Run) -> None:
    assert "esc50" in run("tasks").out
    [shown] = json.loads(run("tasks", "tiny.toml", "--json").out)
    assert shown["name"] == "tiny"


def test_the_format_of_a_report_follows_its_file_and_results_are_merged(run: Run, folder: Path) -> None:
    for encoder in ("logmel", "mfcc"):
        assert run(*EXTRACT, "--encoder", encoder).code == 0
        assert run("retrieve", "tiny.toml", "--store", "store", "--encoder", encoder, "--results", encoder).code == 0
    for name in ("b.html", "b.MD", "b.csv", "b.json", "b.txt"):
        assert run("report", "logmel", "--results", "mfcc", "--results", "logmel", "--out", name).code == 0
    assert (folder / "b.html").read_text().startswith("<!doctype html>")
    assert (folder / "b.MD").read_text().startswith("### ")
    assert (folder / "b.csv").read_text().startswith("line,protocol,")
    assert {each["encoder"] for each in json.loads((folder / "b.json").read_text())} == {"logmel", "mfcc"}
    assert "mfcc" in (folder / "b.txt").read_text()
    assert run("report", "logmel", "--out", "c.csv", "--format", "json").code == 0
    assert len(json.loads((folder / "c.csv").read_text())) == 1
    assert run("report").code == 2
    exported = run("export", "words.npz", "--store", "store", "--encoder", "mfcc", "--split", "test", "--json")
    assert (exported.code, (folder / "words.npz").is_file()) == (0, True)
    assert run("export", "words.x", "--store", "store", "--encoder", "mfcc", "--split", "test").code == 2


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_and_verbose_work_before_and_after_the_command(place: str, run: Run) -> None:
    def extract(option: str) -> tuple[str, str]:
        command = (*EXTRACT, "--encoder", "logmel", "--split", "test")
        done = run(option, *command) if place == "before" else run(*command, option)
        assert done.code == 0
        return done.out, done.err

    assert extract("--quiet") == ("", "")
    out, err = extract("--verbose")
    assert "tiny/test" in out
    assert "logmel@" in err
    out, err = extract("--json")[0] if place == "after" else "[]", ""
    assert isinstance(json.loads(out), list)
    assert extract("-q") == ("", "")
    assert run("inspect", "store", "-q", "--json").out.startswith("[")
