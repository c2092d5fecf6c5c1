"""Whatever keys, labels, names and paths hold, nothing that a command prints moves a cursor or turns a line round."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import split_writer, window, write_part

from featstore.report import write_score
from handmade import Outcome, Run, environment
from mapped import Stored, write_set
from scored import scored

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\u202eback\u2066\u200f\u2028\ud800"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every text that a store lets be anything is hostile; a surrogate stands in the JSON alone, as text has none."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    written = ESCAPES[:-1]
    for split in ("train", "test"):
        clips = [Stored(f"{at}{written}", rng.standard_normal(6), {"word": written, written: at}) for at in range(9)]
        write_set(tmp_path / "s", clips, split=split)
    return tmp_path / "s"


def harmless(outcome: Outcome) -> Outcome:
    output = outcome.out + outcome.err
    assert output
    assert [
        each for each in output if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") and each != "\n"
    ] == []
    return outcome


def test_clips_of_a_store(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"train/3{ESCAPES[:-1]}"
    monkeypatch.setenv("COLUMNS", "1000")  # every field fits
    asked = ("query", key, "--store", store, "--k", "3")
    outcome = harmless(run(*asked))
    told_escapes = outcome.out.count("\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\x7f\\u202eback")
    assert (outcome.code, told_escapes) == (
        0,
        10,
    )  # in the line of the query 3, in the head 1, of each clip key and word
    [first, *_] = json.loads(harmless(run(*asked, "--json")).out)
    assert first["key"][1:] == first["labels"]["word"] == ESCAPES[:-1]  # as JSON it is what it was
    for wrong in ([key.removeprefix("train/")], [f"x{key}"], [key, "--field", f"no{ESCAPES[:-1]}"]):
        outcome = harmless(run("query", *wrong, "--store", store))
        assert (outcome.code > 0, outcome.out, outcome.err.count("\n")) == (True, "", 1)
    for more in ([], ["mel/words/train"], ["mel", "--health", "--near", "0.01"], ["--json"]):
        assert harmless(run("inspect", *more, "--store", store)).code == 0
    out = f"{ESCAPES[:6]}.html"
    assert (
        harmless(run("explore", "mel/words/train", "--store", store, "--title", ESCAPES[:-1], "--out", out)).code == 0
    )


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json", "html"])
def test_a_report_in_every_format(run: Run, tmp_path: Path, form: str) -> None:
    for encoder in "ab":
        record = scored(
            f"task {ESCAPES[:3]}", f"{encoder}{ESCAPES[:-1]}", 0.5, title=f"[/red]{ESCAPES}", classes=["x", ESCAPES]
        )
        write_score(record, tmp_path / "results")
    outcome = harmless(run("report", "--results", tmp_path / "results", "--format", form))
    assert outcome.code == 0
    if form == "json":
        assert {record["title"] for record in json.loads(outcome.out)} == {f"[/red]{ESCAPES}"}
    assert run("report", "--results", tmp_path / "results", "--format", form, "--out", tmp_path / "out").code == 0
    if form != "html":
        pair = (f"a{ESCAPES[:-1]}", f"b{ESCAPES[:-1]}")
        assert (
            harmless(run("report", "--results", tmp_path / "results", "--compare", *pair, "--format", form)).code == 0
        )


def test_a_stream_of_few_letters_gets_escapes_and_json_that_says_the_same(tmp_path: Path) -> None:
    write_score(scored("words", "Wörter 🎵", 0.5), tmp_path / "results")
    code = (
        "from featstore.cli import main\n"
        "for form in ('table', 'json'):\n"
        "    try:\n        main(['report', '--results', 'results', '--format', form])\n"
        "    except SystemExit as done:\n        print('exit', done.code)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    table, records, _ = outcome.stdout.split("exit 0\n")
    assert "W\\xf6rter \\U0001f3b5" in table
    assert "0.500 \\xb10.030" in table
    assert json.loads(records)[0]["encoder"] == "Wörter 🎵"


@pytest.mark.parametrize("meta", ['{"n": NaN}', '{"a": "\\ud800"}', "[" * 100_000 + "]" * 100_000, "{"])
def test_json_of_a_clip_that_extract_would_have_refused_is_one_line(run: Run, tmp_path: Path, meta: str) -> None:
    made = window("k", n_frames=2, seed=0), replace(window("bad", n_frames=2, seed=1), meta=meta)
    write_part(split_writer(tmp_path / "s"), "a.tar", made)
    for command in (
        ("query", "train/k", "--store", tmp_path / "s"),
        ("query", "train/k", "--store", tmp_path / "s", "--json"),
        ("explore", "--store", tmp_path / "s", "--out", tmp_path / "map.html"),
        ("export", tmp_path / "x.npz", "--store", tmp_path / "s", "--format", "npz", "--label", "n"),
    ):
        outcome = harmless(run(*command))
        assert (outcome.code > 0, outcome.out, outcome.err.count("\n"), "bad" in outcome.err) == (True, "", 1, True)
    assert not (tmp_path / "map.html").exists()
