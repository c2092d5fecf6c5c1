"""Scoring on the command line: several pairs at a time, what fails is named, and what is asked for is printed."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featstore.tasks import load_manifest
from handmade import Run, environment, extract, task_toml
from watched import members_of, wait_until_nobody_is_left


@pytest.fixture(scope="module")
def extracted(pitches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted")
    for encoder in ("logmel", "mfcc"):
        manifest = load_manifest(pitches / "tiny.toml")
        extract(manifest, pitches / "data", folder / "s", encoder=encoder, splits=("train", "valid", "test"))
    return folder / "s"


@pytest.fixture
def store(folder: Path, extracted: Path) -> Path:
    """A store of two encoders for tiny.toml."""
    return Path(shutil.copytree(extracted, folder / "s"))


def _without_time(scores: str) -> list[dict]:
    return [{**each, "seconds": {}} for each in json.loads(scores)]


@pytest.mark.usefixtures("store")
def test_jobs_give_the_scores_of_one_process_in_the_same_order_and_a_pair_that_fails_is_named(
    run: Run, folder: Path
) -> None:
    (folder / "broken").mkdir()
    task_toml(folder / "broken", name="broken", data={"dataset": "elsewhere"})
    tasks = ("retrieve", "broken/broken.toml", "tiny.toml", "--store", "s", "--encoder", "logmel", "--encoder", "mfcc")
    alone = run(*tasks, "--json")
    together = run(*tasks, "--json", "--jobs", "2", "--results", "r")
    assert (alone.code, together.code) == (2, 2)
    assert _without_time(together.out) == _without_time(alone.out)
    assert [each["encoder"] for each in json.loads(together.out)] == ["logmel", "mfcc"]
    assert [path.name.split(".")[0] for path in Path("r").iterdir()] == ["tiny", "tiny"]
    for encoder in ("logmel", "mfcc"):
        assert f"broken by {encoder}: " in together.err
    assert "2 of 4" in together.error_lines[-1]
    assert max(map(len, run("report", "r").out.splitlines())) <= 80


@pytest.mark.usefixtures("store")
def test_scores_that_are_not_written_are_printed_whatever_else_fails(run: Run, folder: Path) -> None:
    (folder / "broken").mkdir()
    task_toml(folder / "broken", name="broken", data={"dataset": "elsewhere"})
    done = run("retrieve", "broken/broken.toml", "tiny.toml", "--store", "s", "--encoder", "mfcc", "--json")
    assert (done.code, [each["task"] for each in json.loads(done.out)]) == (2, ["tiny"])
    assert re.search(r"\b1\b.*\b2\b", done.err.splitlines()[-1])


@pytest.mark.usefixtures("store")
def test_what_is_asked_for_twice_is_scored_once_and_two_tasks_of_one_name_are_an_error(run: Run, folder: Path) -> None:
    [name] = [path.name for path in Path("s").iterdir() if path.name.startswith("mfcc@")]
    twice = run(
        "retrieve", "tiny.toml", "./tiny.toml", "--store", "s", "--encoder", "mfcc", "--encoder", name, "--json"
    )
    assert [each["encoder"] for each in json.loads(twice.out)] == ["mfcc"]
    (folder / "other").mkdir()
    task_toml(folder / "other", probe={"epochs": 3})
    outcome = run("retrieve", "tiny.toml", "other/tiny.toml", "--store", "s")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.search(r"\btiny\.toml.*other/tiny\.toml", outcome.err)


@pytest.mark.usefixtures("store")
def test_a_score_that_finds_no_room_on_the_disk_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("featstore.report.write_score", full)
    done = run("retrieve", "tiny.toml", "--store", "s", "--json", "--results", "r")
    assert (done.code, len(json.loads(done.out))) == (1, 2)
    assert "2 scores" in done.error_lines[-1]
    assert "tiny by logmel@" in done.error_lines[-1]
    assert os.strerror(errno.ENOSPC).lower() in done.error_lines[-1]


OUT_OF_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "2359296 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("command", "error"),
    [("probe", RuntimeError(OUT_OF_MEMORY)), ("retrieve", MemoryError())],
    ids=["of PyTorch", "of Python"],
)
def test_memory_that_runs_out_is_a_line_for_its_task_and_the_others_are_scored(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, error: Exception
) -> None:
    import featstore.probe
    import featstore.retrieve.measures

    (folder / "large").mkdir()
    task_toml(folder / "large", name="large", probe={"epochs": 3})
    module, name = (
        (featstore.probe, "probe_task") if command == "probe" else (featstore.retrieve.measures, "score_measures")
    )
    score = getattr(module, name)

    def runs_out(store: object, manifest: Any, **options: Any) -> object:
        if manifest.name == "large":
            raise error
        return score(store, manifest, **options)

    monkeypatch.setattr(module, name, runs_out)
    done = run(command, "large/large.toml", "tiny.toml", "--store", "s", "--json", "--results", "r")
    assert (done.code, [each["task"] for each in json.loads(done.out)]) == (1, ["tiny", "tiny"])
    lines = [line for line in done.err.splitlines() if line.startswith("featstore: large by ")]
    assert len(lines) == 2
    assert all("memory" in line and "--jobs" in line for line in lines)
    assert "Traceback" not in done.err
    assert {path.name.split(".")[0] for path in Path("r").iterdir()} == {"tiny"}


@pytest.mark.usefixtures("store")
def test_an_error_of_pytorch_that_is_no_want_of_memory_is_a_bug_and_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x1)")

    monkeypatch.setattr("featstore.probe.probe_task", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run("probe", "tiny.toml", "--store", "s")


@pytest.mark.usefixtures("store")
def test_memory_that_runs_out_for_a_map_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_: object, **__: object) -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr("featstore.explore.page.explore", runs_out)
    done = run("explore", "mfcc/tiny/train", "--store", "s")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "memory" in done.err


def has_begun(group: int) -> bool:
    """Whether there is a process beside the first and what tracks the resources of both."""
    return len(members_of(group)) > 2


def trains(group: int) -> bool:
    """Whether two processes have torch: the first, which waits for them, never does."""
    return sum("libtorch_cpu" in Path(f"/proc/{each}/maps").read_text() for each in members_of(group)) == 2


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("moment", [pytest.param(has_begun, marks=pytest.mark.slow), trains])
def test_ctrl_c_ends_every_process_and_is_reported_on_one_line(folder: Path, moment: Callable[[int], bool]) -> None:
    code = "import sys; from featstore.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "probe", "tiny.toml", "--store", "s", "--jobs", "2"]
    command += ["--head", "linear", "--seeds", "2000"]
    started = subprocess.Popen(
        command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 60
    while not moment(started.pid):
        assert time.monotonic() < limit
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(started.pid, signal.SIGINT)
    _, error = started.communicate(timeout=30)
    assert started.returncode == 130, error
    assert error.strip().startswith("featstore: ")
    assert "\n" not in error.strip()
    wait_until_nobody_is_left(started.pid)


@pytest.mark.usefixtures("store")
def test_what_is_measured_beside_a_score_is_printed(run: Run) -> None:
    outcome = run(
        "retrieve",
        "tiny.toml",
        "--store",
        "s",
        "--encoder",
        "logmel",
        "--k",
        "1,3",
        "--index",
        "hnsw",
        "--shots",
        "1,2",
    ).out
    assert "recall@3 1.000" in outcome
    words = outcome.split()
    assert {"k=1", "k=3"} <= set(words)
    assert outcome.count("tiny, logmel") == 2
    few = run("probe", "tiny.toml", "--store", "s", "--encoder", "logmel", "--head", "logreg", "--shots", "2", "--json")
    [record] = json.loads(few.out)
    assert record["settings"]["head"] == "logistic"
    assert list(record["details"]["shots"]) == ["2"]


@pytest.mark.usefixtures("store")
def test_a_task_without_neighbours_is_skipped_among_several_and_an_error_alone(run: Run, folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    task_toml(other, name="other", retrieve={"enabled": False})
    among = run("retrieve", "tiny.toml", "other/other.toml", "--store", "s", "--json")
    assert among.code == 0
    assert "other/other.toml" in among.err
    assert {each["task"] for each in json.loads(among.out)} == {"tiny"}
    alone = run("retrieve", "other/other.toml", "--store", "s")
    assert alone.code == 2


@pytest.mark.usefixtures("store")
def test_several_measures_are_scored_and_written_and_have_a_table_each(run: Run, folder: Path) -> None:
    measures = "knn,retrieval,clustering,pairs"
    done = run(
        "retrieve", "tiny.toml", "--store", "s", "--encoder", "mfcc", "--measure", measures, "--results", "r", "--json"
    )
    assert done.code == 0, done.err
    records = json.loads(done.out)
    assert [each["settings"].get("measure", "knn") for each in records] == measures.split(",")
    assert len(list((folder / "r").iterdir())) == 4
    report = run("report", "r", "--format", "csv")
    assert {line["measure"] for line in csv.DictReader(report.out.splitlines())} == set(measures.split(","))
    shown = run("retrieve", "tiny.toml", "--store", "s", "--encoder", "mfcc", "--measure", "pairs")
    assert "d_prime" in shown.out
    unknown = run("retrieve", "tiny.toml", "--store", "s", "--measure", "pair")
    assert (unknown.code, "Traceback" in unknown.err) == (2, False)


@pytest.mark.parametrize(("option", "value"), [("--k", "1,x"), ("--k", "0"), ("--shots", "5,5"), ("--shots", "")])
def test_a_list_of_numbers_that_is_none_is_a_usage_error(run: Run, folder: Path, option: str, value: str) -> None:
    done = run("retrieve", "tiny.toml", "--store", str(folder / "s"), option, value)
    assert done.code == 2
    assert option in done.err
