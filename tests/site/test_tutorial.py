"""The tutorial is run as it stands: every command in order, its output beside what the page shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.cli import main
from fenced import ROOT, Block, blocks
from handmade import environment
from installed import path_with_featstore

PAGE = ROOT / "docs/tutorial.md"


def run(block: Block, env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a block prints. featstore runs in this process: it takes longer to import than all that it does here."""
    if block.language == "python":
        return run_apart([sys.executable, "-c", block.text], env)
    printed = ""
    for line in block.text.splitlines():
        [program, *arguments] = shlex.split(line)
        if program == "featstore":
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            captured = capsys.readouterr()
            assert not ended.value.code, captured.err
            printed += captured.out
        else:
            printed += run_apart([program, *arguments], env)
    return printed


def run_apart(command: list[str], env: dict[str, str]) -> str:
    child = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, f"{command}\n{child.stdout}\n{child.stderr}"
    return child.stdout


def loosely(text: str) -> list[str]:
    """Lines without what differs from machine to machine: figures, fingerprints, marks of the best, widths."""
    text = re.sub(r"bottleneck: [a-z ]+", "bottleneck: ", re.sub(r"@[0-9a-f]{8}\b", "@", text))
    text = re.sub(r"[▸≈]", " ", re.sub(r"\d+([.,]\d+)*", "0", text))
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_command_of_the_tutorial_does_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed, compared = tmp_path / "five minutes", "", 0
    folder.mkdir()
    monkeypatch.chdir(folder)
    env = environment(PATH=path_with_featstore(tmp_path / "bin"))
    for block in blocks(PAGE):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language in ("sh", "python"):
            printed = run(block, env, capsys)
        elif block.language == "text":
            rest = iter(loosely(printed))
            assert not [line for line in loosely(block.text) if line != "..." and line not in rest], printed
            compared += 1
    assert compared == 5
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert loosely(PAGE.read_text(encoding="utf-8")).count("...") == 1  # all else that is shown is compared
