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


# Text against what is painted behind it, by WCAG 2's relative luminance; colours are read off a canvas, as the page may
# say them in any way. Text of charts takes its colour from the page, and is left out.
_FAINT = """() => {
  const pixel = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => colour.slice(0, 3)
    .map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(rgba(getComputedStyle(each).backgroundColor));
      if (layers.at(-1)[3] === 255) break;
    }
    const blend = (under, over) => under.map((value, at) => value + ((over[at] - value) * over[3]) / 255);
    return layers.reverse().reduce(blend);
  };
  const faint = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!text || element.closest('svg, script, style') || !element.checkVisibility()) continue;
    const one = luminance(rgba(getComputedStyle(element).color)), other = luminance(behind(element));
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) faint.push(`${element.tagName} ${text.slice(0, 40)}`);
  }
  return [...new Set(faint)];
}"""


def faint_texts(page: Any) -> list[str]:
    """Texts whose contrast is below 4.5, what WCAG asks for at level AA."""
    found: list[str] = page.evaluate(_FAINT)
    return found
