"""The script that measures a GPU: steps end in time, a failed one fails the script, and the stand-in runs on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import ON_CUDA, STANDIN, Step, run_step, steps
from benchmarks.run import Options
from handmade import environment

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.sh"


STEPS = {
    "passes": """print('[["works", "1 s", "", "met"]]')""",
    "fails": """raise ValueError("the device is gone")""",
    "hangs": """
import json, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(json.loads(sys.argv[1])["pid_file"]).write_text(str(child.pid))
time.sleep(600)
""",
}


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps named in `STEPS` run its code in their process."""
    popen = subprocess.Popen

    def started(arguments: list[str], **options: Any) -> Any:
        *_, name, keywords = arguments
        return popen([sys.executable, "-c", STEPS[name.partition(":")[2]], keywords], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", started)


def step(name: str, *, within_seconds: float = 120.0, **arguments: Any) -> Step:
    """A step whose process runs the code of `STEPS`."""

    def work() -> list[gpu.Cells]:
        return []

    work.__name__ = name
    return Step(name="a step", work=work, arguments=arguments, within_seconds=within_seconds)


def test_the_steps_take_ten_minutes_at_most_and_have_the_same_names_in_the_stand_in() -> None:
    on_cuda, standin = steps(ON_CUDA, "x"), steps(STANDIN, "x")
    assert sum(each.within_seconds for each in on_cuda) <= 570
    assert [each.work for each in on_cuda] == [each.work for each in standin]


@pytest.mark.usefixtures("short_steps")
def test_a_step_gives_its_rows_and_one_that_fails_gives_its_reason() -> None:
    rows = run_step(step("passes"))
    assert rows[0] == ("works", "1 s", "", "met")
    [(name, reason, _, verdict)] = run_step(step("fails"))
    assert (name, verdict) == ("a step", "failed")
    assert "the device is gone" in reason


@pytest.mark.usefixtures("short_steps")
def test_a_step_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    [row] = run_step(step("hangs", within_seconds=5.0, pid_file=str(pid_file)))
    assert row[-1] == "failed"
    pid = int(pid_file.read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child of a step outlives it")


@pytest.mark.usefixtures("short_steps")
def test_the_table_is_printed_and_a_failed_step_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "in_child", lambda _: False)
    monkeypatch.setattr(gpu, "write_data", lambda *_: None)
    monkeypatch.setattr(gpu, "steps", lambda *_: [step("passes"), step("fails")])
    tables = gpu.tables(Options(quick=True))
    grid = next(tables)
    assert [row[-1] for row in grid.rows] == ["met", "", "failed"]
    with pytest.raises(SystemExit) as ended:
        next(tables)
    assert ended.value.code == 1
    monkeypatch.setattr(gpu, "steps", lambda *_: [step("passes")])
    assert len([*gpu.tables(Options(quick=True))]) == 1
    with pytest.raises(SystemExit) as refused:
        next(gpu.tables(Options()))
    assert refused.value.code


def test_nothing_configures_the_device() -> None:
    text = SCRIPT.read_text() + Path(gpu.__file__).read_text()
    assert not [word for word in ("nvidia-smi", "gpu-reset", "set_per_process_memory_fraction") if word in text]


@pytest.mark.slow
def test_the_stand_in_runs_every_step_on_the_cpu() -> None:
    shown = {**environment(CUDA_VISIBLE_DEVICES=""), "PYTHON": sys.executable}
    done = subprocess.run(
        ["sh", str(SCRIPT), "--quick"], env=shown, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any("featstore on CPU stand-in" in line for line in lines)
    for each in steps(STANDIN, "x"):
        assert any(line.strip().startswith(f"{each.name}: step") for line in lines), each.name
    cosines = [line.split()[-1] for line in lines if "least cosine" in line]
    assert cosines == ["1.00000000"] * 2
    assert os.access(SCRIPT, os.X_OK)
