"""Every bad input is one line that says what is wrong, with the right exit code, and never a traceback."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from featstore.cli import main
from featstore.errors import UsageError
from handmade import XARES_ENCODER, Outcome, Run, run_cli, task_toml

pytestmark = pytest.mark.usefixtures("folder")

EXTRACT = ("extract", "tiny.toml", "--encoder", "logmel", "--data", "data", "--store", "store")


def check_error_line(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    [line] = outcome.error_lines
    assert line.startswith("featstore: ")
    for part in parts:
        assert part in line


def replaced(option: str, value: str | Path) -> tuple[str, ...]:
    """The extract command with the value of one option changed."""
    command = list(EXTRACT)
    command[command.index(option) + 1] = str(value)
    return tuple(command)


def test_an_empty_pattern(run: Run, folder: Path) -> None:
    task_toml(folder, splits={"train": "none*.tar", "valid": "valid*.tar", "test": "test*.tar"})
    check_error_line(run(*EXTRACT), 1, "'none*.tar'")


def test_an_unknown_manifest_key(run: Run, folder: Path) -> None:
    path = folder / "tiny.toml"
    path.write_text(path.read_text().replace('field = "label"', 'feild = "label"'))
    check_error_line(run(*EXTRACT), 2, "tiny.toml", "feild")


def test_a_manifest_that_is_no_toml(run: Run, folder: Path) -> None:
    (folder / "tiny.toml").write_bytes(b"\xff\x00 = [")
    check_error_line(run(*EXTRACT), 2, "tiny.toml")


@pytest.mark.parametrize("command", ["extract", "probe", "retrieve"])
def test_an_unknown_task(command: str, run: Run) -> None:
    if command == "extract":
        outcome = run("extract", "esc5", "--encoder", "logmel", "--data", "data", "--store", "store")
    else:
        run(*EXTRACT)
        outcome = run(command, "esc5", "--store", "store")
    check_error_line(outcome, 2, "esc5", "esc50")


def test_a_page_is_not_poured_into_a_terminal(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "results").mkdir()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    check_error_line(run("report", "--results", "results", "--format", "html"), 2, "--out")


def test_a_suffix_that_names_no_format_lists_those_that_do(run: Run, folder: Path) -> None:
    for name in ("board.xls", "board"):
        outcome = run("report", "results", "--out", name)
        check_error_line(outcome, 2, name, ".html", ".md", ".csv", ".json", ".txt")
        assert not Path(name).exists()


def test_a_split_that_the_task_does_not_have(run: Run) -> None:
    check_error_line(run(*EXTRACT, "--split", "dev"), 2, "dev", "train, valid, test")


@pytest.mark.parametrize("command", ["probe", "retrieve"])
def test_a_split_that_was_not_extracted(command: str, run: Run) -> None:
    run(*EXTRACT, "--split", "train")
    check_error_line(run(command, "tiny.toml", "--store", "store"), 2, "store")


@pytest.mark.parametrize("command", ["probe", "retrieve"])
def test_a_label_outside_the_classes(command: str, run: Run, folder: Path) -> None:
    run(*EXTRACT)
    task_toml(folder, classes=["low", "middle"])
    check_error_line(run(command, "tiny.toml", "--store", "store"), 1, "'high'", "low")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (".transpose(1, 2)", "(2, 12, 50)"),
        (".transpose(1, 2)[0]", "(50, 12)"),
        (".transpose(1, 2).log()", "NaN"),
        (".transpose(1, 2).no_such()", "no_such"),
    ],
    ids=["width", "rank", "NaN", "raises"],
)
def test_an_encoder_that_breaks_the_contract(change: str, part: str, run: Run, folder: Path) -> None:
    new = "" if part == "(2, 12, 50)" else change
    (folder / "my_encoder.py").write_text(XARES_ENCODER.replace(".transpose(1, 2)", new))
    check_error_line(run(*replaced("--encoder", "./my_encoder.py")), 1, "MyEncoder", part)
    assert not (folder / "store").exists()


@pytest.mark.parametrize("command", ["probe", "retrieve"])
def test_an_ambiguous_encoder_name(command: str, run: Run) -> None:
    run(*EXTRACT)
    run(*EXTRACT, "--padding", "exact")
    check_error_line(run(command, "tiny.toml", "--store", "store", "--encoder", "logmel"), 2, "logmel@")
    check_error_line(run(command, "tiny.toml", "--store", "store", "--encoder", "unknown"), 2, "unknown")


def test_a_store_of_a_newer_format(run: Run, folder: Path) -> None:
    run(*EXTRACT)
    from featstore.store.format import seal

    (folder / "store/zarr.json").write_bytes(seal({"format": 2}))
    for command in (EXTRACT, ("probe", "tiny.toml", "--store", "store"), ("retrieve", "tiny.toml", "--store", "store")):
        check_error_line(run(*command), 1, "format 2")


@pytest.mark.parametrize("command", ["probe", "retrieve"])
def test_a_store_that_is_not_there(command: str, run: Run) -> None:
    check_error_line(run(command, "tiny.toml", "--store", "no-store"), 2, "no-store")


def test_a_folder_that_is_no_store_is_not_written_to(run: Run, folder: Path) -> None:
    outcome = run(*replaced("--store", "data"))
    check_error_line(outcome, 1, "data")
    assert [path.name for path in (folder / "data").iterdir()] == ["tiny"]


@pytest.mark.parametrize("command", [EXTRACT[:-2], ("inspect",), ("gc",), ("verify",), ("tasks",)])
def test_a_file_in_place_of_a_store(command: tuple[str, ...], run: Run) -> None:
    check_error_line(run(*command, "--store", "tiny.toml"), 2, "--store", "'tiny.toml'")
    check_error_line(run("copy", "store", "tiny.toml"), 2, "DST", "'tiny.toml'")


def test_a_page_for_a_folder_that_is_not_there_is_refused_before_it_is_made(run: Run) -> None:
    check_error_line(
        run("report", "--results", "nowhere", "--out", "no/board.html", "--format", "html"), 2, "board.html"
    )


def test_a_store_in_a_folder_that_cannot_be_made(run: Run, folder: Path) -> None:
    (folder / "file").write_text("")
    check_error_line(run(*replaced("--store", "file/store")), 1, "file/store")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("extract",), ["TASK", "extract --help"]),
        (("extract", "tiny.toml"), ["--encoder"]),
        (("no-such-command",), ["no-such-command", "--help"]),
        (("probe", "tiny.toml", "--stroe", "x"), ["--stroe"]),
        (("probe", "tiny.toml", "--store", "s", "--seeds", "0"), ["--seeds"]),
        (("retrieve", "tiny.toml", "--store", "s", "--k", "many"), ["--k"]),
        ((*EXTRACT, "--padding", "much"), ["--padding", "'much'"]),
        ((*EXTRACT, "--batch-seconds", "nan"), ["batch_seconds"]),
        ((*EXTRACT, "--device", "tpu"), ["--device", "'tpu'"]),
        ((*EXTRACT, "--encoder-arg", "mels"), ["name=value", "'mels'"]),
        ((*EXTRACT, "--encoder-arg", "mels=1", "--encoder-arg", "mels=2"), ["mels"]),
    ],
)
def test_a_call_that_cannot_be(arguments: tuple[str, ...], parts: list[str], run: Run) -> None:
    check_error_line(run(*arguments), 2, *parts)


def test_an_encoder_argument_that_does_not_fit(run: Run) -> None:
    check_error_line(run(*EXTRACT, "--encoder-arg", "depth=3"), 1, "depth")
    check_error_line(run(*EXTRACT, "--encoder-arg", "mels=NaN"), 1, "mels='NaN'")


def test_results_that_are_not_there_or_damaged(run: Run, folder: Path) -> None:
    check_error_line(run("report", "--results", "nowhere"), 2, "nowhere", "--results DIR")
    results = folder / "results"
    results.mkdir()
    for form in ("table", "json", "html"):
        check_error_line(run("report", "--results", "results", "--format", form), 2, "results", "--results DIR")
    (results / "a.json").write_text("{")
    check_error_line(run("report", "--results", "results"), 1, "a.json")


def test_traceback_shows_where_an_error_was_raised() -> None:
    with pytest.raises(UsageError):
        main(["--traceback", *EXTRACT, "--split", "dev"])


def test_a_process_of_its_own_tells_an_error_as_one_line(folder: Path) -> None:
    child = run_cli("inspect", "--store", "nowhere", cwd=folder)
    assert (child.returncode, child.stdout) == (2, "")
    [line] = child.stderr.splitlines()
    assert line.startswith("featstore: ")
    assert "nowhere" in line


def test_an_interrupt_is_one_line_and_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("featstore.encoders.load_encoder", interrupted)
    outcome = run(*EXTRACT)
    assert outcome.code == 130
    assert [line for line in outcome.err.splitlines() if line][-1].startswith("featstore: ")


@pytest.mark.parametrize(
    ("error", "named"),
    [(MemoryError("unable to allocate 30 GiB"), "unable to allocate 30 GiB"), (MemoryError(), "memory")],
)
def test_too_little_memory_is_one_line(
    error: MemoryError, named: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object) -> None:
        raise error

    monkeypatch.setattr("featstore.store.open_store", greedy)
    outcome = run("inspect", "--store", "s")
    assert outcome.code == 1
    [line] = outcome.error_lines
    assert named in line
