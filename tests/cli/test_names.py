"""`extract --name`, `rename`, and what `report` shows of scores from before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handmade import Run

PLACES = ("--data", "data", "--store", "store")


def names(run: Run) -> set[str]:
    return {record["encoder"] for record in json.loads(run("inspect", "--store", "store", "--json").out)}


def test_an_encoder_is_named_renamed_and_found_again(run: Run, folder: Path) -> None:
    first = run("extract", "tiny.toml", "--encoder", "logmel", "--name", "base", *PLACES)
    assert first.code == 0, first.err
    assert first.out.startswith("base@")
    assert names(run) == {"base"}
    assert run("probe", "tiny.toml", "--store", "store", "--results", "r").code == 0
    done = run("rename", "store", "base", "mel")
    assert (done.code, done.err) == (0, "")
    assert [line.split("@")[0] for line in done.out.splitlines()] == ["base"]
    again = run("extract", "tiny.toml", "--encoder", "logmel", "--name", "other", *PLACES)
    assert again.out.count("2 shards reused") == 3
    assert "as mel@" in again.out.splitlines()[-1]
    assert names(run) == {"mel"}
    assert run("probe", "tiny.toml", "--store", "store", "--results", "r").code == 0
    report = run("report", "r", "--format", "json")
    assert {score["encoder"] for score in json.loads(report.out)} == {"base", "mel"}
    assert "base, mel" in report.error_lines[0]
    for path in (folder / "r").glob("*.base.*"):
        path.unlink()
    assert run("report", "r").err == ""


def test_rename_prints_records_as_json(run: Run, folder: Path) -> None:
    assert run("extract", "tiny.toml", "--encoder", "logmel", *PLACES).code == 0
    [record] = json.loads(run("rename", "store", "logmel", "mel", "--json").out)
    assert set(record) == {"before", "after"}
    assert record["before"].partition("@")[2] == record["after"].partition("@")[2]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("rename", "store", "nothing", "mine"), 2),
        (("rename", "nowhere", "logmel", "mine"), 2),
        (("rename", "store", "logmel", "a b"), 2),
        (("rename", "store", "logmel"), 2),
        (("rename", "memory://s", "logmel", "mine"), 1),
        (("extract", "tiny.toml", "--encoder", "logmel", "--name", "a/b", *PLACES), 2),
        (("extract", "tiny.toml", "--encoder", "logmel", "--layers", "all", *PLACES), 1),
        (("extract", "tiny.toml", "--encoder", "logmel", "--layers", "3-1", *PLACES), 2),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: tuple[str, ...], code: int, run: Run, folder: Path) -> None:
    assert run("extract", "tiny.toml", "--encoder", "logmel", *PLACES).code == 0
    done = run(*arguments)
    assert (done.code, done.out, len(done.error_lines)) == (code, "", 1)
    assert names(run) == {"logmel"}
