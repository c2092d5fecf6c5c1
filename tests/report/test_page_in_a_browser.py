"""The page in Chromium: sorting, hover, themes, a phone, print; nothing is asked of the network, nothing goes wrong."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from browsing import Browser, faint_texts
from featstore.report import published_scores
from featstore.report.page import render_page
from featstore.tasks import builtin_tasks
from scored import HOSTILE, a_full_board, hostile_records, scored


@cache
def everything() -> str:
    records = a_full_board(["one", "two", "three"], ["base.layer0", "base.layer6", "other"], classes=(3, 40, 200))
    records += [scored("esc50", name, value, protocol="xares") for name, value in (("other", 0.5), ("base", 0.4))]
    return render_page(records, published=published_scores())


def column(page: Any, table: str, at: int) -> list[str]:
    return page.locator(f"{table} tbody:first-of-type tr").evaluate_all(
        "(rows, at) => rows.map((row) => row.cells[at].textContent.trim())", at
    )


def test_it_opens_from_disk_asks_for_nothing_and_complains_of_nothing(browser: Browser) -> None:
    opened = browser.open(everything())
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert (
        page.locator("figure.chart").count() == 3 * 5 + 1
    )  # on track A one kind of chart or two, on track B one more; and one under xares
    for figure in page.locator("figure.chart").all():
        box = figure.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] > 250
        assert box["height"] > 120
        assert figure.locator("svg > title").text_content()
        assert figure.locator("svg > desc").text_content()
    assert page.locator("table.cm").count() == 6
    assert page.locator("img.cm").count() == 6
    assert page.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth === 40 && each.alt)")
    page.wait_for_timeout(100)
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.problems == []
    # And it could not, if it would.
    response = page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')")
    assert response == "refused"
    assert any("Content Security Policy" in problem for problem in opened.problems)
    page.close()


def test_tables_sort_by_a_click_and_by_the_keyboard_and_published_rows_stay_apart(browser: Browser) -> None:
    opened = browser.open(everything())
    page, table = opened.page, "#board-strict-A table.matrix"
    head = page.locator(f"{table} thead th").nth(2)
    head.locator("button").click()
    values = [float(text.split()[-2]) for text in column(page, table, 2)]
    assert head.get_attribute("aria-sort") == "descending"
    assert values == sorted(values, reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[-2]) for text in column(page, table, 2)] == sorted(values)
    page.locator(f"{table} thead th").nth(0).locator("button").click()
    names = [text.rstrip("*") for text in column(page, table, 0)]
    assert names == sorted(names)
    rank = "#board-xares-A table.rank"
    page.locator(f"{rank} thead th").nth(1).locator("button").click()
    page.locator(f"{rank} thead th").nth(1).locator("button").click()
    assert column(page, rank, 0) == ["base", "other"]
    apart = page.locator(f"{rank} tbody.published tr")
    assert apart.count() == 5
    assert "Published by others" in apart.first.text_content()
    assert opened.problems == []
    page.close()


def test_hovering_says_intervals_and_what_was_taken_for_what(browser: Browser) -> None:
    opened = browser.open(everything())
    page, tip = opened.page, opened.page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#board-strict-A table.matrix td[data-tip]").first.hover()
    assert " to 0." in tip.text_content()
    page.locator("#open-all").click()
    page.evaluate("document.querySelectorAll('details.part').forEach((each) => { each.open = true; })")
    page.locator("table.cm tbody td").first.hover()
    assert tip.text_content().startswith("class 0 predicted as class 0: ")
    image = page.locator("img.cm").first
    box = image.bounding_box()
    image.hover(position={"x": box["width"] * 1.5 / 40, "y": box["height"] * 39.5 / 40})
    assert tip.text_content().startswith("class 39 predicted as class 1: ")
    point = page.locator("figure.chart svg .point").first
    assert ": 0." in point.locator("title").text_content()
    assert opened.problems == []
    page.close()


def test_light_and_dark_are_the_readers_choice(browser: Browser) -> None:
    records = [*a_full_board(["one"], ["a", "b"], classes=(3,)), scored("two", "a", 0.999, classes=["x", "y"])]
    opened = browser.open(render_page(records), scheme="dark")
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(20, 23, 26)"
    assert faint_texts(page) == []
    page.locator("#theme").click()
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert faint_texts(page) == []
    page.close()


def test_a_phone_shows_it_without_scrolling_sideways_and_paper_shows_all_of_it(browser: Browser) -> None:
    opened = browser.open(everything(), width=390)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false; })")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.task[open]").count() == 4
    page.emulate_media(media="print")
    heads = page.locator("table.scores").first.locator("thead th")
    assert (heads.first.is_visible(), heads.last.is_visible()) == (True, False)  # paper opens no provenance
    display = "(each) => getComputedStyle(each).display"
    assert (
        heads.first.locator("button").evaluate(display) == "contents"
    )  # else Chromium drops it on a table's next page
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.task[open]").count() == 0
    assert len(page.pdf()) > 20_000
    page.close()


def test_a_link_to_something_folded_away_opens_it(browser: Browser) -> None:
    opened = browser.open(everything())
    page = opened.page
    page.locator("#board-strict-A table.matrix thead a").first.click()
    page.locator("details.task[open]").wait_for()
    page.locator("#board-strict-A table.rank tbody th a").first.click()
    page.locator("#provenance details[open] dt").first.wait_for(state="visible")
    page.close()


def test_a_figure_is_saved_as_an_svg_with_its_legend_and_a_table_as_csv(browser: Browser) -> None:
    records = a_full_board(["one", "two"], ["a", "b"], classes=(3,))
    opened = browser.open(render_page(records), scheme="dark")
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    text = "{http://www.w3.org/2000/svg}text"
    for figure, name in (("figure.panel", "Track-A-linear-probe-strict-protocol-.svg"), ("figure.chart", None)):
        with page.expect_download() as saved:
            page.locator(f"{figure} button.save").first.click()
        assert name in (None, saved.value.suggested_filename)
        root = ET.fromstring(Path(saved.value.path()).read_text(encoding="utf-8"))
        assert {"a", "b"} <= {each.text for each in root.iter(text)}
        assert "var(" not in ET.tostring(root, encoding="unicode")
        assert {each.get("fill") for each in root.iter(text) if each.text == "a"} == {"rgb(27, 31, 36)"}  # as if light
        assert float(root.get("height", "0")) > float(root.get("width", "0")) * 0.3
    with page.expect_download() as saved:
        page.locator("#board-strict-A .files a").first.click()
    assert saved.value.suggested_filename == "board-strict-A.csv"
    lines = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 2 * 2 + 2  # a header, scores, averages
    assert opened.problems == []
    page.close()


def test_the_picture_opens_the_section_of_a_task(browser: Browser) -> None:
    opened = browser.open(everything())
    page = opened.page
    assert page.locator("#result svg").count() == 2
    page.locator("figure.panel svg a", has_text="three").first.click()
    page.locator("details.task[open] h3", has_text="three").wait_for()
    page.close()


def test_hostile_labels_do_nothing_and_are_shown_as_they_are(browser: Browser) -> None:
    opened = browser.open(render_page(hostile_records(), title=HOSTILE[2]))
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for head in page.locator("table.matrix thead button").all()[:4]:
        head.click()
    page.locator("table.cm tbody td").first.hover()
    assert HOSTILE[0] in page.locator("#tip").text_content()
    assert page.title().startswith(HOSTILE[2])
    assert page.evaluate("window.pwned") is None
    assert opened.problems == []
    page.close()


@pytest.mark.parametrize("n_tasks", [6, pytest.param(27, marks=pytest.mark.slow)])
def test_many_tasks_by_8_encoders_stay_usable(browser: Browser, n_tasks: int) -> None:
    tasks = [task.name for task in builtin_tasks() if not task.name.startswith("demo")][:n_tasks]
    encoders = [*(f"base.layer{at}" for at in range(5)), "dasheng", "whisper", "wav2vec2"]
    records = a_full_board(tasks, encoders, classes=(2, 8, 10, 12, 35, 50, 60, 400), curves_every=4)
    assert len(records) == n_tasks * 8 * 2
    html = render_page(records)
    assert len(html.encode()) < 6_000_000
    opened = browser.open(html)
    page = opened.page
    page.locator("#board-strict-A table.matrix thead button").nth(3).click()
    page.locator("details.task > summary").nth(5).click()
    assert page.locator("details.task[open] figure.chart").first.is_visible()
    assert opened.problems == []
    page.close()
