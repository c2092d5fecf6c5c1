"""The site builds without a warning, and asks nothing of another host."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fenced import ROOT
from handmade import environment

NEEDED = ("mkdocs", "material", "mkdocstrings")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: `pip install 'featstore[docs]'`")
    out = tmp_path_factory.mktemp("site")
    child = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=environment(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "WARNING" not in child.stdout + child.stderr  # --quiet would drop warnings before --strict counts them
    return out


def test_every_page_is_built_and_finds_its_files(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    written = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    made = {f"reference/{name}.html" for name in ("command-line", "manifest", "tasks", "json", "documents", "rules")}
    assert set(pages) == {*written, *made, "notebooks/inspect.html", "changelog.html", "contributing.html", "404.html"}
    for place, html in pages.items():
        # what a page loads: a link that a reader may follow is another matter
        loaded = re.findall(r'<(?:script|img)\b[^>]*\bsrc="([^"]+)"', html)
        loaded += re.findall(r'<link\b[^>]*\brel="(?:stylesheet|preconnect|icon)"[^>]*\bhref="([^"]+)"', html)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))]
        local = [url for url in loaded if not url.startswith("/")]
        assert not [url for url in local if not (site / place).parent.joinpath(url).exists()]


def test_code_of_the_generators_is_no_part_of_the_site(site: Path) -> None:
    assert not [*site.rglob("*.py"), *site.rglob("*.pyc")]
    assert (site / "notebooks/inspect.ipynb").is_file()
