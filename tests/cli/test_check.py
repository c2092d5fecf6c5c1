"""`featstore check` on the command line: a table, JSON, exit codes, and one line for each mistake."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from featstore.cli.tables import verdict_table
from handmade import XARES_ENCODER, Run

QUICK = """
import torch
from torch.nn import functional


class QuickEncoder(torch.nn.Module):
    sampling_rate, output_dim, hop_size_in_ms = 1000, 20, 20

    def __init__(self, defect: str = ""):
        super().__init__()
        self.defect = defect

    def forward(self, audio):
        print("the encoder has something to say")
        frames = functional.pad(audio, (0, -audio.shape[1] % 20)).unflatten(1, (-1, 20)) + 0.1
        if self.defect == "dropout":
            return functional.dropout(frames, 0.5)
        if self.defect == "peak":
            return frames / audio.abs().amax().clamp(min=0.001)
        if self.defect == "rank":
            return frames[0]
        if self.defect == "large":
            return frames * 1e6
        return frames
"""


@pytest.fixture(autouse=True)
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "quick.py"
    path.write_text(QUICK)
    return path


def test_a_sound_encoder_is_reported_in_a_table_and_exits_with_0(run: Run) -> None:
    done = run("check", "./quick.py")
    assert done.code == 0
    first, *lines = [line.rstrip() for line in done.out.splitlines() if line.strip()]
    assert first.startswith("QuickEncoder@")
    assert first.endswith(" on cpu, float32, --padding 0.25")
    assert [line.split()[:2] for line in lines[:1]] == [["check", "verdict"]]
    for name in ("contract", "determinism", "batch invariance", "padding", "hop", "silence", "float16 range", "speed"):
        [row] = [line for line in lines if line.startswith(f" {name}  ")]
        assert row.split(name)[1].split()[0] == "ok"
    assert "→ --batch-seconds" in done.out
    assert "x real time" in done.out
    assert "something to say" not in done.out
    assert "featstore: " not in done.err


def test_json_is_one_array_with_figures_and_a_failure_exits_with_1_in_one_line(run: Run) -> None:
    done = run("check", "./quick.py", "--encoder-arg", "defect=peak", "--json")
    assert done.code == 1
    checks = {each["name"]: each for each in json.loads(done.out)}
    assert {name for name, each in checks.items() if each["verdict"] == "failed"} == {"batch invariance"}
    assert set(checks["speed"]) == {"name", "verdict", "measured", "advice", "figures"}
    assert checks["speed"]["figures"]["suggested_batch_seconds"] >= 4
    assert checks["contract"]["figures"]["encoder"] == "QuickEncoder"
    assert checks["hop"]["figures"]["measured_hop_seconds"] == pytest.approx(0.02, rel=0.01)
    [line] = [line for line in done.err.splitlines() if line.startswith("featstore: ")]
    assert re.search("QuickEncoder.*batch invariance", line)


def test_settings_are_those_of_extract(run: Run) -> None:
    large = ("check", "./quick.py", "--encoder-arg", "defect=large")
    assert run(*large).code == 1
    done = run(*large, "--dtype", "float32", "--padding", "exact", "--precision", "bfloat16", "--device", "cpu")
    assert done.code == 0, done.out
    assert re.search("cpu.*bfloat16.*--padding exact", done.out)


def test_a_broken_contract_is_the_one_row_and_the_one_line(run: Run) -> None:
    done = run("check", "./quick.py", "--encoder-arg", "defect=rank")
    assert done.code == 1
    assert "FAILED" in done.out
    assert "(50, 20)" in done.out
    assert "determinism" not in done.out
    assert "QuickEncoder.forward" in done.out
    [check] = json.loads(run("check", "./quick.py", "--encoder-arg", "defect=rank", "--json").out)
    assert (check["name"], check["verdict"]) == ("contract", "failed")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ((), 2, ["ENCODER"]),
        (("nonesuch",), 1, ["nonesuch", "built-in"]),
        (("./nowhere.py",), 1, ["nowhere.py"]),
        (("./quick.py", "--encoder-arg", "depth=3"), 1, ["depth"]),
        (("./quick.py", "--encoder-arg", "depth"), 2, ["name=value"]),
        (("./quick.py", "--padding", "much"), 2, ["--padding", "'much'"]),
        (("./quick.py", "--device", "tpu"), 2, ["--device", "'tpu'"]),
        (("./quick.py", "--precision", "int8"), 2, ["--precision"]),
    ],
)
def test_a_call_that_cannot_be_is_one_line(arguments: tuple[str, ...], code: int, parts: list[str], run: Run) -> None:
    done = run("check", *arguments)
    assert (done.code, done.out) == (code, "")
    [line] = [line for line in done.err.splitlines() if "something to say" not in line]
    assert line.startswith("featstore: ")
    for part in parts:
        assert part in line


@pytest.mark.usefixtures("brief_checks")
def test_an_encoder_file_of_xares_is_checked(tmp_path: Path, run: Run) -> None:
    (tmp_path / "my_encoder.py").write_text(XARES_ENCODER)
    done = run("check", str(tmp_path / "my_encoder.py"), "--encoder-arg", "width=4")
    assert done.code == 0
    assert all(line.startswith("checking: ") for line in done.err.splitlines())  # progress, where the check is slow
    assert "FAILED" not in done.out


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    rows = [("padding of X-ARES", "failed", "measured at length " * 12, "what there is to do " * 9)]
    out = io.StringIO()
    Console(file=out, width=80).print(verdict_table(rows, title="logmel"))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "…" not in out.getvalue()
    assert (out.getvalue().count("length"), out.getvalue().count("there")) == (12, 9)
