"""The site builds without a warning, asks nothing of another host, is found by its search and fits a phone."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from browsing import Browser
from fenced import ROOT
from handmade import environment
from servers import web_server

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


def test_the_search_of_the_site_lists_the_page_of_a_topic_first(browser: Browser, site: Path) -> None:
    wanted = {
        "python api": {"python-api.html"},
        "onnx": {"encoders.html", "how-to/i-have.html"},
        "csv": {"how-to/i-have.html"},
        "audit": {"how-to/audit.html"},
        "explore": {"explore.html"},
    }
    with web_server(site, ranges=False) as (root, _):
        opened = browser.go(f"{root}/index.html")
        query_box, results = opened.page.locator(".md-search__input"), opened.page.locator(".md-search-result__item")
        found = {}
        for query in wanted:
            query_box.fill("")
            query_box.press_sequentially(query)
            of_query = f"h={query.replace(' ', '+')}"  # the words that the opened page highlights
            first = results.first.locator(f'a[href*="{of_query}"]').first
            first.wait_for(state="attached")
            found[query] = urlsplit(first.get_attribute("href")).path.lstrip("/")
        assert [url for url in opened.requests if not url.startswith((root, "data:", "blob:"))] == []
        opened.page.close()
    assert {query: page for query, page in found.items() if page not in wanted[query]} == {}


def test_pages_fit_a_phone_and_wide_tables_scroll_in_their_own_frame(browser: Browser, site: Path) -> None:
    for name in ("index", "protocols", "benchmarks"):
        opened = browser.go((site / f"{name}.html").as_uri(), width=390)
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        assert (
            page.evaluate(
                """() => [...document.querySelectorAll('article table')].filter((table) => {
                 const frame = table.closest('.md-typeset__scrollwrap') ?? table;
                 return frame.getBoundingClientRect().right > 390 || getComputedStyle(frame).overflowX !== 'auto';
               }).length"""
            )
            == 0
        ), name
        page.close()


def test_the_pictures_of_the_front_page_are_there(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    for picture in ("images/report.png", "images/map.png"):
        assert re.search(rf'<img alt="[^"]{{20,}}" src="{picture}"', front)
        assert (site / picture).is_file()
