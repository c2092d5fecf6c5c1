"""`featstore --help` is quick because it imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from handmade import audio_bytes, environment, noise
from mapped import Stored, write_set

HEAVY = ["numpy", "torch", "sklearn", "faiss", "webdataset", "zarr", "rich", "pydantic", "soundfile", "soxr", "scipy"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["extract", "--help"], ["check", "--help"], ["probe", "--help"], []]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from featstore.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit as done:\n    code = done.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], 'exit', code)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.splitlines()[-1].startswith("loaded: [] exit")


def test_what_needs_no_heavy_library_imports_none(tmp_path: Path) -> None:
    """One process, one command after the other: what is loaded after the last, some of them have loaded."""
    clips = [Stored(f"clip-{at}", np.eye(4)[at % 4] + 1, {"label": str(at % 2)}) for at in range(12)]
    for split in ("train", "test"):
        write_set(tmp_path / "s", clips, split=split)
    np.savez(tmp_path / "e.npz", X=np.eye(4))
    (tmp_path / "audio/a").mkdir(parents=True)
    (tmp_path / "audio/a/b.wav").write_bytes(audio_bytes(noise(0.1)))
    commands = [
        ["pack", "data/mine", "--audio", "audio"],
        ["tasks", "data/mine.toml", "--store", "s"],
        ["inspect", "--store", "s"],
        ["inspect", "mel/words/train", "--store", "s"],
        ["query", "train/clip-1", "--store", "s"],
        ["export", "x.npz", "--store", "s", "--split", "train", "--format", "npz", "--label", "label"],
        ["import", "e.npz", "--encoder", "mine", "--dataset", "words", "--store", "t"],
        ["copy", "s", "t"],
        ["verify", "--store", "s"],
        ["compact", "--store", "s"],
        ["gc", "--store", "s"],
        ["rename", "s", "mel", "mine"],
        ["report", "--results", "audio"],
    ]
    heavy = ["torch", "sklearn", "faiss", "webdataset", "zarr", "scipy", "matplotlib", "transformers", "jinja2"]
    code = (
        "import sys\n"
        "from featstore.cli import main\n"
        f"for command in {commands!r}:\n"
        "    try:\n        main(command)\n"
        "    except SystemExit as done:\n        print('exit', done.code)\n"
        f"print('loaded:', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    codes = [line for line in child.stdout.splitlines() if line.startswith("exit ")]
    assert codes == ["exit 0"] * (len(commands) - 1) + ["exit 2"], child.stdout + child.stderr
    assert child.stdout.splitlines()[-1] == "loaded: []"


def test_importing_featstore_imports_nothing_heavy() -> None:
    code = f"import featstore.api, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.strip() == "[]"


def test_the_help_of_extract_has_the_batches_that_a_cpu_is_given() -> None:
    from click.testing import CliRunner

    from featstore.cli import cli
    from featstore.extract import job as work

    text = " ".join(CliRunner().invoke(cli, ["extract", "--help"]).output.split())
    assert re.search(rf"\b{work.CPU_BATCH_SECONDS:g}\b.*CPU.*\b{work.LIGHT_BATCH_SECONDS:g}\b", text)
