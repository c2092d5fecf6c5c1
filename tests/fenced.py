"""Fenced blocks of Markdown pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(
        r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [Block(*each) for each in found]


def featstore_commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every line that calls featstore, without comments and whatever a shell does with the output."""
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language in ("", "sh", "bash") else ():
            if re.match(r"featstore [a-z]", line):
                words = shlex.split(line, comments=True)
                end = next((at for at, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))
                yield words[1:end]
