"""The tutorial is run as it stands: every command in order, its output beside what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fenced import ROOT, Block, blocks
from handmade import environment
from installed import path_with_featstore

PAGE = ROOT / "docs/tutorial.md"


def run(block: Block, folder: Path, env: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    child = subprocess.run(
        [*command, block.text], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, f"{block.text}\n{child.stdout}\n{child.stderr}"
    return child.stdout


def loosely(text: str) -> list[str]:
    """Lines without what differs from machine to machine: figures, fingerprints, marks of the best, widths."""
    text = re.sub(r"@[0-9a-f]{8}\b", "@", text)
    text = re.sub(r"[▸≈]", " ", re.sub(r"\d+([.,]\d+)*", "0", text))
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_command_of_the_tutorial_does_what_the_page_shows(tmp_path: Path) -> None:
    folder, printed, compared = tmp_path / "five minutes", "", 0
    folder.mkdir()
    env = environment(PATH=path_with_featstore(tmp_path / "bin"))
    for block in blocks(PAGE):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language in ("sh", "python"):
            printed = run(block, folder, env)
        elif block.language == "text":
            rest = iter(loosely(printed))
            assert not [line for line in loosely(block.text) if line != "..." and line not in rest], printed
            compared += 1
    assert compared == 5
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert loosely(PAGE.read_text(encoding="utf-8")).count("...") == 1  # all else that is shown is compared
