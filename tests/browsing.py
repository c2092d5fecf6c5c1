"""Chromium for tests of pages: what a page asks for and what goes wrong in it is noted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("FEATSTORE_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass
class Opened:
    """A page, what it asked for, and what went wrong."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Browser:
    chromium: Any
    folder: Path

    def open(self, html: str, *, width: int = 1280, scheme: str = "light") -> Opened:
        path = self.folder / "page.html"
        path.write_text(html, encoding="utf-8")
        return self.go(path.as_uri(), width=width, scheme=scheme)

    def go(self, url: str, *, width: int = 1280, scheme: str = "light") -> Opened:
        page = self.chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened = Opened(page=page)
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("console", lambda message: opened.problems.append(message.text))
        page.on("pageerror", lambda error: opened.problems.append(str(error)))
        page.on("dialog", lambda dialog: opened.problems.append(dialog.message))
        began = time.perf_counter()
        page.goto(url)
        opened.seconds = time.perf_counter() - began
        return opened


@contextmanager
def launched(folder: Path) -> Iterator[Browser]:
    """A browser, or the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium: `make browser` installs Debian's, or FEATSTORE_CHROMIUM says where one is")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield Browser(chromium=chromium, folder=folder)
        chromium.close()
